//! Who may open a channel, how many may be open, and how many were turned away.

use super::Admission;
use super::wire::Refusal;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tightbeam_sys::control::Credentials;

/// How long a process whose channel ended by a fault waits before it is welcomed again. An opening costs the listener's
/// process half a millisecond of CPU time: who broke the rules and came back at once, again and again, could take a tenth of a
/// CPU from it by that alone.
const SUSPENSION: Duration = Duration::from_millis(50);
/// Processes that are remembered for that; of more the oldest are forgotten.
const SUSPENDED: usize = 64;

/// What became of those who wanted a channel of an endpoint that listens, since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Openings {
    /// They have one, or had.
    pub opened: u64,
    /// The policy did not admit their user.
    pub not_admitted: u64,
    /// Another version, layout or page size.
    pub mismatched: u64,
    /// The endpoint had as many channels as it may have.
    pub full: u64,
    /// No memory or descriptors here for another channel.
    pub exhausted: u64,
    /// What they passed was no acceptable segment.
    pub bad_segment: u64,
    /// They broke the rules of the opening, hung up, or said nothing until their time was over.
    pub broken_off: u64,
}

/// What became of one of them.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Outcome {
    Opened,
    Refused(Refusal),
    BrokenOff,
}

/// Shared by an endpoint, its listeners, and the control thread.
pub(crate) struct Gate {
    policy: Admission,
    most: usize,
    taken: AtomicUsize,
    opened: AtomicU64,
    refused: [AtomicU64; Refusal::ALL.len()],
    broken_off: AtomicU64,
    /// Ids of processes that broke the rules, and until when they wait.
    suspended: Mutex<Vec<(i32, Instant)>>,
}

impl Gate {
    /// Admits by `policy`, and at most `most` channels at a time.
    pub(crate) fn new(policy: Admission, most: usize) -> Arc<Gate> {
        Arc::new(Gate {
            policy,
            most,
            taken: AtomicUsize::new(0),
            opened: AtomicU64::new(0),
            refused: [const { AtomicU64::new(0) }; Refusal::ALL.len()],
            broken_off: AtomicU64::new(0),
            suspended: Mutex::new(Vec::new()),
        })
    }

    /// The process with this id has broken the rules. Should another one get its id, it waits in its place, which is harmless.
    ///
    /// Nobody waits for who has none here: the kernel says 0 of all that are of other pid namespaces, and they are not one.
    pub(crate) fn suspend(&self, pid: i32) {
        if pid == 0 {
            return;
        }
        let now = Instant::now();
        let mut suspended = self
            .suspended
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        suspended.retain(|(other, until)| *until > now && *other != pid);
        if suspended.len() == SUSPENDED {
            suspended.remove(0);
        }
        suspended.push((pid, now + SUSPENSION));
    }

    /// Until when the process with this id waits.
    pub(super) fn suspended(&self, pid: i32) -> Option<Instant> {
        let suspended = self
            .suspended
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let found = suspended.iter().find(|(other, _)| *other == pid);
        found
            .map(|(_, until)| *until)
            .filter(|until| *until > Instant::now())
    }

    /// A policy that panics admits nobody: the thread that asks it serves all endpoints of the process.
    pub(super) fn admits(&self, credentials: &Credentials) -> bool {
        catch_unwind(AssertUnwindSafe(|| (self.policy)(credentials))).unwrap_or(false)
    }

    /// A seat for another channel, if there is one left.
    pub(crate) fn seat(self: &Arc<Gate>) -> Option<Seat> {
        let one_more = |taken| (taken < self.most).then_some(taken + 1);
        let taken = self
            .taken
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
        taken.ok().map(|_| Seat(Arc::clone(self)))
    }

    pub(crate) fn count(&self, outcome: Outcome) {
        let counter = match outcome {
            Outcome::Opened => &self.opened,
            Outcome::Refused(why) => &self.refused[why as usize],
            Outcome::BrokenOff => &self.broken_off,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn openings(&self) -> Openings {
        let refused = |why: Refusal| self.refused[why as usize].load(Ordering::Relaxed);
        Openings {
            opened: self.opened.load(Ordering::Relaxed),
            not_admitted: refused(Refusal::NotAdmitted),
            mismatched: refused(Refusal::Mismatch),
            full: refused(Refusal::Full),
            exhausted: refused(Refusal::Exhausted),
            bad_segment: refused(Refusal::Segment),
            broken_off: self.broken_off.load(Ordering::Relaxed),
        }
    }
}

/// One of the channels that a gate allows; given back on drop.
pub(crate) struct Seat(Arc<Gate>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_broke_the_rules_waits_and_few_are_remembered() {
        let gate = Gate::new(Arc::new(|_| true), 2);
        assert_eq!(gate.suspended(7), None);
        let before = Instant::now();
        (1..=100).for_each(|pid| gate.suspend(pid));
        assert!(gate.suspended(100).is_some_and(|until| until > before));
        assert_eq!(gate.suspended(1), None);
        assert_eq!(gate.suspended.lock().unwrap().len(), SUSPENDED);
        gate.suspend(100);
        assert_eq!(gate.suspended.lock().unwrap().len(), SUSPENDED);
        // Time passes.
        gate.suspended
            .lock()
            .unwrap()
            .iter_mut()
            .for_each(|(_, until)| *until = before);
        assert_eq!(gate.suspended(100), None);
        gate.suspend(7);
        assert_eq!(gate.suspended.lock().unwrap().len(), 1);
        gate.suspend(0);
        assert_eq!(gate.suspended(0), None);
    }

    #[test]
    fn seats_are_given_back() {
        let gate = Gate::new(Arc::new(|_| true), 2);
        let first = gate.seat().unwrap();
        let second = gate.seat().unwrap();
        assert!(gate.seat().is_none());
        drop(first);
        let third = gate.seat().unwrap();
        assert!(gate.seat().is_none());
        drop((second, third));
        assert_eq!(gate.taken.load(Ordering::Relaxed), 0);
    }
}
