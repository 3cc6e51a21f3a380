//! Frames between two ports of one process.

use super::pool::Name;
use super::*;
use crate::layout::{DEEP_INLINE, RETURNS};
use crate::testing::{self, HeapMaker};
use crate::{
    Answer, Arrival, Counter, HEADROOM, Layout, MAX_CALLS, MAX_INLINE, MAX_LOANS, MAX_MESSAGE,
    MAX_PARTS, Outgoing, Port, TrySendError,
};
use alloc::vec::Vec;

const LIMIT: usize = 8 << 20;

fn pair() -> (Port, Port) {
    let (mut left, mut right) = testing::pair(Layout::new(256).unwrap());
    testing::equip(&mut left, &mut right, LIMIT);
    (left, right)
}

/// One message of all these frames, taken in them.
fn hand_over(left: &Port, right: &mut Port, frames: Vec<Frame>) -> Received {
    left.try_lend(Outgoing::message(1), &frames).unwrap();
    drop(frames);
    assert_eq!(right.arrival(), Arrival::Message { handler: 1 });
    right.incoming().0.frames().unwrap()
}

fn bytes(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 7 + seed) as u8).collect()
}

/// Takes the message that has arrived, and gives it back.
fn take(port: &mut Port) -> Vec<u8> {
    let Arrival::Message { .. } = port.arrival() else {
        panic!("nothing there");
    };
    let (incoming, _) = port.incoming();
    let len = incoming.len();
    let taken = incoming.bytes().to_vec();
    assert_eq!(taken.len(), len);
    port.consume();
    port.finish_drain();
    taken
}

fn assert_all_free(audit: &PoolAudit) {
    assert!(
        audit.free == audit.frames && audit.astray.is_empty(),
        "{audit:?}"
    );
}

#[test]
fn parts_are_what_they_were() {
    let part = Part {
        segment: 0x1234,
        slot: 0x5678,
        generation: 0x9abc_def0,
        begin: 0x1111_2222,
        len: 0x3333_4444,
    };
    assert_eq!(Part::from_bytes(part.to_bytes()), part);
    assert_eq!(part.return_word(), 0xbcde_f056_7812_3400);
}

#[test]
fn messages_of_any_size_through_one_send() {
    let (left, mut right) = pair();
    for len in [
        0,
        56,
        MAX_INLINE,
        MAX_INLINE + 1,
        DEEP_INLINE,
        DEEP_INLINE + 1,
        4096 - HEADROOM,
        4096,
        100_001,
        1 << 20,
        3 << 20,
    ] {
        for seed in 0..3 {
            let payload = bytes(len, seed);
            left.try_send(Outgoing::message(3), &payload).unwrap();
            assert!(take(&mut right) == payload, "{len} bytes");
        }
    }
    left.collect();
    assert_all_free(&left.audit_frames());
    assert_eq!(left.lent(), 0);
}

#[test]
fn a_frame_that_came_back_is_used_next() {
    let (left, mut right) = pair();
    let frame = left.frame(5000).unwrap();
    let (name, frames) = (frame.name(), left.audit_frames().frames);
    left.try_lend(Outgoing::message(1), &[frame]).unwrap();
    assert_eq!((left.audit_frames().lent, left.lent()), (1, 1));
    take(&mut right);
    left.collect();
    let next = left.frame(5000).unwrap();
    assert_eq!((next.name(), left.audit_frames().frames), (name, frames));
    assert_eq!(left.lent(), 0);
}

#[test]
fn a_frame_may_be_kept_while_others_come() {
    let (left, mut right) = pair();
    let mut kept = Vec::new();
    for seed in 0..5 {
        let mut frame = left.frame(9000).unwrap();
        frame.copy_from_slice(&bytes(9000, seed));
        left.try_lend(Outgoing::message(1), &[frame]).unwrap();
        assert_eq!(right.arrival(), Arrival::Message { handler: 1 });
        kept.push(right.incoming().0.frames().unwrap());
        right.consume();
    }
    left.collect();
    assert_eq!(left.lent(), 5);
    for (seed, received) in kept.iter().enumerate() {
        assert_eq!((received.len(), received.parts()), (9000, 1));
        assert!(received.to_vec() == bytes(9000, seed));
        let mut some = [0; 100];
        assert_eq!(received.copy_to(8950, &mut some), 50);
        assert!(some[..50] == bytes(9000, seed)[8950..]);
        assert_eq!(received.copy_to(9000, &mut some), 0);
        assert_eq!(received.copy_to(usize::MAX, &mut some), 0);
    }
    assert!(left.lent() == 5 && !left.has_returns());
    kept.remove(2);
    kept.clear();
    assert!(left.has_returns() && left.has_credit());
    left.collect();
    assert_eq!((left.lent(), left.audit_frames().lent), (0, 0));
}

#[test]
fn headers_are_pushed_and_popped_without_moving_anything() {
    let (left, mut right) = pair();
    let mut frame = left.frame(3000).unwrap();
    frame.copy_from_slice(&bytes(3000, 1));
    let at = frame.as_ptr();
    frame.push(b"inner").unwrap();
    frame.push(b"outer!").unwrap();
    assert_eq!(frame.len(), 3011);
    assert_eq!(frame.pop(6), Some(&b"outer!"[..]));
    assert_eq!(frame.as_ptr().wrapping_add(5), at);
    assert_eq!(frame.pop(4000), None);
    let room = frame.headroom();
    assert_eq!(room, HEADROOM - 5);
    let wanted = room + 1;
    assert_eq!(
        frame.push(&bytes(wanted, 0)),
        Err(FrameError::Room { wanted, room })
    );
    frame.push(&bytes(room, 0)).unwrap();
    assert!(frame.pop(room).is_some() && frame.capacity() >= 3005);
    let room = frame.capacity();
    let wanted = room + 1;
    assert_eq!(
        frame.set_len(wanted),
        Err(FrameError::Room { wanted, room })
    );
    frame.set_len(2005).unwrap();
    left.try_lend(Outgoing::message(1), &[frame]).unwrap();
    let taken = take(&mut right);
    assert!(taken[..5] == *b"inner" && taken[5..] == bytes(3000, 1)[..2000]);
}

#[test]
fn a_message_may_be_several_frames() {
    let (left, mut right) = pair();
    let mut whole = Vec::new();
    let frames: Vec<Frame> = (0..MAX_PARTS)
        .map(|n| {
            let mut frame = left.frame(n * 300).unwrap();
            frame.copy_from_slice(&bytes(n * 300, n));
            whole.extend_from_slice(&frame);
            frame
        })
        .collect();
    let received = hand_over(&left, &mut right, frames);
    assert_eq!((received.parts(), received.len()), (MAX_PARTS, whole.len()));
    assert!(received.to_vec() == whole);
    let mut across = [0; 4000];
    assert_eq!(received.copy_to(250, &mut across), 4000);
    assert!(across == whole[250..4250]);
    right.consume();
    drop(received);
    left.collect();
    assert_eq!((left.lent(), left.audit_frames().astray.len()), (0, 0));
    let none = left.try_lend::<Frame>(Outgoing::message(1), &[]);
    assert_eq!(none, Err(FrameError::Parts { parts: 0 }.into()));
}

#[test]
fn calls_and_replies_of_any_size() {
    let (mut left, mut right) = pair();
    let (question, answer) = (bytes(70_000, 1), bytes(90_000, 2));
    let call = left.next_call();
    left.try_send(Outgoing::call(9), &question).unwrap();
    assert_eq!(right.arrival(), Arrival::Message { handler: 9 });
    assert!(right.incoming().0.bytes() == question);
    right.try_reply(&answer).unwrap();
    right.consume();
    right.finish_drain();
    let Arrival::Reply { call: of, .. } = left.arrival() else {
        panic!("no reply");
    };
    assert_eq!(of, call);
    assert!(left.incoming().0.bytes() == answer);
    left.consume();
    assert!(left.copied() == answer);
    assert_eq!(left.open_calls(), 0);
    right.collect();
    left.collect();
    assert_eq!((left.lent(), right.lent()), (0, 0));
}

/// Who has called, and has not read yet what it was sent before, gets its answers, as many as there can be.
#[test]
fn answers_are_not_kept_back_by_messages() {
    let (mut left, mut right) = pair();
    let message = bytes(3000, 0);
    for _ in 0..MAX_LOANS {
        left.try_send(Outgoing::message(1), &message).unwrap();
    }
    for _ in 0..MAX_CALLS {
        right.try_send(Outgoing::call(2), b"?").unwrap();
    }
    for _ in 0..MAX_CALLS {
        assert_eq!(left.arrival(), Arrival::Message { handler: 2 });
        left.incoming().1.try_reply(&message).unwrap();
        left.consume();
    }
    assert_eq!(left.lent(), RETURNS);
    // Not one more, not even an answer.
    let refused = left.try_send(Outgoing::message(1), &message);
    assert_eq!(refused, Err(FrameError::Lent.into()));
    right.try_send(Outgoing::call(2), b"?").unwrap_err();
    (0..MAX_LOANS).for_each(|_| assert!(take(&mut right) == message));
    for call in 0..MAX_CALLS as u16 {
        let answer = Answer::Reply;
        assert_eq!(right.arrival(), Arrival::Reply { call, answer });
        assert!(right.incoming().0.bytes() == message);
        right.consume();
    }
    left.collect();
    assert_all_free(&left.audit_frames());
}

#[test]
fn no_more_are_lent_than_may_be_and_none_is_lost() {
    let (left, mut right) = pair();
    for _ in 0..MAX_LOANS {
        left.try_send(Outgoing::message(1), &bytes(3000, 0))
            .unwrap();
    }
    let full = left.counters().get(Counter::Full);
    let refused = left.try_send(Outgoing::message(1), &bytes(3000, 0));
    assert_eq!(refused, Err(FrameError::Lent.into()));
    assert_eq!(left.counters().get(Counter::Full), full + 1);
    // What is short goes on.
    left.try_send(Outgoing::message(1), b"short").unwrap();
    for _ in 0..MAX_LOANS {
        assert_eq!(take(&mut right).len(), 3000);
    }
    assert_eq!(take(&mut right).len(), 5);
    assert_eq!(right.arrival(), Arrival::Empty);
    left.collect();
    let audit = left.audit_frames();
    assert_eq!((audit.lent, audit.out, audit.astray.len()), (0, 0, 0));
    left.try_send(Outgoing::message(1), &bytes(3000, 0))
        .unwrap();
}

#[test]
fn limits_are_kept_and_named() {
    let (mut left, mut right) = testing::pair(Layout::new(64).unwrap());
    let len = MAX_INLINE + 1;
    let max = MAX_INLINE;
    let refused = left.try_send(Outgoing::message(1), &bytes(len, 0));
    assert_eq!(refused, Err(TrySendError::TooLarge { len, max }));
    testing::equip(&mut left, &mut right, 1 << 20);
    let (len, max) = (MAX_MESSAGE + 1, MAX_MESSAGE);
    assert_eq!(
        left.frame(len).unwrap_err(),
        FrameError::TooLarge { len, max }
    );
    let (len, limit) = (1 << 20, 1 << 20);
    assert_eq!(
        left.frame(len).unwrap_err(),
        FrameError::Limit { len, limit }
    );
    let held: Vec<Frame> = core::iter::from_fn(|| left.frame(200_000).ok()).collect();
    assert_eq!(held.len(), 3, "of 256 KiB each, and a page");
    assert_eq!(
        left.frame(200_000).unwrap_err(),
        FrameError::InUse { len: 200_000 }
    );
    assert!(left.audit_frames().bytes <= 1 << 20);
    drop(held);
    // A smaller one takes a larger one's place when there is no memory left.
    assert!(left.frame(10).is_ok());
}

#[test]
fn a_frame_of_another_channel_is_refused_unless_its_pool_is_shared() {
    let (left, _right) = pair();
    let (other, mut reader) = pair();
    let foreign = left.frame(2000).unwrap();
    let refused = other.try_lend(Outgoing::message(1), &[foreign]);
    assert_eq!(refused, Err(FrameError::Foreign.into()));
    let shared = Pool::shared(HeapMaker, LIMIT);
    let (one, mut first) = pair();
    let mut frame = shared.frame(3000).unwrap();
    frame.copy_from_slice(&bytes(3000, 5));
    let frame = [frame];
    for port in [&other, &one] {
        port.try_lend(Outgoing::message(1), &frame).unwrap();
    }
    drop(frame);
    assert!(take(&mut reader) == bytes(3000, 5));
    other.collect();
    assert_eq!(shared.audit().lent, 1, "one of two has it still");
    assert!(take(&mut first) == bytes(3000, 5));
    one.collect();
    assert_eq!((shared.audit().lent, shared.audit().out), (0, 0));
}

#[test]
fn clones_are_the_same_frame_which_is_free_after_the_last() {
    let shared = Pool::shared(HeapMaker, LIMIT);
    let (left, mut right) = pair();
    let mut frame = shared.frame(3000).unwrap();
    frame.copy_from_slice(&bytes(3000, 5));
    let first = frame.freeze();
    let second = first.clone();
    assert_eq!(first.as_ptr(), second.as_ptr());
    left.try_publish(Outgoing::message(1), &second).unwrap();
    drop(first);
    let audit = shared.audit();
    assert_eq!((audit.out, audit.lent, audit.astray.len()), (1, 0, 0));
    drop(second);
    let audit = shared.audit();
    assert_eq!((audit.out, audit.lent, audit.astray.len()), (0, 1, 0));
    assert!(take(&mut right) == bytes(3000, 5));
    left.collect();
    assert_all_free(&shared.audit());
}

#[test]
fn a_peer_has_no_more_of_the_shared_frames_than_its_quota() {
    let shared = Pool::shared(HeapMaker, LIMIT);
    let (left, mut right) = pair();
    // Two of a page each, and not a third.
    let quota = 3 * 4096 - 1;
    left.set_quota(quota);
    let out = Outgoing::message(1);
    let lend = |len| left.try_publish(out, &shared.frame(len).unwrap().freeze());
    let bytes = 2 * 4096 + 4096;
    let never = FrameError::Quota { bytes, quota };
    assert_eq!(lend(8192), Err(never.into()));
    lend(100).unwrap();
    lend(100).unwrap();
    let later = FrameError::QuotaLent { quota };
    assert_eq!(lend(100), Err(later.into()));
    assert_eq!(left.counters().get(Counter::Full), 1);
    // The channel's own are another matter.
    left.try_lend(out, &[left.frame(100).unwrap()]).unwrap();
    assert_eq!(right.arrival(), Arrival::Message { handler: 1 });
    let kept = right.incoming().0.frames();
    right.consume();
    take(&mut right);
    assert_eq!(right.frames_held(), 1);
    lend(100).unwrap();
    assert_eq!(lend(100), Err(later.into()));
    drop(kept);
    lend(100).unwrap();
    assert_eq!((left.lent(), left.slots_in_flight()), (3, 3));
    (0..3).for_each(|_| drop(take(&mut right)));
    assert_eq!((left.slots_in_flight(), right.frames_held()), (0, 0));
}

#[test]
fn what_is_lent_comes_back_when_its_channel_ends() {
    let shared = Pool::shared(HeapMaker, LIMIT);
    let (left, right) = pair();
    for _ in 0..5 {
        let frame = shared.frame(3000).unwrap();
        left.try_lend(Outgoing::message(1), &[frame]).unwrap();
    }
    assert_eq!(shared.audit().lent, 5);
    drop((left, right));
    let audit = shared.audit();
    assert_eq!((audit.lent, audit.free), (0, audit.frames));
}

fn lie(part: Part) -> PeerFault {
    let (left, mut right) = pair();
    // One honest frame, so that memory was passed.
    left.try_send(Outgoing::message(1), &bytes(2000, 0))
        .unwrap();
    take(&mut right);
    left.try_send(Outgoing::message(1).framed(), &part.to_bytes())
        .unwrap();
    match right.arrival() {
        Arrival::Fault(fault) => fault,
        other => panic!("{other:?}"),
    }
}

#[test]
fn parts_outside_the_memory_are_faults() {
    let honest = Part {
        segment: 0,
        slot: 0,
        generation: 1,
        begin: 0,
        len: 4096,
    };
    let (segment, slot) = (1, 0);
    let wrong = Part { segment, ..honest };
    assert_eq!(lie(wrong), PeerFault::Frame { segment, slot });
    let (segment, slot) = (0, 64);
    let wrong = Part { slot, ..honest };
    assert_eq!(lie(wrong), PeerFault::Frame { segment, slot });
    for (begin, len) in [(1, 4096), (4097, 0), (u32::MAX, u32::MAX), (0, 4097)] {
        let wrong = Part {
            begin,
            len,
            ..honest
        };
        let (segment, slot) = (0, 0);
        assert_eq!(lie(wrong), PeerFault::Frame { segment, slot });
    }
}

#[test]
fn lists_that_are_none_are_faults() {
    for len in [0, 1, 15, 17, (MAX_PARTS + 1) * PART_BYTES] {
        let (left, mut right) = pair();
        left.try_send(Outgoing::message(1).framed(), &bytes(len, 0))
            .unwrap();
        let fault = Arrival::Fault(PeerFault::Length { len });
        assert_eq!(right.arrival(), fault);
    }
}

#[test]
fn frames_that_were_not_lent_cannot_be_given_back() {
    let (left, mut right) = pair();
    left.try_send(Outgoing::message(1), &bytes(2000, 0))
        .unwrap();
    take(&mut right);
    left.collect();
    assert_eq!(left.fault(), None);
    let word = Part {
        segment: 0,
        slot: 63,
        generation: 1,
        begin: 0,
        len: 0,
    };
    // Twice, the second time it is a lie.
    right.frames.returns.give_back(word.return_word());
    left.collect();
    let (segment, slot) = (0, 63);
    assert_eq!(left.fault(), Some(PeerFault::Return { segment, slot }));
    assert_eq!(left.audit_frames().astray, []);
    let _ = Name { slab: 0, slot: 0 };
}

#[test]
fn a_peer_without_frames_refuses_them() {
    let (mut left, mut right) = testing::pair(Layout::new(64).unwrap());
    let (mut other, mut unused) = pair();
    testing::equip(&mut left, &mut other, LIMIT);
    let _ = &mut unused;
    left.try_send(Outgoing::message(1), &bytes(2000, 0))
        .unwrap();
    let fault = PeerFault::Frame {
        segment: 0,
        slot: 0,
    };
    assert_eq!(right.arrival(), Arrival::Fault(fault));
}

#[test]
fn secured_frames_are_made_writable_together() {
    let (left, mut right) = pair();
    for _ in 0..3 {
        let mut names = Vec::new();
        while let Ok(frame) = left.frame(200_000) {
            let frozen = frame.freeze().secure().unwrap();
            names.push(frozen.as_ref().name());
            left.try_publish(Outgoing::message(1), &frozen).unwrap();
        }
        assert!(names.len() > 20, "{}", names.len());
        while let Arrival::Message { .. } = right.arrival() {
            right.consume();
        }
        right.finish_drain();
        left.collect();
        assert_all_free(&left.audit_frames());
    }
    let frozen = left.frame(200_000).unwrap().freeze();
    let twice = frozen.secure().unwrap().secure().unwrap();
    drop(twice);
    assert_all_free(&left.audit_frames());
}

#[test]
fn a_long_message_that_finds_no_room_takes_no_frame() {
    let (left, mut right) = pair();
    while left.try_send(Outgoing::message(1), b"short").is_ok() {}
    let long = bytes(50_000, 1);
    let sent = left.try_send(Outgoing::message(1), &long);
    assert_eq!(sent, Err(TrySendError::Full));
    assert_eq!(left.audit_frames(), PoolAudit::default());
    let (len, max) = (MAX_MESSAGE + 1, MAX_MESSAGE);
    let sent = left.try_send(Outgoing::message(1), &alloc::vec![0; len]);
    assert_eq!(sent, Err(TrySendError::TooLarge { len, max }));
    assert_eq!(take(&mut right), b"short");
    left.try_send(Outgoing::message(1), &long).unwrap();
}

#[test]
fn the_frame_that_is_made_ready_is_nobodys() {
    let (mut left, mut right) = pair();
    let len = 9000;
    let mut mine = left.frame(len).unwrap();
    mine.copy_from_slice(&bytes(len, 1));
    left.try_send(Outgoing::message(1), &bytes(len, 2)).unwrap();
    let Arrival::Message { .. } = right.arrival() else {
        panic!("nothing there");
    };
    let kept = right.incoming().0.frames().unwrap();
    right.consume();
    for seed in 3..50 {
        let question = bytes(len, seed);
        left.try_send(Outgoing::call(1), &question).unwrap();
        let Arrival::Message { .. } = right.arrival() else {
            panic!("nothing there");
        };
        let (incoming, port) = right.incoming();
        assert!(incoming.bytes() == question, "{seed}");
        port.try_reply(&bytes(len, seed + 100)).unwrap();
        right.consume();
        let Arrival::Reply { .. } = left.arrival() else {
            panic!("no answer");
        };
        assert!(
            left.incoming().0.bytes() == bytes(len, seed + 100),
            "{seed}"
        );
        left.consume();
        assert!(mine[..] == bytes(len, 1) && kept.to_vec() == bytes(len, 2));
    }
    let audit = left.audit_frames();
    assert_eq!((audit.out, audit.astray.len()), (1, 0), "{audit:?}");
}

#[test]
fn lines_are_those_that_were_sent_whatever_they_lie_in() {
    let (left, mut right) = pair();
    for lens in [
        &[0usize][..],
        &[63],
        &[64],
        &[4000],
        &[1, 64],
        &[63, 1, 64],
        &[100, 100, 100],
        &[5, 0, 7, 200, 1],
        &[128, 3000],
    ] {
        let all = bytes(lens.iter().sum(), 3);
        let mut rest = &all[..];
        let frames: Vec<_> = lens
            .iter()
            .map(|len| {
                // Headers of any length may have been pushed: then it lies anywhere.
                let mut frame = left.frame(len + 3).unwrap();
                frame.pop(3).unwrap();
                let (part, behind) = rest.split_at(*len);
                frame.copy_from_slice(part);
                rest = behind;
                frame
            })
            .collect();
        let received = hand_over(&left, &mut right, frames);
        let mut seen = Vec::new();
        let read = received.for_each_line(|line| seen.extend(line.map(u64::to_ne_bytes)));
        assert!(read == all.len() / 64 * 64 && seen.as_flattened() == &all[..read]);
        right.consume();
    }
}
