//! One device, and all channels of an endpoint over it.

use super::desk::Desk;
use super::far::Far;
use super::hand::{Deliver, keep};
use super::news::News;
use crate::devices::Carrier;
use std::cell::{Cell, RefCell, RefMut};
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tightbeam_proto::raw::{Counter, Counters};
use tightbeam_proto::wire::message::{self, Kind};
use tightbeam_segment::{DeviceError, DeviceStatus, Outgoing, Packet, Port};
use tightbeam_sys::Errno;
use tightbeam_sys::control::{Watcher, wait_readable};

/// Packets that are taken from a device in one turn.
const PACKETS: usize = 64;
/// And so many before it is looked whether the endpoint has room for more.
const SOME: usize = 16;
/// Messages that wait for the end of a turn at most, so that a backlog shares packets and system calls.
const BACKLOG: u32 = 256;
/// Looks in vain after which a device that shares its endpoint with processes, or with a sender, is looked at only every so many turns: a
/// look at a socket is a system call, which takes longer than a round trip to a process, and half as long as a call that sends.
const PATIENCE: u32 = 64;
const SELDOM: u32 = 16;
/// Who has messages in the rings of its channels looks only every so many turns, after a look in vain, at a device at which that takes longer
/// than so many nanoseconds. (Of a stream of packets with 21 messages each over a socket a third of all looks were such.)
const SOMETIMES: u32 = 4;
const SLOW: u32 = 150;
/// What a spin takes on the build machine, about, in nanoseconds: the processor's `pause`.
const SPIN: u32 = 25;

/// A device, which an endpoint and its channels have together.
pub(crate) struct Line {
    inner: RefCell<Inner>,
    /// Names the device: who opens the same one again gets this line.
    name: Option<String>,
    /// The endpoint's number for it, which no other line of it has.
    pub(crate) number: u64,
    /// Between the beginning and the end of a poll.
    in_turn: Cell<bool>,
    /// Times that something was to be sent since the last turn.
    sent: Cell<u32>,
    /// Looks in vain since something came.
    idle: Cell<u32>,
    /// How many nanoseconds the last ones took of which it was measured.
    look: Cell<u32>,
    watched: Cell<bool>,
    /// System calls in which its endpoint has waited for it, and those in which it has let messages gather.
    waits: Cell<u64>,
    pauses: Cell<u64>,
}

pub(super) struct Inner {
    pub(super) device: Box<dyn Carrier>,
    /// By the slots in their cookies.
    pub(super) fars: Vec<Option<Box<Far>>>,
    /// Those that may have something to send.
    pub(super) pending: Vec<u16>,
    /// Something is in the device's send ring that it was not told of.
    pub(super) unkicked: bool,
    pub(super) news: Vec<News>,
    /// Channels over which more has come than the endpoint had room for.
    holding: Vec<u16>,
    /// Packets that no channel is for.
    pub(super) strangers: Counters,
    /// Packets that name a channel and come from another address than its peer's.
    pub(super) wrong_address: u64,
    pub(super) desk: Desk,
    /// Why the device did not send what it was to.
    pub(super) failed: Option<DeviceError>,
}

impl Line {
    pub(super) fn new(
        device: Box<dyn Carrier>,
        (name, number): (Option<String>, u64),
        desk: Desk,
    ) -> Rc<Line> {
        Rc::new(Line {
            inner: RefCell::new(Inner {
                device,
                fars: Vec::new(),
                pending: Vec::new(),
                unkicked: false,
                news: Vec::new(),
                holding: Vec::new(),
                strangers: Counters::default(),
                wrong_address: 0,
                desk,
                failed: None,
            }),
            name,
            number,
            in_turn: Cell::new(false),
            sent: Cell::new(0),
            idle: Cell::new(0),
            look: Cell::new(0),
            watched: Cell::new(false),
            waits: Cell::new(0),
            pauses: Cell::new(0),
        })
    }

    pub(super) fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    pub(super) fn inner(&self) -> RefMut<'_, Inner> {
        self.inner.borrow_mut()
    }

    /// A poll begins: takes in what has come, and delivers it or keeps it; how many packets, or news of earlier ones. `busy` if the endpoint
    /// has other work, too, or only wants to send; `behind` if there is something in the rings of its channels.
    pub(crate) fn begin_turn(
        &self,
        (busy, behind): (bool, bool),
        deliver: &mut Deliver<'_>,
    ) -> usize {
        self.in_turn.set(true);
        let idle = self.idle.get();
        let mut inner = self.inner();
        let every = if busy && idle > PATIENCE {
            SELDOM
        } else if behind && self.look.get() > SLOW {
            SOMETIMES
        } else {
            1
        };
        if !idle.is_multiple_of(every) {
            self.idle.set(idle.wrapping_add(1));
            return inner.news.len();
        }
        // Sometimes, and not when it matters, it is measured.
        let begin = idle.is_power_of_two().then(Instant::now);
        let came = inner.receive(deliver);
        // What was answered is on its way before anything else is done.
        if came > 0 && inner.waits() {
            inner.flush();
        }
        if let (Some(begin), 0) = (begin, came) {
            let took = begin.elapsed().as_nanos();
            self.look.set(took.try_into().unwrap_or(u32::MAX));
        }
        self.idle.set(if came > 0 {
            0
        } else {
            idle.wrapping_add(1).max(1)
        });
        came.max(inner.news.len())
    }

    /// How often to look at it in the time that so many spins take: a look at a ring of AF_XDP takes about as long as one, a look at a
    /// socket as long as ten.
    pub(crate) fn spins(&self, spins: u32) -> u32 {
        let all = u64::from(SPIN) * u64::from(spins);
        (all / u64::from(self.look.get().max(SPIN))) as u32
    }

    /// A poll ends: sends what there is, with one kick.
    pub(crate) fn end_turn(&self) {
        self.in_turn.set(false);
        self.sent.set(0);
        let mut inner = self.inner();
        if inner.waits() {
            inner.flush();
        }
    }

    /// There is something to send over the channel of this slot. What is sent first since the last turn goes at once, what follows with
    /// the next turn, or when it has become much.
    pub(crate) fn wake(&self, slot: u16) {
        let mut inner = self.inner();
        inner.note_pending(slot);
        if inner.pending.is_empty() {
            return;
        }
        let sent = self.sent.get();
        self.sent.set(sent.wrapping_add(1));
        if !self.in_turn.get() && (sent == 0 || sent.is_multiple_of(BACKLOG)) {
            inner.flush();
        }
    }

    /// Sends a message over the channel of this slot, whose near port this is, past its ring, if it is the first since the last turn and
    /// nothing is in its way; `false` if it is to go through that, and who sends it to [wake](Self::wake) the line.
    pub(crate) fn send_past(
        &self,
        slot: u16,
        near: &Port,
        what: (Outgoing, u16),
        bytes: &[u8],
    ) -> bool {
        if self.in_turn.get() || self.sent.get() > 0 {
            return false;
        }
        let sent = self.inner().send_past(slot, near, what, bytes);
        self.sent.set(u32::from(sent));
        sent
    }

    /// Sends all that waits for the next turn; `false` if the device cannot take all of it now, and will be able to without a word.
    pub(crate) fn flush(&self) -> bool {
        !self.inner().flush()
    }

    /// Its endpoint lets messages gather, in a system call.
    pub(crate) fn note_pause(&self) {
        self.pauses.set(self.pauses.get() + 1);
    }

    /// Its endpoint waits, or prepares to, by a system call.
    pub(crate) fn note_wait(&self) {
        self.waits.set(self.waits.get() + 1);
    }

    /// Whether something has come, or an earlier look has found something that its endpoint has not been told of. Makes a system call.
    pub(crate) fn has_news(&self) -> bool {
        let ready = {
            let inner = self.inner.borrow();
            self.note_wait();
            !inner.news.is_empty() || wait_readable(inner.device.as_fd(), Duration::ZERO)
        };
        if ready {
            self.look_soon();
        }
        ready
    }

    /// The next turn looks at the device, however long nothing has come.
    pub(crate) fn look_soon(&self) {
        self.idle.set(0);
    }

    /// The channel of this slot is called so by its endpoint.
    pub(crate) fn name_channel(&self, slot: u16, label: u64) {
        if let Some(far) = self.inner().far(slot) {
            far.label = label;
        }
    }

    /// What its endpoint calls the channel of this slot.
    pub(crate) fn label(&self, slot: u16) -> u64 {
        self.inner().far(slot).map_or(0, |far| far.label)
    }

    /// The other side has closed the channel of this slot, and is told that this was heard; what its endpoint calls it.
    pub(crate) fn hang_up(&self, slot: u16) -> u64 {
        let mut inner = self.inner();
        let Inner {
            device,
            fars,
            unkicked,
            ..
        } = &mut *inner;
        let Some(Some(far)) = fars.get_mut(usize::from(slot)) else {
            return 0;
        };
        far.port.close();
        far.say_close(&mut **device, true);
        *unkicked = true;
        far.label
    }

    /// See [`Far::give_up`].
    pub(crate) fn give_up(&self, slot: u16, call: u16) {
        let mut inner = self.inner();
        if let Some(far) = inner.far(slot) {
            far.give_up(call);
            let ended = far.take_ended();
            inner.news.extend(ended);
        }
    }

    /// The endpoint has closed the channel: what it had sent goes first.
    pub(crate) fn close(&self, slot: u16) {
        let mut inner = self.inner();
        inner.note_pending(slot);
        inner.flush();
        inner.part(slot, true);
        inner.kick();
    }

    /// The endpoint is no more: all others hear of it, those too whose channels it has not been told of.
    pub(crate) fn close_all(&self) {
        let mut inner = self.inner();
        inner.flush();
        for slot in 0..=u16::MAX {
            if usize::from(slot) >= inner.fars.len() {
                break;
            }
            inner.part(slot, true);
        }
        inner.kick();
    }

    /// The channel is over for another reason.
    pub(crate) fn forget(&self, slot: u16) {
        self.inner().part(slot, false);
    }

    /// Whether there is something that its endpoint has not been told of.
    pub(crate) fn has_any(&self) -> bool {
        !self.inner.borrow().news.is_empty()
    }

    /// Takes all news, oldest first.
    pub(crate) fn drain_news(&self, into: &mut Vec<News>) {
        into.append(&mut self.inner().news);
    }

    /// Has this watcher watch the device, if it does not yet.
    pub(crate) fn watch(&self, watcher: &Watcher, token: u64) -> Result<(), Errno> {
        if !self.watched.get() {
            watcher.add(self.inner.borrow().device.as_fd(), token)?;
            self.watched.set(true);
        }
        Ok(())
    }

    /// Whether it has no channel, and will have none: nobody can ask for one, nor find the device by a name.
    pub(crate) fn is_unused(&self) -> bool {
        let inner = self.inner.borrow();
        let known = self.name.is_some() || inner.desk.is_open();
        !known && inner.news.is_empty() && inner.fars.iter().all(Option::is_none)
    }

    /// Has this watcher not watch it any more.
    pub(crate) fn unwatch(&self, watcher: &Watcher) {
        if self.watched.get() {
            watcher.remove(self.inner.borrow().device.as_fd());
        }
    }

    /// How the device stands, and the channel of this slot.
    pub(crate) fn status(&self, slot: u16) -> DeviceStatus {
        let inner = self.inner.borrow();
        let mut status = inner.device.status();
        let counts = &mut status.counts;
        let labelled = |(counter, count): (Counter, u64)| (counter.label(), count);
        if let Some(Some(far)) = inner.fars.get(usize::from(slot)) {
            let channel = &far.counts;
            counts.extend([
                ("channel_packets_sent", channel.packets),
                ("channel_messages_sent", channel.messages),
                ("channel_no_room", channel.no_room),
                ("channel_late_answers", channel.late_answers),
                ("channel_too_long", channel.too_long),
            ]);
            counts.extend(far.arrived().iter().map(labelled));
        }
        counts.push(("wrong_address", inner.wrong_address));
        counts.push(("wait_calls", self.waits.get()));
        counts.push(("gather_calls", self.pauses.get()));
        let strangers = inner.strangers.iter().filter(|(_, count)| *count > 0);
        status.facts.extend(strangers.map(|stranger| {
            let (label, count) = labelled(stranger);
            (label, format!("{count} of no channel"))
        }));
        if let Some(failed) = &inner.failed {
            status.facts.push(("last error", failed.to_string()));
        }
        status
    }
}

impl Inner {
    pub(super) fn far(&mut self, slot: u16) -> Option<&mut Far> {
        self.fars.get_mut(usize::from(slot))?.as_deref_mut()
    }

    fn note_pending(&mut self, slot: u16) {
        if let Some(Some(far)) = self.fars.get_mut(usize::from(slot)) {
            note_pending(far, &mut self.pending);
        }
    }

    /// Takes in what has come, a few packets at a time, as long as the endpoint has room for what is in them. The rest stays with the
    /// device, which has more room than a ring, and counts what it has none for.
    pub(super) fn receive(&mut self, deliver: &mut Deliver<'_>) -> usize {
        if !self.hand_over() {
            return 1;
        }
        let mut came = 0;
        while came < PACKETS {
            let more = self.receive_some(deliver);
            came += more;
            if more < SOME || !self.holding.is_empty() {
                break;
            }
        }
        came
    }

    /// Gives the endpoint what it had no room for before; whether that was all. It is news each time, so that the endpoint makes room.
    fn hand_over(&mut self) -> bool {
        let Inner {
            fars,
            holding,
            news,
            ..
        } = self;
        holding.retain(|slot| match fars.get_mut(usize::from(*slot)) {
            Some(Some(far)) => {
                news.push(News::Arrived(*slot));
                let all = far.hand_over();
                news.extend(far.take_closed());
                !all
            }
            _ => false,
        });
        holding.is_empty()
    }

    fn receive_some(&mut self, deliver: &mut Deliver<'_>) -> usize {
        let Inner {
            device,
            fars,
            news,
            strangers,
            wrong_address,
            desk,
            holding,
            pending,
            ..
        } = self;
        let came = device.receive(SOME, &mut |packet: Packet<'_>| {
            let read = match message::Packet::new_checked(packet.bytes) {
                Ok(read) => read,
                Err(malformed) => {
                    return strangers.add(tightbeam_proto::raw::Refused::from(malformed).counter());
                }
            };
            if !matches!(read.kind(), Kind::Data | Kind::Close) {
                return desk.take(packet.from, read, packet.bytes, fars, news);
            }
            let slot = usize::from(read.cookie().slot());
            match fars.get_mut(slot) {
                Some(Some(far)) if far.ours() == read.cookie() => {
                    if far.route.to != packet.from.to {
                        *wrong_address += 1;
                        return;
                    }
                    news.extend(far.take(read, deliver));
                    // What its handler has answered, or sent.
                    note_pending(far, pending);
                    if far.holds() && !holding.contains(&far.slot()) {
                        holding.push(far.slot());
                    }
                }
                _ if desk.keep_early(packet.from, &read, packet.bytes) => {}
                _ => {
                    strangers.add(Counter::Cookie);
                    desk.take(packet.from, read, packet.bytes, fars, news);
                }
            }
        });
        match came {
            Ok(came) => {
                self.answer_desk();
                came
            }
            Err(error) => {
                self.failed = Some(error);
                0
            }
        }
    }

    /// Takes what has come over a channel before there was one.
    pub(super) fn take_early(&mut self, slot: u16, early: &[Vec<u8>]) {
        let Some(Some(far)) = self.fars.get_mut(usize::from(slot)) else {
            return;
        };
        for bytes in early {
            if let Ok(packet) = message::Packet::new_checked(bytes.as_slice()) {
                self.news.extend(far.take(packet, &mut keep));
            }
        }
        if far.holds() {
            self.holding.push(slot);
        }
    }

    fn part(&mut self, slot: u16, say: bool) {
        let Some(gone) = self.fars.get_mut(usize::from(slot)).and_then(Option::take) else {
            return;
        };
        if say {
            gone.say_close(&mut *self.device, false);
            self.unkicked = true;
        }
        self.pending.retain(|pending| *pending != slot);
        // What it has brought is not about the next one that gets the slot.
        self.news.retain(|new| !new.is_of(slot));
        self.desk.parted(&gone);
    }
}

/// Notes that there may be something to send over a channel. A drain that has sent nothing wakes, too.
fn note_pending(far: &mut Far, pending: &mut Vec<u16>) {
    if !far.pending && far.has_more() {
        far.pending = true;
        pending.push(far.slot());
    }
}
