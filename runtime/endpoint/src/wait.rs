//! Waiting for messages: spinning, sleeping, or the one after the other (D7).
//!
//! Sleeping costs the sender nothing while nobody sleeps: the sleeper publishes that it is about to, makes that visible to
//! the peer's CPU with `membarrier`, looks once more, and sleeps on a word in the *peer's* segment, which the peer changes
//! and wakes. Every sleep is bounded, so that a peer that wakes nobody, or moves the waiter elsewhere, costs latency only.

use crate::Endpoint;
use crate::channel::ChannelId;
use crate::neighbours::GIVE_WAY;
use std::time::{Duration, Instant};
use tightbeam_segment::{Asleep, Port};
use tightbeam_sys::wake::{self, MAX_WORDS, Watched};

/// How an endpoint waits when nothing has arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wait {
    /// Spins: the lowest latency, and one CPU for it.
    Spin,
    /// Spins for a while that shrinks when spinning does not pay, then sleeps. Where a peer runs on the same CPU it does not spin:
    /// it gives way to it, then sleeps.
    #[default]
    Adaptive,
    /// Sleeps at once; where a peer runs on the same CPU it gives way to it before.
    Park,
}

/// Lets messages over devices gather between two looks. At 50,000 messages a second being woken for each of them took 8 of the 11 us of CPU
/// time that a message cost, half of it on the sender's side, whose kernel wakes who waits.
#[derive(Debug, Default)]
pub(crate) struct Gather {
    /// For so long; not at all if that is nothing.
    pub(crate) pause: Duration,
    /// Something was handled since the last pause.
    came: bool,
}

impl Gather {
    pub(crate) fn new(pause: Duration) -> Gather {
        let pause = pause.min(BOUND);
        Gather { pause, came: false }
    }

    #[inline(always)]
    pub(crate) fn note(&mut self, handled: usize) {
        self.came |= handled > 0;
    }

    /// The pause that is due, if one is.
    fn take(&mut self) -> Option<Duration> {
        let due = std::mem::take(&mut self.came) && !self.pause.is_zero();
        due.then_some(self.pause)
    }
}

/// No sleep is longer, whatever happens.
const BOUND: Duration = Duration::from_millis(10);
/// The same for one on connections: a wake-up there cannot be moved away, as that of a word can. (With 10 ms a thousand idle channels took
/// 0.38-0.55 % of a CPU, most of it the kernel's for waking.)
const BOUND_OF_CONNECTIONS: Duration = Duration::from_millis(20);
/// Up to so many channels a sleep watches a word of each, of more their connections: a word has to be armed and looked at
/// again for each sleep, which for 126 of them took 1.8 % of a CPU, and 0.4 % for 1,000 connections.
pub(crate) const FEW: usize = 32;
const _: () = assert!(FEW < MAX_WORDS);

/// Spins between two looks at the clock and at the other channels: about a microsecond or two.
const SPINS_A_LOOK: u32 = 64;
/// Most and least looks before an adaptive endpoint sleeps.
const MOST_LOOKS: u32 = 64;
const LEAST_LOOKS: u32 = 1;
/// The least where there are devices: with them a round trip takes several looks, not less than one, and to sleep through it takes ten times
/// as long.
const LEAST_LOOKS_WITH_LINES: u32 = 8;

/// One wait with a deadline.
pub(crate) struct Waiting {
    within: Duration,
    /// Set at the first look at the clock, so that a quick wait never looks.
    pub(crate) since: Option<Instant>,
    looks: u32,
    slept: bool,
    /// For whatever comes, so that it may gather.
    gathers: bool,
}

impl Waiting {
    /// As [`new`](Self::new), for whatever comes: an answer that somebody waits for must not.
    pub(crate) fn for_anything(within: Duration) -> Waiting {
        Waiting {
            gathers: true,
            ..Waiting::new(within)
        }
    }

    pub(crate) fn new(within: Duration) -> Waiting {
        Waiting {
            within,
            since: None,
            looks: 0,
            slept: false,
            gathers: false,
        }
    }
}

/// A channel in which there was no room, and what had been taken of its credit then.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    pub(crate) channel: ChannelId,
    pub(crate) taken: u64,
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
    fn punish(&mut self, least: u32) {
        self.0 = (self.0 / 2).max(least);
    }
}

impl<S, D> Endpoint<S, D> {
    /// How often a look at the only channel spins.
    #[inline(always)]
    pub(crate) fn spins(&self) -> u32 {
        match self.wait == Wait::Park || self.neighbours.near() {
            true => 0,
            false => SPINS_A_LOOK,
        }
    }

    /// Looks at the clock, and sleeps if it is time to; `false` once the deadline is over. The caller polls before it.
    #[cold]
    pub(crate) fn wait_once(&mut self, waiting: &mut Waiting) -> bool {
        self.wait_unless(waiting, false)
    }

    /// As [`wait_once`](Self::wait_once), but only looks at the clock if something was handled: a peer that never stops
    /// sending must not keep a deadline from passing.
    #[cold]
    pub(crate) fn wait_unless(&mut self, waiting: &mut Waiting, handled: bool) -> bool {
        self.wait_for_room(waiting, handled, None)
    }

    /// As [`wait_unless`](Self::wait_unless), and room in a channel ends it too.
    #[cold]
    pub(crate) fn wait_for_room(
        &mut self,
        waiting: &mut Waiting,
        handled: bool,
        room: Option<Room>,
    ) -> bool {
        let now = Instant::now();
        let gone = now - *waiting.since.get_or_insert(now);
        if gone >= waiting.within {
            return false;
        }
        if handled {
            return true;
        }
        waiting.looks += 1;
        if waiting.looks == 1 {
            self.look_for_neighbours();
        }
        if waiting.looks <= GIVE_WAY && self.give_way(now) {
            return true;
        }
        match self.shall_sleep(waiting.looks) {
            true => {
                waiting.slept = true;
                let bound = waiting.within - gone;
                match self.gather.take().filter(|_| waiting.gathers) {
                    Some(pause) => self.pause(pause.min(bound)),
                    None => self.park(bound, room),
                }
            }
            false => std::hint::spin_loop(),
        }
        true
    }

    /// Notes how a wait ended that was for something.
    #[inline(always)]
    pub(crate) fn waited(&mut self, waiting: &Waiting) {
        if waiting.looks > 0 && !waiting.slept {
            self.spin_budget.reward();
        }
    }

    /// That there is no room in this channel, from now on until it is waited for.
    pub(crate) fn no_room(&self, channel: ChannelId) -> Option<Room> {
        let taken = self.look_up(channel)?.port.taken();
        Some(Room { channel, taken })
    }

    /// Whether the peer has made some since. What it said may have been taken already by who looked for something else.
    pub(crate) fn may_have_room(&self, room: Option<Room>) -> bool {
        let found = room.and_then(|room| Some((room, self.look_up(room.channel)?)));
        found.is_some_and(|(room, channel)| {
            channel.port.has_credit() || channel.port.taken() != room.taken
        })
    }

    fn least_looks(&self) -> u32 {
        match self.lines.is_empty() {
            true => LEAST_LOOKS,
            false => LEAST_LOOKS_WITH_LINES,
        }
    }

    fn shall_sleep(&self, looks: u32) -> bool {
        match self.wait {
            Wait::Spin => false,
            Wait::Park => true,
            Wait::Adaptive => self.neighbours.near() || self.spin_budget.spent(looks),
        }
    }

    /// Sleeps for so long, or until the control thread wakes this thread: no device does. Who has channels to processes does not, because they
    /// have other ways to let messages gather.
    #[cold]
    fn pause(&mut self, pause: Duration) {
        let all_sent = self.lines.iter().all(|line| line.flush());
        if self.lines.is_empty() || self.processes > 0 || !all_sent || !self.arrived.is_empty() {
            return;
        }
        if !self.mailbox.rang() {
            self.lines.iter().for_each(|line| line.note_pause());
            wake::wait_any(&[self.mailbox.watched()], pause);
        }
    }

    /// Sleeps until a peer or the control thread wakes this thread, at most for `bound` and [`BOUND`], or [`BOUND_OF_CONNECTIONS`].
    #[cold]
    fn park(&mut self, bound: Duration, room: Option<Room>) {
        let with_devices = !self.lines.is_empty();
        if self.live > FEW || with_devices {
            let most = if with_devices {
                BOUND
            } else {
                BOUND_OF_CONNECTIONS
            };
            self.park_on_descriptor(bound.min(most), room);
            return self.spin_budget.punish(self.least_looks());
        }
        let bound = bound.min(BOUND);
        self.disarm();
        self.tell_returns();
        let ports = || self.channels.iter().flatten().map(|channel| &channel.port);
        // The words are read first: whatever is changed after this keeps us awake.
        let mut watched = [self.mailbox.watched(); 1 + FEW];
        for (slot, port) in watched[1..].iter_mut().zip(ports()) {
            *slot = watch(port);
        }
        ports().for_each(|port| port.set_asleep(Asleep::Word));
        // Without the barrier a peer may miss that we sleep; the bound then limits what that costs.
        let _ = wake::barrier();
        let count = 1 + self.live;
        let has_room = self.may_have_room(room) || self.has_room_for_queued();
        if !has_room && !self.mailbox.rang() && !ports().any(Port::has_arrival) {
            wake::wait_any(&watched[..count], bound);
            self.spin_budget.punish(self.least_looks());
        }
        ports().for_each(|port| port.set_asleep(Asleep::No));
    }
}

fn watch(port: &Port) -> Watched<'_> {
    Watched {
        word: port.peer_wake_word(),
        value: port.peer_wake_value(),
    }
}
