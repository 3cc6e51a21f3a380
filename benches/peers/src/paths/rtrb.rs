//! `rtrb`: a wait-free ring of values between two threads, one for each way.
//!
//! [`Single`] uses `push` and `pop`; [`Chunks`] is the same ring through
//! `write_chunk_uninit` and `read_chunk`, for the one-way rate. Elements are
//! plain `[u8; N]`. Nothing of it can be used between processes.
//! The only `unsafe` of this crate is the one that rtrb asks for to send a
//! chunk that was filled in place.

use rtrb::{Consumer, Producer, RingBuffer};

use super::{Order, Settings, two_threads};
use crate::fault::Fault;
use crate::link::Link;
use crate::near::Runner;
use crate::payload::{check, fill, seed};

/// Messages in one chunk, at most.
const CHUNK: usize = 64;

pub(super) const SINGLE: Settings = Settings {
    package: "rtrb",
    sides: "threads",
    pingpong_depth: 2,
    rate_depth: 256,
    rate_depth_large: 1024,
    how: "[u8; size] elements, Producer::push and Consumer::pop, one ring each way",
};

pub(super) const CHUNKS: Settings = Settings {
    how: "[u8; size] elements, write_chunk_uninit and read_chunk, written and read in place, up to 64 messages a chunk",
    ..SINGLE
};

/// One side, message by message.
#[derive(Debug)]
struct Single<const N: usize> {
    out: Producer<[u8; N]>,
    back: Consumer<[u8; N]>,
}

impl<const N: usize> Link for Single<N> {
    #[inline(always)]
    fn send(&mut self, seed: u64) -> Result<bool, Fault> {
        Ok(self.out.push(fill(seed)).is_ok())
    }

    #[inline(always)]
    fn receive(&mut self, number: u64, seed: u64) -> Result<bool, Fault> {
        match self.back.pop() {
            Ok(message) => check(&message, number, seed).map(|()| true),
            Err(_) => Ok(false),
        }
    }
}

/// One side, chunk by chunk.
#[derive(Debug)]
struct Chunks<const N: usize>(Single<N>);

impl<const N: usize> Link for Chunks<N> {
    #[inline(always)]
    fn send(&mut self, seed: u64) -> Result<bool, Fault> {
        self.0.send(seed)
    }

    #[inline(always)]
    fn receive(&mut self, number: u64, seed: u64) -> Result<bool, Fault> {
        self.0.receive(number, seed)
    }

    #[inline(always)]
    fn send_some(&mut self, first: u64, most: u64) -> Result<u64, Fault> {
        let room = self.0.out.slots().min(CHUNK).min(most as usize);
        let Ok(mut chunk) = self.0.out.write_chunk_uninit(room) else {
            return Ok(0);
        };
        let mut number = first;
        let (head, tail) = chunk.as_mut_slices();
        // Two loops: one over a chain of both is up to 1.5 times slower.
        for slots in [head, tail] {
            for slot in slots {
                slot.write(fill(seed(number)));
                number += 1;
            }
        }
        // SAFETY: each slot of both slices, which are the whole chunk, was written above.
        unsafe { chunk.commit_all() };
        Ok(room as u64)
    }

    #[inline(always)]
    fn receive_some(&mut self, first: u64, most: u64) -> Result<u64, Fault> {
        let there = self.0.back.slots().min(CHUNK).min(most as usize);
        let Ok(chunk) = self.0.back.read_chunk(there) else {
            return Ok(0);
        };
        let mut number = first;
        let (head, tail) = chunk.as_slices();
        for messages in [head, tail] {
            for message in messages {
                check(message, number, seed(number))?;
                number += 1;
            }
        }
        chunk.commit_all();
        Ok(there as u64)
    }
}

fn both_sides<const N: usize>(depth: usize) -> (Single<N>, Single<N>) {
    let (out, there) = RingBuffer::new(depth);
    let (answers, back) = RingBuffer::new(depth);
    let near = Single { out, back };
    let far = Single {
        out: answers,
        back: there,
    };
    (near, far)
}

pub(super) fn open<const N: usize>(order: Order) -> Result<Box<dyn Runner>, Fault> {
    let (near, far) = both_sides::<N>(order.depth);
    two_threads(order, near, far)
}

pub(super) fn open_chunks<const N: usize>(order: Order) -> Result<Box<dyn Runner>, Fault> {
    let (near, far) = both_sides::<N>(order.depth);
    two_threads(order, Chunks(near), Chunks(far))
}
