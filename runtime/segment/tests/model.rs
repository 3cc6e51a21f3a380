//! Random operations on both ends of a channel, against two queues that cannot be wrong.
//!
//! Counts start near every wrap (64-bit counts, 20-bit credits, 16-bit call numbers) and laps near the tag's wrap, so that
//! each is met within a few operations.

#![cfg(not(loom))]

use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::VecDeque;
use tightbeam_segment::{
    Answer, Arrival, Batch, Counter, Layout, MAX_CALLS, MAX_INLINE, Outgoing, PAYLOAD_BYTES, Port,
    SLOT_BYTES, TrySendError, audit_pair, testing,
};

#[derive(Debug, Clone)]
enum Op {
    /// The side sends messages of this length until it is refused, `count` at most.
    Send {
        right: bool,
        len: usize,
        count: usize,
    },
    Call {
        right: bool,
        len: usize,
    },
    /// The side sends as many messages of these lengths together as fit.
    Batch {
        right: bool,
        lens: Vec<usize>,
    },
    /// The side handles up to `count` messages, replying to each call.
    Poll {
        right: bool,
        count: usize,
        reply: Option<usize>,
    },
    /// One ping-pong: what keeps the ring drained.
    RoundTrip {
        right: bool,
        len: usize,
    },
}

/// Bytes of the longest message of a ring of 128 slots or more; in a shallower one messages are cut to what it carries.
const DEEP_INLINE: usize = 2808;

fn len() -> impl Strategy<Value = usize> {
    prop_oneof![
        4 => 0usize..=PAYLOAD_BYTES,
        2 => PAYLOAD_BYTES..=4 * PAYLOAD_BYTES,
        1 => 0usize..=DEEP_INLINE,
        1 => Just(DEEP_INLINE),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (any::<bool>(), len(), 1usize..100).prop_map(|(right, len, count)| Op::Send { right, len, count }),
        2 => (any::<bool>(), len()).prop_map(|(right, len)| Op::Call { right, len }),
        1 => (any::<bool>(), vec(len(), 0..40)).prop_map(|(right, lens)| Op::Batch { right, lens }),
        4 => (any::<bool>(), 0usize..100, proptest::option::of(len()))
            .prop_map(|(right, count, reply)| Op::Poll { right, count, reply }),
        4 => (any::<bool>(), len()).prop_map(|(right, len)| Op::RoundTrip { right, len }),
    ]
}

#[derive(Debug, PartialEq)]
struct Expected {
    what: What,
    bytes: Vec<u8>,
}

#[derive(Debug, PartialEq)]
enum What {
    Message { handler: u16 },
    Reply { call: u16, answer: Answer },
    Batch { expected: Vec<Expected> },
}

/// One side and what the other side must receive from it.
struct Side {
    port: Port,
    sent: VecDeque<Expected>,
    /// Slots of its messages that have not been consumed, replies among them.
    held: usize,
    count: u64,
}

struct World {
    sides: [Side; 2],
    layout: Layout,
    /// Of the first lap.
    tag: u8,
}

fn slots(len: usize) -> usize {
    1 + len.saturating_sub(PAYLOAD_BYTES).div_ceil(SLOT_BYTES)
}

impl World {
    fn new(depth: usize, start: u64, tag: u8) -> World {
        let layout = Layout::new(depth).unwrap();
        let (left, right) = testing::pair_at(layout, start, tag);
        let side = |port| Side {
            port,
            sent: VecDeque::new(),
            held: 0,
            count: start,
        };
        World {
            sides: [side(left), side(right)],
            layout,
            tag,
        }
    }

    /// Every slot and every credit is in exactly one place. After each message only where that does not take long.
    fn audit(&self, closely: bool) {
        if !closely || self.layout.depth() <= 8 {
            assert_eq!(audit_pair(&self.sides[0].port, &self.sides[1].port), []);
        }
    }

    /// No two messages in a row are the same; and where the further slots of a long one begin, some look like a header that
    /// will be waited for soon.
    fn payload(&self, from: usize, len: usize) -> Vec<u8> {
        let count = self.sides[from].count;
        let (seed, len) = (count as u8, len.min(self.layout.max_inline()));
        let mut bytes: Vec<u8> = (0..len)
            .map(|i| seed.wrapping_mul(31).wrapping_add(i as u8) | 1)
            .collect();
        for (slot, begin) in (PAYLOAD_BYTES..len).step_by(SLOT_BYTES).enumerate() {
            let laps = self.sides[from].port.counters().get(Counter::Restarts);
            let tag = u64::from(self.tag) + laps + (count % 3 + slot as u64) % 3;
            let forged = ((tag - 1) % 255 + 1) | 8 << 16 | 0x7777 << 48;
            let end = len.min(begin + 8);
            bytes[begin..end].copy_from_slice(&forged.to_le_bytes()[..end - begin]);
        }
        bytes
    }

    fn send(&mut self, from: usize, wanted: bool, len: usize) -> bool {
        let bytes = self.payload(from, len);
        let side = &mut self.sides[from];
        let handler = side.count as u16 ^ 0x5aa5;
        let call = side.port.next_call();
        let out = match wanted {
            true => Outgoing::call(handler),
            false => Outgoing::message(handler),
        };
        let open = side.port.open_calls();
        match side.port.try_send(out, &bytes) {
            Ok(()) => {
                assert_eq!(call, side.count as u16);
                side.held += slots(bytes.len());
                side.sent.push_back(Expected {
                    what: What::Message { handler },
                    bytes,
                });
                side.count = side.count.wrapping_add(1);
                true
            }
            Err(TrySendError::Full) => {
                // May be stale by what the peer has consumed since it published last, a quarter of the ring at most.
                let depth = self.layout.depth();
                let stale = (depth / 4).max(1);
                let held = side.held;
                assert!(held + stale + slots(bytes.len()) > depth, "{held} held");
                false
            }
            Err(TrySendError::TooManyCalls) => {
                assert!(wanted && open == MAX_CALLS);
                false
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn send_batch(&mut self, from: usize, lens: &[usize]) {
        let mut batch = Batch::new();
        let (mut expected, mut bytes_used, mut run) = (Vec::new(), 0, None);
        for n in 0..lens.len() {
            // Runs of up to three messages of one handler and length, and neighbours that differ in one of the two.
            let len = lens[n - n % 3];
            let bytes = self.payload(from, len);
            let handler = (n / 6) as u16 ^ 0x1234;
            let head = if run == Some((handler, len)) { 0 } else { 8 };
            let room = head + len.next_multiple_of(8).max(8);
            if batch.push(handler, &bytes) {
                bytes_used += room;
                run = Some((handler, len));
                assert!(bytes_used <= MAX_INLINE);
                let what = What::Message { handler };
                expected.push(Expected { what, bytes });
            } else {
                assert!(bytes_used + room > MAX_INLINE);
            }
        }
        assert_eq!(batch.len(), expected.len());
        let side = &mut self.sides[from];
        match side.port.try_send_batch(&mut batch) {
            Ok(()) if expected.is_empty() => {}
            Ok(()) => {
                assert!(batch.is_empty());
                side.held += slots(bytes_used);
                side.count = side.count.wrapping_add(1);
                side.sent.push_back(Expected {
                    what: What::Batch { expected },
                    bytes: vec![0; bytes_used],
                });
            }
            Err(TrySendError::Full) => assert_eq!(batch.len(), expected.len()),
            Err(error) => panic!("{error}"),
        }
    }

    fn poll(&mut self, to: usize, budget: usize, reply: Option<usize>) {
        let from = 1 - to;
        for _ in 0..budget {
            let arrival = self.look(to);
            self.audit(true);
            if arrival == Arrival::Empty {
                assert!(self.sides[from].sent.is_empty(), "a message was not seen");
                break;
            }
            self.handle(to, from, arrival, reply);
            self.audit(true);
        }
        self.sides[to].port.finish_drain();
    }

    /// One look, half of the time the quick one that takes messages only.
    fn look(&mut self, to: usize) -> Arrival {
        let Side { port, count, .. } = &mut self.sides[to];
        if count.is_multiple_of(2) {
            return port.arrival();
        }
        let message = port.lookout().message(0).map(|(handler, ..)| handler);
        match message {
            Some(handler) => Arrival::Message { handler },
            None if port.saw_other() => port.arrival(),
            None => Arrival::Empty,
        }
    }

    fn handle(&mut self, to: usize, from: usize, arrival: Arrival, reply: Option<usize>) {
        let expected = self.sides[from]
            .sent
            .pop_front()
            .expect("a message that nobody sent");
        if let What::Batch { expected: messages } = &expected.what {
            assert_eq!(arrival, Arrival::Batch);
            let port = &mut self.sides[to].port;
            let mut wanted = messages.iter();
            let mut answers = Vec::new();
            let unpacked = port.unpack(|handler, incoming, port| {
                let wanted = wanted.next().expect("not one too many");
                assert_eq!(wanted.what, What::Message { handler });
                assert!(!incoming.wants_reply());
                // Before it is read, and in the middle of a batch.
                let bytes = vec![handler as u8; usize::from(handler) % 90];
                if handler % 3 == 0 && port.try_send(Outgoing::message(handler), &bytes).is_ok() {
                    let what = What::Message { handler };
                    answers.push(Expected { what, bytes });
                }
                assert_eq!(incoming.bytes(), wanted.bytes);
                assert_eq!(port.audit().findings, []);
            });
            assert_eq!(unpacked, messages.len());
            for answer in answers {
                let side = &mut self.sides[to];
                side.held += slots(answer.bytes.len());
                side.count = side.count.wrapping_add(1);
                side.sent.push_back(answer);
            }
            let port = &mut self.sides[to].port;
            port.consume();
            self.sides[from].held -= slots(expected.bytes.len());
            return;
        }
        let answer_bytes = self.payload(to, reply.unwrap_or(0));
        // Half of the replies go out before the payload was read: it must still be the one that was sent.
        let reply_first = self.sides[from].count.is_multiple_of(2);
        let side = &mut self.sides[to];
        let what = match arrival {
            Arrival::Message { handler } => What::Message { handler },
            Arrival::Reply { call, answer } => What::Reply { call, answer },
            other => panic!("{other:?}"),
        };
        let (incoming, port) = side.port.incoming();
        let wants = incoming.wants_reply() && matches!(what, What::Message { .. });
        assert_eq!(incoming.len(), expected.bytes.len());
        let mut answered = None;
        if wants && reply_first {
            answered = Some(answer(port, reply, &answer_bytes));
        }
        assert_eq!(incoming.bytes(), expected.bytes);
        assert_eq!(what, expected.what);
        if wants && answered.is_none() {
            answered = Some(answer(port, reply, &answer_bytes));
        }
        assert_eq!(side.port.audit().findings, []);
        side.port.consume();
        self.sides[from].held -= slots(expected.bytes.len());
        if let Some(answer) = answered {
            let side = &mut self.sides[to];
            side.count = side.count.wrapping_add(1);
            let bytes = if answer == Answer::Reply {
                answer_bytes
            } else {
                Vec::new()
            };
            side.held += slots(bytes.len());
            let call = self.sides[from].count_of(&expected);
            self.sides[to].sent.push_back(Expected {
                what: What::Reply { call, answer },
                bytes,
            });
        }
    }
}

impl Side {
    /// The number of a message is hidden in its handler index.
    fn count_of(&self, expected: &Expected) -> u16 {
        match expected.what {
            What::Message { handler } => handler ^ 0x5aa5,
            _ => unreachable!("it wants no reply"),
        }
    }
}

fn answer(port: &Port, reply: Option<usize>, bytes: &[u8]) -> Answer {
    let answer = if reply.is_some() {
        Answer::Reply
    } else {
        Answer::NoReply
    };
    let sent = match answer {
        Answer::Reply => port.try_reply(bytes),
        other => port.try_refuse(other),
    };
    assert_eq!(sent, Ok(()), "a reply always has room");
    answer
}

fn run(depth: usize, start: u64, tag: u8, ops: &[Op]) {
    let mut world = World::new(depth, start, tag);
    for op in ops {
        match *op {
            Op::Send { right, len, count } => {
                for _ in 0..count {
                    if !world.send(right.into(), false, len) {
                        break;
                    }
                    world.audit(true);
                }
            }
            Op::Call { right, len } => {
                world.send(right.into(), true, len);
            }
            Op::Batch { right, ref lens } => world.send_batch(right.into(), lens),
            Op::Poll {
                right,
                count,
                reply,
            } => world.poll(right.into(), count, reply),
            Op::RoundTrip { right, len } => {
                world.send(right.into(), true, len);
                world.poll(1 - usize::from(right), usize::MAX, Some(len));
                world.poll(right.into(), usize::MAX, Some(len));
            }
        }
        world.audit(false);
    }
    // Whatever happened: everything that was sent arrives.
    for _ in 0..2 {
        world.poll(0, usize::MAX, None);
        world.poll(1, usize::MAX, None);
    }
    for side in &world.sides {
        assert!(side.sent.is_empty());
        assert_eq!(side.port.fault(), None);
        assert_eq!(side.port.open_calls(), 0);
    }
    let sent = |n: usize| world.sides[n].port.counters().get(Counter::Sent);
    let received = |n: usize| world.sides[n].port.counters().get(Counter::Received);
    assert_eq!((sent(0), sent(1)), (received(1), received(0)));
}

fn start() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        (0u64..64).prop_map(|n| u64::MAX - n),
        (0u64..64).prop_map(|n| (1 << 19) - n),
        (0u64..64).prop_map(|n| (1 << 16) - n),
        any::<u64>(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn both_directions_keep_order_and_bytes(
        depth in (1u32..9).prop_map(|n| 1usize << n),
        start in start(),
        tag in prop_oneof![Just(1u8), 250u8..=255],
        ops in vec(op(), 1..120),
    ) {
        run(depth, start, tag, &ops);
    }
}

/// Many laps: every tag comes round several times, with bursts of a different depth each time.
#[test]
fn old_slots_are_never_taken_for_new_ones() {
    let mut ops = Vec::new();
    for n in 0..3_000usize {
        for _ in 0..n % 7 {
            ops.push(Op::RoundTrip {
                right: n % 2 == 0,
                len: (n * 37) % 200,
            });
        }
        ops.push(Op::Send {
            right: n % 2 == 0,
            len: (n * 13) % 60,
            count: (n * 29) % 250,
        });
        ops.push(Op::Poll {
            right: n % 2 != 0,
            count: (n * 53) % 300,
            reply: None,
        });
    }
    run(256, u64::MAX - 1000, 1, &ops);
}

#[test]
fn a_stopped_receiver_still_leaves_the_whole_depth() {
    for depth in [2usize, 16, 64, 1024] {
        for warm_up in 0..40 {
            let mut world = World::new(depth, 0, 1);
            for _ in 0..warm_up {
                world.send(0, true, 8);
                world.poll(1, usize::MAX, Some(8));
                world.poll(0, usize::MAX, None);
            }
            let taken = (0..).take_while(|_| world.send(0, false, 8)).count();
            // What the last round trip left uncounted is the reply's credit, which this side has seen.
            assert_eq!(taken, depth, "after {warm_up} round trips");
            world.poll(1, usize::MAX, None);
        }
    }
}

/// A ring that keeps draining stays in its first slots, whatever its depth.
#[test]
fn a_drained_ring_starts_over_whatever_its_depth() {
    for depth in [64, 1024, 65_536] {
        let mut world = World::new(depth, 0, 1);
        for _ in 0..3_200 {
            world.send(0, true, 8);
            world.poll(1, usize::MAX, Some(8));
            world.poll(0, usize::MAX, None);
        }
        for side in &world.sides {
            let restarts = side.port.counters().get(Counter::Restarts);
            assert!(
                (190..=210).contains(&restarts),
                "{restarts} laps of 16 at depth {depth}"
            );
        }
    }
}

#[test]
fn every_size_crosses_whole() {
    for (depth, max) in [(64, MAX_INLINE), (128, DEEP_INLINE)] {
        let mut world = World::new(depth, 0, 1);
        for len in 0..=max {
            world.send(0, true, len);
            world.poll(1, 1, Some(len));
            world.poll(0, 1, None);
        }
        let (len, port) = (max + 1, &world.sides[0].port);
        let sent = port.try_send(Outgoing::message(0), &vec![0; len]);
        assert_eq!(sent, Err(TrySendError::TooLarge { len, max }));
    }
}

/// A deep slot keeps its tag while the ring stays hot. After 255 laps the tag comes round again, and a burst that then ends
/// right in front of that slot must not bring the old message back.
#[test]
fn a_deep_slot_is_not_found_again_255_laps_later() {
    for laps in 250..260 {
        for burst in [9, 20, 45] {
            let mut world = World::new(256, 0, 1);
            for _ in 0..100 {
                world.send(0, false, 8);
            }
            world.poll(1, usize::MAX, None);
            for _ in 0..laps * 8 {
                world.send(0, true, 8);
                world.poll(1, usize::MAX, Some(8));
                world.poll(0, usize::MAX, None);
            }
            for _ in 0..burst {
                world.send(0, false, 8);
                // Finds the message, and nothing behind it.
                world.poll(1, usize::MAX, None);
            }
            for _ in 0..burst {
                world.send(0, false, 8);
            }
            world.poll(1, usize::MAX, None);
        }
    }
}

/// A reply tells the peer that the slots are free; the payload that is read after it must still be the old one.
#[test]
fn a_payload_outlives_its_reply() {
    for len in [1, 56, 57, 150, 300, DEEP_INLINE] {
        let (mut left, mut right) = testing::pair(Layout::new(128).unwrap());
        for round in 0..200usize {
            for _ in 0..round % 11 {
                left.try_send(Outgoing::call(1), b"warm up").unwrap();
                answer_late(&mut left, &mut right, |_| {}, b"warm up");
            }
            let sent = vec![round as u8; len];
            left.try_send(Outgoing::call(1), &sent).unwrap();
            // The caller sees the reply, and fills the ring again before the payload is read.
            let fill =
                |left: &Port| while left.try_send(Outgoing::message(2), &[0xee; 8]).is_ok() {};
            answer_late(&mut left, &mut right, fill, &sent);
            while let Arrival::Message { handler: 2 } = right.arrival() {
                right.consume();
            }
            right.finish_drain();
        }
    }
}

fn answer_late(left: &mut Port, right: &mut Port, between: impl Fn(&Port), expected: &[u8]) {
    assert_eq!(right.arrival(), Arrival::Message { handler: 1 });
    let (incoming, port) = right.incoming();
    port.try_reply(&[]).unwrap();
    assert!(matches!(left.arrival(), Arrival::Reply { .. }));
    left.consume();
    between(left);
    assert_eq!(incoming.bytes(), expected);
    right.consume();
}

/// A call that is refused because too many are open leaves nothing behind: the slots that a long one would have covered may
/// hold what looks like the next header.
#[test]
fn a_refused_call_leaves_nothing_behind() {
    for warm_up in 1..30usize {
        for shorts in 0..20usize {
            let (mut left, mut right) = testing::pair(Layout::new(64).unwrap());
            for _ in 0..MAX_CALLS {
                left.try_send(Outgoing::call(2), b"").unwrap();
            }
            let drain = |port: &mut Port| {
                let mut count = 0;
                while port.arrival() != Arrival::Empty {
                    let _ = port.incoming().0.bytes();
                    port.consume();
                    count += 1;
                }
                port.finish_drain();
                count
            };
            assert_eq!(drain(&mut right), MAX_CALLS);
            for _ in 0..warm_up {
                let lap = left.counters().get(Counter::Restarts) + 2;
                let forged = (lap | 8 << 16 | 0x7777 << 48).to_le_bytes();
                left.try_send(Outgoing::message(1), &forged.repeat(MAX_INLINE / 8))
                    .unwrap();
                assert_eq!(drain(&mut right), 1);
            }
            let mut sent = 0;
            for _ in 0..shorts {
                sent += usize::from(left.try_send(Outgoing::message(5), b"").is_ok());
            }
            let refused = left.try_send(Outgoing::call(3), &[0; MAX_INLINE]);
            assert_eq!(refused, Err(TrySendError::TooManyCalls));
            for _ in 0..2 {
                sent += usize::from(left.try_send(Outgoing::message(4), b"x").is_ok());
            }
            assert_eq!(drain(&mut right), sent, "{warm_up} long, {shorts} short");
            assert_eq!(left.arrival(), Arrival::Empty);
        }
    }
}
