//! Frames there and back: who gets a frame back writes it only after its reader has read it for the last time, and who gets one
//! reads all that was written.
//!
//! The bytes of a frame are no atomics, so loom does not see them. In their place each frame has a cell that loom watches: it is
//! written where the frame is, and read where the frame is, and two of these that nothing orders end the model.
//!
//! Not seen: the passing of memory, which here is there from the beginning (`tests/frames.rs`), more than a lap of the free ring
//! (`frames/tests.rs`), and a reader that is killed (`tests/steps`, `tests/faults`).

use crate::model;
use loom::cell::UnsafeCell;
use loom::thread;
use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::Arc;
use tightbeam_segment::{
    Arrival, Arrived, Backing, Courier, Frame, FrameError, FrameMemory, Granted, Layout,
    MakeFrames, Outgoing, PeerFault, Pool, Port, Received, SLOT_BYTES, TrySendError, testing,
};

/// Of this size there is one frame in a piece of memory.
const LEN: usize = 256 << 10;
/// What one takes, with what lies in front of it.
const ONE: usize = LEN + 4096;

#[repr(align(64))]
struct Plain {
    _room: [std::cell::UnsafeCell<u8>; SLOT_BYTES],
}

/// Memory that loom knows nothing of: all threads of a model are one.
#[derive(Clone)]
struct Memory(Arc<[Plain]>);

// SAFETY: aliasing: the threads of a model take turns in one thread of the system.
unsafe impl Send for Memory {}
// SAFETY: aliasing: as above.
unsafe impl Sync for Memory {}

// SAFETY: 1. the slice is never moved, and aligned. 2., 3. it is on the heap. 4. nobody else has it but as `FrameMemory`.
unsafe impl Backing for Memory {
    fn base(&self) -> NonNull<u8> {
        NonNull::from(&*self.0).cast()
    }

    fn lines(&self) -> usize {
        self.0.len()
    }
}

// SAFETY: 1. and 2. as of `Backing`, and made of zeros. 3. beside the pool only the peer's port has it, which reads.
unsafe impl FrameMemory for Memory {
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

struct Maker;

impl MakeFrames for Maker {
    fn make(&self, bytes: usize) -> Result<Box<dyn FrameMemory>, FrameError> {
        let zeros = || Plain {
            _room: [const { std::cell::UnsafeCell::new(0) }; SLOT_BYTES],
        };
        let lines: Vec<Plain> = (0..bytes.div_ceil(SLOT_BYTES)).map(|_| zeros()).collect();
        Ok(Box::new(Memory(lines.into())))
    }
}

/// Puts memory where the other side finds it.
#[derive(Clone, Default)]
struct Mail(Rc<RefCell<VecDeque<Granted>>>);

impl Courier for Mail {
    fn grant(
        &self,
        memory: &dyn FrameMemory,
        _number: u16,
        stride: usize,
    ) -> Result<(), FrameError> {
        let memory: &Memory = memory.as_any().downcast_ref().expect("of this maker");
        let memory = Box::new(memory.clone());
        self.0.borrow_mut().push_back(Granted { memory, stride });
        Ok(())
    }

    fn granted(&self) -> Result<Arrived, PeerFault> {
        let first = self.0.borrow_mut().pop_front();
        Ok(first.map_or(Arrived::Nothing, Arrived::Memory))
    }
}

/// One that sends from a pool of so many frames, and one that receives.
fn pair(frames: usize) -> (Port, Port) {
    let (mut left, mut right) = testing::pair(Layout::new(2).unwrap());
    let mail = Mail::default();
    left.equip(Pool::new(Maker, frames * ONE), mail.clone());
    right.equip(Pool::new(Maker, 0), mail);
    (left, right)
}

/// In place of the bytes of each frame, by the number that the frame begins with.
type Bytes = Rc<[UnsafeCell<u8>]>;

fn watched(frames: usize) -> Bytes {
    (0..frames).map(|_| UnsafeCell::new(0)).collect()
}

/// Takes a frame if there is one, and writes it.
fn write(port: &Port, bytes: &Bytes, known: &Cell<usize>, message: u8) -> Option<Frame> {
    let mut frame = match port.frame(LEN) {
        Ok(frame) => frame,
        Err(FrameError::InUse { .. }) => return None,
        Err(error) => panic!("{error}"),
    };
    if frame[0] == 0 {
        known.set(known.get() + 1);
        frame[0] = known.get() as u8;
    }
    // SAFETY: aliasing: nothing is done with the pointer; loom notes the access.
    bytes[usize::from(frame[0]) - 1].with_mut(|_| ());
    frame[1] = message;
    Some(frame)
}

/// Tries so many times to write a frame and to lend it; the port, and how many were sent.
fn send(port: Port, bytes: &Bytes, known: &Cell<usize>, attempts: u8) -> (Port, u8) {
    let mut sent = 0;
    for _ in 0..attempts {
        let Some(frame) = write(&port, bytes, known, sent) else {
            continue;
        };
        match port.try_lend(Outgoing::message(1), &[frame]) {
            Ok(()) => sent += 1,
            Err(TrySendError::Full) => (),
            Err(error) => panic!("{error}"),
        }
    }
    (port, sent)
}

/// Takes the next message if there is one, and keeps its frame.
fn receive(port: &mut Port) -> Option<Received> {
    match port.arrival() {
        Arrival::Empty => None,
        Arrival::Message { handler: 1 } => {
            let received = port.incoming().0.frames().expect("it is in a frame");
            port.consume();
            port.finish_drain();
            Some(received)
        }
        other => panic!("{other:?}"),
    }
}

/// Reads a frame, and gives it back.
fn read(received: Received, bytes: &Bytes, message: u8) {
    let mut head = [0; 2];
    assert_eq!(received.copy_to(0, &mut head), 2);
    assert_eq!(head[1], message);
    // SAFETY: aliasing: nothing is done with the pointer; loom notes the access.
    bytes[usize::from(head[0]) - 1].with(|_| ());
    drop(received);
}

/// All frames are back, each in one place.
fn settle(port: &Port) {
    port.collect();
    let audit = port.audit_frames();
    assert_eq!(audit.frames, audit.free, "{audit:?}");
    assert_eq!((audit.astray.len(), port.lent()), (0, 0), "{audit:?}");
}

/// One frame for all messages: each waits until the one before has been read.
#[test]
fn a_frame_is_written_again_after_it_was_read() {
    model(|| {
        let (left, mut right) = pair(1);
        let bytes = watched(1);
        let (written, known) = (Rc::clone(&bytes), Cell::new(0));
        let sender = thread::spawn(move || send(left, &written, &known, 3));
        let mut read_so_far = 0;
        let mut look = |right: &mut Port| {
            if let Some(received) = receive(right) {
                read(received, &bytes, read_so_far);
                read_so_far += 1;
            }
        };
        (0..3).for_each(|_| look(&mut right));
        let (left, sent) = sender.join().unwrap();
        (0..sent).for_each(|_| look(&mut right));
        assert_eq!(read_so_far, sent);
        settle(&left);
    });
}

/// Two are kept, and given back in the other order, while the owner waits for one of them.
#[test]
fn frames_come_back_in_any_order() {
    model(|| {
        let (left, mut right) = pair(2);
        let bytes = watched(2);
        let (written, known) = (Rc::clone(&bytes), Cell::new(0));
        let sender = thread::spawn(move || send(left, &written, &known, 3));
        let mut kept: Vec<_> = (0..2).filter_map(|_| receive(&mut right)).collect();
        let taken = kept.len() as u8;
        while let Some(received) = kept.pop() {
            read(received, &bytes, kept.len() as u8);
        }
        let (left, sent) = sender.join().unwrap();
        for message in taken..sent {
            read(receive(&mut right).expect("sent"), &bytes, message);
        }
        settle(&left);
    });
}

/// A frame that its owner drops while it is lent is free when it comes back, and not before. With `TIGHTBEAM_LONG=1` the owner looks twice:
/// 863,000 executions instead of 8,700.
#[test]
fn a_published_frame_is_free_when_the_last_has_done_with_it() {
    let attempts = 1 + u8::from(std::env::var_os("TIGHTBEAM_LONG").is_some());
    model(move || {
        let (left, mut right) = pair(1);
        let bytes = watched(1);
        let (written, known) = (Rc::clone(&bytes), Cell::new(0));
        let sender = thread::spawn(move || {
            let frame = write(&left, &written, &known, 0)
                .expect("the first")
                .freeze();
            for _ in 0..2 {
                left.try_publish(Outgoing::message(1), &frame).unwrap();
            }
            drop(frame);
            send(left, &written, &known, attempts)
        });
        let first = receive(&mut right);
        let second = receive(&mut right);
        let taken = first.iter().chain(&second).count();
        for received in [second, first].into_iter().flatten() {
            read(received, &bytes, 0);
        }
        let (left, sent) = sender.join().unwrap();
        for _ in taken..2 {
            read(receive(&mut right).expect("published"), &bytes, 0);
        }
        for message in 0..sent {
            read(receive(&mut right).expect("sent"), &bytes, message);
        }
        settle(&left);
    });
}
