//! Peers on this thread's own CPU: who spins keeps them from running, and whoever runs them best is who gives way to them.
//!
//! Each side says in its segment on which CPU it ran when it last had nothing to do. If that is ours, a wait does not spin: it
//! gives way at once (`sched_yield`), and then sleeps. While both sides of a call wait like this none of them is ever asleep, so
//! nobody has to be woken: the one system call both hands the CPU to the peer and waits for it. A round trip of bare system calls
//! on one CPU of the build machine, which takes 0.6 us to enter the kernel and come back:
//!
//! | | us |
//! |---|---|
//! | `futex` wake, `futex` wait | 4.9 |
//! | the same with a bound; and on two words (`futex_waitv`) | 5.5; 6.4 |
//! | the same with a `membarrier` before the sleep | 7.1 |
//! | `io_uring`, wake linked to wait; and with tasks deferred | 7.7; 7.0 |
//! | `eventfd`, pipe | 4.5 to 6.0, 5.2 |
//! | `futex` wake, `sched_yield` | 3.7 |
//! | `sched_yield` | 2.9 |
//!
//! The scheduler charges a whole slice for giving way. Where a third thread wants the same CPU, a round trip of the last kind took
//! above 600 us instead of 10. So whoever finds that it took long does not give way for a while, and sleeps at once instead.

use crate::Endpoint;
use crate::wait::{FEW, Wait};
use std::time::{Duration, Instant};
use tightbeam_sys::cpu;

/// Times that a wait gives way before it sleeps. Besides the peer, one other may come first.
pub(crate) const GIVE_WAY: u32 = 2;
/// Giving way took long: somebody else had the CPU for a slice, or the peer works so long that a sleep costs little beside it.
const LONG: Duration = Duration::from_millis(1);
/// Waits without giving way after it took long; twice as many each further time, half as many again when it has not for a while.
/// A slice of another takes 3 ms or more, and a wait that sleeps some 5 us: what a trial costs is to be little beside them.
const LEAST_PENALTY: u32 = 1 << 10;
const MOST_PENALTY: u32 = 1 << 16;
/// After so many waits one spins all the same: what the peer said may be old, and while spinning pays it does not say it anew.
const BELIEVE: u32 = 64;

/// What is known of them.
#[derive(Debug, Default)]
pub(crate) struct Neighbours {
    near: bool,
    /// Waits since somebody was found near.
    believed: u32,
    /// Waits for which nobody gives way.
    penalty: u32,
    next_penalty: u32,
}

impl Neighbours {
    /// Whether a peer runs on this thread's CPU, as far as is known.
    #[inline(always)]
    pub(crate) fn near(&self) -> bool {
        self.near
    }

    /// Another wait begins.
    fn begin(&mut self, near: bool) {
        self.near = near;
        self.penalty = self.penalty.saturating_sub(1);
    }

    /// Giving way took so long.
    fn gave_way(&mut self, took: Duration) {
        if took >= LONG {
            self.penalty = self.next_penalty.max(LEAST_PENALTY);
            self.next_penalty = (self.penalty * 2).min(MOST_PENALTY);
        }
        self.believed += 1;
        if self.believed >= BELIEVE {
            (self.near, self.believed) = (false, 0);
            self.next_penalty /= 2;
        }
    }
}

impl<S, D> Endpoint<S, D> {
    /// Tells the peers where this thread runs, and looks where they do. To be done when a wait begins.
    pub(crate) fn look_for_neighbours(&mut self) {
        if self.wait == Wait::Spin || self.live > FEW {
            return;
        }
        let here = cpu::current();
        let mut near = false;
        for channel in self.channels.iter().flatten() {
            channel.port.tell_cpu(here);
            near |= channel.port.peer_cpu() == Some(here);
        }
        self.neighbours.begin(near);
    }

    /// Gives way to a peer on this CPU, if there is one and it pays.
    pub(crate) fn give_way(&mut self, now: Instant) -> bool {
        if !self.neighbours.near || self.neighbours.penalty > 0 {
            return false;
        }
        cpu::give_way();
        self.neighbours.gave_way(now.elapsed());
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waited_long_does_not_give_way_for_a_while_and_then_longer() {
        let mut neighbours = Neighbours::default();
        let mut last = 0;
        for _ in 0..10 {
            neighbours.begin(true);
            neighbours.gave_way(LONG);
            let waits = neighbours.penalty;
            assert!(waits > last || waits == MOST_PENALTY);
            for left in (0..waits).rev() {
                neighbours.begin(true);
                assert_eq!(neighbours.penalty, left);
            }
            last = waits;
        }
        assert_eq!(last, MOST_PENALTY);
        for _ in 0..10 * BELIEVE {
            neighbours.gave_way(Duration::ZERO);
        }
        neighbours.gave_way(LONG);
        assert_eq!(neighbours.penalty, LEAST_PENALTY);
    }

    #[test]
    fn what_a_peer_said_is_put_to_the_test() {
        let mut neighbours = Neighbours::default();
        let mut spins = 0;
        for _ in 0..10 * BELIEVE {
            neighbours.begin(true);
            neighbours.gave_way(Duration::ZERO);
            spins += u32::from(!neighbours.near());
        }
        assert_eq!(spins, 10);
    }
}
