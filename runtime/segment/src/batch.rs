//! Several messages in one: fewer lines for a stream of small ones.
//!
//! ```text
//!  63      48 47   32 31   16 15     0
//! +----------+-------+-------+--------+----------------------------+---------------------+-----+---
//! | handler  |   0   | more  | length | payload, zeros to 8 bytes  | payload of the next | ... | the next run
//! +----------+-------+-------+--------+----------------------------+---------------------+-----+---
//! ```
//!
//! Messages of one length for one handler form a *run*: its head says how many come after the first. So 32-byte messages
//! lie two to a line.
//!
//! A batch travels as one message of its own kind and is copied out as one; then each of its messages meets its handler, in
//! order. Whoever sends decides what goes together: nothing waits in a batch that was not asked for (as in D9, where
//! several messages share a packet only when there are several). An empty one brings nothing: by it a sender passes over a number
//! that an open call has.

use crate::descriptor::{Descriptor, Outgoing};
use crate::layout::MAX_INLINE;
use crate::port::Port;
use crate::receive::Incoming;
use crate::words::last_word;
use crate::{PeerFault, TrySendError};

const WORD: usize = 8;
const HANDLER_SHIFT: u32 = 48;
/// How many messages come after the first of a run.
const MORE_SHIFT: u32 = 16;
const MORE_MASK: u64 = 0xffff;
const LENGTH: u64 = 0xffff;

/// One-way messages that are sent together.
///
/// Holds up to [`MAX_INLINE`] bytes, of which each message takes its payload, rounded up to 8 and at least 8, and 8 more unless it has
/// the handler and the length of the one before it. Allocates nothing.
#[derive(Clone)]
pub struct Batch {
    bytes: [u8; MAX_INLINE],
    /// Words of them.
    used: usize,
    messages: usize,
    /// Word at which the head of the last run is, and what it says.
    run: usize,
    head: u64,
}

impl Batch {
    /// An empty one.
    pub fn new() -> Batch {
        Batch {
            bytes: [0; MAX_INLINE],
            used: 0,
            messages: 0,
            run: 0,
            head: 0,
        }
    }

    /// Adds a message for the peer's handler with this index; `false` if there is no room for it, and then nothing changes.
    #[inline(always)]
    #[must_use]
    pub fn push(&mut self, handler: u16, payload: &[u8]) -> bool {
        let (words, rest) = payload.as_chunks::<WORD>();
        let length = room(payload.len()) / WORD;
        let head = payload.len() as u64 | u64::from(handler) << HANDLER_SHIFT;
        // An empty batch has no run: its head of 0 would be that of an empty message for handler 0.
        let starts = self.head & !(MORE_MASK << MORE_SHIFT) != head || self.used == 0;
        let (all, _) = self.bytes.as_chunks_mut::<WORD>();
        let first = self.used + usize::from(starts);
        let Some(to) = all.get_mut(first..first + length) else {
            return false;
        };
        for (to, from) in to.iter_mut().zip(words) {
            *to = *from;
        }
        if words.len() < length {
            let last = if rest.is_empty() { 0 } else { last_word(rest) };
            to[words.len()] = last.to_ne_bytes();
        }
        match starts {
            true => (self.run, self.head) = (self.used, head),
            false => self.head += 1 << MORE_SHIFT,
        }
        all[self.run] = self.head.to_ne_bytes();
        self.used = first + length;
        self.messages += 1;
        true
    }

    /// How many messages it holds.
    pub fn len(&self) -> usize {
        self.messages
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.messages == 0
    }

    /// Drops what it holds.
    pub fn clear(&mut self) {
        (self.used, self.messages) = (0, 0);
    }
}

impl Default for Batch {
    fn default() -> Self {
        Batch::new()
    }
}

impl Port {
    /// Sends a batch if there is room, and empties it; otherwise it stays as it is. Of an empty one nothing is sent.
    pub fn try_send_batch(&self, batch: &mut Batch) -> Result<(), TrySendError> {
        if batch.is_empty() {
            return Ok(());
        }
        self.try_send(Outgoing::batch(), &batch.bytes[..batch.used * WORD])?;
        self.tx.add_messages(batch.messages as u64 - 1);
        batch.clear();
        Ok(())
    }

    /// Sends an empty batch: it takes a number, and brings nothing.
    #[cold]
    #[inline(never)]
    pub(crate) fn pass_over(&self) -> Result<(), TrySendError> {
        self.try_send(Outgoing::batch(), &[])?;
        self.tx.add_messages(0u64.wrapping_sub(1));
        Ok(())
    }

    /// After [`Arrival::Batch`](crate::Arrival::Batch): hands over its messages one by one, each with the index of its handler and
    /// the port to send through, and says how many there were. Then the batch is to be [`consume`](Self::consume)d.
    ///
    /// The batch is copied out first, so that nobody can change it any more. One that contradicts itself is a fault: what is
    /// left of it is not handed over. Where `each` unwinds, the port goes on holding the batch, and the next call goes on with
    /// the message after that one.
    #[inline]
    pub fn unpack(&mut self, mut each: impl FnMut(u16, Incoming<'_>, &Port)) -> usize {
        self.copy_out(self.header.get());
        // With COPIED set, so nothing overwrites the scratch until the batch has been consumed.
        let batch = self.header.get();
        let bytes = self.scratch.bytes(batch.payload_len());
        let mut rest = Unpacking {
            port: self,
            batch,
            next: self.in_batch.get(),
            messages: 0,
        };
        loop {
            if rest.next.left == 0 {
                if rest.next.at >= bytes.len() {
                    break;
                }
                match Next::run(bytes, rest.next.at) {
                    Some(run) => rest.next = run,
                    None => {
                        self.fail(PeerFault::Batch { at: rest.next.at });
                        break;
                    }
                }
            }
            let (handler, len) = (rest.next.handler(), rest.next.len());
            self.header.set(batch.of_batch(handler, len));
            let room = room(len);
            while rest.next.left > 0 {
                self.scratch.begin_at(rest.next.at);
                rest.next.left -= 1;
                rest.next.at += room;
                rest.messages += 1;
                each(handler, Incoming::of(self), self);
            }
        }
        rest.next = Next::default();
        let messages = rest.messages;
        drop(rest);
        if self.fault.get().is_none() {
            // The batch itself will be counted as one.
            self.unpacked.set(self.unpacked.get().wrapping_sub(1));
        }
        messages
    }

    /// Ends the batch that was handled. One at fault is not consumed, because the port has stopped; the messages of it that were handed over
    /// have been counted.
    #[inline(always)]
    pub fn end_batch(&mut self) {
        match self.fault.get() {
            None => self.consume(),
            Some(_) => {
                let header = self.header.get();
                self.header.set(Descriptor(header.0 | Descriptor::CONSUMED));
            }
        }
    }
}

/// Bytes that a message of this length takes: at least a word, so that a batch holds a bounded number of them.
#[inline(always)]
fn room(len: usize) -> usize {
    len.next_multiple_of(WORD).max(WORD)
}

/// Where in a batch the next message is.
#[derive(Clone, Copy, Default)]
pub(crate) struct Next {
    /// Byte at which its payload begins, or at which the next run does if none are left of this one.
    at: usize,
    /// Messages left of the run, and the run's head.
    left: usize,
    head: u64,
}

impl Next {
    /// The run whose head is at this byte, if all of its messages are there.
    #[inline(always)]
    fn run(bytes: &[u8], at: usize) -> Option<Next> {
        let (head, rest) = bytes.get(at..)?.split_first_chunk()?;
        let head = u64::from_ne_bytes(*head);
        let left = (head >> MORE_SHIFT & MORE_MASK) as usize + 1;
        let run = Next {
            at: at + WORD,
            left,
            head,
        };
        // Both factors are at most 2^16.
        (left * room(run.len()) <= rest.len()).then_some(run)
    }

    #[inline(always)]
    fn handler(self) -> u16 {
        (self.head >> HANDLER_SHIFT) as u16
    }

    #[inline(always)]
    fn len(self) -> usize {
        (self.head & LENGTH) as usize
    }
}

/// A batch that is being unpacked. However that ends, and a handler may unwind: the port holds the whole batch again, knows
/// where to go on, and has counted what was handed over.
struct Unpacking<'a> {
    port: &'a Port,
    batch: Descriptor,
    next: Next,
    messages: usize,
}

impl Drop for Unpacking<'_> {
    fn drop(&mut self) {
        let port = self.port;
        port.scratch.begin_at(0);
        port.header.set(self.batch);
        port.in_batch.set(self.next);
        let unpacked = port.unpacked.get().wrapping_add(self.messages as u64);
        port.unpacked.set(unpacked);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::{Arrival, Counter, Layout, testing};
    use alloc::vec::Vec;

    fn unpack(port: &mut Port) -> Vec<(u16, Vec<u8>)> {
        let mut found = Vec::new();
        let messages = port.unpack(|handler, incoming, _| {
            assert!(!incoming.wants_reply());
            found.push((handler, incoming.bytes().to_vec()));
        });
        assert_eq!(messages, found.len());
        found
    }

    #[test]
    fn messages_of_all_lengths_come_out_as_they_went_in() {
        let (left, mut right) = testing::pair(Layout::new(64).unwrap());
        let mut batch = Batch::new();
        let mut sent = Vec::new();
        for len in 0..300usize {
            let payload: Vec<u8> = (0..len).map(|n| (n * 7 + len) as u8).collect();
            let handler = len as u16 * 200;
            if !batch.push(handler, &payload) {
                assert_eq!(batch.len(), sent.len());
                left.try_send_batch(&mut batch).unwrap();
                assert!(batch.is_empty());
                assert_eq!(right.arrival(), Arrival::Batch);
                assert_eq!(unpack(&mut right), sent);
                assert!(right.holds_message());
                right.consume();
                sent.clear();
                assert!(batch.push(handler, &payload), "there is room now");
            }
            sent.push((handler, payload));
        }
        assert_eq!(right.arrival(), Arrival::Empty);
        let unsent = sent.len() as u64;
        assert_eq!(left.counters().get(Counter::Sent), 300 - unsent);
        assert_eq!(right.counters().get(Counter::Received), 300 - unsent);
        // A plain message after a batch is read from the beginning.
        left.try_send(Outgoing::message(5), b"plain").unwrap();
        assert_eq!(right.arrival(), Arrival::Message { handler: 5 });
        assert_eq!(right.incoming().0.bytes(), b"plain");
    }

    #[test]
    fn an_empty_batch_is_nothing_and_a_full_ring_keeps_a_batch() {
        let (left, mut right) = testing::pair(Layout::new(2).unwrap());
        let mut batch = Batch::new();
        left.try_send_batch(&mut batch).unwrap();
        assert_eq!(right.arrival(), Arrival::Empty);
        while batch.push(1, &[9; 40]) {}
        let whole = batch.len();
        left.try_send_batch(&mut batch).unwrap();
        while batch.push(1, &[9; 40]) {}
        assert_eq!(left.try_send_batch(&mut batch), Err(TrySendError::Full));
        assert_eq!(batch.len(), whole);
        assert_eq!(right.arrival(), Arrival::Batch);
        assert_eq!(unpack(&mut right).len(), whole);
        right.consume();
        right.finish_drain();
        left.try_send_batch(&mut batch).unwrap();
    }

    #[test]
    fn messages_alike_share_a_head() {
        let (left, mut right) = testing::pair(Layout::new(64).unwrap());
        let mut batch = Batch::new();
        while batch.push(1, &[7; 32]) {}
        assert_eq!(batch.len(), (MAX_INLINE - 8) / 32);
        left.try_send_batch(&mut batch).unwrap();
        assert_eq!(right.arrival(), Arrival::Batch);
        assert_eq!(unpack(&mut right), alloc::vec![(1, [7; 32].to_vec()); 33]);
        right.consume();
        // Empty ones take a word, of which nobody learns what was there before.
        while batch.push(1, &[]) {}
        assert_eq!(batch.len(), (MAX_INLINE - 8) / 8);
        assert!(batch.bytes[8..].iter().all(|&byte| byte == 0));
        left.try_send_batch(&mut batch).unwrap();
        assert_eq!(right.arrival(), Arrival::Batch);
        assert_eq!(unpack(&mut right).len(), 134);
        right.consume();
        assert_eq!(right.counters().get(Counter::Received), 33 + 134);
    }

    /// What a peer alleges is checked before it is used, and the messages in front of a lie have been handled.
    #[test]
    fn a_batch_that_contradicts_itself_is_a_fault() {
        let message = |len: u64, handler: u64| (len | handler << HANDLER_SHIFT).to_ne_bytes();
        for (lie, at) in [
            (&[message(9, 1), [0; 8]].concat()[..], 16),
            (&[message(0xffff, 1), [0; 8]].concat(), 16),
            (&[1, 2, 3], 16),
            // A run of two of which one is there, and the longest that can be alleged.
            (&[message(8 | 1 << MORE_SHIFT, 1), [0; 8]].concat(), 16),
            (
                &[message(0xffff | 0xffff << MORE_SHIFT, 1), [0; 8]].concat(),
                16,
            ),
            (&message(1, 1), 16),
        ] {
            let (left, mut right) = testing::pair(Layout::new(64).unwrap());
            let bytes = [&message(8, 3), b"12345678", lie].concat();
            left.try_send(Outgoing::batch(), &bytes).unwrap();
            assert_eq!(right.arrival(), Arrival::Batch);
            assert_eq!(unpack(&mut right), [(3, b"12345678".to_vec())]);
            let fault = PeerFault::Batch { at };
            assert_eq!(right.fault(), Some(fault));
            assert_eq!(right.arrival(), Arrival::Fault(fault));
        }
    }

    /// It is how a number is passed over that an open call still has.
    #[test]
    fn a_batch_of_nothing_brings_nothing() {
        let (left, mut right) = testing::pair(Layout::new(64).unwrap());
        left.pass_over().unwrap();
        left.try_send(Outgoing::message(3), b"what follows")
            .unwrap();
        assert_eq!(right.arrival(), Arrival::Batch);
        assert_eq!(unpack(&mut right), []);
        right.consume();
        assert_eq!(right.arrival(), Arrival::Message { handler: 3 });
        right.consume();
        let counts = |port: &Port, counter| port.counters().get(counter);
        assert_eq!(counts(&left, Counter::Sent), 1);
        assert_eq!(counts(&right, Counter::Received), 1);
    }
}
