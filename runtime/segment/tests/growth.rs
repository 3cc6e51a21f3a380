//! How a pool grows: what a peer can have made at a time by keeping what it is sent, and whether the slabs that there may be suffice.

use std::cell::RefCell;
use std::rc::Rc;
use tightbeam_segment::testing::HeapMaker;
use tightbeam_segment::{
    Frame, FrameError, FrameMemory, MAX_LOANS, MAX_SEGMENTS, MakeFrames, Pool,
};

/// A quarter of what a channel has if nothing is said; so the frames here are a quarter as long as what they stand for.
const LIMIT: usize = 64 << 20;
const STEP: usize = LIMIT / 32;

/// Notes how much was made at a time.
#[derive(Clone, Default)]
struct Noted(Rc<RefCell<Vec<usize>>>);

impl MakeFrames for Noted {
    fn make(&self, bytes: usize) -> Result<Box<dyn FrameMemory>, FrameError> {
        self.0.borrow_mut().push(bytes);
        HeapMaker.make(bytes)
    }
}

impl Noted {
    fn slabs(&self) -> usize {
        self.0.borrow().len()
    }

    fn largest(&self) -> usize {
        self.0.borrow().iter().copied().max().unwrap_or(0)
    }
}

/// Takes as many as there may be.
fn all(pool: &Rc<Pool>, len: usize) -> Vec<Frame> {
    std::iter::from_fn(|| pool.frame(len).ok()).collect()
}

#[test]
fn it_grows_by_a_small_part_of_its_limit_at_a_time() {
    for len in [1, 3000, 60_000, 500_000, 1_000_000, 3_000_000] {
        let noted = Noted::default();
        let pool = Pool::new(noted.clone(), LIMIT);
        let frames = all(&pool, len);
        let stride = pool.audit().bytes / pool.audit().frames;
        assert!(noted.largest() < STEP + stride, "{len} bytes");
        assert!(pool.audit().bytes > LIMIT - stride, "all of the limit");
        assert_eq!(frames.len(), pool.audit().frames);
        assert!(noted.slabs() <= 40, "{len} bytes: {}", noted.slabs());
    }
}

/// A peer that keeps as many long ones as it may leaves room for shorter ones of many sizes.
#[test]
fn long_frames_that_are_kept_leave_slabs_for_others() {
    let noted = Noted::default();
    let pool = Pool::new(noted.clone(), LIMIT);
    let mut held = Vec::new();
    let long = std::iter::repeat_n(375_000, MAX_LOANS);
    let others = (0..8).flat_map(|n| [1000 << n; 8]);
    for len in long.chain(others) {
        held.push(pool.frame(len).expect("room"));
    }
    assert!(noted.slabs() <= MAX_SEGMENTS - 16, "{}", noted.slabs());
}

/// No handler takes frames of it, and its slabs are passed to a channel's peer beside those of the channel's own pool.
#[test]
fn a_shared_one_needs_few_slabs() {
    let noted = Noted::default();
    let pool = Pool::shared(noted.clone(), LIMIT);
    let _all = all(&pool, 500_000);
    assert!(noted.slabs() <= 8, "{}", noted.slabs());
}

#[test]
fn when_there_are_no_more_slabs_a_larger_frame_does() {
    let noted = Noted::default();
    let pool = Pool::new(noted.clone(), LIMIT);
    let mut held = Vec::new();
    for len in (0..8).flat_map(|n| [8192 << n, 12_288 << n]) {
        let slabs = noted.slabs() + 4;
        while noted.slabs() < slabs {
            held.push(pool.frame(len).expect("room"));
        }
    }
    assert_eq!(noted.slabs(), MAX_SEGMENTS);
    assert!(pool.audit().bytes < LIMIT - (1 << 20));
    held.extend(all(&pool, 1));
    assert_eq!((noted.slabs(), pool.audit().free), (MAX_SEGMENTS, 0));
    let none = pool.frame(1).expect_err("all are in use");
    assert_eq!(none, FrameError::InUse { len: 1 });
    // Of whatever length, it is longer.
    held.pop();
    assert!(pool.frame(1).is_ok());
}
