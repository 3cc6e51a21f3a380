//! A port against a segment in which anything may stand, and change between any two steps.
//!
//! The segment is written by an honest port, so that there is traffic to lie about, and by lies: single words, whole lines,
//! headers near the truth. The port under test must find exactly what [`Reader`] finds, never panic, never hand out more than
//! a message, call no honest peer a liar, and once it has found a fault do nothing any more.

use super::input::Input;
use super::lies::lie_about_identity;
use super::lines::{CURSOR, Lines, PAGE, RING};
use super::reference::{Header, Reader, room, slots, starts, unpack};
use tightbeam_segment::{
    Answer, Arrival, Batch, Counter, Identity, Incarnation, Layout, MAX_CALLS, Outgoing, OwnLines,
    PeerFault, PeerLines, Port, TrySendError, testing,
};

/// More steps would only repeat.
const MOST_STEPS: usize = 400;

pub(crate) fn ring(input: &[u8]) {
    let mut input = Input::new(input);
    let Some(mut world) = World::open(&mut input) else {
        return;
    };
    for _ in 0..MOST_STEPS {
        if input.is_over() {
            break;
        }
        world.step(&mut input);
    }
    world.finish();
}

pub(super) struct World {
    port: Port,
    /// Writes the peer's segment as the rules say, and is told nothing of the lies.
    peer: Port,
    ours: Lines,
    pub(super) theirs: Lines,
    pub(super) reader: Reader,
    /// Both counts began here.
    start: u64,
    /// Slots of messages sent, without markers.
    pub(super) sent_slots: u64,
    sent: u64,
    handled: u64,
    /// What the cursor said when it was looked at last.
    cursor: u64,
    pub(super) lied: bool,
    closed: bool,
    fault: Option<PeerFault>,
    /// Our ring when the fault was found.
    frozen: Vec<u64>,
}

impl World {
    /// Two segments and their ports; `None` if the peer lied about its identity and was refused.
    fn open(input: &mut Input<'_>) -> Option<World> {
        const DEPTHS: [usize; 5] = [2, 4, 16, 64, 128];
        let layout = || Layout::new(DEPTHS[0]).expect("a depth");
        let (mut our_layout, mut their_layout) = (layout(), layout());
        for layout in [&mut our_layout, &mut their_layout] {
            *layout = Layout::new(input.one_of(&DEPTHS)).expect("a depth");
        }
        let near = u64::from(input.byte());
        let start = match input.below(4) {
            0 => 0,
            1 => u64::MAX - near,
            2 => (1 << 19) - near,
            _ => (1 << 16) - near,
        };
        let tag = input.one_of(&[1, 255, 254, 250]);
        let (ours, theirs) = (Lines::new(our_layout), Lines::new(their_layout));
        let identity =
            |layout, seed| Identity::ours(layout, PAGE, Incarnation([seed, u64::from(u32::MAX)]));
        let (ours_said, mut said) = (identity(our_layout, 1), identity(their_layout, 2));
        let own = our_layout.format(OwnLines::new(ours.clone()), &ours_said);
        let peer_own = their_layout.format(OwnLines::new(theirs.clone()), &said);
        let lied = input.one_in(32);
        if lied {
            lie_about_identity(input, &theirs, &mut said);
        }
        let attached = Layout::attach(PeerLines::new(theirs.clone()), &said, PAGE);
        let layout = said.check(PAGE);
        let consistent = layout.as_ref().is_ok_and(|layout| {
            theirs.len() >= layout.lines() && theirs.image(0..1) == formatted(*layout, &said)
        });
        assert_eq!(attached.is_ok(), consistent, "{said:?}");
        let (attached, their_layout) = (attached.ok()?, layout.ok()?);
        let seen = Layout::attach(PeerLines::new(ours.clone()), &ours_said, PAGE);
        let seen = seen.expect("our own segment");
        Some(World {
            port: testing::join_at(own, attached, start, tag),
            peer: testing::join_at(peer_own, seen, start, tag),
            reader: Reader::new(their_layout, start, tag),
            ours,
            theirs,
            start,
            sent_slots: 0,
            sent: 0,
            handled: 0,
            cursor: start,
            lied,
            closed: false,
            fault: None,
            frozen: Vec::new(),
        })
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.byte() % 24 {
            0..=3 => self.receive(input),
            4 => {
                for _ in 0..input.below(20) {
                    self.receive(input);
                }
                self.finish_drain();
            }
            5 => self.finish_drain(),
            6 => {
                let len = input.len();
                self.send(Outgoing::message(u16::from(input.byte())), len);
            }
            7 => {
                let len = input.len();
                for _ in 0..input.below(100) {
                    self.send(Outgoing::message(7), len);
                }
            }
            8 => self.call(input),
            9 => self.send_batch(input),
            10 => self.look_aside(input),
            11 if input.one_in(64) => {
                self.port.close();
                self.closed = true;
            }
            11..=13 => self.peer_sends(input),
            14..=15 => self.peer_polls(input),
            16..=17 => self.lie_at_the_head(input),
            18 => self.lie_with_a_jump(input),
            19 => self.lie_with_a_batch(input),
            20 => self.lie_about_credit(input),
            21 => self.lie_about_many(input),
            22 => self.scribble(input),
            _ => {
                let slot = input.below(256) % (self.theirs.len() - RING);
                self.lie(input, slot);
            }
        }
        self.look_at_fault();
    }

    /// One look, and if there is something, all that a handler may do with it.
    fn receive(&mut self, input: &mut Input<'_>) {
        self.look_at_fault();
        if self.fault.is_some() {
            return self.assert_quarantined(input);
        }
        let how = input.byte();
        let quick = how & 1 == 1;
        let (expected, header, found) = match self.reader.calls.first() {
            Some(&call) if how & 6 == 6 => {
                let awaited = self.reader.awaited(&self.theirs, call);
                assert_eq!(self.port.reply_within(call, 1), awaited.is_some());
                let Some(header) = awaited else { return };
                let answer = Answer::Reply;
                let reply = Arrival::Reply { call, answer };
                (reply, header, reply)
            }
            _ => {
                let (expected, header) = self.reader.look(&self.theirs, quick);
                (expected, header, self.look(quick))
            }
        };
        assert_eq!(found, expected, "{header:?}");
        match found {
            Arrival::Empty => return,
            Arrival::Fault(fault) => return self.found_fault(fault),
            _ => assert!(self.port.holds_message()),
        }
        if how & 0x1f == 0x10 {
            assert_eq!(self.port.arrival(), found, "a second look finds the same");
        }
        let payload = self.theirs.payload(self.reader.slot, header.len);
        assert!(payload.len() <= self.reader.max);
        let outcome = match found {
            Arrival::Batch => self.unpack(input, &payload),
            _ => {
                self.handle(input, found, header, &payload);
                self.handled += 1;
                Ok(())
            }
        };
        if outcome.is_err() {
            // The endpoint may still give the slots back.
            if input.byte() & 1 == 1 {
                self.port.consume();
            }
            return self.look_at_fault();
        }
        let expected = self.reader.consume(header);
        let before = self.port.fault();
        self.port.consume();
        if before.is_none() {
            assert_eq!(self.port.fault(), expected, "after {header:?}");
        }
    }

    fn look(&mut self, quick: bool) -> Arrival {
        if !quick {
            return self.port.arrival();
        }
        let message = self.port.lookout().message(1).map(|(handler, ..)| handler);
        match message {
            Some(handler) => Arrival::Message { handler },
            None if self.port.saw_other() => self.port.arrival(),
            None => Arrival::Empty,
        }
    }

    /// A message or a reply: read, answered, overwritten in between, in any order.
    fn handle(&mut self, input: &mut Input<'_>, found: Arrival, header: Header, payload: &[u8]) {
        let order = input.byte();
        {
            let (incoming, port) = self.port.incoming();
            assert_eq!(incoming.len(), payload.len());
            assert_eq!(incoming.wants_reply(), header.wanted);
            if order & 1 == 1 {
                assert_eq!(incoming.bytes(), payload);
                assert_eq!(port.copied(), payload);
            }
        }
        let mut given_back = false;
        if matches!(found, Arrival::Message { .. }) && header.wanted && order & 2 == 2 {
            given_back = self.answer(input);
        } else if order & 4 == 4 {
            let len = input.len();
            given_back = self.send(Outgoing::message(9), len);
        }
        if order & 8 == 8 {
            // What was sent meanwhile gave the slots back, so the peer may use them.
            if !given_back {
                let _ = self.port.incoming().0.bytes();
            }
            self.scribble_over(self.reader.slot, header.slots());
        }
        assert_eq!(self.port.incoming().0.bytes(), payload, "read at last");
    }

    /// Whether an answer was sent.
    fn answer(&mut self, input: &mut Input<'_>) -> bool {
        let len = input.len();
        let result = match input.below(4) {
            0 => self.port.try_refuse(Answer::NoHandler).map(|()| 0),
            1 => self.port.try_refuse(Answer::NoReply).map(|()| 0),
            _ => self.port.try_reply(&vec![0xaa; len]).map(|()| len),
        };
        match result {
            Ok(len) => self.count_sent(len, 1),
            Err(TrySendError::Fault(fault)) => self.check_fault(fault),
            Err(TrySendError::Closed) => assert!(self.closed),
            Err(other) => panic!("a reply was refused: {other}"),
        }
        result.is_ok()
    }

    /// `Err` if the batch contradicted itself.
    fn unpack(&mut self, input: &mut Input<'_>, payload: &[u8]) -> Result<(), ()> {
        let (messages, lie) = unpack(payload);
        let (mut expected, theirs) = (messages.iter(), self.theirs.clone());
        let (slot, order) = (self.reader.slot, input.byte());
        let (mut sent, mut found) = (Vec::new(), None);
        let count = self.port.unpack(|handler, incoming, port| {
            let (wanted, bytes) = expected.next().expect("not one too many");
            assert_eq!((handler, incoming.handler()), (*wanted, *wanted));
            assert!(!incoming.wants_reply());
            if order & 1 == 1 {
                // What the peer writes now comes too late.
                theirs.store(RING + slot, 1, u64::from(order) << 3);
            }
            if order & 6 == 6 {
                match port.try_send(Outgoing::message(3), bytes) {
                    Ok(()) => sent.push(bytes.len()),
                    Err(TrySendError::Fault(fault)) => found = found.or(Some(fault)),
                    Err(_) => {}
                }
            }
            assert_eq!(incoming.bytes(), bytes);
        });
        assert_eq!(count, messages.len());
        assert!(
            count <= self.reader.max / 8,
            "a batch costs no more than its bytes"
        );
        self.lied |= order & 1 == 1;
        for len in sent {
            self.count_sent(len, 1);
        }
        self.handled += count as u64;
        let Some(at) = lie else {
            assert!(
                count > 0 || payload.is_empty(),
                "an arrival that costs a look and counts for nothing"
            );
            return Ok(());
        };
        let fault = self.port.fault().expect("a batch that contradicts itself");
        let is_credit = |fault| {
            matches!(
                fault,
                PeerFault::CreditAhead { .. } | PeerFault::CreditBackwards { .. }
            )
        };
        match found {
            Some(first) => assert_eq!(fault, first, "the first one stays"),
            None => assert!(
                fault == PeerFault::Batch { at } || is_credit(fault),
                "{fault}"
            ),
        }
        Err(())
    }

    fn finish_drain(&mut self) {
        self.port.finish_drain();
        if self.port.fault().is_none() && !self.port.holds_message() {
            assert_eq!(self.ours.load(CURSOR, 0), self.reader.consumed);
        }
    }

    /// What changes nothing.
    fn look_aside(&mut self, input: &mut Input<'_>) {
        let call = u16::from(input.byte());
        let waits = self.fault.is_some() || self.reader.head(&self.theirs).tag == self.reader.tag;
        assert_eq!(self.port.has_arrival(), waits);
        if !self.reader.calls.contains(&call) && self.fault.is_none() {
            let head = self.reader.head(&self.theirs);
            let is_it = (head.tag, head.kind, head.reserved) == (self.reader.tag, 1, 0);
            if !is_it || head.target != call {
                assert!(!self.port.reply_within(call, 1));
            }
        }
        let _ = (self.port.peer_asleep(), self.port.peer_ended());
        let _ = self.port.peer_wake_value();
        assert_eq!(self.port.open_calls(), self.reader.calls.len());
    }

    fn send(&mut self, out: Outgoing, len: usize) -> bool {
        let result = self.port.try_send(out, &vec![0x55; len]);
        self.sent_or_not(result, len, 1);
        result.is_ok()
    }

    fn call(&mut self, input: &mut Input<'_>) {
        let (len, number) = (input.len(), self.port.next_call());
        let result = self.port.try_send(Outgoing::call(5), &vec![0x77; len]);
        if result == Err(TrySendError::TooManyCalls) {
            assert_eq!(self.reader.calls.len(), MAX_CALLS);
            return;
        }
        if result.is_ok() {
            self.reader.calls.push(number);
        }
        self.sent_or_not(result, len, 1);
    }

    fn send_batch(&mut self, input: &mut Input<'_>) {
        let (mut batch, mut bytes, mut count) = (Batch::new(), 0, 0);
        let (mut len, mut before) = (0, None);
        for _ in 0..input.below(12) {
            if !input.one_in(3) {
                len = usize::from(input.byte());
            }
            if batch.push(1, &vec![1; len]) {
                // Messages alike share a head.
                let head = if before == Some(len) { 0 } else { 8 };
                (bytes, count) = (bytes + head + room(len), count + 1);
                before = Some(len);
            }
        }
        if count > 0 {
            let result = self.port.try_send_batch(&mut batch);
            self.sent_or_not(result, bytes, count);
        }
    }

    fn sent_or_not(&mut self, result: Result<(), TrySendError>, len: usize, messages: u64) {
        match result {
            Ok(()) => self.count_sent(len, messages),
            Err(TrySendError::Full) => self.assert_cursor_taken(),
            Err(TrySendError::Closed) => assert!(self.closed && self.fault.is_none()),
            Err(TrySendError::Fault(fault)) => self.check_fault(fault),
            Err(other) => panic!("{other}"),
        }
    }

    fn count_sent(&mut self, len: usize, messages: u64) {
        assert!(!self.closed && self.fault.is_none());
        self.sent_slots += slots(len) as u64;
        self.sent += messages;
    }

    /// The ring is full, so the cursor was looked at: a lie there must have been seen.
    fn assert_cursor_taken(&mut self) {
        let cursor = self.theirs.load(CURSOR, 0);
        let went = |from: u64, to: u64| to.wrapping_sub(from) as i64;
        assert!(went(self.cursor, cursor) >= 0, "taken back");
        // There are at most as many markers as messages.
        let most = self.start.wrapping_add(2 * self.sent_slots + 1);
        assert!(went(cursor, most) >= 0, "ahead of what was sent");
        self.cursor = cursor;
    }

    /// A fault names what is wrong, and something must be.
    fn check_fault(&self, fault: PeerFault) {
        assert!(self.lied, "an honest peer is called a liar: {fault}");
        assert!(
            self.fault.is_none_or(|first| first == fault),
            "the first one stays"
        );
        let went = |from: u64, to: u64| to.wrapping_sub(from) as i64;
        match fault {
            PeerFault::CreditAhead { alleged, sent } => {
                assert!(went(sent, alleged) > 0);
                let count = sent.wrapping_sub(self.start);
                assert!((self.sent_slots..=2 * self.sent_slots + 1).contains(&count));
            }
            PeerFault::CreditBackwards { before, alleged } => assert!(went(before, alleged) < 0),
            PeerFault::HungUp | PeerFault::Control => panic!("{fault} is not for the ring to say"),
            _ => {}
        }
    }

    fn found_fault(&mut self, fault: PeerFault) {
        self.check_fault(fault);
        self.fault = Some(fault);
        self.frozen = self.ours.image(RING..self.ours.len());
    }

    /// Notes a fault that was found while sending or consuming.
    fn look_at_fault(&mut self) {
        match (self.fault, self.port.fault()) {
            (None, Some(fault)) => self.found_fault(fault),
            (known, fault) => assert_eq!(known, fault),
        }
    }

    fn assert_quarantined(&mut self, input: &mut Input<'_>) {
        let fault = self.fault.expect("a fault");
        assert_eq!(self.port.fault(), Some(fault));
        assert_eq!(self.port.arrival(), Arrival::Fault(fault));
        assert!(self.port.lookout().message(2).is_none() && self.port.saw_other());
        assert!(self.port.has_arrival());
        assert!(!self.port.reply_within(u16::from(input.byte()), 2));
        let refused = self
            .port
            .try_send(Outgoing::message(1), &vec![1; input.len()]);
        assert_eq!(refused, Err(TrySendError::Fault(fault)));
        assert_eq!(self.port.try_reply(b"x"), Err(TrySendError::Fault(fault)));
        assert_eq!(
            self.ours.image(RING..self.ours.len()),
            self.frozen,
            "written after a fault"
        );
    }

    fn peer_sends(&mut self, input: &mut Input<'_>) {
        let bytes: Vec<u8> = (0..input.len()).map(|n| (n * 7 + 1) as u8).collect();
        // A peer that was lied to by its own segment may be at fault itself; what it may do is not looked at.
        let _ = match input.below(8) {
            0 | 1 => self.peer.try_send(Outgoing::call(2), &bytes),
            2 => {
                let mut batch = Batch::new();
                for _ in 0..=input.below(9) {
                    let _ = batch.push(u16::from(input.byte()), &bytes[..bytes.len().min(90)]);
                }
                self.peer.try_send_batch(&mut batch)
            }
            3 => (0..input.below(100))
                .try_for_each(|_| self.peer.try_send(Outgoing::message(4), &bytes)),
            _ => self.peer.try_send(Outgoing::message(6), &bytes),
        };
        assert!(self.lied || self.peer.fault().is_none());
    }

    fn peer_polls(&mut self, input: &mut Input<'_>) {
        for _ in 0..=input.below(40) {
            match self.peer.arrival() {
                Arrival::Empty | Arrival::Fault(_) => break,
                Arrival::Message { .. } if self.peer.handling_wants_reply() => {
                    let bytes = vec![0x33; input.len()];
                    let _ = self.peer.try_reply(&bytes);
                }
                _ => {}
            }
            let _ = self.peer.incoming().0.bytes();
            self.peer.consume();
        }
        self.peer.finish_drain();
        assert!(self.lied || self.peer.fault().is_none());
    }

    /// What a peer has no part in: our identity, what nobody uses, and our counts.
    fn finish(mut self) {
        let ours = Identity::ours(
            self.port.layout(),
            PAGE,
            Incarnation([1, u64::from(u32::MAX)]),
        );
        assert_eq!(self.ours.image(0..1), formatted(self.port.layout(), &ours));
        for unused in [1..2, 3..4, 5..8] {
            assert!(self.ours.image(unused).iter().all(|&word| word == 0));
        }
        let counters = self.port.counters();
        let count = |counter| counters.get(counter).wrapping_sub(self.start);
        assert_eq!(count(Counter::Sent), self.sent);
        if self.fault.is_none() {
            assert_eq!(count(Counter::Received), self.handled);
        } else {
            self.assert_quarantined(&mut Input::new(&[]));
        }
        assert_eq!(self.reader.starts, starts(self.port.peer_layout()));
    }
}

/// The first line of a segment with this identity.
pub(super) fn formatted(layout: Layout, identity: &Identity) -> Vec<u64> {
    let lines = Lines::new(layout);
    layout.format(OwnLines::new(lines.clone()), identity);
    lines.image(0..1)
}
