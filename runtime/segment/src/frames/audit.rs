//! What an audit of a pool says.

use alloc::vec::Vec;

/// Which frames of a pool are where.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PoolAudit {
    /// How many there are.
    pub frames: usize,
    /// How many are in no use.
    pub free: usize,
    /// How many are with somebody here who writes them, or keeps them complete.
    pub out: usize,
    /// How many are lent to one receiver or several.
    pub lent: usize,
    /// Each that is in no place or in two: none, or there is a mistake in this library.
    pub astray: Vec<StrayFrame>,
    /// Bytes of memory.
    pub bytes: usize,
}

/// A frame that is in no place or in two, and what is known of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StrayFrame {
    /// Number of the memory in which it lies, in the order in which the pool has made them.
    pub slab: usize,
    /// Number of the frame in there.
    pub slot: usize,
    /// How often it is among those that may be given out; once if it is free.
    pub listed: usize,
    /// Whether it says of itself that it is free.
    pub free: bool,
    /// How many values stand for it here.
    pub out: usize,
    /// To how many receivers it is lent.
    pub lent: usize,
}

impl PoolAudit {
    /// Counts a frame where it is.
    pub(super) fn note(&mut self, frame: StrayFrame) {
        self.frames += 1;
        match (frame.listed, frame.free, frame.out, frame.lent) {
            (1, true, 0, 0) => self.free += 1,
            (0, false, 1.., _) => self.out += 1,
            (0, false, 0, 1..) => self.lent += 1,
            _ => self.astray.push(frame),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FREE: StrayFrame = StrayFrame {
        slab: 2,
        slot: 7,
        listed: 1,
        free: true,
        out: 0,
        lent: 0,
    };

    #[test]
    fn frames_in_no_place_or_in_two_are_named() {
        let changed = |change: fn(&mut StrayFrame)| {
            let mut frame = FREE;
            change(&mut frame);
            frame
        };
        let used = |out, lent| StrayFrame {
            listed: 0,
            free: false,
            out,
            lent,
            ..FREE
        };
        let astray = [
            changed(|frame| frame.listed = 0),
            changed(|frame| frame.listed = 2),
            changed(|frame| frame.free = false),
            changed(|frame| frame.out = 1),
            changed(|frame| frame.lent = 1),
            used(0, 0),
        ];
        let mut audit = PoolAudit::default();
        for frame in [FREE, used(1, 0), used(1, 3), used(0, 1)]
            .iter()
            .chain(&astray)
        {
            audit.note(*frame);
        }
        assert_eq!((audit.frames, audit.free), (10, 1));
        assert_eq!((audit.out, audit.lent), (2, 1));
        assert_eq!(audit.astray, astray);
    }
}
