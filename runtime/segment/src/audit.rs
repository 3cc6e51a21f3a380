//! Where every slot and every credit is: free, in flight, being handled, or consumed and not credited yet (I7).
//!
//! ```text
//!   counts of slots:     credited         consumed       being handled         sent
//!   ----- free ------------>|-- not credited -->|-- handled -->|---- in flight ---->|---- free ---
//! ```
//!
//! A side alone knows its own ledger and what the peer has published: that is [`Port::audit`]. Both sides together, while
//! neither runs, must agree on every slot: that is [`audit_pair`]. An audit changes nothing and reads shared memory as the
//! port itself does, so that a lying peer gets a finding and nothing else.

use crate::Counter;
use crate::descriptor::{CREDIT_MASK, Descriptor, Kind, last_tag, next_tag};
use crate::lap::reached;
use crate::layout::{CURSOR_CONSUMED, CURSOR_LINE, CURSOR_SENT, PAYLOAD_BYTES, RING_LINE};
use crate::lines::PeerLine;
use crate::port::Port;
use crate::send::Sender;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

mod finding;
#[cfg(all(test, not(loom)))]
mod tests;

pub use finding::{Finding, Place, Ring, Teller};
use finding::{ahead, behind, twice};

/// What one side knows of its channel. The first five are counts of slots, jump markers among them.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Audit {
    /// Sent since the channel was opened.
    pub sent: u64,
    /// Of these, known to be consumed.
    pub credited: u64,
    /// Of these, not known to be consumed: in flight, being handled by the peer, or consumed and not credited yet.
    pub in_flight: u64,
    /// Consumed of the peer's ring since the channel was opened.
    pub consumed: u64,
    /// Held by the message that is being handled.
    pub handling: u64,
    /// Messages in the peer's ring that have not been looked at, a batch being one.
    pub waiting: u64,
    /// What is in no place or in two. Empty while both sides are honest.
    pub findings: Vec<Finding>,
}

impl Port {
    /// Says where this side's slots and credits are, by its private ledger and the words that the peer has published.
    ///
    /// Changes nothing, and takes about as long as looking at each slot in flight once. It cannot see what the peer keeps in private memory, nor
    /// what this side's own segment holds (an owner never reads it back): [`audit_pair`] can. While the peer runs, its words
    /// are of slightly different moments; a finding is certain when it stands still. Of a port at fault the receive ring's
    /// slots are not looked at, nor from inside a batch.
    pub fn audit(&self) -> Audit {
        let (sent, credited) = (self.tx.sent(), self.tx.acked.get());
        let mut findings = Vec::new();
        if reached(sent, credited) {
            self.audit_ledger(&mut findings);
        } else {
            findings.push(ahead(Ring::Mine, Teller::Ledger, credited, sent));
        }
        let line = self.peer.head::<CURSOR_LINE>();
        let cursor = line.load_acquire(CURSOR_CONSUMED);
        let peer_sent = line.load(CURSOR_SENT);
        PeerLine::acquire();
        let before = self.tx.last_cursor.get();
        if !reached(sent, cursor) {
            findings.push(ahead(Ring::Mine, Teller::Cursor, cursor, sent));
        } else if !reached(cursor, before) {
            findings.push(behind(Ring::Mine, Teller::Cursor, cursor, before));
        }
        self.audit_credit(&mut findings);
        self.audit_drops(&mut findings);
        Audit {
            sent,
            credited,
            in_flight: sent.wrapping_sub(credited),
            consumed: self.rx.consumed(),
            handling: self.held().slots,
            waiting: self.audit_waiting(peer_sent, &mut findings),
            findings,
        }
    }

    /// Each slot that the ledger has in flight, once; and none of them free.
    fn audit_ledger(&self, findings: &mut Vec<Finding>) {
        let (tx, slots) = (&self.tx, self.layout.slots());
        let mut taken = vec![false; slots];
        // At most one more than there are: then one of them is there twice.
        let in_flight = tx.sent().wrapping_sub(tx.acked.get()).min(slots as u64 + 1);
        for n in 0..in_flight {
            let Some((slot, _)) = tx.place(tx.acked.get().wrapping_add(n)) else {
                continue;
            };
            match taken.get_mut(slot) {
                None => {
                    let ring = Ring::Mine;
                    findings.push(Finding::SlotOutside { ring, slot, slots });
                    break;
                }
                Some(true) => {
                    findings.push(twice(Ring::Mine, slot, Place::InFlight, Place::InFlight));
                }
                Some(free) => *free = true,
            }
        }
        let free = tx.index.get()..tx.until.get().min(slots);
        for slot in free.filter(|&slot| taken[slot]) {
            findings.push(twice(Ring::Mine, slot, Place::Free, Place::InFlight));
        }
    }

    /// What the next header will say of credit is what was consumed, and what is being handled once it was copied out.
    fn audit_credit(&self, findings: &mut Vec<Finding>) {
        let (ring, by) = (Ring::Peers, Teller::Header);
        let due = self.given();
        let off = Descriptor(self.rx.credit.get()).credit().wrapping_sub(due) & CREDIT_MASK;
        if off == 0 {
        } else if off <= CREDIT_MASK / 2 {
            findings.push(ahead(ring, by, due.wrapping_add(off), due));
        } else {
            let missing = CREDIT_MASK + 1 - off;
            findings.push(behind(ring, by, due.wrapping_sub(missing), due));
        }
    }

    fn audit_drops(&self, findings: &mut Vec<Finding>) {
        let drops = [
            Counter::DropNoHandler,
            Counter::DropMalformed,
            Counter::DropLateReply,
        ];
        let dropped = drops.iter().map(|&drop| self.counters.get(drop)).sum();
        let received = self.counters().get(Counter::Received);
        // A drop is counted before its message is consumed.
        if !self.holds_message() && dropped > received {
            findings.push(Finding::Dropped { dropped, received });
        }
    }

    /// Messages that lie in the peer's ring; there are those that the peer said it had sent.
    fn audit_waiting(&self, peer_sent: u64, findings: &mut Vec<Finding>) -> u64 {
        let (received, held) = (self.rx.messages(), u64::from(self.holds_message()));
        let Some(mut walk) = Walk::behind_held(self) else {
            return 0;
        };
        let mut waiting = 0;
        // A bound: each step takes a slot, and a lap begins anew at most twice before it meets itself.
        for _ in 0..2 * self.peer_layout.slots() {
            match walk.step(self) {
                Step::Message(_) => waiting += 1,
                Step::Jump => {}
                Step::Nothing => break,
            }
        }
        let there = received.wrapping_add(held).wrapping_add(waiting);
        if !reached(there, peer_sent) {
            findings.push(Finding::Messages {
                ring: Ring::Peers,
                sent: peer_sent,
                received,
                waiting: waiting + held,
            });
        }
        waiting
    }

    /// Slots whose credit this side has given, or may give with its next header.
    fn given(&self) -> u64 {
        let held = self.held();
        let copied = if held.copied { held.slots } else { 0 };
        self.rx.consumed().wrapping_add(copied)
    }

    fn held(&self) -> Held {
        let header = self.header.get();
        let copied = header.0 & Descriptor::COPIED != 0;
        let slots = match header.0 & Descriptor::CONSUMED == 0 {
            false => 0,
            // Of a message in a batch the header is private: the credit tells how much the batch takes.
            true if header.tag() == 0 => {
                let credit = Descriptor(self.rx.credit.get()).credit();
                credit.wrapping_sub(self.rx.consumed()) & CREDIT_MASK
            }
            true => header.slots() as u64,
        };
        Held { slots, copied }
    }
}

/// The message that is being handled.
struct Held {
    /// None if there is no such message.
    slots: u64,
    copied: bool,
}

impl Sender {
    /// Slot and lap tag of a count, unless it is of a lap that the ledger has forgotten.
    fn place(&self, count: u64) -> Option<(usize, u8)> {
        let (lap, previous) = (self.lap.get(), self.previous.get());
        if reached(count, lap.base) {
            Some((lap.slot(count), self.tag()))
        } else if reached(count, previous.base) {
            Some((previous.slot(count), last_tag(self.tag())))
        } else {
            None
        }
    }
}

/// Goes through a ring as its receiver would, and moves nothing.
struct Walk {
    slot: usize,
    tag: u8,
    count: u64,
}

enum Step {
    /// Of so many slots.
    Message(u64),
    Jump,
    /// Neither.
    Nothing,
}

impl Walk {
    /// Begins where the receiver will look once it has consumed what it handles.
    fn behind_held(receiver: &Port) -> Option<Walk> {
        let (header, held) = (receiver.header.get(), receiver.held());
        let mut walk = Walk {
            slot: receiver.rx.index.get(),
            tag: u8::try_from(receiver.rx.tag.get()).ok()?,
            count: receiver.rx.consumed(),
        };
        match held.slots {
            0 => {}
            // Inside a batch nobody knows whether it ends the lap.
            _ if header.tag() == 0 => return None,
            slots => walk.pass(slots, header.restart()),
        }
        Some(walk)
    }

    fn pass(&mut self, slots: u64, restart: bool) {
        self.count = self.count.wrapping_add(slots);
        self.slot += slots as usize;
        if restart {
            (self.slot, self.tag) = (0, next_tag(self.tag));
        }
    }

    /// The word where the next header belongs; none lies behind the last slot in which a message may start.
    fn look(&self, receiver: &Port) -> u64 {
        match self.slot < receiver.peer_layout.starts() {
            true => receiver.peer.line(RING_LINE + self.slot).load_acquire(0),
            false => 0,
        }
    }

    fn step(&mut self, receiver: &Port) -> Step {
        let starts = receiver.peer_layout.starts();
        let header = Descriptor(self.look(receiver));
        if header.tag() != self.tag {
            return Step::Nothing;
        }
        match header.kind() {
            Some(Kind::Jump) => {
                let target = header.credit() as usize;
                if target <= self.slot || target >= starts {
                    return Step::Nothing;
                }
                self.slot = target;
                self.count = self.count.wrapping_add(1);
                Step::Jump
            }
            Some(_) if header.len() > receiver.peer_layout.max_inline() => Step::Nothing,
            Some(_) if (header.len() > PAYLOAD_BYTES) != header.multi() => Step::Nothing,
            Some(_) => {
                let slots = header.slots() as u64;
                self.pass(slots, header.restart());
                Step::Message(slots)
            }
            None => Step::Nothing,
        }
    }
}

/// Audits both sides of a channel in one process: each alone, then what they must agree on. Neither may run meanwhile.
///
/// Every slot is in exactly one place, credit is never ahead of consumption, what is in flight is what the receiver will
/// find, and messages sent are those received and those in flight. Changes nothing; looks at every slot once.
pub fn audit_pair(left: &Port, right: &Port) -> Vec<Finding> {
    let mut findings = left.audit().findings;
    // What is mine to the right one is the peer's to the left one.
    let right_alone = right.audit().findings;
    findings.extend(right_alone.into_iter().map(Finding::mirrored));
    audit_ring(left, right, Ring::Mine, &mut findings);
    audit_ring(right, left, Ring::Peers, &mut findings);
    findings
}

/// What both sides must agree on, of the ring of one of them.
fn audit_ring(sender: &Port, receiver: &Port, ring: Ring, findings: &mut Vec<Finding>) {
    let (tx, sent, credited) = (&sender.tx, sender.tx.sent(), sender.tx.acked.get());
    let consumed = receiver.rx.consumed();
    let cursor = sender.peer.head::<CURSOR_LINE>().load(CURSOR_CONSUMED);
    if !reached(receiver.given(), credited) {
        findings.push(ahead(ring, Teller::Ledger, credited, receiver.given()));
    }
    if !reached(consumed, cursor) {
        findings.push(ahead(ring, Teller::Cursor, cursor, consumed));
    }
    audit_ahead(sender, receiver, ring, findings);
    let held = receiver.held();
    let taken = consumed.wrapping_add(held.slots);
    if !reached(sent, taken) {
        findings.push(Finding::ConsumedUnsent {
            ring,
            consumed: taken,
            sent,
        });
        return;
    }
    let Some(mut walk) = Walk::behind_held(receiver) else {
        return;
    };
    if !held.copied {
        for n in 0..held.slots {
            if !reached(consumed.wrapping_add(n), credited) {
                let slot = receiver.rx.index.get() + n as usize;
                findings.push(twice(ring, slot, Place::Free, Place::Handled));
            }
        }
    }
    let mut waiting = u64::from(receiver.holds_message());
    loop {
        let here = (walk.slot, walk.tag);
        if let Some(there) = tx.place(walk.count).filter(|&there| there != here) {
            findings.push(Finding::SlotApart {
                ring,
                sender: there,
                receiver: here,
            });
            return;
        }
        // Bounded: every step counts up to `sent`, of which the ledger's audit says whether it is too far away.
        let left = sent.wrapping_sub(walk.count);
        if left == 0 {
            break;
        }
        let (before, found) = (walk.count, walk.look(receiver));
        let slots = match walk.step(receiver) {
            Step::Message(slots) if slots <= left => {
                waiting += 1;
                slots
            }
            Step::Jump => 1,
            _ => {
                let (slot, tag) = here;
                findings.push(Finding::SlotLost {
                    ring,
                    slot,
                    tag,
                    found,
                });
                return;
            }
        };
        for n in 0..slots {
            let slot = here.0 + n as usize;
            let promised = (tx.index.get()..tx.until.get()).contains(&slot);
            let forgotten = tx.place(before.wrapping_add(n)).is_none();
            if !reached(before.wrapping_add(n), credited) || promised && forgotten {
                findings.push(twice(ring, slot, Place::Free, Place::InFlight));
            }
        }
    }
    let received = receiver.rx.messages();
    if tx.messages() != received.wrapping_add(waiting) {
        findings.push(Finding::Messages {
            ring,
            sent: tx.messages(),
            received,
            waiting,
        });
    }
}

/// The slots ahead of the sender hold nothing that the receiver would take for a message.
fn audit_ahead(sender: &Port, receiver: &Port, ring: Ring, findings: &mut Vec<Finding>) {
    let (tx, slots) = (&sender.tx, sender.layout.slots());
    let next = tx.index.get();
    for slot in next..tx.clean_to.get().max(next + 1).min(slots) {
        let found = Descriptor(receiver.peer.line(RING_LINE + slot).load(0));
        if found.tag() == tx.tag() {
            findings.push(twice(ring, slot, Place::Free, Place::Unsent));
        }
    }
}

/// One line of counts, and one for each finding.
impl fmt::Display for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "slots: {} sent, {} credited, {} in flight; {} consumed, {} being handled; {} messages wait",
            self.sent, self.credited, self.in_flight, self.consumed, self.handling, self.waiting
        )?;
        self.findings
            .iter()
            .try_for_each(|finding| write!(f, "\n{finding}"))
    }
}
