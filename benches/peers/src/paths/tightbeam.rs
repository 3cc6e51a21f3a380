//! Tightbeam's own endpoint between two processes, to stand beside the others
//! in the same run.
//!
//! The far process listens, the near one connects. Every message goes through
//! the handler table: the way there meets `ECHO` or `TAKE`, the way back meets
//! `BACK`, each of which checks what it got. No channel is told to trust, to
//! lock memory or to use huge pages: the settings are those that a user gets.

use std::env::temp_dir;
use std::time::Duration;

use tightbeam::{Batch, Endpoint, Handlers, Wait};

use super::{Order, Settings, far_process, fresh_name};
use crate::fault::Fault;
use crate::link::Link;
use crate::near::{Near, Runner};
use crate::payload::{answer, check, fill, seed};
use crate::words::Words;

/// Messages handled in one poll, at most, while the rate is measured.
const BUDGET: u64 = 256;

/// Between two looks at whether anybody still measures.
const PATIENCE: Duration = Duration::from_millis(1);

/// To the far side: check and send an answer.
const ECHO: u16 = 1;
/// To the far side: check.
const TAKE: u16 = 2;
/// To the near side: check.
const BACK: u16 = 3;

pub(super) const SETTINGS: Settings = Settings {
    package: "tightbeam",
    sides: "processes",
    pingpong_depth: tightbeam::DEFAULT_DEPTH,
    rate_depth: tightbeam::DEFAULT_DEPTH,
    rate_depth_large: tightbeam::DEFAULT_DEPTH,
    how: "Endpoint::try_send to a handler, answered with Reply::try_send to a handler, poll_for(1) for round trips and \
          poll(256) one way; depth in slots of 64 bytes, everything else as the builder has it",
};

pub(super) const BATCHES: Settings = Settings {
    how: "as tightbeam, but Batch::push and Endpoint::try_send_batch, as many messages as fit into a batch",
    ..SETTINGS
};

/// What the handlers of one side know.
#[derive(Debug, Default)]
struct Seen {
    /// Number of the next message.
    next: u64,
    /// What was wrong with one, until somebody asks.
    fault: Option<Fault>,
}

impl Seen {
    #[inline(always)]
    fn take(&mut self, bytes: &[u8], seed: u64) {
        if let Err(fault) = check(bytes, self.next, seed) {
            self.fault = Some(fault);
        }
        self.next += 1;
    }
}

/// One side.
struct Side<const N: usize> {
    endpoint: Endpoint<Seen>,
}

impl<const N: usize> Side<N> {
    /// Handles what is there and says how many messages that were.
    #[inline(always)]
    fn poll(&mut self, budget: u64) -> Result<u64, Fault> {
        let handled = self.endpoint.poll(budget as usize) as u64;
        if handled > 0 && self.endpoint.state().fault.is_some() {
            return Err(self.fault());
        }
        Ok(handled)
    }

    /// Spins for one message, and handles it.
    #[inline(always)]
    fn wait_for_one(&mut self) -> Result<bool, Fault> {
        let handled = self.endpoint.poll_for(1, PATIENCE);
        if handled > 0 && self.endpoint.state().fault.is_some() {
            return Err(self.fault());
        }
        Ok(handled > 0)
    }

    #[cold]
    fn fault(&mut self) -> Fault {
        let known = self.endpoint.state_mut().fault.take();
        known.unwrap_or_else(|| Fault::Far("it sent something wrong".into()))
    }

    #[inline(always)]
    fn send_to(&mut self, handler: u16, seed: u64) -> Result<bool, Fault> {
        match self.endpoint.try_send(handler, &fill::<N>(seed)) {
            Ok(()) => Ok(true),
            Err(tightbeam::SendError::Full) => Ok(false),
            Err(error) => Err(Fault::doing("sending a message")(error)),
        }
    }
}

impl<const N: usize> Link for Side<N> {
    #[inline(always)]
    fn send(&mut self, seed: u64) -> Result<bool, Fault> {
        self.send_to(ECHO, seed)
    }

    /// The handler has checked it, by its own count.
    #[inline(always)]
    fn receive(&mut self, _number: u64, _seed: u64) -> Result<bool, Fault> {
        self.wait_for_one()
    }

    /// The handler answers too.
    #[inline(always)]
    fn echo(&mut self, _number: u64) -> Result<bool, Fault> {
        self.wait_for_one()
    }

    #[inline(always)]
    fn send_some(&mut self, first: u64, _most: u64) -> Result<u64, Fault> {
        self.send_to(TAKE, seed(first)).map(u64::from)
    }

    #[inline(always)]
    fn receive_some(&mut self, _first: u64, most: u64) -> Result<u64, Fault> {
        self.poll(most.min(BUDGET))
    }

    /// No answers came to what went one way: the next one answers message `next`.
    fn streamed(&mut self, next: u64) {
        self.endpoint.state_mut().next = next;
    }
}

/// The side that sends in batches. What it cannot send stays in the batch.
struct Batches<const N: usize> {
    side: Side<N>,
    batch: Batch,
}

impl<const N: usize> Link for Batches<N> {
    fn send(&mut self, seed: u64) -> Result<bool, Fault> {
        self.side.send(seed)
    }

    fn receive(&mut self, number: u64, seed: u64) -> Result<bool, Fault> {
        self.side.receive(number, seed)
    }

    fn echo(&mut self, number: u64) -> Result<bool, Fault> {
        self.side.echo(number)
    }

    #[inline(always)]
    fn send_some(&mut self, first: u64, most: u64) -> Result<u64, Fault> {
        if self.batch.is_empty() {
            for number in first..first + most {
                if !self.batch.push(TAKE, &fill::<N>(seed(number))) {
                    break;
                }
            }
        }
        let messages = self.batch.len() as u64;
        match self.side.endpoint.try_send_batch(&mut self.batch) {
            Ok(()) => Ok(messages),
            Err(tightbeam::SendError::Full) => Ok(0),
            Err(error) => Err(Fault::doing("sending a batch")(error)),
        }
    }

    #[inline(always)]
    fn receive_some(&mut self, first: u64, most: u64) -> Result<u64, Fault> {
        self.side.receive_some(first, most)
    }

    fn streamed(&mut self, next: u64) {
        self.side.streamed(next);
    }
}

/// What the far side does with messages of this size.
fn far_handlers<const N: usize>() -> Handlers<Seen> {
    Handlers::new()
        .on(ECHO, |seen: &mut Seen, message, reply| {
            let seed = seed(seen.next);
            seen.take(message.bytes(), seed);
            if let Err(error) = reply.try_send(BACK, &fill::<N>(answer(seed))) {
                seen.fault = Some(Fault::doing("answering")(error));
            }
        })
        .on(TAKE, |seen: &mut Seen, message, _reply| {
            let seed = seed(seen.next);
            seen.take(message.bytes(), seed);
        })
}

fn near_handlers() -> Handlers<Seen> {
    Handlers::new().on(BACK, |seen: &mut Seen, message, _reply| {
        let seed = answer(seed(seen.next));
        seen.take(message.bytes(), seed);
    })
}

pub(super) fn open<const N: usize>(order: Order) -> Result<Box<dyn Runner>, Fault> {
    open_as::<N, _>(order, |side| side)
}

pub(super) fn open_batches<const N: usize>(order: Order) -> Result<Box<dyn Runner>, Fault> {
    let batch = Batch::new();
    open_as::<N, _>(order, |side| Batches { side, batch })
}

fn open_as<const N: usize, L: Link + 'static>(
    order: Order,
    near: impl FnOnce(Side<N>) -> L,
) -> Result<Box<dyn Runner>, Fault> {
    let path = temp_dir().join(format!("{}.sock", fresh_name()));
    let address = format!("shm:{}", path.display());
    let words = Words::create()?;
    let far = far_process(order, &words, &address)?;
    let connect = || {
        Endpoint::builder()
            .state(Seen::default())
            .handlers(near_handlers())
            .depth(order.depth)
            .wait(Wait::Spin)
            .connect(&address)
            .map(|endpoint| near(Side::<N> { endpoint }))
            .map_err(Fault::doing("connecting to the far process"))
    };
    Ok(Box::new(Near::meet_then(far, words, connect)?))
}

/// The side that the far process holds.
pub(super) fn far<const N: usize>(address: &str, depth: usize) -> Result<impl Link, Fault> {
    Endpoint::builder()
        .state(Seen::default())
        .handlers(far_handlers::<N>())
        .depth(depth)
        .wait(Wait::Spin)
        .listen(address)
        .map(|endpoint| Side::<N> { endpoint })
        .map_err(Fault::doing("listening for the near process"))
}
