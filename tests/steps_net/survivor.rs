//! The endpoint that must not be hurt: it has a channel with a third party and one with the victim, and knows what it may hear of the victim
//! and what must be left of it.

use crate::ground::Ground;
use crate::numbered::{is_payload, payload};
use crate::operation::{
    ASK, ATTEMPTED, DELIVERED, DEPTH, ECHO, HANDLED, NUMBERED, PUBLISHED, SHORT, WRONG,
};
use crate::support::{Ledger, Looks, PATIENCE, Peer, Scratch};
use crate::{THIRD_PARTY, start};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tightbeam::{
    CallError, ChannelId, DeviceStatus, Endpoint, Event, Handlers, Message, OpenError, Reply,
    SendError, Wait,
};

/// What is wrong, if anything.
pub(crate) type Checked<T = ()> = Result<T, String>;

/// Says what is wrong unless it holds.
pub(crate) fn check(holds: bool, wrong: impl FnOnce() -> String) -> Checked {
    match holds {
        true => Ok(()),
        false => Err(wrong()),
    }
}

/// After so long a client that is dead may lose its place.
const IDLE: Duration = Duration::from_millis(10);
/// Looks in vain after which what was sent by somebody who is dead has come.
const QUIET: u32 = 20;
/// What is sent to the dead, and for how long an answer is waited for.
const TO_THE_DEAD: usize = 8;
const FROM_THE_DEAD: Duration = Duration::from_millis(1);

/// Messages of the victim: the number that must come next, and the first that was another.
#[derive(Default)]
struct Seen {
    next: u64,
    wrong: Option<u64>,
}

impl Seen {
    fn see(&mut self, bytes: &[u8]) {
        if !is_payload(bytes, self.next) {
            self.wrong.get_or_insert(self.next);
        }
        self.next += 1;
    }
}

fn echo(seen: &mut Seen, message: Message<'_>, reply: Reply<'_>) {
    let bytes = message.bytes();
    seen.see(bytes);
    reply.send(bytes);
}

pub(crate) struct Survivor {
    endpoint: Endpoint<Seen>,
    third: ChannelId,
    /// The channel with the victim, once it is open; and whether it has been told that the victim has closed it.
    victim: Option<ChannelId>,
    closed: bool,
    /// The channel with an earlier victim, of whose death nobody has told yet.
    dead: Option<ChannelId>,
    /// How often somebody has told: that nobody knows it any more, or that another one wants its place.
    pub(crate) unknown: u64,
    pub(crate) evicted: u64,
    /// Messages sent to the victim, calls among them.
    told: u64,
    pub(crate) ledger: Ledger,
    pub(crate) place: String,
    _third_party: Peer,
    _scratch: Scratch,
}

impl Survivor {
    /// With a patience for openings of its own.
    pub(crate) fn new(ground: &Ground, within: Duration) -> Survivor {
        static SURVIVORS: AtomicU64 = AtomicU64::new(0);
        let number = SURVIVORS.fetch_add(1, Ordering::Relaxed);
        let scratch = Scratch::new(&format!("steps-net-{number}"));
        let place = scratch.address();
        let handlers = Handlers::new()
            .on(NUMBERED, |seen: &mut Seen, message, _| {
                seen.see(message.bytes());
            })
            .on(ECHO, echo);
        let builder = Endpoint::builder().state(Seen::default());
        let builder = builder.handlers(handlers).depth(DEPTH).wait(Wait::Spin);
        let builder = builder.deadline(PATIENCE).open_within(within);
        // The third party and one victim: the next one needs the place.
        let builder = builder.max_channels(2).idle_limit(IDLE);
        let mut endpoint = builder.listen(&ground.listens).expect("a free port");
        let third_party = start(THIRD_PARTY, &place, ground).spawn();
        let third_party = Peer(third_party.expect("a child"));
        crate::support::opened(&mut endpoint);
        let third = endpoint.channels().next().expect("it is open");
        let mut survivor = Survivor {
            endpoint,
            third,
            victim: None,
            closed: false,
            dead: None,
            unknown: 0,
            evicted: 0,
            told: 0,
            ledger: Ledger::of(&place),
            place,
            _third_party: third_party,
            _scratch: scratch,
        };
        survivor.ask_third_party().expect("it answers");
        survivor
    }

    /// Forgets the last victim; its channel is closed, or left until somebody tells of its death.
    pub(crate) fn begin(&mut self, leave: bool) {
        (0..16).for_each(|word| self.ledger.write(word, 0));
        *self.endpoint.state_mut() = Seen::default();
        let last = self.victim.take().filter(|_| !self.closed);
        for over in [self.dead.take(), last].into_iter().flatten() {
            match leave && Some(over) == last {
                true => self.dead = last,
                false => drop(self.endpoint.close(over)),
            }
        }
        (self.closed, self.told) = (false, 0);
    }

    pub(crate) fn poll(&mut self) -> Checked<usize> {
        let handled = self.endpoint.poll(64);
        while let Some(event) = self.endpoint.next_event() {
            match event {
                Event::Opened { channel, .. } => {
                    // Of one that was killed when its opening was as good as over.
                    if let Some(late) = self.victim.replace(channel) {
                        check(!self.closed, || "two victims".into())?;
                        self.endpoint.close(late);
                    }
                }
                Event::Closed { channel, .. } if Some(channel) == self.victim && !self.closed => {
                    self.closed = true;
                }
                Event::Evicted { channel, .. } if Some(channel) == self.dead => {
                    self.dead = None;
                    self.evicted += 1;
                }
                Event::Dead { channel, .. } if Some(channel) == self.dead => {
                    self.dead = None;
                    self.unknown += 1;
                }
                other => return Err(format!("nobody expects {other:?}")),
            }
        }
        let seen = self.endpoint.state();
        check(seen.wrong.is_none(), || {
            format!("message {:?} is not what was sent", seen.wrong)
        })?;
        self.ledger.write(DELIVERED, self.endpoint.state().next);
        Ok(handled)
    }

    /// Polls until something is so.
    pub(crate) fn until(&mut self, what: &str, so: impl Fn(&Survivor) -> bool) -> Checked {
        let (deadline, mut looks) = (Instant::now() + PATIENCE, Looks::new());
        while !so(self) {
            self.poll()?;
            check(Instant::now() < deadline, || {
                let words: [u64; 12] = std::array::from_fn(|word| self.ledger.read(word));
                let status = self.victim.and_then(|it| self.endpoint.device_status(it));
                format!("never: {what}; {words:?}, {status:?}, {:?}", self.audit())
            })?;
            looks.another();
        }
        Ok(())
    }

    pub(crate) fn delivered(&self) -> u64 {
        self.endpoint.state().next
    }

    pub(crate) fn is_open(&self) -> bool {
        self.victim.is_some() && !self.closed
    }

    pub(crate) fn has_closed(&self) -> bool {
        self.closed
    }

    /// Connects to a victim that listens.
    pub(crate) fn open(&mut self, address: &str) -> Result<(), OpenError> {
        let opened = self.endpoint.open(address)?;
        self.victim = Some(opened);
        Ok(())
    }

    /// A message there and one back, over the other channel.
    pub(crate) fn ask_third_party(&mut self) -> Checked {
        let answer = self
            .endpoint
            .call_to(self.third, ECHO, b"and you?", PATIENCE);
        match answer {
            Ok(b"and you?") => Ok(()),
            other => Err(format!("the third party says {other:?}")),
        }
    }

    /// Sends the victim its next message; `false` if there is no room, or nobody.
    pub(crate) fn tell(&mut self, len: usize) -> Checked<bool> {
        let Some(victim) = self.victim else {
            return Ok(false);
        };
        let message = payload(self.told, len);
        match self.endpoint.try_send_to(victim, NUMBERED, &message) {
            Ok(()) => {
                self.told += 1;
                Ok(true)
            }
            Err(SendError::Full | SendError::NoChannel) => Ok(false),
            Err(other) => Err(format!("telling the victim: {other}")),
        }
    }

    /// Calls the victim, and waits for no answer.
    pub(crate) fn ask(&mut self) -> Checked {
        let victim = self.victim.ok_or("no victim")?;
        let message = payload(self.told, SHORT);
        self.told += 1;
        match self.endpoint.call_to(victim, ASK, &message, Duration::ZERO) {
            Err(CallError::DeadlineExceeded) => Ok(()),
            other => Err(format!("asked without patience, it says {other:?}")),
        }
    }

    /// Sends to a dead victim, and calls it: nobody answers, and that is all.
    pub(crate) fn ask_the_dead(&mut self) -> Checked {
        for _ in 0..TO_THE_DEAD {
            self.tell(SHORT)?;
            self.poll()?;
        }
        let Some(victim) = self.victim else {
            return Ok(());
        };
        let answer = self.endpoint.call_to(victim, ASK, b"", FROM_THE_DEAD);
        match answer {
            Err(CallError::DeadlineExceeded | CallError::Ended) => Ok(()),
            Err(CallError::NotSent(SendError::NoChannel)) => Ok(()),
            other => Err(format!("asked after its death, it says {other:?}")),
        }
    }

    /// Sends over the channel of an earlier victim until somebody who took its port says that he does not know it.
    pub(crate) fn ask_for_the_dead(&mut self) -> Checked {
        let Some(dead) = self.dead else {
            return Ok(());
        };
        let deadline = Instant::now() + PATIENCE;
        let mut looks = Looks::new();
        while self.dead.is_some() {
            let _ = self.endpoint.try_send_to(dead, NUMBERED, b"who are you?");
            self.poll()?;
            check(Instant::now() < deadline, || {
                "nobody says that the dead is unknown".into()
            })?;
            looks.another();
        }
        Ok(())
    }

    /// Of the frames of both channels each is in one place, and none is out; and so are slots and credits, and the device's own frames.
    pub(crate) fn audit(&self) -> Checked {
        let both = [Some(self.third), self.victim.filter(|_| !self.closed)];
        for channel in both.into_iter().flatten() {
            if let Some(frames) = self.endpoint.frames(channel) {
                let right = frames.astray.is_empty() && frames.out == 0;
                let all = frames.free + frames.lent == frames.frames;
                check(right && all, || format!("{frames:?}"))?;
            }
            if let Some(audit) = self.endpoint.audit(channel) {
                check(audit.findings.is_empty(), || audit.to_string())?;
            }
            if let Some(status) = self.endpoint.device_status(channel) {
                let missing = status.count("frames_missing").unwrap_or(0);
                check(missing == 0, || format!("{missing} frames of the device"))?;
            }
        }
        Ok(())
    }

    pub(crate) fn told(&self) -> u64 {
        self.told
    }

    /// How the device and the channel stand.
    pub(crate) fn status(&self) -> Checked<DeviceStatus> {
        let victim = self.victim.ok_or("no victim")?;
        let status = self.endpoint.device_status(victim);
        status.ok_or_else(|| "the channel is over".into())
    }

    /// Waits until nothing more comes of a victim that is dead, then accounts for its messages: those that were delivered are the first ones
    /// that it has sent, each whole and once. If `kept`, what a kernel has taken is never lost.
    pub(crate) fn bury(&mut self, kept: bool) -> Checked {
        let mut quiet = 0;
        while quiet < QUIET {
            quiet = match self.poll()? {
                0 => quiet + 1,
                _ => 0,
            };
        }
        let words = [ATTEMPTED, PUBLISHED, HANDLED, WRONG];
        let [attempted, published, handled, wrong] = words.map(|word| self.ledger.read(word));
        let delivered = self.delivered();
        let least = if kept { published } else { 0 };
        check(wrong == 0, || {
            format!("the victim was not told what was sent: number {wrong}")
        })?;
        check(handled <= self.told, || {
            format!("{handled} handled of {}", self.told)
        })?;
        check((least..=attempted).contains(&delivered), || {
            format!("{published} published, {attempted} attempted, {delivered} delivered")
        })?;
        self.audit()
    }
}

/// Descriptors of this process: an operation leaves as many as it finds.
pub(crate) fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("proc").count()
}
