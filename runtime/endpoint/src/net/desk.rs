//! The desk of a line: where clients ask for channels, and where this endpoint keeps what it asks for.
//!
//! What is said, and when, `tightbeam_proto::opening` knows; here it is given packets, time and random numbers, and channels are made.

use super::far::Far;
use super::news::{News, Opened};
use crate::OpenError;
use crate::control::{Gate, OpenOptions, Outcome, Refusal as Turned};
use std::collections::VecDeque;
use std::net::SocketAddrV4;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tightbeam_proto::opening::{
    self, Agreed, Client, Heard, Offer, Progress, Refusal, Server, Turn, Unknown, Wish,
};
use tightbeam_proto::wire::message::{Cookie, Kind, Packet};
use tightbeam_segment::{DeviceError, Route, joined};
use tightbeam_sys::memory::random_words;

/// Answers that wait to be sent; what there are more of is lost, and asked for again.
const ANSWERS: usize = 64;
/// Answers a second to packets that name no channel, and how many at once.
const UNKNOWNS: u32 = 100;
const UNKNOWNS_AT_ONCE: u32 = 10;
/// Tokens are made with another key after so many nanoseconds.
const KEY_LIFE: u64 = 120_000_000_000;

/// Decides by its address, as its packets say, whether another host may have a channel.
pub(crate) type Hosts = Arc<dyn Fn(SocketAddrV4) -> bool + Send + Sync>;

/// Gives channels to clients.
struct Doorman {
    server: Server,
    gate: Arc<Gate>,
    options: OpenOptions,
    key_since: u64,
}

/// Asks for a channel of our own.
struct Asking {
    client: Client,
    host: SocketAddrV4,
    slot: u16,
    progress: Progress,
    /// What the other side has sent over the channel since it gave it: that may come together with its answer, or before it.
    early: Vec<Vec<u8>>,
}

/// Packets that are kept until there is a channel for them; what comes then is lost, as its number will show.
const EARLY: usize = 16;

pub(crate) struct Desk {
    since: Instant,
    doorman: Option<Doorman>,
    asking: Option<Asking>,
    unknown: Unknown,
    answers: VecDeque<(Route, Vec<u8>)>,
    /// As long as the longest packet.
    buffer: Vec<u8>,
}

impl Desk {
    /// For packets of so many bytes at most.
    pub(super) fn new(max_packet: usize) -> Desk {
        Desk {
            since: Instant::now(),
            doorman: None,
            asking: None,
            unknown: Unknown::new(UNKNOWNS, UNKNOWNS_AT_ONCE),
            answers: VecDeque::new(),
            buffer: vec![0; max_packet.min(opening::LONGEST)],
        }
    }

    fn now(&self) -> u64 {
        self.since.elapsed().as_nanos() as u64
    }

    /// From now on who asks gets a channel, if he is admitted and there is room.
    pub(super) fn open_to_all(&mut self, options: &OpenOptions) -> Result<(), OpenError> {
        self.doorman = Some(Doorman {
            server: Server::new(Offer::raw(self.buffer.len()), random()?),
            gate: Arc::clone(&options.gate),
            options: options.clone(),
            key_since: self.now(),
        });
        Ok(())
    }

    /// Whether who asks may get a channel.
    pub(super) fn is_open(&self) -> bool {
        self.doorman.is_some()
    }

    /// Whether a packet is for the channel that is asked for: then it is kept, and not answered by a word that nobody knows it.
    #[cold]
    pub(super) fn keep_early(&mut self, from: Route, packet: &Packet<&[u8]>, bytes: &[u8]) -> bool {
        let Some(asking) = &mut self.asking else {
            return false;
        };
        let is_its = asking.host == from.to && asking.client.cookie() == packet.cookie();
        if is_its && asking.early.len() < EARLY {
            asking.early.push(bytes.to_vec());
        }
        is_its
    }

    /// Takes a packet that is for no channel.
    #[cold]
    pub(super) fn take(
        &mut self,
        from: Route,
        packet: Packet<&[u8]>,
        bytes: &[u8],
        fars: &mut Vec<Option<Box<Far>>>,
        news: &mut Vec<News>,
    ) {
        let now = self.now();
        match packet.kind() {
            Kind::Hello => self.hear(now, from, bytes, fars, news),
            Kind::Retry | Kind::HelloAck => {
                if let Some(asking) = &mut self.asking
                    && asking.host == from.to
                    && asking.progress == Progress::Nothing
                {
                    asking.progress = asking.client.handle(now, bytes);
                }
            }
            Kind::Unknown => {
                let Some(cookie) = opening::unknown_cookie(&packet) else {
                    return;
                };
                let is_it = |far: &&Far| far.theirs() == cookie && far.route.to == from.to;
                let known = fars.iter().flatten().map(|far| &**far);
                news.extend(known.filter(is_it).map(|far| News::Unknown(far.slot())));
            }
            _ => {
                let len = self.unknown.answer(now, &packet, &mut self.buffer);
                self.say(from, len);
            }
        }
    }

    /// Has so many bytes of the buffer sent.
    fn say(&mut self, to: Route, len: Option<usize>) {
        if let Some(len) = len
            && self.answers.len() < ANSWERS
        {
            self.answers.push_back((to, self.buffer[..len].to_vec()));
        }
    }

    fn hear(
        &mut self,
        now: u64,
        from: Route,
        bytes: &[u8],
        fars: &mut Vec<Option<Box<Far>>>,
        news: &mut Vec<News>,
    ) {
        let Some(doorman) = &mut self.doorman else {
            return;
        };
        doorman.change_key(now);
        let len = match doorman.server.handle(now, from.to, bytes, &mut self.buffer) {
            Heard::Ignored(_) => return,
            Heard::Answer(len) => len,
            Heard::Again {
                len,
                ours,
                max_packet,
            } => {
                let mut known = fars.iter_mut().flatten();
                if let Some(far) = known.find(|far| far.ours() == ours) {
                    far.narrow(max_packet);
                }
                len
            }
            Heard::Wish(wish) => {
                let taken = self.asking.as_ref().map(|asking| asking.slot);
                let slot = free_slot(fars, taken);
                let silent = doorman.most_silent(now, fars);
                match doorman.admit(&wish, slot, from, &mut self.buffer) {
                    Ok((len, far, opened)) => {
                        seat(fars, far);
                        news.push(News::Opened(Box::new(opened)));
                        len
                    }
                    // Whoever asks asks again, and then there is room.
                    Err(Refusal::Full) if silent.is_some() => {
                        news.extend(silent.map(News::Silent));
                        return;
                    }
                    Err(why) => doorman.server.refuse(&wish, why, &mut self.buffer),
                }
            }
        };
        self.say(from, Some(len));
    }

    pub(super) fn has_answers(&self) -> bool {
        !self.answers.is_empty()
    }

    /// Puts what there is to say into the device's send ring; whether there was anything.
    pub(super) fn send_answers(&mut self, device: &mut dyn crate::Carrier) -> bool {
        let mut said = false;
        while let Some((to, bytes)) = self.answers.front() {
            match say(device, to, bytes) {
                // Later.
                Err(DeviceError::Full) => break,
                // Lost; who asked asks again.
                Ok(()) | Err(_) => said = true,
            }
            self.answers.pop_front();
        }
        said
    }

    /// A channel has ended.
    pub(super) fn parted(&mut self, far: &Far) {
        if let Some(doorman) = &mut self.doorman {
            doorman.server.closed(far.ours());
        }
    }
}

impl Doorman {
    fn change_key(&mut self, now: u64) {
        if now.saturating_sub(self.key_since) > KEY_LIFE
            && let Ok(key) = random()
        {
            self.server.change_key(key);
            self.key_since = now;
        }
    }

    /// The channel of a client of which nothing was heard for longest, if that is too long.
    fn most_silent(&self, now: u64, fars: &mut [Option<Box<Far>>]) -> Option<u16> {
        let guests = fars.iter_mut().flatten().filter(|far| far.guest);
        let silent = guests.map(|far| (far.silent_for(now), far.slot()));
        let limit = self.options.idle_limit.as_nanos();
        let longest = silent.max().filter(|(long, _)| u128::from(*long) >= limit);
        longest.map(|(_, slot)| slot)
    }

    /// Gives a channel, or says why not.
    fn admit(
        &mut self,
        wish: &Wish,
        slot: Option<u16>,
        from: Route,
        out: &mut [u8],
    ) -> Result<(usize, Far, Opened), Refusal> {
        let turn_away = |gate: &Gate, why: Turned, said: Refusal| {
            gate.count(Outcome::Refused(why));
            said
        };
        // A policy that panics admits nobody: what the device does with its packets must not end in between.
        let admits = || (self.options.hosts)(wish.from);
        if !catch_unwind(AssertUnwindSafe(admits)).unwrap_or(false) {
            return Err(turn_away(
                &self.gate,
                Turned::NotAdmitted,
                Refusal::NotAdmitted,
            ));
        }
        if wish.class() != opening::Class::Raw {
            return Err(turn_away(&self.gate, Turned::Mismatch, Refusal::Class));
        }
        let full = |gate: &Gate| turn_away(gate, Turned::Full, Refusal::Full);
        let seat = self.gate.seat().ok_or_else(|| full(&self.gate))?;
        let slot = slot.ok_or_else(|| full(&self.gate))?;
        let exhausted = |_| turn_away(&self.gate, Turned::Exhausted, Refusal::Full);
        let [secret, _] = random().map_err(exhausted)?;
        let incarnation = random().map_err(exhausted)?;
        let ours = Cookie::new(slot, secret);
        let (len, agreed) = self.server.accept(wish, ours, incarnation, out);
        self.gate.count(Outcome::Opened);
        let (mut far, mut opened) = build(&agreed, slot, from, &self.options);
        (far.guest, opened.seat) = (true, Some(seat));
        Ok((len, far, opened))
    }
}

/// A channel that this endpoint asks for.
impl Desk {
    /// Begins to ask, for a channel in a slot.
    pub(super) fn ask(
        &mut self,
        host: SocketAddrV4,
        options: &OpenOptions,
        slot: Option<u16>,
    ) -> Result<(), OpenError> {
        let slot = slot.ok_or(OpenError::TooManyChannels)?;
        let [secret, _] = random()?;
        let patience = u64::try_from(options.within.as_nanos()).unwrap_or(u64::MAX);
        let offer = Offer::raw(self.buffer.len());
        let (cookie, now) = (Cookie::new(slot, secret), self.now());
        self.asking = Some(Asking {
            client: Client::new(offer, cookie, random()?, patience, now),
            host,
            slot,
            progress: Progress::Nothing,
            early: Vec::new(),
        });
        Ok(())
    }

    /// Says what is to be said now; how long to wait for an answer then, or `None` if it is time to give up.
    pub(super) fn ask_again(
        &mut self,
        device: &mut dyn crate::Carrier,
        route: &Route,
    ) -> Option<Duration> {
        let now = self.now();
        let asking = self.asking.as_mut()?;
        match asking.client.turn(now, &mut self.buffer) {
            Turn::Send(len) => {
                // What cannot be sent now is sent again later.
                let _ = say(device, route, &self.buffer[..len]);
                let _ = device.kick();
                Some(Duration::ZERO)
            }
            Turn::Wait(until) => Some(Duration::from_nanos(until.saturating_sub(now))),
            Turn::GiveUp => None,
        }
    }

    /// What the answers so far have led to.
    pub(super) fn progress(&mut self) -> Progress {
        let asking = self.asking.as_mut();
        asking.map_or(Progress::Nothing, |asking| {
            std::mem::replace(&mut asking.progress, Progress::Nothing)
        })
    }

    /// Ends asking; for which slot it was, and what has come for it.
    pub(super) fn end_asking(&mut self) -> (u16, Vec<Vec<u8>>) {
        let asked = self.asking.take();
        asked.map_or_else(Default::default, |asking| (asking.slot, asking.early))
    }
}

fn say(device: &mut dyn crate::Carrier, to: &Route, bytes: &[u8]) -> Result<(), DeviceError> {
    device.transmit(to, bytes.len(), &mut |out| {
        out[..bytes.len()].copy_from_slice(bytes);
        bytes.len()
    })
}

/// Both sides of a channel's rings.
pub(super) fn build(
    agreed: &Agreed,
    slot: u16,
    route: Route,
    options: &OpenOptions,
) -> (Far, Opened) {
    let most = agreed.max_message;
    let (near, far) = joined(options.layout, [0, 0], most, options.frame_limit);
    let far = Far::new(far, route, agreed);
    let opened = Opened {
        port: near,
        slot,
        host: route.to,
        seat: None,
    };
    (far, opened)
}

/// A slot that no channel has, and nobody asks for.
pub(super) fn free_slot(fars: &[Option<Box<Far>>], taken: Option<u16>) -> Option<u16> {
    let free = |slot: &u16| {
        let far = fars.get(usize::from(*slot));
        far.is_none_or(Option::is_none) && Some(*slot) != taken
    };
    (0..=u16::MAX).find(free)
}

pub(super) fn seat(fars: &mut Vec<Option<Box<Far>>>, far: Far) {
    let slot = usize::from(far.slot());
    if fars.len() <= slot {
        fars.resize_with(slot + 1, || None);
    }
    fars[slot] = Some(Box::new(far));
}

fn random() -> Result<[u64; 2], OpenError> {
    random_words().map_err(|errno| OpenError::System {
        call: "draw random numbers",
        errno,
    })
}
