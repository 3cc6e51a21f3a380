//! `crossbeam-channel`: a bounded channel between two threads, one for each way.
//!
//! Both sides poll with `try_send` and `try_recv`: the blocking calls would
//! park a thread, and that is another race. It is a queue for many producers
//! and many consumers, and pays for that here, where there is one of each.

use crossbeam_channel::{Receiver, Sender, TryRecvError, TrySendError, bounded};

use super::{Order, Settings, two_threads};
use crate::fault::Fault;
use crate::link::Link;
use crate::near::Runner;
use crate::payload::{check, fill};

pub(super) const SETTINGS: Settings = Settings {
    package: "crossbeam-channel",
    sides: "threads",
    pingpong_depth: 2,
    rate_depth: 256,
    rate_depth_large: 256,
    how: "bounded channel of [u8; size], try_send and try_recv, one channel each way",
};

/// One side.
#[derive(Debug)]
struct Side<const N: usize> {
    out: Sender<[u8; N]>,
    back: Receiver<[u8; N]>,
}

impl<const N: usize> Link for Side<N> {
    #[inline(always)]
    fn send(&mut self, seed: u64) -> Result<bool, Fault> {
        match self.out.try_send(fill(seed)) {
            Ok(()) => Ok(true),
            Err(TrySendError::Full(_)) => Ok(false),
            Err(TrySendError::Disconnected(_)) => Err(gone()),
        }
    }

    #[inline(always)]
    fn receive(&mut self, number: u64, seed: u64) -> Result<bool, Fault> {
        match self.back.try_recv() {
            Ok(message) => check(&message, number, seed).map(|()| true),
            Err(TryRecvError::Empty) => Ok(false),
            Err(TryRecvError::Disconnected) => Err(gone()),
        }
    }
}

#[cold]
#[inline(never)]
fn gone() -> Fault {
    Fault::Far("its end of the channel is gone".into())
}

pub(super) fn open<const N: usize>(order: Order) -> Result<Box<dyn Runner>, Fault> {
    let (out, there) = bounded(order.depth);
    let (answers, back) = bounded(order.depth);
    let near = Side::<N> { out, back };
    let far = Side {
        out: answers,
        back: there,
    };
    two_threads(order, near, far)
}
