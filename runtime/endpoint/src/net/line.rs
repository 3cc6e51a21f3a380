//! One device, and all channels of an endpoint over it.

use super::far::Far;
use super::opening::Desk;
use crate::control::Seat;
use crate::devices::Carrier;
use std::cell::{Cell, RefCell, RefMut};
use std::net::SocketAddrV4;
use std::os::fd::AsFd;
use std::rc::Rc;
use tightbeam_proto::raw::{Counter, Counters};
use tightbeam_proto::wire::message::{self, Kind};
use tightbeam_segment::{DeviceError, DeviceStatus, Packet, Port};
use tightbeam_sys::Errno;
use tightbeam_sys::control::Watcher;

/// Packets that are taken from a device in one turn.
const PACKETS: usize = 64;
/// Messages that wait for the end of a turn at most, so that a backlog shares packets and system calls.
const BACKLOG: u32 = 256;
/// Times that a device whose send ring is full is asked to make room before the rest waits for the next turn.
const TRIES: usize = 3;
/// Looks in vain after which a device that shares its endpoint with processes is looked at only every so many turns: a look at a socket
/// is a system call, which takes longer than a round trip to a process.
const PATIENCE: u32 = 64;
const SELDOM: u32 = 16;

/// What came of a look at a line, of the channel in a slot.
pub(crate) enum News {
    /// Something came over this channel.
    Arrived(u16),
    /// The other side has closed it.
    Closed(u16),
    /// The other side does not know it, or not any more.
    Unknown(u16),
    /// A client was admitted.
    Opened(Box<Opened>),
}

/// A channel that was opened over a line.
pub(crate) struct Opened {
    /// The endpoint's side of it.
    pub(crate) port: Port,
    pub(crate) slot: u16,
    /// The other host, as its packets say.
    pub(crate) host: SocketAddrV4,
    /// Of the channels that others may open, this is one.
    pub(crate) seat: Option<Seat>,
}

/// A device, which an endpoint and its channels have together.
pub(crate) struct Line {
    inner: RefCell<Inner>,
    /// Names the device: who opens the same one again gets this line.
    name: Option<String>,
    /// Between the beginning and the end of a poll.
    in_turn: Cell<bool>,
    /// Times that something was to be sent since the last turn.
    sent: Cell<u32>,
    /// Looks in vain since something came.
    idle: Cell<u32>,
    watched: Cell<bool>,
}

pub(super) struct Inner {
    pub(super) device: Box<dyn Carrier>,
    /// By the slots in their cookies.
    pub(super) fars: Vec<Option<Box<Far>>>,
    /// Those that may have something to send.
    pending: Vec<u16>,
    /// Something is in the device's send ring that it was not told of.
    pub(super) unkicked: bool,
    pub(super) news: Vec<News>,
    /// Packets that no channel is for.
    pub(super) strangers: Counters,
    /// Packets that name a channel and come from another address than its peer's.
    pub(super) wrong_address: u64,
    pub(super) desk: Desk,
    /// Why the device did not send what it was to.
    failed: Option<DeviceError>,
}

impl Line {
    pub(super) fn new(device: Box<dyn Carrier>, name: Option<String>, desk: Desk) -> Rc<Line> {
        Rc::new(Line {
            inner: RefCell::new(Inner {
                device,
                fars: Vec::new(),
                pending: Vec::new(),
                unkicked: false,
                news: Vec::new(),
                strangers: Counters::default(),
                wrong_address: 0,
                desk,
                failed: None,
            }),
            name,
            in_turn: Cell::new(false),
            sent: Cell::new(0),
            idle: Cell::new(0),
            watched: Cell::new(false),
        })
    }

    pub(super) fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    pub(super) fn inner(&self) -> RefMut<'_, Inner> {
        self.inner.borrow_mut()
    }

    /// A poll begins: takes in what has come; how many packets. `shared` if the endpoint has other work, too.
    pub(crate) fn begin_turn(&self, shared: bool) -> usize {
        self.in_turn.set(true);
        let idle = self.idle.get();
        if shared && idle > PATIENCE && !idle.is_multiple_of(SELDOM) {
            self.idle.set(idle + 1);
            return 0;
        }
        let came = self.inner().receive();
        self.idle.set(if came > 0 {
            0
        } else {
            idle.wrapping_add(1).max(1)
        });
        came
    }

    /// A poll ends: sends what there is, with one kick.
    pub(crate) fn end_turn(&self) {
        self.in_turn.set(false);
        if self.sent.replace(0) > 0 || self.inner.borrow().unkicked {
            self.inner().flush();
        }
    }

    /// There is something to send over the channel of this slot. What is sent first since the last turn goes at once, what follows with
    /// the next turn, or when it has become much.
    pub(crate) fn wake(&self, slot: u16) {
        let sent = self.sent.get();
        self.sent.set(sent + 1);
        let mut inner = self.inner();
        inner.note_pending(slot);
        if !self.in_turn.get() && (sent == 0 || sent.is_multiple_of(BACKLOG)) {
            inner.flush();
        }
    }

    /// Sends all that waits for the next turn.
    pub(crate) fn flush(&self) {
        self.inner().flush();
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
        if let Some(far) = self.inner().far(slot) {
            far.give_up(call);
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

    /// The channel is over for another reason.
    pub(crate) fn forget(&self, slot: u16) {
        self.inner().part(slot, false);
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
        if let Some(far) = self.far(slot)
            && !far.pending
        {
            far.pending = true;
            self.pending.push(slot);
        }
    }

    /// Takes in what has come, a batch at most.
    pub(super) fn receive(&mut self) -> usize {
        let Inner {
            device,
            fars,
            news,
            strangers,
            wrong_address,
            desk,
            ..
        } = self;
        let came = device.receive(PACKETS, &mut |packet: Packet<'_>| {
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
                    news.extend(far.take(read));
                }
                _ => {
                    strangers.add(Counter::Cookie);
                    desk.take(packet.from, read, packet.bytes, fars, news);
                }
            }
        });
        match came {
            Ok(0) => 0,
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

    /// Sends what waits, and has the device send it on its way.
    fn flush(&mut self) {
        for _ in 0..TRIES {
            let full = self.send_pending();
            self.kick();
            if !full {
                return;
            }
            self.device.reclaim();
        }
    }

    /// Whether the device's send ring is full before all is sent.
    fn send_pending(&mut self) -> bool {
        while let Some(&slot) = self.pending.last() {
            let Inner {
                device,
                fars,
                unkicked,
                failed,
                ..
            } = self;
            if let Some(Some(far)) = fars.get_mut(usize::from(slot)) {
                match far.send(&mut **device) {
                    Ok(sent) => *unkicked |= sent,
                    Err(DeviceError::Full) => {
                        *unkicked = true;
                        return true;
                    }
                    Err(error) => {
                        *failed = Some(error);
                        return false;
                    }
                }
            }
            self.pending.pop();
        }
        false
    }

    pub(super) fn kick(&mut self) {
        if self.unkicked {
            self.unkicked = false;
            if let Err(error) = self.device.kick() {
                self.failed = Some(error);
            }
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
        self.desk.parted(&gone);
    }
}
