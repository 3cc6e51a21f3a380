//! Handing a message to the other end of a joined pair without its ring.
//!
//! Both ends are in one process and on one thread, so a message for which nobody has to wait need not be written into a slot, announced,
//! looked for and copied out again. Its header is made as if it were sent, and becomes the other end's private copy of a header as if it
//! had been found: it has the next number on both sides, and carries credit. It takes no slot.
//!
//! That, and what an endpoint does between a slot's two sides, was a third of the instructions between a packet that comes through AF_XDP and
//! the call with which its answer leaves.

use crate::descriptor::Descriptor;
use crate::layout::{PAYLOAD_BYTES, SLOT_BYTES};
use crate::port::Port;
use crate::words::{last_word, words};
use crate::{Answer, Outgoing};

/// A message that was handed over; it ends when this is dropped, also if its handler unwinds.
struct Handed<'a>(&'a mut Port);

impl Drop for Handed<'_> {
    fn drop(&mut self) {
        self.0.end_handed();
    }
}

impl Port {
    /// Hands a message to `near`, the other end of a [joined](crate::joined) pair, as if it had been sent and found: `handle` sees it by
    /// [`incoming`](Self::incoming), and may answer it then or later. It is consumed when `handle` returns.
    ///
    /// `None`, and nothing was done, if there is something in the ring that comes before it, if it is longer than a ring carries without
    /// a frame, if it is a call and as many are open as may be or one that is has its number, or if either end has stopped: then
    /// [`number`](Self::number) and [`try_send`](Self::try_send) send it, or say what is the matter.
    ///
    /// ```
    /// use tightbeam_segment::{Layout, Outgoing, joined};
    ///
    /// let (mut near, far) = joined(Layout::new(64)?, [7, 0], 1440, 1 << 20);
    /// let bytes = far.hand_over(&mut near, Outgoing::message(3), b"hello", |near| near.incoming().0.bytes().to_vec());
    /// assert_eq!(bytes.as_deref(), Some(&b"hello"[..]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn hand_over<R>(
        &self,
        near: &mut Port,
        out: Outgoing,
        payload: &[u8],
        handle: impl FnOnce(&mut Port) -> R,
    ) -> Option<R> {
        let call = match out.is_call() {
            true => Some(self.free_call()?),
            false => None,
        };
        if !self.may_number(out) || !self.may_hand(near, payload.len()) {
            return None;
        }
        if let Some(call) = call {
            call.set(u32::from(self.next_call()));
        }
        let handed = self.put(near, out, payload);
        Some(handle(&mut *handed.0))
    }

    /// The same with the answer to a call of `near`, which it finds by [`copied`](Self::copied) until the next message; `false` if nothing
    /// was done.
    #[inline]
    pub fn hand_answer(&self, near: &mut Port, call: u16, answer: Answer, payload: &[u8]) -> bool {
        let may = near.open_call(call).is_some() && self.may_hand(near, payload.len());
        if may {
            self.put(near, Outgoing::answer(answer.kind(), call), payload);
        }
        may
    }

    /// Whether a message of so many bytes may be [passed](Self::pass) to the other end of a joined pair.
    #[inline]
    pub fn may_pass(&self, far: &Port, out: Outgoing, len: usize) -> bool {
        let may_call = !out.is_call() || self.free_call().is_some();
        may_call && self.may_number(out) && self.may_hand(far, len)
    }

    /// Counts a message as sent and as consumed by the other end of a joined pair, whose caller has done with its bytes what was to be done.
    /// It [may](Self::may_pass).
    #[inline]
    pub fn pass(&self, far: &mut Port, out: Outgoing, len: usize) {
        if let (true, Some(call)) = (out.is_call(), self.free_call()) {
            call.set(u32::from(self.next_call()));
        }
        self.put_header(far, out, len);
        drop(Handed(far));
    }

    /// Whether all that was sent before has been consumed, and both ends go on.
    #[inline]
    fn may_hand(&self, near: &Port, len: usize) -> bool {
        len <= self.layout.max_inline()
            && self.tx.messages() == near.rx.messages()
            && !near.holds_message()
            && !self.tx.stopped.get()
            && near.fault.get().is_none()
    }

    /// Puts the header in its place.
    #[inline]
    fn put_header(&self, near: &Port, out: Outgoing, len: usize) {
        let header = match len > PAYLOAD_BYTES {
            false => Descriptor::short(0, out, len, self.credit()),
            true => Descriptor::long(0, out, len, self.credit()),
        };
        // One message more than slots.
        self.tx.extra.set(self.tx.extra.get().wrapping_sub(1));
        near.header.set(Descriptor(header.0 | Descriptor::COPIED));
    }

    #[inline]
    fn put<'a>(&self, near: &'a mut Port, out: Outgoing, payload: &[u8]) -> Handed<'a> {
        near.scratch.begin_at(0);
        // SAFETY: aliasing: slices of the scratch borrow the port, of which this is an exclusive reference; what writes asks for none.
        unsafe {
            near.scratch
                .fill(|first, lines| match payload.split_first_chunk() {
                    Some((chunk, rest)) => {
                        first.copy_from_slice(&words(chunk));
                        for (line, bytes) in lines.iter_mut().zip(rest.chunks(SLOT_BYTES)) {
                            write(line, bytes);
                        }
                    }
                    None => write(first, payload),
                })
        }
        self.put_header(near, out, payload.len());
        Handed(near)
    }

    fn end_handed(&self) {
        let header = self.header.get();
        self.header.set(Descriptor(header.0 | Descriptor::CONSUMED));
        self.rx.messages.set(self.rx.messages.get().wrapping_add(1));
        if header.is_reply() {
            self.close_call(header.target());
        }
    }
}

/// Fills words with bytes, of which there are no more, and the last one up with zeros.
#[inline]
fn write(into: &mut [u64], bytes: &[u8]) {
    let (whole, last) = bytes.as_chunks::<8>();
    for (word, bytes) in into.iter_mut().zip(whole) {
        *word = u64::from_ne_bytes(*bytes);
    }
    if let (Some(word), false) = (into.get_mut(whole.len()), last.is_empty()) {
        *word = last_word(last);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use crate::{Answer, Arrival, Layout, MAX_INLINE, Outgoing, Port, audit_pair, joined};
    use alloc::vec::Vec;

    fn pair(depth: usize) -> (Port, Port) {
        joined(Layout::new(depth).unwrap(), [1, 2], 2000, 1 << 20)
    }

    fn bytes(near: &mut Port) -> Vec<u8> {
        near.incoming().0.bytes().to_vec()
    }

    #[test]
    fn messages_of_every_length_are_handed_over_whole() {
        let (mut near, far) = pair(256);
        for len in 0..1500 {
            let message: Vec<u8> = (0..len).map(|n| (n * 7 + len) as u8).collect();
            let out = Outgoing::message(3);
            assert_eq!(
                far.hand_over(&mut near, out, &message, bytes),
                Some(message)
            );
        }
        assert_eq!(near.arrival(), Arrival::Empty);
        assert!(audit_pair(&far, &near).is_empty());
    }

    #[test]
    fn what_is_in_the_ring_comes_first() {
        let (mut near, far) = pair(64);
        far.try_send(Outgoing::message(1), b"first").unwrap();
        assert!(
            far.hand_over(&mut near, Outgoing::message(2), b"second", bytes)
                .is_none()
        );
        assert_eq!(near.arrival(), Arrival::Message { handler: 1 });
        assert!(
            far.hand_over(&mut near, Outgoing::message(2), b"second", bytes)
                .is_none()
        );
        near.consume();
        let second = far.hand_over(&mut near, Outgoing::message(2), b"second", bytes);
        assert_eq!(second.as_deref(), Some(&b"second"[..]));
    }

    #[test]
    fn calls_and_answers_go_either_way_and_in_turns() {
        let (mut near, mut far) = pair(16);
        for round in 0..10_000u32 {
            let question = round.to_le_bytes();
            let handed = (round / 3) % 2 == 0;
            let call = far.next_call();
            let answered = handed.then(|| {
                let wants = |near: &mut Port| {
                    assert!(near.handling_wants_reply() && near.handling() == call);
                    near.try_reply(&question).unwrap();
                };
                far.hand_over(&mut near, Outgoing::call(5), &question, wants)
            });
            if answered.flatten().is_none() {
                far.try_send(Outgoing::call(5), &question).unwrap();
                assert_eq!(near.arrival(), Arrival::Message { handler: 5 });
                near.try_reply(&question).unwrap();
                near.consume();
                near.finish_drain();
            }
            let answer = Answer::Reply;
            assert_eq!(far.arrival(), Arrival::Reply { call, answer });
            assert_eq!(far.incoming().0.bytes(), question);
            far.consume();
            far.finish_drain();
            // And the other way: the answer is handed.
            let call = near.next_call();
            near.try_send(Outgoing::call(6), &question).unwrap();
            assert_eq!(far.arrival(), Arrival::Message { handler: 6 });
            far.consume();
            assert!(far.hand_answer(&mut near, call, Answer::Reply, &question));
            assert_eq!(near.copied(), question);
            assert!(!far.hand_answer(&mut near, call, Answer::Reply, b"twice"));
        }
        assert_eq!((near.open_calls(), far.open_calls()), (0, 0));
        assert_eq!((near.fault(), far.fault()), (None, None));
        assert!(audit_pair(&far, &near).is_empty());
        let received = |port: &Port| port.counters().get(crate::Counter::Received);
        assert_eq!((received(&near), received(&far)), (20_000, 20_000));
    }

    #[test]
    fn a_call_may_be_answered_later_and_calls_have_a_limit() {
        let (mut near, mut far) = pair(64);
        let mut numbers = Vec::new();
        for _ in 0..crate::MAX_CALLS {
            let number = far.hand_over(&mut near, Outgoing::call(1), b"", |near| near.handling());
            numbers.push(number.unwrap());
        }
        assert!(
            far.hand_over(&mut near, Outgoing::call(1), b"", |_| ())
                .is_none()
        );
        for number in numbers {
            near.try_answer(number, Answer::NoReply, &[]).unwrap();
            let (call, answer) = (number, Answer::NoReply);
            assert_eq!(far.arrival(), Arrival::Reply { call, answer });
            far.consume();
        }
        assert_eq!(far.open_calls(), 0);
    }

    #[test]
    fn what_cannot_be_handed_over_is_not() {
        let (mut near, far) = pair(16);
        let long = [0; MAX_INLINE + 1];
        assert!(
            far.hand_over(&mut near, Outgoing::message(1), &long, |_| ())
                .is_none()
        );
        assert!(!far.hand_answer(&mut near, 9, Answer::Reply, b"to no call"));
        far.close();
        assert!(
            far.hand_over(&mut near, Outgoing::message(1), b"", |_| ())
                .is_none()
        );
        let (mut near, far) = pair(16);
        near.fail(crate::PeerFault::HungUp);
        assert!(
            far.hand_over(&mut near, Outgoing::message(1), b"", |_| ())
                .is_none()
        );
        assert_eq!(near.counters().get(crate::Counter::Received), 0);
    }

    /// A device that is full keeps a message; what is handed over meanwhile carries credit for it, and its slots are used again.
    #[test]
    fn what_is_held_is_not_looked_for_in_its_slots_again() {
        for (len, before) in [8, 60, 120, 1000]
            .into_iter()
            .flat_map(|len| (0..40).map(move |n| (len, n)))
        {
            let (mut near, mut far) = pair(64);
            let message = |n: u8| alloc::vec![n; len];
            let next = |far: &mut Port, handler, n| {
                assert_eq!(
                    far.arrival(),
                    Arrival::Message { handler },
                    "{len}, {before}"
                );
                assert_eq!(far.incoming().0.bytes(), message(n), "{len}, {before}");
            };
            for n in 0..before {
                near.try_send(Outgoing::message(1), &message(n)).unwrap();
                next(&mut far, 1, n);
                far.consume();
                far.hand_over(&mut near, Outgoing::message(9), b"credit", |_| ())
                    .unwrap();
            }
            near.try_send(Outgoing::message(2), &message(77)).unwrap();
            next(&mut far, 2, 77);
            let mut sent = 0;
            for _ in 0..30 {
                let answers =
                    |near: &mut Port| near.try_send(Outgoing::message(3), &message(sent)).is_ok();
                sent += u8::from(
                    far.hand_over(&mut near, Outgoing::message(9), b"", answers)
                        .unwrap(),
                );
            }
            assert!(sent > 1 && far.has_arrival());
            next(&mut far, 2, 77);
            far.consume();
            for n in 0..sent {
                next(&mut far, 3, n);
                far.consume();
            }
            assert_eq!(far.arrival(), Arrival::Empty);
            assert!(audit_pair(&far, &near).is_empty());
        }
    }

    #[test]
    fn a_handler_that_unwinds_has_had_its_message() {
        extern crate std;
        let (mut near, far) = pair(16);
        let unwinds = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            far.hand_over(&mut near, Outgoing::message(1), b"1", |_| {
                panic!("as it does")
            })
        }));
        assert!(unwinds.is_err() && !near.holds_message());
        let next = far.hand_over(&mut near, Outgoing::message(1), b"2", bytes);
        assert_eq!(next.as_deref(), Some(&b"2"[..]));
    }
}
