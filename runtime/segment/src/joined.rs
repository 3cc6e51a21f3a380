//! Two ports joined back to back within one process: the border between an endpoint and a device.
//!
//! A channel over a device has the same rings as one with another process, so that handlers, calls, batches and frames are the same.
//! The far port is the device's side of them: what it receives goes into packets, what comes in packets it sends.

use crate::lines::Line;
use crate::{
    Arrived, Backing, Courier, FrameError, FrameMemory, Granted, Identity, Incarnation, Layout,
    MakeFrames, OwnLines, PeerFault, PeerLines, Pool, Port, SLOT_BYTES, WritableBacking,
};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;
use core::cell::RefCell;
use core::ptr::NonNull;

/// Page size that both ends claim.
pub(crate) const PAGE: u32 = 4096;

/// Zeroed lines on the heap, shared by the two ends.
#[derive(Clone)]
struct HeapLines(Arc<[Line]>);

// SAFETY:
// 1. the slice lives in the Arc and is never moved; Line is aligned to 64 bytes;
// 2. it has as many lines as it has elements;
// 3. heap memory does not fault;
// 4. the elements are atomics, and nobody else has the Arc.
unsafe impl Backing for HeapLines {
    fn base(&self) -> NonNull<u8> {
        NonNull::from(&*self.0).cast()
    }

    fn lines(&self) -> usize {
        self.0.len()
    }
}

// SAFETY: bounds: all of the slice is on the heap, which is writable.
unsafe impl WritableBacking for HeapLines {}

/// A segment on the heap, as its owner and as its peer have it.
pub(crate) fn segment_on_heap(layout: Layout) -> (OwnLines, PeerLines) {
    let lines: Vec<Line> = (0..layout.lines()).map(|_| Line::zeroed()).collect();
    let memory = HeapLines(lines.into());
    (OwnLines::new(memory.clone()), PeerLines::new(memory))
}

/// Two ports with these labels, in memory of this process, that carry messages of at most `most` bytes, those above
/// [`Layout::max_inline`] in frames of which each side has at most `limit` bytes.
///
/// ```
/// use tightbeam_segment::{Arrival, Layout, Outgoing, joined};
///
/// let (near, mut far) = joined(Layout::new(64)?, [7, 0], 1440, 1 << 20);
/// near.try_send(Outgoing::message(3), &[1; 1440])?;
/// assert_eq!(far.arrival(), Arrival::Message { handler: 3 });
/// assert!(near.try_send(Outgoing::message(3), &[1; 1441]).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn joined(layout: Layout, labels: [u64; 2], most: usize, limit: usize) -> (Port, Port) {
    let (mut near, mut far) = pair_at(layout, labels, 0, 1);
    equip(&mut near, &mut far, limit, most);
    (near, far)
}

/// Two ports whose counts stand at `start` and whose laps at `tag`.
pub(crate) fn pair_at(layout: Layout, labels: [u64; 2], start: u64, tag: u8) -> (Port, Port) {
    let formatted = |seed| {
        let (own, seen) = segment_on_heap(layout);
        let identity = Identity::ours(layout, PAGE, Incarnation([seed, !seed]));
        (layout.format(own, &identity), seen, identity)
    };
    let (left_own, left_seen, left_identity) = formatted(1);
    let (right_own, right_seen, right_identity) = formatted(2);
    let attach = |lines, identity| match Layout::attach(lines, &identity, PAGE) {
        Ok(attached) => attached,
        Err(mismatch) => panic!("a segment of our own making: {mismatch}"),
    };
    let [left, right] = labels;
    (
        Port::starting_at(
            left_own,
            attach(right_seen, right_identity),
            left,
            start,
            tag,
        ),
        Port::starting_at(
            right_own,
            attach(left_seen, left_identity),
            right,
            start,
            tag,
        ),
    )
}

/// Lets both ends send frames, from pools of at most `limit` bytes each, in messages of at most `most` bytes.
pub(crate) fn equip(left: &mut Port, right: &mut Port, limit: usize, most: usize) {
    let (there, back) = (Rc::<Mail>::default(), Rc::<Mail>::default());
    let courier = |sends: &Rc<Mail>, takes: &Rc<Mail>| HeapCourier {
        sends: Rc::clone(sends),
        takes: Rc::clone(takes),
    };
    left.equip_up_to(most, Pool::new(HeapMaker, limit), courier(&there, &back));
    right.equip_up_to(most, Pool::new(HeapMaker, limit), courier(&back, &there));
}

type Mail = RefCell<VecDeque<Granted>>;

/// Makes memory for frames on the heap.
pub struct HeapMaker;

impl MakeFrames for HeapMaker {
    fn make(&self, bytes: usize) -> Result<Box<dyn FrameMemory>, FrameError> {
        let lines = bytes.div_ceil(SLOT_BYTES);
        let lines: Vec<Line> = (0..lines).map(|_| Line::zeroed()).collect();
        Ok(Box::new(HeapLines(lines.into())))
    }
}

struct HeapCourier {
    sends: Rc<Mail>,
    takes: Rc<Mail>,
}

impl Courier for HeapCourier {
    fn grant(
        &self,
        memory: &dyn FrameMemory,
        _number: u16,
        stride: usize,
    ) -> Result<(), FrameError> {
        let memory = memory.as_any().downcast_ref::<HeapLines>();
        let memory = Box::new(memory.ok_or(FrameError::Foreign)?.clone());
        self.sends
            .borrow_mut()
            .push_back(Granted { memory, stride });
        Ok(())
    }

    fn copies(&self) -> bool {
        true
    }

    fn granted(&self) -> Result<Arrived, PeerFault> {
        let first = self.takes.borrow_mut().pop_front();
        Ok(first.map_or(Arrived::Nothing, Arrived::Memory))
    }
}

// SAFETY: 1., 2.: as of Backing, initialised with zeros. 3. of this process only a pool has it, and the peer's port, which reads.
unsafe impl FrameMemory for HeapLines {
    fn base(&self) -> NonNull<u8> {
        Backing::base(self)
    }

    fn bytes(&self) -> usize {
        self.0.len() * SLOT_BYTES
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn protect(&self, _from: usize, _bytes: usize, _writable: bool) -> Result<(), FrameError> {
        Ok(())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use crate::{Answer, Arrival, Layout, MAX_INLINE, Outgoing, TrySendError, joined};
    use alloc::vec;

    #[test]
    fn a_call_may_be_answered_after_others_came() {
        let (mut near, mut far) = joined(Layout::new(16).unwrap(), [1, 2], 2000, 1 << 20);
        let calls = [b"one", b"two"].map(|question| {
            let call = near.next_call();
            near.try_send(Outgoing::call(1), question).unwrap();
            call
        });
        let numbers = [0, 1].map(|_| {
            assert_eq!(far.arrival(), Arrival::Message { handler: 1 });
            let number = far.handling();
            far.consume();
            number
        });
        far.try_answer(numbers[1], Answer::Reply, &[2; 1500])
            .unwrap();
        far.try_answer(numbers[0], Answer::NoReply, &[]).unwrap();
        let [call, answer] = [calls[1], calls[0]];
        assert_eq!(
            near.arrival(),
            Arrival::Reply {
                call,
                answer: Answer::Reply
            }
        );
        assert_eq!(near.incoming().0.bytes(), [2; 1500]);
        near.consume();
        let call = answer;
        let answer = Answer::NoReply;
        assert_eq!(near.arrival(), Arrival::Reply { call, answer });
        near.consume();
        assert_eq!((near.open_calls(), near.fault()), (0, None));
    }

    #[test]
    fn whether_another_message_follows() {
        let (near, mut far) = joined(Layout::new(64).unwrap(), [1, 2], 2000, 1 << 20);
        for count in 1..100 {
            let sends = 1 + count % 5;
            for n in 0..sends {
                near.try_send(Outgoing::message(1), &vec![0; n * 100])
                    .unwrap();
            }
            for n in 0..sends {
                assert_eq!(far.arrival(), Arrival::Message { handler: 1 });
                assert_eq!(far.is_followed(), n + 1 < sends);
                far.consume();
            }
            far.finish_drain();
        }
    }

    #[test]
    fn what_is_longer_than_the_device_carries_is_refused_at_once() {
        let max = MAX_INLINE + 10;
        let (near, far) = joined(Layout::new(16).unwrap(), [1, 2], max, 1 << 20);
        let len = max + 1;
        let too_large = Err(TrySendError::TooLarge { len, max });
        let sent = near.try_send(Outgoing::message(1), &[0; MAX_INLINE + 11]);
        assert_eq!(sent, too_large);
        assert_eq!(near.try_reply(&[0; MAX_INLINE + 11]), too_large);
        assert!(far.frame(len).is_err() && far.frame(max).is_ok());
        assert_eq!((near.max_message(), near.label(), far.label()), (max, 1, 2));
    }

    #[test]
    fn frames_that_others_share_are_copied() {
        struct Elsewhere;
        impl crate::MakeFrames for Elsewhere {
            fn make(
                &self,
                bytes: usize,
            ) -> Result<alloc::boxed::Box<dyn crate::FrameMemory>, crate::FrameError> {
                let memory = crate::testing::HeapMaker.make(bytes)?;
                Ok(alloc::boxed::Box::new(Other(memory)))
            }
        }
        /// Memory of a kind that the courier does not know.
        struct Other(alloc::boxed::Box<dyn crate::FrameMemory>);
        // SAFETY: 1. to 3. are promises of the memory that it holds. lifetime: it holds it.
        unsafe impl crate::FrameMemory for Other {
            fn base(&self) -> core::ptr::NonNull<u8> {
                self.0.base()
            }
            fn bytes(&self) -> usize {
                self.0.bytes()
            }
            fn as_any(&self) -> &dyn core::any::Any {
                self
            }
            fn protect(&self, _: usize, _: usize, _: bool) -> Result<(), crate::FrameError> {
                Ok(())
            }
        }
        let (near, mut far) = joined(Layout::new(16).unwrap(), [1, 2], 2000, 1 << 20);
        let pool = crate::Pool::shared(Elsewhere, 1 << 20);
        for len in [5, 1900] {
            let mut frame = pool.frame(len).unwrap();
            frame.fill(3);
            near.try_publish(Outgoing::message(4), &frame.freeze())
                .unwrap();
            assert_eq!(far.arrival(), Arrival::Message { handler: 4 });
            assert_eq!(far.incoming().0.bytes(), vec![3; len]);
            far.consume();
        }
        assert_eq!((pool.audit().lent, near.lent()), (0, 1));
        let own = crate::Pool::new(Elsewhere, 1 << 20).frame(5).unwrap();
        let foreign = Err(crate::FrameError::Foreign.into());
        assert_eq!(near.try_lend(Outgoing::message(4), &[own]), foreign);
    }
}
