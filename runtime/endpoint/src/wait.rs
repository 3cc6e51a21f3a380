//! Waiting for messages: spinning, sleeping, or the one after the other (D7).
//!
//! Sleeping costs the sender nothing while nobody sleeps: the sleeper publishes that it is about to, makes that visible to
//! the peer's CPU with `membarrier`, looks once more, and sleeps on a word in the *peer's* segment, which the peer changes
//! and wakes. Every sleep is bounded, so that a peer that wakes nobody, or moves the waiter elsewhere, costs latency only.

use crate::Endpoint;
use crate::channel::ChannelId;
use std::time::{Duration, Instant};
use tightbeam_segment::Port;
use tightbeam_sys::wake::{self, MAX_WORDS, Watched};

/// How an endpoint waits when nothing has arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wait {
    /// Spins: the lowest latency, and one CPU for it.
    Spin,
    /// Spins for a while that shrinks when spinning does not pay, then sleeps.
    #[default]
    Adaptive,
    /// Sleeps at once.
    Park,
}

/// No sleep is longer, whatever happens.
const BOUND: Duration = Duration::from_millis(10);
/// Spins between two looks at the clock and at the other channels: about a microsecond or two.
const SPINS_A_LOOK: u32 = 64;
/// Most and least looks before an adaptive endpoint sleeps.
const MOST_LOOKS: u32 = 64;
const LEAST_LOOKS: u32 = 1;

/// One wait with a deadline.
pub(crate) struct Waiting {
    within: Duration,
    /// Set at the first look at the clock, so that a quick wait never looks.
    deadline: Option<Instant>,
    looks: u32,
}

impl Waiting {
    pub(crate) fn new(within: Duration) -> Waiting {
        Waiting {
            within,
            deadline: None,
            looks: 0,
        }
    }
}

/// How many fruitless looks an adaptive endpoint makes before it sleeps.
#[derive(Debug)]
pub(crate) struct SpinBudget(u32);

impl SpinBudget {
    pub(crate) fn new() -> SpinBudget {
        SpinBudget(MOST_LOOKS)
    }

    fn spent(&self, looks: u32) -> bool {
        looks >= self.0
    }

    /// Spinning was rewarded by a message.
    fn reward(&mut self) {
        self.0 = (self.0 * 2).min(MOST_LOOKS);
    }

    /// Spinning ended in a sleep.
    fn punish(&mut self) {
        self.0 = (self.0 / 2).max(LEAST_LOOKS);
    }
}

impl<S> Endpoint<S> {
    /// Spins a little for what arrives over this channel, then looks around; `false` once the deadline is over.
    #[inline(always)]
    pub(crate) fn wait_once(&mut self, channel: Option<ChannelId>, waiting: &mut Waiting) -> bool {
        if self.spin(channel) {
            return true;
        }
        self.look_around(waiting)
    }

    /// Spins on the channel given, or on the only one; says whether something has arrived there.
    #[inline(always)]
    fn spin(&mut self, channel: Option<ChannelId>) -> bool {
        let only = match channel {
            None if self.live == 1 => self.first(),
            other => other,
        };
        match only.and_then(|id| self.look_up(id)) {
            Some(channel) if self.wait != Wait::Park => channel.port.spin(SPINS_A_LOOK),
            _ => {
                std::hint::spin_loop();
                false
            }
        }
    }

    #[cold]
    fn look_around(&mut self, waiting: &mut Waiting) -> bool {
        const BUDGET: usize = 64;
        waiting.looks += 1;
        let now = Instant::now();
        let deadline = *waiting
            .deadline
            .get_or_insert_with(|| now.checked_add(waiting.within).unwrap_or(now + FOREVER));
        if now >= deadline {
            return false;
        }
        if self.poll(BUDGET) == 0 && self.shall_sleep(waiting.looks) {
            self.park(deadline - now);
        }
        true
    }

    /// Waits a little, `empty` fruitless waits after the last message.
    #[inline(always)]
    pub(crate) fn idle(&mut self, empty: u32) {
        if !self.spin(None) && self.shall_sleep(empty) {
            self.park(BOUND);
        }
    }

    /// Notes that spinning was worth it.
    pub(crate) fn woken_while_spinning(&mut self) {
        self.spin_budget.reward();
    }

    fn shall_sleep(&self, looks: u32) -> bool {
        match self.wait {
            Wait::Spin => false,
            Wait::Park => true,
            Wait::Adaptive => self.spin_budget.spent(looks),
        }
    }

    /// Sleeps until a peer or the control thread wakes this thread, at most for `bound` and [`BOUND`].
    #[cold]
    fn park(&mut self, bound: Duration) {
        let ports = || self.channels.iter().flatten().map(|channel| &channel.port);
        ports().for_each(|port| port.set_asleep(true));
        // Without the barrier a peer may miss that we sleep; the bound then limits what that costs.
        let _ = wake::barrier();
        let mut watched = [self.mailbox.watched(); MAX_WORDS];
        for (slot, port) in watched[1..].iter_mut().zip(ports()) {
            *slot = watch(port);
        }
        // More channels than can be watched are found by looking more often.
        let count = 1 + ports().count();
        let bound = if count > MAX_WORDS { BOUND / 10 } else { bound.min(BOUND) };
        if !self.mailbox.rang() && !ports().any(Port::has_arrival) {
            wake::wait_any(&watched[..count.min(MAX_WORDS)], bound);
            self.spin_budget.punish();
        }
        ports().for_each(|port| port.set_asleep(false));
    }
}

/// A deadline that is too far away to be computed.
const FOREVER: Duration = Duration::from_secs(1 << 30);

fn watch(port: &Port) -> Watched<'_> {
    let word = port.peer_wake_word();
    Watched {
        word,
        value: word.load(std::sync::atomic::Ordering::Relaxed),
    }
}
