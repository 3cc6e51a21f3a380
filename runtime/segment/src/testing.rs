//! Both ends of a channel in one process, without an operating system: for tests, models and benches of the rings alone.

use crate::lines::Line;
use crate::{
    Attached, Backing, Courier, Formatted, FrameError, FrameMemory, Granted, Identity, Incarnation,
    Layout, MakeFrames, OwnLines, PeerFault, PeerLines, Pool, Port, SLOT_BYTES, WritableBacking,
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
const PAGE: u32 = 4096;

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

/// A segment that nobody has formatted, as its owner and as its peer have it mapped.
pub fn segment(layout: Layout) -> (OwnLines, PeerLines) {
    let lines: Vec<Line> = (0..layout.lines()).map(|_| Line::zeroed()).collect();
    let memory = HeapLines(lines.into());
    (OwnLines::new(memory.clone()), PeerLines::new(memory))
}

/// Two ports joined back to back, as if freshly opened.
pub fn pair(layout: Layout) -> (Port, Port) {
    pair_at(layout, 0, 1)
}

/// Two ports whose counts stand at `start` and whose laps at `tag` (1 to 255), to meet every wrap at once.
pub fn pair_at(layout: Layout, start: u64, tag: u8) -> (Port, Port) {
    let formatted = |seed| {
        let (own, seen) = segment(layout);
        let identity = Identity::ours(layout, PAGE, Incarnation([seed, !seed]));
        (layout.format(own, &identity), seen, identity)
    };
    let (left_own, left_seen, left_identity) = formatted(1);
    let (right_own, right_seen, right_identity) = formatted(2);
    let attach = |lines, identity| match Layout::attach(lines, &identity, PAGE) {
        Ok(attached) => attached,
        Err(mismatch) => panic!("a segment of our own making: {mismatch}"),
    };
    (
        Port::starting_at(left_own, attach(right_seen, right_identity), 0, start, tag),
        Port::starting_at(right_own, attach(left_seen, left_identity), 1, start, tag),
    )
}

/// Lets both ends send frames, from pools of at most `limit` bytes each.
pub fn equip(left: &mut Port, right: &mut Port, limit: usize) {
    let (there, back) = (Rc::<Mail>::default(), Rc::<Mail>::default());
    let courier = |sends: &Rc<Mail>, takes: &Rc<Mail>| HeapCourier {
        sends: Rc::clone(sends),
        takes: Rc::clone(takes),
    };
    left.equip(Pool::new(HeapMaker, limit), courier(&there, &back));
    right.equip(Pool::new(HeapMaker, limit), courier(&back, &there));
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

    fn granted(&self) -> Result<Option<Granted>, PeerFault> {
        Ok(self.takes.borrow_mut().pop_front())
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

/// A port of any two segments, with its counts at `start` and its laps at `tag` (1 to 255).
pub fn join_at(own: Formatted, peer: Attached, start: u64, tag: u8) -> Port {
    Port::starting_at(own, peer, 0, start, tag)
}
