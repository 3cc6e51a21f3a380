//! What the peer of `ring.rs` writes into its segment, from nearly right to anything.

use super::input::Input;
use super::lines::{CURSOR, Lines, RING, STATE, WORDS};
use super::reference::{BATCH, Header, JUMP, room};
use super::ring::{World, formatted};
use tightbeam_segment::{Identity, Layout, PAYLOAD_BYTES};

const CREDIT_MASK: u64 = (1 << 19) - 1;

impl World {
    /// A header that is nearly right, or right.
    pub(super) fn header(&self, input: &mut Input<'_>) -> Header {
        let truth = self.theirs.load(CURSOR, 0);
        let len = match input.below(8) {
            0 => input.one_of(&[57, 1081, 1088, 1152, 2808, 2809, 4095]),
            _ => input.len(),
        };
        let shape = input.byte();
        Header {
            tag: match shape & 7 {
                0 => input.byte(),
                _ => self.reader.tag,
            },
            kind: input.one_of(&[0, 0, 0, 0, 1, 1, 2, 3, BATCH, BATCH, JUMP, 6, 7]),
            multi: (len > PAYLOAD_BYTES) != (shape & 0xf8 == 0xf8),
            restart: shape & 0x30 == 0x30,
            reserved: u8::from(shape & 0xc8 == 0xc8) << (shape % 3),
            len,
            credit: match input.below(8) {
                0 => input.word() & CREDIT_MASK,
                1 => truth.wrapping_add(self.sent_slots) & CREDIT_MASK,
                2 => truth.wrapping_add(1) & CREDIT_MASK,
                _ => truth & CREDIT_MASK,
            },
            wanted: input.one_in(4),
            target: match self.reader.calls.first() {
                Some(&call) if input.byte() & 3 != 0 => call,
                _ => input.word() as u16,
            },
        }
    }

    pub(super) fn lie(&mut self, input: &mut Input<'_>, slot: usize) {
        let header = self.header(input);
        self.theirs.store(RING + slot, 0, header.encode());
        self.lied = true;
    }

    pub(super) fn lie_at_the_head(&mut self, input: &mut Input<'_>) {
        let slot = self.reader.slot;
        self.lie(input, slot);
    }

    pub(super) fn lie_with_a_jump(&mut self, input: &mut Input<'_>) {
        let (slot, starts) = (self.reader.slot, self.reader.starts);
        let to = match input.below(6) {
            0 => slot,
            1 => starts - 1,
            2 => starts,
            3 => input.word() as usize,
            _ => slot + 1 + input.below(16),
        };
        let mut marker = self.header(input);
        (marker.kind, marker.credit) = (JUMP, to as u64 & CREDIT_MASK);
        self.theirs.store(RING + slot, 0, marker.encode());
        if to < starts && input.byte() & 1 == 1 {
            self.lie(input, to);
        }
        self.lied = true;
    }

    pub(super) fn lie_with_a_batch(&mut self, input: &mut Input<'_>) {
        let mut bytes = Vec::new();
        for _ in 0..input.below(12) {
            let len = usize::from(input.byte());
            let more = if input.one_in(3) { input.below(9) } else { 0 };
            let (said, more) = match input.below(16) {
                0 => (input.word(), 0),
                1 => (len as u64 + 8, 0),
                2 => (len as u64 | 0xffff << 16, more),
                _ => {
                    let handler = u64::from(input.byte());
                    (len as u64 | (more as u64) << 16 | handler << 48, more)
                }
            };
            bytes.extend(said.to_ne_bytes());
            bytes.extend(vec![0x99; (1 + more) * room(len)]);
        }
        bytes.truncate(self.reader.max - input.below(9) % 9);
        let mut header = self.header(input);
        (header.kind, header.len) = (BATCH, bytes.len());
        (header.multi, header.wanted) = (bytes.len() > PAYLOAD_BYTES, false);
        self.theirs.store_payload(self.reader.slot, &bytes);
        self.theirs
            .store(RING + self.reader.slot, 0, header.encode());
        self.lied = true;
    }

    pub(super) fn lie_about_credit(&mut self, input: &mut Input<'_>) {
        let truth = self.theirs.load(CURSOR, 0);
        let alleged = match input.below(8) {
            0 => input.word(),
            1 => truth.wrapping_sub(1),
            2 => truth.wrapping_add(1 << 63),
            3 => truth.wrapping_add(self.sent_slots),
            4 => truth.wrapping_add(1 << 19),
            _ => truth.wrapping_add(input.below(20) as u64),
        };
        self.theirs.store(CURSOR, 0, alleged);
        let sent = self.theirs.load(CURSOR, 1);
        let sent = match input.below(4) {
            0 => input.word(),
            1 => sent.wrapping_add(u64::from(input.byte())),
            2 => sent.wrapping_sub(u64::from(input.byte())),
            _ => sent,
        };
        self.theirs.store(CURSOR, 1, sent);
        self.lied = true;
    }

    /// A row of the same header: as a peer that never starts over would leave it, or one with many empty messages.
    pub(super) fn lie_about_many(&mut self, input: &mut Input<'_>) {
        let mut header = self.header(input);
        header.tag = self.reader.tag;
        if input.byte() & 3 != 0 {
            header.restart = false;
        }
        let (first, step) = (self.reader.slot, header.slots());
        for slot in (first..self.reader.starts).step_by(step) {
            self.theirs.store(RING + slot, 0, header.encode());
        }
        self.lied = true;
    }

    /// Any words, anywhere.
    pub(super) fn scribble(&mut self, input: &mut Input<'_>) {
        let mut line = match input.below(4) {
            0 => STATE,
            1 => CURSOR,
            2 => usize::from(input.byte()) % self.theirs.len(),
            _ => RING + self.reader.slot,
        };
        let mut word = input.below(WORDS);
        for _ in 0..=input.below(12) {
            self.theirs.store(line, word, input.word());
            (line, word) = (line + (word + 1) / WORDS, (word + 1) % WORDS);
            if line == self.theirs.len() {
                break;
            }
        }
        self.lied = true;
    }

    pub(super) fn scribble_over(&mut self, slot: usize, slots: usize) {
        for line in RING + slot..RING + slot + slots {
            (0..WORDS).for_each(|word| self.theirs.store(line, word, 0xd1d1_d1d1_d1d1_d1d1));
        }
        self.lied = true;
    }
}

/// One thing wrong in the segment's first line, or in what was said of it.
pub(super) fn lie_about_identity(input: &mut Input<'_>, theirs: &Lines, said: &mut Identity) {
    let word = input.below(WORDS);
    match input.below(8) {
        0 => said.version = input.word() as u32,
        1 => said.layout_hash = input.word(),
        2 => said.page_size = input.word() as u32,
        3 => said.depth = 1 << input.below(32),
        4 => said.incarnation.0[word % 2] = input.word(),
        5 => theirs.store(0, word, theirs.load(0, word) ^ 1 << input.below(64)),
        6 => {
            // The same lie twice: then the memory may be too small for it.
            said.depth = 2 << input.below(10);
            let layout = Layout::new(said.depth as usize).expect("a depth");
            for (word, value) in formatted(layout, said).into_iter().enumerate() {
                theirs.store(0, word, value);
            }
        }
        _ => theirs.store(0, word, input.word()),
    }
}
