//! A channel's queue on the sender's side: what did not fit into its ring, oldest first ([`Policy::DropOldest`](crate::Policy)).
//!
//! What lies in the ring cannot be taken back, because the receiver may be reading it. What lies here can: so the oldest is dropped
//! here. The queue is bounded in messages and in bytes, and all of its memory is taken when it is made (I5): small messages lie in a
//! circle of bytes, each in one piece, frames are kept as they are.

use std::collections::VecDeque;
use tightbeam_segment::{Frozen, MAX_INLINE, MAX_PARTS};

/// How much a queue holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Messages; one of several frames counts as as many.
    pub(crate) messages: usize,
    /// Bytes of all of them.
    pub(crate) bytes: usize,
}

/// A message that waits.
#[derive(Debug, Clone, Copy)]
struct Entry {
    handler: u16,
    /// Frames that it has; none if it lies in the circle.
    parts: u16,
    /// Where in the circle it begins.
    at: usize,
    len: usize,
}

impl Entry {
    fn weight(&self) -> usize {
        usize::from(self.parts).max(1)
    }
}

/// The message that waits longest.
#[derive(Debug)]
pub(crate) enum Waiting<'a> {
    Bytes(&'a [u8]),
    Frames(&'a [Frozen]),
}

pub(crate) struct Queue {
    bounds: Bounds,
    entries: VecDeque<Entry>,
    frames: VecDeque<Frozen>,
    circle: Box<[u8]>,
    /// Messages that lie in the circle; the oldest of them begins at `head`, the newest ends at `tail`.
    inline: usize,
    head: usize,
    tail: usize,
    weight: usize,
    bytes: usize,
}

impl Queue {
    pub(crate) fn new(bounds: Bounds) -> Queue {
        let bounds = Bounds {
            // A message of as many frames as possible has room.
            messages: bounds.messages.max(MAX_PARTS),
            bytes: bounds.bytes,
        };
        let most = bounds.messages.saturating_mul(MAX_INLINE);
        // A message that does not fit in front of the circle's end leaves less than its own length there.
        let circle = bounds.bytes.min(most) + MAX_INLINE;
        Queue {
            bounds,
            entries: VecDeque::with_capacity(bounds.messages),
            frames: VecDeque::with_capacity(bounds.messages),
            circle: vec![0; circle].into_boxed_slice(),
            inline: 0,
            head: 0,
            tail: 0,
            weight: 0,
            bytes: 0,
        }
    }

    pub(crate) fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// Messages in it.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Bytes of them.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Copies a small message behind the others; how many of the oldest were dropped for it. Not longer than the bound, nor than
    /// [`MAX_INLINE`].
    pub(crate) fn push_bytes(&mut self, handler: u16, payload: &[u8]) -> u64 {
        let len = payload.len();
        let mut dropped = self.make_room(1, len);
        let at = loop {
            if let Some(at) = self.place(len) {
                break at;
            }
            // Not reached with a circle of this size.
            self.pop();
            dropped += 1;
        };
        self.circle[at..at + len].copy_from_slice(payload);
        if self.inline == 0 {
            self.head = at;
        }
        self.tail = at + len;
        self.inline += 1;
        self.push(Entry {
            handler,
            parts: 0,
            at,
            len,
        });
        dropped
    }

    /// Puts a message of `parts` frames, `len` bytes together, behind the others; how many of the oldest were dropped for it.
    pub(crate) fn push_frames(
        &mut self,
        handler: u16,
        (parts, len): (usize, usize),
        frames: impl FnOnce(&mut dyn FnMut(Frozen)),
    ) -> u64 {
        let dropped = self.make_room(parts, len);
        frames(&mut |frame| self.frames.push_back(frame));
        self.push(Entry {
            handler,
            parts: parts as u16,
            at: 0,
            len,
        });
        dropped
    }

    fn push(&mut self, entry: Entry) {
        self.weight += entry.weight();
        self.bytes += entry.len;
        self.entries.push_back(entry);
    }

    /// Drops the oldest until a message of this weight and length is within the bounds.
    fn make_room(&mut self, weight: usize, len: usize) -> u64 {
        let mut dropped = 0;
        while !self.is_empty()
            && (self.weight + weight > self.bounds.messages || self.bytes + len > self.bounds.bytes)
        {
            self.pop();
            dropped += 1;
        }
        dropped
    }

    /// Where in the circle there is room for so many bytes in one piece.
    fn place(&self, len: usize) -> Option<usize> {
        let (head, tail, end) = (self.head, self.tail, self.circle.len());
        if self.inline == 0 {
            return (len <= end).then_some(0);
        }
        // The newest never ends where the oldest begins, or a full circle would look like one with a single place taken.
        match tail < head {
            true => (tail + len < head).then_some(tail),
            false if tail + len <= end => Some(tail),
            false => (len < head).then_some(0),
        }
    }

    /// The message that waits longest, and its handler.
    pub(crate) fn front(&mut self) -> Option<(u16, Waiting<'_>)> {
        let entry = *self.entries.front()?;
        if entry.parts == 0 {
            let bytes = self.circle.get(entry.at..entry.at + entry.len)?;
            return Some((entry.handler, Waiting::Bytes(bytes)));
        }
        let parts = usize::from(entry.parts);
        if self.frames.as_slices().0.len() < parts {
            self.frames.make_contiguous();
        }
        let frames = self.frames.as_slices().0.get(..parts)?;
        Some((entry.handler, Waiting::Frames(frames)))
    }

    /// Takes out the message that waits longest. Its frames go back unless somebody else has them too.
    pub(crate) fn pop(&mut self) {
        let Some(entry) = self.entries.pop_front() else {
            return;
        };
        self.weight -= entry.weight();
        self.bytes -= entry.len;
        if entry.parts > 0 {
            self.frames.drain(..usize::from(entry.parts));
            return;
        }
        self.inline -= 1;
        let next = self.entries.iter().find(|entry| entry.parts == 0);
        self.head = next.map_or(0, |next| next.at);
        if next.is_none() {
            self.tail = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message as the model knows it.
    type Known = (u16, Vec<u8>);

    fn taken(queue: &mut Queue) -> Option<Known> {
        let (handler, waiting) = queue.front()?;
        let Waiting::Bytes(bytes) = waiting else {
            panic!("no frames were put in");
        };
        let known = (handler, bytes.to_vec());
        queue.pop();
        Some(known)
    }

    /// Against a list, over all lengths, with the circle much smaller than what goes through it.
    #[test]
    fn it_holds_the_newest_in_their_order() {
        for bytes in [1, 50, 1080, 3000, 40_000] {
            let bounds = Bounds {
                messages: 40,
                bytes,
            };
            let mut queue = Queue::new(bounds);
            let mut model: VecDeque<Known> = VecDeque::new();
            let mut number = 12_345u64;
            let mut dropped = 0;
            for round in 0..20_000u64 {
                number = number
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                if number >> 60 < 5 {
                    assert_eq!(taken(&mut queue), model.pop_front());
                    continue;
                }
                let len = (number >> 33) as usize % (MAX_INLINE.min(bytes) + 1);
                let message = (round as u16, vec![round as u8; len]);
                let mut expected = 0;
                let held = |model: &VecDeque<Known>| model.iter().map(|(_, m)| m.len()).sum();
                while model.len() >= bounds.messages || held(&model) + len > bytes {
                    model.pop_front();
                    expected += 1;
                }
                assert_eq!(queue.push_bytes(message.0, &message.1), expected);
                dropped += expected;
                model.push_back(message);
                assert_eq!((queue.len(), queue.bytes()), (model.len(), held(&model)));
            }
            assert!(dropped > 100, "{dropped}");
            while let Some(known) = model.pop_front() {
                assert_eq!(taken(&mut queue), Some(known));
            }
            assert!(queue.is_empty() && queue.front().is_none());
        }
    }
}
