//! Both ends of a channel in one process, without an operating system: for tests, models and benches of the rings alone.

use crate::joined::{self, segment_on_heap};
use crate::{Attached, Formatted, Layout, OwnLines, PeerLines, Port};

pub use crate::joined::HeapMaker;

/// A segment that nobody has formatted, as its owner and as its peer have it mapped.
pub fn segment(layout: Layout) -> (OwnLines, PeerLines) {
    segment_on_heap(layout)
}

/// Two ports joined back to back, as if freshly opened.
pub fn pair(layout: Layout) -> (Port, Port) {
    pair_at(layout, 0, 1)
}

/// Two ports whose counts stand at `start` and whose laps at `tag` (1 to 255), to meet every wrap at once.
pub fn pair_at(layout: Layout, start: u64, tag: u8) -> (Port, Port) {
    joined::pair_at(layout, [0, 1], start, tag)
}

/// Lets both ends send frames, from pools of at most `limit` bytes each.
pub fn equip(left: &mut Port, right: &mut Port, limit: usize) {
    joined::equip(left, right, limit, crate::MAX_MESSAGE);
}

/// A port of any two segments, with its counts at `start` and its laps at `tag` (1 to 255).
pub fn join_at(own: Formatted, peer: Attached, start: u64, tag: u8) -> Port {
    Port::starting_at(own, peer, 0, start, tag)
}
