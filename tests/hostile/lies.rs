//! What a liar writes into its ring behind three honest messages, and what its victim calls that.

use crate::liar::{
    BATCH, DEPTH, JUMP, MULTI, REPLY, RESTART, STARTS, WANTED, credit, kind, length, target,
};
use crate::victim::{ECHO, NOTE};
use tightbeam::PeerFault;

/// Honest messages in front of each lie, in slots 0 to 2.
pub(crate) const HONEST: u64 = 3;
const HEAD: usize = HONEST as usize;
/// Tag of the first lap.
const TAG: u64 = 1;

/// The header of a message like the honest ones.
pub(crate) const fn honest() -> u64 {
    TAG | length(8) | target(NOTE)
}

pub(crate) struct Lie {
    /// Slots with their headers and the words behind, written last to first.
    pub(crate) slots: Vec<(usize, u64, Vec<u64>)>,
    pub(crate) fault: PeerFault,
    /// Messages that are noted before the fault.
    pub(crate) noted: u64,
}

impl Lie {
    fn new(header: u64, fault: PeerFault) -> Lie {
        Lie {
            slots: vec![(HEAD, TAG | header, vec![])],
            fault,
            noted: HONEST,
        }
    }

    fn and(mut self, slot: usize, header: u64) -> Lie {
        self.slots.push((slot, TAG | header, vec![]));
        self
    }
}

/// The lies of a row of the catalogue.
pub(crate) fn lies(row: &str) -> Vec<Lie> {
    match row {
        "s01" => jumps_out_of_range(),
        "s03" => vec![ahead_of_the_ring()],
        "s04" => batches_that_point_outside(),
        "s05" => lengths(),
        "s06" => jumps_that_loop(),
        "s09" => answers_to_no_call(),
        "s10" => vec![calls_without_end()],
        _ => panic!("row {row} has no lies of this kind"),
    }
}

fn jump(slot: usize) -> u64 {
    kind(JUMP) | credit(slot as u64)
}

fn outside(slot: usize) -> PeerFault {
    let slots = STARTS;
    PeerFault::Slot { slot, slots }
}

fn jumps_out_of_range() -> Vec<Lie> {
    let powers = (8..19).flat_map(|n| [(1 << n) - 1, 1 << n, (1 << n) + 1]);
    let slots = powers.chain([STARTS, STARTS + 1, STARTS + 16, 300_001, (1 << 19) - 1]);
    let lie = |slot| Lie::new(jump(slot), outside(slot));
    slots.map(lie).collect()
}

/// A message in every slot and never a new lap.
fn ahead_of_the_ring() -> Lie {
    let mut lie = Lie::new(length(8) | target(NOTE), outside(STARTS));
    for slot in HEAD + 1..STARTS + 16 {
        lie = lie.and(slot, length(8) | target(NOTE));
    }
    lie.noted = STARTS as u64;
    lie
}

/// Batches whose messages end outside of the batch.
fn batches_that_point_outside() -> Vec<Lie> {
    let message = |len: u64| len | target(NOTE);
    let run = |len: u64, more: u64| message(len) | more << 16;
    let cases: [(u64, &[u64], u64, usize); 10] = [
        (8, &[message(0)], 0, 0),
        (8, &[message(1)], 0, 0),
        // Runs of more messages than there are.
        (16, &[run(8, 1), 7], 0, 0),
        (40, &[run(0, 4), 0, 0, 0, 0], 0, 0),
        (16, &[run(0xffff, 0xffff), 0], 0, 0),
        (16, &[message(9), 0], 0, 0),
        (16, &[message(0xffff), 0], 0, 0),
        (56, &[message(8), 7, message(40), 0, 0, 0, 0], 1, 16),
        (24, &[message(8), 7, message(0xfff8)], 1, 16),
        // Bytes left that are too few for a head.
        (20, &[message(8), 7, 0], 1, 16),
    ];
    let lie = |(len, words, noted, at): (u64, &[u64], u64, usize)| Lie {
        slots: vec![(HEAD, TAG | kind(BATCH) | length(len), words.to_vec())],
        fault: PeerFault::Batch { at },
        noted: HONEST + noted,
    };
    cases.into_iter().map(lie).collect()
}

fn lengths() -> Vec<Lie> {
    let mut lies = Vec::new();
    // A long message that is short, or longer than any.
    for len in [0, 1, 55, 56, 1081, 1082, 1200, 1536, 2808, 2809, 4095] {
        for more in [0, RESTART, WANTED, kind(REPLY), kind(BATCH)] {
            let header = MULTI | length(len) | more | target(NOTE);
            let len = len as usize;
            lies.push(Lie::new(header, PeerFault::Length { len }));
        }
    }
    // An answer in one slot with more than fits there. Of a message so many bytes are taken as there are.
    for len in [57u64, 1080, 4095] {
        let fault = PeerFault::Length { len: len as usize };
        lies.push(Lie::new(kind(REPLY) | length(len), fault));
    }
    // The longest message in the last slot in which one may start ends at the segment's last slot, and no lap follows.
    let mut last = ahead_of_the_ring();
    last.slots.truncate(STARTS - HEAD - 1);
    let mut last = last.and(STARTS - 1, MULTI | length(1080) | target(NOTE));
    last.fault = outside(STARTS + 16);
    lies.push(last);
    lies
}

fn jumps_that_loop() -> Vec<Lie> {
    let to_itself = Lie::new(jump(HEAD), outside(HEAD));
    let back = Lie::new(jump(HEAD - 1), outside(HEAD - 1));
    let to_the_start = Lie::new(jump(0), outside(0));
    let twice = PeerFault::Kind { kind: JUMP as u8 };
    let chain = (HEAD + 1..STARTS - 1).fold(Lie::new(jump(HEAD + 1), twice), |lie, slot| {
        lie.and(slot, jump(slot + 1))
    });
    vec![
        to_itself,
        back,
        to_the_start,
        Lie::new(jump(HEAD) | MULTI | RESTART, outside(HEAD)),
        Lie::new(jump(10), twice).and(10, jump(20)),
        Lie::new(jump(10), twice).and(10, jump(HEAD)),
        chain,
    ]
}

fn answers_to_no_call() -> Vec<Lie> {
    let mut lies = Vec::new();
    for answer in 1..4 {
        for call in [0, 1, 9, u16::MAX] {
            let fault = PeerFault::UnknownCall { call };
            lies.push(Lie::new(kind(answer) | target(call), fault));
        }
    }
    lies
}

/// More calls than may be unanswered, and nobody takes the answers.
fn calls_without_end() -> Lie {
    let call = length(8) | WANTED | target(ECHO);
    let answers = DEPTH + 4 * 17;
    let mut lie = Lie::new(call, PeerFault::TooManyCalls);
    for slot in HEAD + 1..HEAD + answers + 4 {
        lie = lie.and(slot, call);
    }
    lie
}
