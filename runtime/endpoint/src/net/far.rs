//! A device's side of one channel: what the near port sends goes into packets, what comes in packets goes to the near port.

use super::calls::{Call, Calls, from_wire, to_wire};
use super::hand::{Deliver, Handing};
use super::left::Left;
use super::news::News;
use std::collections::VecDeque;
use tightbeam_proto::opening::Agreed;
use tightbeam_proto::raw::{self, Accepted};
use tightbeam_proto::wire::message::{Cookie, HEADER, Packet};
use tightbeam_proto::wire::packed;
use tightbeam_segment::{
    Answer, Arrival, Asleep, Device, DeviceError, MAX_CALLS, Outgoing, Port, Route, TrySendError,
};

/// Messages longer than this share a packet with no other: what there was to gain is small beside them.
const SHARED: usize = 512;

/// A message that waits for room in the endpoint's ring.
struct Held {
    handler: u16,
    /// Of a call the number of its packet.
    call: Option<u32>,
    bytes: Vec<u8>,
}

/// What a device's side counts of one channel, beside what [`raw::Counter`] names.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    /// Packets given to the device.
    pub(super) packets: u64,
    /// Messages in them.
    pub(super) messages: u64,
    /// Messages that came while the endpoint had no room for them: as U-Net does, they are discarded.
    pub(super) no_room: u64,
    /// Answers to calls that nobody waits for any more, or that were never made.
    pub(super) late_answers: u64,
    /// Messages that had become too long for the path.
    pub(super) too_long: u64,
}

/// The way out, for one channel.
pub(super) struct Way<'a> {
    pub(super) device: &'a mut dyn Device,
    /// No other channel has something to send.
    pub(super) alone: bool,
    /// What the device said when it was told of the last packet.
    pub(super) kicked: Option<Result<bool, DeviceError>>,
}

/// One channel, as its line has it.
pub(super) struct Far {
    /// The endpoint's name for the channel.
    pub(super) label: u64,
    pub(super) port: Port,
    pub(super) route: Route,
    sender: raw::Sender,
    receiver: raw::Receiver,
    /// Calls of this endpoint, and of the other one.
    asked: Calls,
    asking: Calls,
    /// Calls of this endpoint that are given up before they are sent.
    given_up: [Option<u16>; MAX_CALLS],
    /// The endpoint was told that there is no answer to a call.
    ended: bool,
    /// Messages of a batch that are still to be sent.
    left: Left,
    /// Messages that came while the endpoint had no room: those of a few packets, then the device keeps the next ones.
    held: VecDeque<Held>,
    closed: bool,
    /// Somebody else has opened it; until when something was heard, as far as was looked, and how much.
    pub(super) guest: bool,
    heard: (u64, u64),
    /// There may be something to send.
    pub(super) pending: bool,
    pub(super) counts: Counts,
}

impl Far {
    pub(super) fn new(port: Port, route: Route, agreed: &Agreed) -> Far {
        // For good: whoever sends tells the line.
        port.set_asleep(Asleep::Connection);
        Far {
            label: 0,
            port,
            route,
            sender: raw::Sender::new(agreed.theirs, agreed.max_packet),
            receiver: raw::Receiver::new(agreed.ours),
            asked: Calls::default(),
            asking: Calls::default(),
            given_up: [None; MAX_CALLS],
            ended: false,
            left: Left::default(),
            held: VecDeque::new(),
            closed: false,
            guest: false,
            heard: (0, 0),
            pending: false,
            counts: Counts::default(),
        }
    }

    /// By which the other host names the channel.
    pub(super) fn ours(&self) -> Cookie {
        self.receiver.cookie()
    }

    /// By which we do.
    pub(super) fn theirs(&self) -> Cookie {
        self.sender.peer()
    }

    /// Where the line has it.
    pub(super) fn slot(&self) -> u16 {
        self.ours().slot()
    }

    /// For how many nanoseconds nothing has come, at least: since it was last looked, or before.
    pub(super) fn silent_for(&mut self, now: u64) -> u64 {
        let accepted = self.receiver.counters().get(raw::Counter::Accepted);
        let (until, so_far) = self.heard;
        if until == 0 || accepted != so_far {
            self.heard = (now, accepted);
        }
        now.saturating_sub(self.heard.0)
    }

    /// Longer packets than this do not arrive.
    pub(super) fn narrow(&mut self, max_packet: usize) {
        self.sender.set_max_packet(max_packet);
    }

    /// The same, of a device that has become narrower; `false` if that is nothing new.
    #[cold]
    fn narrow_to(&mut self, max_packet: usize) -> bool {
        let narrower = max_packet < HEADER + self.sender.max_message();
        if narrower {
            self.narrow(max_packet);
        }
        narrower
    }

    pub(super) fn arrived(&self) -> &raw::Counters {
        self.receiver.counters()
    }

    /// Whether the endpoint has sent something that is in no packet yet.
    pub(super) fn has_more(&self) -> bool {
        self.port.has_arrival() || !self.left.is_empty()
    }

    /// Puts what the endpoint has sent into the device's send ring; an error if not all of it, which then stays in the port's ring.
    /// Nobody adds to that meanwhile, so there is an end to it.
    pub(super) fn send(&mut self, way: &mut Way<'_>) -> Result<bool, DeviceError> {
        let mut sent = false;
        let all = self.send_all(way, &mut sent);
        if sent {
            self.port.finish_drain();
        }
        self.pending = all.is_err();
        all.map(|()| sent)
    }

    fn send_all(&mut self, way: &mut Way<'_>, sent: &mut bool) -> Result<(), DeviceError> {
        loop {
            match self.send_next(way) {
                Ok(true) => *sent = true,
                Ok(false) => return Ok(()),
                // The same once more: what is too long now is lost, the rest is sent.
                Err(DeviceError::TooLong { max, .. }) if self.narrow_to(max) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends a message of the endpoint past the ring between the two ports, if nothing is in its way; `false` if it must go through that.
    pub(super) fn send_past(
        &mut self,
        near: &Port,
        (out, handler): (Outgoing, u16),
        bytes: &[u8],
        way: &mut Way<'_>,
    ) -> bool {
        let len = bytes.len();
        if !self.left.is_empty()
            || len > self.sender.max_message().min(near.max_message())
            || !near.may_pass(&self.port, out, len)
        {
            return false;
        }
        let number = near.next_call();
        let what = match out.is_call() {
            true => raw::Outgoing::Call,
            false => raw::Outgoing::Message,
        };
        let (sender, route) = (&mut self.sender, &self.route);
        // Whatever went wrong, it goes wrong again where there is time to say what.
        let Ok(written) = write(sender, way.device, route, what, handler, bytes) else {
            return false;
        };
        way.kicked = Some(way.device.kick());
        near.pass(&mut self.port, out, len);
        if out.is_call() {
            self.note_call(number, written);
        }
        self.count(written, 1);
        true
    }

    /// Whether there was something to send.
    fn send_next(&mut self, way: &mut Way<'_>) -> Result<bool, DeviceError> {
        if !self.left.is_empty() {
            self.send_left(way.device)?;
            return Ok(true);
        }
        match self.port.arrival() {
            Arrival::Message { handler } => self.send_message(handler, way)?,
            Arrival::Batch => self.take_batch(),
            Arrival::Reply { call, answer } => self.send_answer(call, answer, way)?,
            // The near port is ours: a fault would be a mistake of this library, and then nothing is sent any more.
            Arrival::Empty | Arrival::Fault(_) => return Ok(false),
        }
        Ok(true)
    }

    /// What was written leaves at once if nothing follows: what is still to be noted of it is done while it is on its way.
    fn hurry(&self, way: &mut Way<'_>) {
        if way.alone && self.left.is_empty() && !self.port.is_followed() {
            way.kicked = Some(way.device.kick());
        }
    }

    /// Whether a message of so many bytes may share a packet with others, if that is worth it.
    fn may_share(&self, len: usize) -> bool {
        len <= SHARED && packed::room(len) <= self.sender.max_message()
    }

    fn send_message(&mut self, handler: u16, way: &mut Way<'_>) -> Result<(), DeviceError> {
        let (incoming, port) = self.port.incoming();
        let (len, call, number) = (incoming.len(), incoming.wants_reply(), port.handling());
        if !call && port.is_followed() && self.may_share(len) {
            return self.send_packed(handler, way.device);
        }
        let (incoming, _) = self.port.incoming();
        let outgoing = match call {
            true => raw::Outgoing::Call,
            false => raw::Outgoing::Message,
        };
        let written = write(
            &mut self.sender,
            way.device,
            &self.route,
            outgoing,
            handler,
            incoming.bytes(),
        )?;
        self.hurry(way);
        if call {
            self.note_call(number, written);
        }
        self.count(written, 1);
        self.port.consume();
        Ok(())
    }

    /// A call was sent, in the packet of this number, or was too long.
    fn note_call(&mut self, number: u16, written: Option<u32>) {
        let mut given_up = self.given_up.iter_mut();
        let given_up = given_up.find(|call| **call == Some(number));
        let given_up = given_up.map(Option::take).is_some();
        match written {
            Some(packet) if !given_up => self.asked.note(Call {
                port: number,
                packet,
            }),
            _ => self.end_call(number),
        }
    }

    /// Says that there will be no answer to a call of this endpoint, or it could never call again.
    fn end_call(&mut self, number: u16) {
        self.ended = self.port.try_answer(number, Answer::NoReply, &[]).is_ok();
    }

    /// That the endpoint was told so: nothing came for it to see that.
    pub(super) fn take_ended(&mut self) -> Option<News> {
        std::mem::take(&mut self.ended).then(|| News::Arrived(self.slot()))
    }

    fn count(&mut self, written: Option<u32>, messages: u64) {
        match written {
            Some(_) => {
                self.counts.packets += 1;
                self.counts.messages += messages;
            }
            None => self.counts.too_long += 1,
        }
    }

    /// As many short messages as there are and fit into a packet: there is a backlog.
    #[inline(never)]
    fn send_packed(
        &mut self,
        mut handler: u16,
        device: &mut dyn Device,
    ) -> Result<(), DeviceError> {
        let (port, sender, mut messages) = (&mut self.port, &mut self.sender, 0);
        let room = HEADER + sender.max_message();
        device.transmit(&self.route, room, &mut |out| {
            let mut pack = sender.pack(out);
            while pack.push(handler, port.incoming().0.bytes()) {
                port.consume();
                match port.arrival() {
                    Arrival::Message { handler: next } => handler = next,
                    _ => break,
                }
                let (incoming, _) = port.incoming();
                // One that is too long by itself does not fit here either.
                if incoming.wants_reply() || incoming.len() > SHARED {
                    break;
                }
            }
            messages = u64::from(pack.count());
            pack.finish().map_or(0, |written| written.len)
        })?;
        self.count(Some(0), messages);
        Ok(())
    }

    #[inline(never)]
    fn take_batch(&mut self) {
        let left = &mut self.left;
        self.port
            .unpack(|handler, incoming, _| left.push(handler, incoming.bytes()));
        self.port.consume();
    }

    #[inline(never)]
    fn send_left(&mut self, device: &mut dyn Device) -> Result<(), DeviceError> {
        if let Some((handler, bytes)) = self.left.first()
            && !self.may_share(bytes.len())
        {
            let (sender, route) = (&mut self.sender, &self.route);
            let written = write(
                sender,
                device,
                route,
                raw::Outgoing::Message,
                handler,
                bytes,
            )?;
            self.count(written, 1);
            self.left.give(|_, _| true);
            return Ok(());
        }
        let (left, sender, mut messages) = (&mut self.left, &mut self.sender, 0);
        let room = HEADER + sender.max_message();
        device.transmit(&self.route, room, &mut |out| {
            let mut pack = sender.pack(out);
            while left.give(|handler, bytes| pack.push(handler, bytes)) {}
            messages = u64::from(pack.count());
            pack.finish().map_or(0, |written| written.len)
        })?;
        self.count(Some(0), messages);
        Ok(())
    }

    fn send_answer(
        &mut self,
        call: u16,
        answer: Answer,
        way: &mut Way<'_>,
    ) -> Result<(), DeviceError> {
        if let Some(asking) = self.asking.find(|asking| asking.port == call) {
            let outgoing = raw::Outgoing::Answer {
                call: asking.packet,
                answer: to_wire(answer),
            };
            let bytes = self.port.incoming().0.bytes();
            let (sender, route) = (&mut self.sender, &self.route);
            let written = write(sender, way.device, route, outgoing, 0, bytes)?;
            if written.is_none() {
                self.send_none(asking, way.device)?;
            }
            self.hurry(way);
            self.count(written, 1);
            self.asking.remove(call);
        }
        self.port.consume();
        Ok(())
    }

    /// Who waits for the answer to a call is told that it does not come.
    #[cold]
    fn send_none(&mut self, asking: Call, device: &mut dyn Device) -> Result<(), DeviceError> {
        let none = raw::Outgoing::Answer {
            call: asking.packet,
            answer: raw::Answer::NoReply,
        };
        write(&mut self.sender, device, &self.route, none, 0, &[]).map(drop)
    }

    /// Takes a packet that names this channel, and delivers what is in it or puts it into the endpoint's ring; news if that.
    pub(super) fn take(
        &mut self,
        packet: Packet<&[u8]>,
        deliver: &mut Deliver<'_>,
    ) -> Option<News> {
        let delivered = match self.receiver.accept_packet(packet) {
            Ok(Accepted::Message { handler, bytes }) => self.hand_in(handler, None, bytes, deliver),
            Ok(Accepted::Packed(messages)) => {
                let mut all = true;
                for (handler, bytes) in messages {
                    all &= self.hand_in(handler, None, bytes, deliver);
                }
                all
            }
            Ok(Accepted::Call {
                handler,
                call,
                bytes,
            }) => self.hand_in(handler, Some(call), bytes, deliver),
            Ok(Accepted::Answer {
                call,
                answer,
                bytes,
            }) => self.answer(call, answer, bytes, deliver),
            // What came before it is handled before it.
            Ok(Accepted::Close { answers: false }) if self.holds() => {
                self.closed = true;
                false
            }
            Ok(Accepted::Close { answers: false }) => return Some(News::Closed(self.slot())),
            Ok(Accepted::Close { answers: true }) | Err(_) => return None,
        };
        (!delivered).then(|| News::Arrived(self.slot()))
    }

    /// Gives a message to the endpoint, which `call` says the number of the packet of if it is one; keeps it while there is no room. Whether
    /// it has been handled.
    fn hand_in(
        &mut self,
        handler: u16,
        call: Option<u32>,
        bytes: &[u8],
        deliver: &mut Deliver<'_>,
    ) -> bool {
        if self.holds() {
            self.hold(handler, call, bytes);
            return false;
        }
        let (out, port) = (outgoing(handler, call), self.port.next_call());
        if deliver(self.label, &self.port, Handing::Message(out), bytes) {
            if let Some(packet) = call {
                self.asking.note(Call { port, packet });
            }
            return true;
        }
        if !self.give(handler, call, bytes) {
            self.hold(handler, call, bytes);
        }
        false
    }

    #[cold]
    fn hold(&mut self, handler: u16, call: Option<u32>, bytes: &[u8]) {
        self.held.push_back(Held {
            handler,
            call,
            bytes: bytes.to_vec(),
        });
    }

    /// Whether the endpoint had room for a message, or never will have.
    fn give(&mut self, handler: u16, call: Option<u32>, bytes: &[u8]) -> bool {
        let (port, out) = (&self.port, outgoing(handler, call));
        let number = port.number(out);
        let sent = number.and_then(|number| port.try_send(out, bytes).map(|()| number));
        // Room in the ring comes with the next poll. Frames that the application keeps may never come back, and others must not wait.
        if sent == Err(TrySendError::Full) {
            return false;
        }
        if let (Some(packet), Ok(port)) = (call, sent) {
            self.asking.note(Call { port, packet });
        }
        self.note_room(sent.map(drop));
        true
    }

    /// The other side has closed the channel, and all that came before is handed over.
    pub(super) fn take_closed(&mut self) -> Option<News> {
        let is_over = self.closed && !self.holds();
        is_over.then(|| {
            self.closed = false;
            News::Closed(self.slot())
        })
    }

    /// Gives the endpoint what was kept; whether that was all.
    pub(super) fn hand_over(&mut self) -> bool {
        while let Some(held) = self.held.pop_front() {
            if !self.give(held.handler, held.call, &held.bytes) {
                self.held.push_front(held);
                return false;
            }
        }
        true
    }

    /// Whether messages have come for which the endpoint had no room: then it is to take those before anything else.
    pub(super) fn holds(&self) -> bool {
        !self.held.is_empty()
    }

    fn note_room(&mut self, sent: Result<(), TrySendError>) {
        if sent.is_err() {
            self.counts.no_room += 1;
        }
    }

    /// Whether the caller has it.
    fn answer(
        &mut self,
        packet: u32,
        answer: raw::Answer,
        bytes: &[u8],
        deliver: &mut Deliver<'_>,
    ) -> bool {
        let Some(asked) = self.asked.find(|asked| asked.packet == packet) else {
            self.counts.late_answers += 1;
            return false;
        };
        self.asked.remove(asked.port);
        let handing = Handing::Answer(asked.port, from_wire(answer));
        if deliver(self.label, &self.port, handing, bytes) {
            return true;
        }
        let sent = self.port.try_answer(asked.port, from_wire(answer), bytes);
        if sent.is_err() {
            // No frame for it, or too long.
            self.end_call(asked.port);
        }
        self.note_room(sent);
        false
    }

    /// Nobody waits for the answer to this call any more, and it may be lost: the call is over, for the port too.
    pub(super) fn give_up(&mut self, call: u16) {
        if self.asked.find(|asked| asked.port == call).is_some() {
            self.asked.remove(call);
            return self.end_call(call);
        }
        // Messages are numbered in order, and this is the number of the first that is still to be sent.
        let is_sent = (call.wrapping_sub(self.port.handling()) as i16) < 0;
        let free = self.given_up.iter_mut().find(|place| place.is_none());
        if !is_sent && let Some(free) = free {
            *free = Some(call);
        }
    }

    /// Says goodbye, or answers one.
    pub(super) fn say_close(&self, device: &mut dyn Device, answers: bool) {
        let sender = &self.sender;
        // One that is lost, for whatever reason, is as good as one that the network loses.
        let _ = device.transmit(&self.route, HEADER, &mut |out| sender.close(out, answers));
    }
}

fn outgoing(handler: u16, call: Option<u32>) -> Outgoing {
    match call {
        Some(_) => Outgoing::call(handler),
        None => Outgoing::message(handler),
    }
}

/// Puts one message into a packet; its number, or `None` if it is too long for one.
fn write(
    sender: &mut raw::Sender,
    device: &mut dyn Device,
    route: &Route,
    outgoing: raw::Outgoing,
    handler: u16,
    bytes: &[u8],
) -> Result<Option<u32>, DeviceError> {
    if bytes.len() > sender.max_message() {
        return Ok(None);
    }
    let mut number = None;
    device.transmit(route, HEADER + bytes.len(), &mut |out| match sender
        .write(out, outgoing, handler, bytes)
    {
        Ok(written) => {
            number = Some(written.seq);
            written.len
        }
        Err(_) => 0,
    })?;
    Ok(number)
}
