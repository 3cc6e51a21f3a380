//! Several messages in one: fewer lines for a stream of small ones.
//!
//! ```text
//!  63      48 47           16 15        0
//! +----------+---------------+-----------+------------------------------+----------+---
//! | handler  |       0       |  length   |  payload, zeros to 8 bytes   | the next | ...
//! +----------+---------------+-----------+------------------------------+----------+---
//! ```
//!
//! A batch travels as one message of its own kind and is copied out as one; then each of its messages meets its handler, in
//! order. Whoever sends decides what goes together: nothing waits in a batch that was not asked for (as in D9, where
//! several messages share a packet only when there are several).

use crate::descriptor::{Descriptor, Outgoing};
use crate::layout::MAX_MESSAGE;
use crate::port::Port;
use crate::receive::Incoming;
use crate::words::last_word;
use crate::{PeerFault, TrySendError};

const WORD: usize = 8;
const HANDLER_SHIFT: u32 = 48;
const LENGTH: u64 = 0xffff;

/// One-way messages that are sent together.
///
/// Holds up to [`MAX_MESSAGE`] bytes, of which each message takes 8 and its payload, rounded up to 8. Allocates nothing.
#[derive(Clone)]
pub struct Batch {
    bytes: [u8; MAX_MESSAGE],
    /// Words of them.
    used: usize,
    messages: usize,
}

impl Batch {
    /// An empty one.
    pub fn new() -> Batch {
        Batch {
            bytes: [0; MAX_MESSAGE],
            used: 0,
            messages: 0,
        }
    }

    /// Adds a message for the peer's handler with this index; `false` if there is no room for it, and then nothing changes.
    #[inline(always)]
    #[must_use]
    pub fn push(&mut self, handler: u16, payload: &[u8]) -> bool {
        let (words, rest) = payload.as_chunks::<WORD>();
        let length = 1 + words.len() + usize::from(!rest.is_empty());
        let (all, _) = self.bytes.as_chunks_mut::<WORD>();
        let Some(room) = all.get_mut(self.used..self.used.saturating_add(length)) else {
            return false;
        };
        let head = payload.len() as u64 | u64::from(handler) << HANDLER_SHIFT;
        room[0] = head.to_ne_bytes();
        for (to, from) in room[1..].iter_mut().zip(words) {
            *to = *from;
        }
        if !rest.is_empty() {
            room[length - 1] = last_word(rest).to_ne_bytes();
        }
        self.used += length;
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
        let restore = Restore { port: self, batch };
        let mut messages = 0;
        let mut at = self.batch_at.get();
        while at < bytes.len() {
            let message = bytes[at..].split_first_chunk().and_then(|(head, rest)| {
                let head = u64::from_ne_bytes(*head);
                let (len, handler) = ((head & LENGTH) as usize, (head >> HANDLER_SHIFT) as u16);
                let padded = len.next_multiple_of(WORD);
                (padded <= rest.len()).then_some((handler, len, WORD + padded))
            });
            let Some((handler, len, taken)) = message else {
                self.fail(PeerFault::Batch { at });
                break;
            };
            self.scratch.begin_at(at + WORD);
            self.header.set(batch.of_batch(handler, len));
            at += taken;
            self.batch_at.set(at);
            self.unpacked.set(self.unpacked.get().wrapping_add(1));
            messages += 1;
            each(handler, Incoming::of(self), self);
        }
        drop(restore);
        self.batch_at.set(0);
        // The batch itself will be counted as one.
        let unpacked = self.unpacked.get().wrapping_sub(u64::from(at > 0));
        self.unpacked.set(unpacked);
        messages
    }
}

/// Makes the port hold the whole batch again, however its messages were left: a handler may unwind.
struct Restore<'a> {
    port: &'a Port,
    batch: Descriptor,
}

impl Drop for Restore<'_> {
    fn drop(&mut self) {
        self.port.scratch.begin_at(0);
        self.port.header.set(self.batch);
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

    /// What a peer alleges is checked before it is used, and the messages in front of a lie have been handled.
    #[test]
    fn a_batch_that_contradicts_itself_is_a_fault() {
        let message = |len: u64, handler: u64| (len | handler << HANDLER_SHIFT).to_ne_bytes();
        for (lie, at) in [
            (&[message(9, 1), [0; 8]].concat()[..], 16),
            (&[message(0xffff, 1), [0; 8]].concat(), 16),
            (&[1, 2, 3], 16),
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

    /// A receiver gets through with it what it may handle at once; of empty batches that would be any number.
    #[test]
    fn a_batch_of_nothing_is_a_fault() {
        let (left, mut right) = testing::pair(Layout::new(64).unwrap());
        left.try_send(Outgoing::batch(), &[]).unwrap();
        let fault = PeerFault::Batch { at: 0 };
        assert_eq!(right.arrival(), Arrival::Fault(fault));
    }
}
