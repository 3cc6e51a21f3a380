//! The endpoint that must not be hurt: it has a channel with a third party and one with the victim, and knows what it
//! may hear of the victim and what must be left of it.

use crate::numbered::{is_payload, payload};
use crate::operation::{
    ASK, ASKED, ATTEMPTED, DELIVERED, DEPTH, ECHO, FRAMED, HANDLED, LATER, NUMBERED, ON_PATH,
    Operation, PUBLISHED, SCRAP, SHORT, TURN, WRONG,
};
use crate::support::{Ledger, Looks, PATIENCE, Peer, Scratch, opened};
use crate::{THIRD_PARTY, start};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};
use tightbeam::{
    CallError, ChannelId, Counter, Counters, Endpoint, Event, Handlers, Message, OpenError,
    PoolAudit, Reply, SendError,
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

/// Messages of the victim: the number that must come next, and the first that was another.
#[derive(Default)]
struct Seen {
    next: u64,
    wrong: Option<u64>,
    /// Messages that are dropped, unless there is room for them in time.
    scraps: u64,
}

impl Seen {
    fn see(&mut self, bytes: &[u8]) {
        if is_payload(bytes, SCRAP) {
            self.scraps += 1;
            return;
        }
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

/// Descriptors and mapped segments of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Belongings {
    descriptors: usize,
    segments: usize,
}

impl Belongings {
    /// Whether there is no more of either.
    fn within(self, other: Belongings) -> bool {
        self.descriptors <= other.descriptors && self.segments <= other.segments
    }

    fn least(self, other: Belongings) -> Belongings {
        Belongings {
            descriptors: self.descriptors.min(other.descriptors),
            segments: self.segments.min(other.segments),
        }
    }

    /// When what was left to another thread is done: the next memory for frames is made ahead there.
    fn now() -> Belongings {
        let (done, all_done) = mpsc::channel::<()>();
        tightbeam_sys::apart::run(move || drop(done));
        let _ = all_done.recv();
        let maps = std::fs::read_to_string("/proc/self/maps").expect("proc");
        Belongings {
            descriptors: std::fs::read_dir("/proc/self/fd").expect("proc").count(),
            segments: maps.matches("/memfd:tightbeam").count(),
        }
    }
}

/// What the descriptors of this process are.
fn descriptors() -> Vec<String> {
    let all = std::fs::read_dir("/proc/self/fd").expect("proc").flatten();
    let links = all.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    links.map(|link| link.display().to_string()).collect()
}

/// How the victim's channel has ended.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) closed: bool,
    counters: Counters,
}

impl End {
    /// Answers to calls of the survivor that nobody waited for any more.
    pub(crate) fn late_answers(&self) -> u64 {
        self.counters.get(Counter::DropLateReply)
    }
}

pub(crate) struct Survivor {
    endpoint: Endpoint<Seen>,
    third: ChannelId,
    /// The victim's process, if it is the one that connects.
    client: i32,
    /// Channels with earlier victims that were killed when the opening was as good as over.
    late: Vec<ChannelId>,
    /// The channel with the victim, once it is open, and how it ended.
    victim: Option<ChannelId>,
    end: Option<End>,
    /// Messages sent to the victim, calls among them, and replies.
    told: u64,
    /// The least that it had without a victim. The first time there may still be something of its opening, and of the survivor before.
    before: Belongings,
    pub(crate) ledger: Ledger,
    pub(crate) address: String,
    _third_party: Peer,
    _scratch: Scratch,
}

impl Survivor {
    /// For victims that do this.
    pub(crate) fn new(operation: Operation) -> Survivor {
        // The one before may not have left yet.
        static SURVIVORS: AtomicU64 = AtomicU64::new(0);
        let number = SURVIVORS.fetch_add(1, Ordering::Relaxed);
        let scratch = Scratch::new(&format!("steps-{number}"));
        let address = scratch.address();
        let handlers = Handlers::new()
            .on(NUMBERED, |seen: &mut Seen, message, _| {
                seen.see(message.bytes());
            })
            .on(ECHO, echo);
        let builder = Endpoint::builder().state(Seen::default());
        let builder = builder.handlers(handlers).depth(DEPTH);
        let builder = builder.deadline(PATIENCE).open_within(PATIENCE);
        let mut endpoint = builder.listen(&address).expect("a free path");
        let third_party = start(THIRD_PARTY, &address).spawn().expect("a child");
        let third_party = Peer(third_party);
        opened(&mut endpoint);
        let third = endpoint.channels().next().expect("it is open");
        let mut survivor = Survivor {
            endpoint,
            third,
            client: 0,
            late: Vec::new(),
            victim: None,
            end: None,
            told: 0,
            before: Belongings::now(),
            ledger: Ledger::of(&address),
            address,
            _third_party: third_party,
            _scratch: scratch,
        };
        survivor.ask_third_party().expect("it answers");
        // The memory of shared frames is there, and stays.
        let frame = survivor.endpoint.shared_frame(FRAMED).expect("a frame");
        drop(frame);
        if operation == Operation::Wake {
            // And so are the descriptors with which it sleeps.
            let slept = survivor.fall_asleep().and_then(|()| survivor.wake_up());
            slept.expect("it can be woken");
        }
        survivor.before = Belongings::now();
        survivor
    }

    /// Forgets the last victim.
    pub(crate) fn begin(&mut self) {
        (0..8).for_each(|word| self.ledger.write(word, 0));
        *self.endpoint.state_mut() = Seen::default();
        (self.victim, self.end, self.told) = (None, None, 0);
    }

    /// The next victim is this process, and connects.
    pub(crate) fn expect(&mut self, process: i32) {
        self.client = process;
    }

    pub(crate) fn poll(&mut self) -> Checked {
        // So that it knows of an end while there is something left to handle.
        self.endpoint.poll(1);
        while let Some(event) = self.endpoint.next_event() {
            let (channel, closed, counters) = match event {
                Event::Opened { channel, peer } if peer.pid != self.client => {
                    self.late.push(channel);
                    continue;
                }
                Event::Opened { channel, .. } if self.victim.is_none() => {
                    self.victim = Some(channel);
                    continue;
                }
                Event::Dead { channel, .. } if self.late.contains(&channel) => {
                    self.late.retain(|late| *late != channel);
                    continue;
                }
                Event::Closed { channel, counters } => (channel, true, counters),
                Event::Dead { channel, counters } => (channel, false, counters),
                other => return Err(format!("nobody expects {other:?}")),
            };
            check(self.victim == Some(channel), || {
                format!("{channel:?} has ended, the victim's is {:?}", self.victim)
            })?;
            let first = self.end.replace(End { closed, counters });
            check(first.is_none(), || format!("after {first:?} another end"))?;
        }
        let seen = self.endpoint.state();
        check(seen.wrong.is_none(), || {
            format!("message {:?} is not what was sent", seen.wrong)
        })?;
        self.ledger.write(DELIVERED, self.endpoint.state().next);
        Ok(())
    }

    /// Polls until something is so.
    pub(crate) fn until(&mut self, what: &str, so: impl Fn(&Survivor) -> bool) -> Checked {
        let (deadline, mut looks) = (Instant::now() + PATIENCE, Looks::new());
        // Looked at first: a poll more than needed would take what is meant for later.
        while !so(self) {
            self.poll()?;
            check(Instant::now() < deadline, || {
                let counters = self
                    .victim
                    .and_then(|victim| self.endpoint.counters(victim));
                format!(
                    "never: {what}; {} delivered, {:?}, {counters:?}, {:?}",
                    self.delivered(),
                    self.ledger(),
                    self.audit()
                )
            })?;
            looks.another();
        }
        Ok(())
    }

    fn ledger(&self) -> [u64; 8] {
        std::array::from_fn(|word| self.ledger.read(word))
    }

    pub(crate) fn delivered(&self) -> u64 {
        self.endpoint.state().next
    }

    pub(crate) fn is_open(&self) -> bool {
        self.victim.is_some() && self.end.is_none()
    }

    pub(crate) fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    /// Connects to a victim that listens.
    pub(crate) fn open(&mut self, address: &str) -> Result<(), OpenError> {
        self.victim = Some(self.endpoint.open(address)?);
        Ok(())
    }

    /// A message there and one back, over the other channel.
    pub(crate) fn ask_third_party(&mut self) -> Checked {
        match self
            .endpoint
            .call_to(self.third, ECHO, b"and you?", PATIENCE)
        {
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

    /// Sends a frame along the path of the victim and the third party, then tells the victim that it is its turn.
    pub(crate) fn tell_along_path(&mut self) -> Checked {
        let victim = self.victim.ok_or("no victim")?;
        let message = payload(self.told, FRAMED);
        let frame = self.endpoint.shared_frame(message.len());
        let mut frame = frame.map_err(|error| format!("a shared frame: {error}"))?;
        frame.copy_from_slice(&message);
        let path = [victim, self.third];
        let sent = self
            .endpoint
            .try_send_along(&path, ON_PATH, &frame.freeze());
        sent.map_err(|error| format!("along the path: {error}"))?;
        let turn = payload(self.told + 1, SHORT);
        let sent = self.endpoint.try_send_to(victim, TURN, &turn);
        self.told += 2;
        sent.map_err(|error| format!("its turn: {error}"))
    }

    /// Sends one frame to the third party and to the victim.
    pub(crate) fn tell_both(&mut self) -> Checked {
        let victim = self.victim.ok_or("no victim")?;
        let message = payload(self.told, FRAMED);
        let frame = self.endpoint.shared_frame(message.len());
        let mut frame = frame.map_err(|error| format!("a shared frame: {error}"))?;
        frame.copy_from_slice(&message);
        let both = [self.third, victim];
        let published = self.endpoint.publish(&both, NUMBERED, &frame.freeze());
        self.told += 1;
        check(published.sent == 2, || format!("{published:?}"))
    }

    /// Calls what the victim leaves to a worker, and waits for no answer. What is asked has no place in the order of what is told.
    pub(crate) fn ask_a_worker(&mut self) -> Checked {
        let victim = self.victim.ok_or("no victim")?;
        let message = payload(ASKED, SHORT);
        let answer = self
            .endpoint
            .call_to(victim, LATER, &message, Duration::ZERO);
        match answer {
            Err(CallError::DeadlineExceeded) => Ok(()),
            other => Err(format!("asked without patience, its worker says {other:?}")),
        }
    }

    /// Says that it sleeps on its descriptor, as long as it is not [woken up](Self::wake_up). It may poll all the same.
    pub(crate) fn fall_asleep(&mut self) -> Checked {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(sleeper) = self.endpoint.arm().map_err(|error| error.to_string())? {
                // Its drop would say that it is awake. What it keeps is kept to the end of the test.
                std::mem::forget(sleeper);
                return Ok(());
            }
            self.poll()?;
        }
        Err("there is always something to do".into())
    }

    /// Takes the wake-ups, and says that it does not sleep.
    pub(crate) fn wake_up(&mut self) -> Checked {
        let sleeper = self.endpoint.arm().map_err(|error| error.to_string())?;
        drop(sleeper);
        Ok(())
    }

    /// Calls the victim, and waits for no answer.
    pub(crate) fn ask(&mut self) -> Checked {
        match self.call_victim(Duration::ZERO) {
            Err(CallError::DeadlineExceeded) => Ok(()),
            other => Err(format!("asked without patience, it says {other:?}")),
        }
    }

    /// Calls a dead victim, and waits: its end must be what ends this.
    pub(crate) fn ask_the_dead(&mut self) -> Checked {
        match self.call_victim(PATIENCE) {
            Err(CallError::Ended | CallError::NotSent(SendError::NoChannel)) => Ok(()),
            other => Err(format!("asked after its death, it says {other:?}")),
        }
    }

    fn call_victim(&mut self, within: Duration) -> Result<(), CallError> {
        let victim = self
            .victim
            .ok_or(CallError::NotSent(SendError::NoChannel))?;
        let message = payload(self.told, SHORT);
        let answer = self.endpoint.call_to(victim, ASK, &message, within);
        let answer = answer.map(|_| ());
        if !matches!(answer, Err(CallError::NotSent(_))) {
            self.told += 1;
        }
        answer
    }

    /// What nobody may stand in the way of, if the victim still stands still.
    pub(crate) fn beside(&mut self, standing: &Mutex<bool>) -> Checked {
        let standing = standing.lock().expect("no panic");
        if !*standing {
            return Ok(());
        }
        self.ask_third_party()?;
        self.audit()
    }

    /// While nobody else moves: each slot and credit of the victim's channel is in one place, if there is still that channel;
    /// and so is each frame.
    pub(crate) fn audit(&self) -> Checked {
        self.audit_frames(&self.endpoint.shared_frames())?;
        let Some(victim) = self.victim.filter(|_| self.end.is_none()) else {
            return Ok(());
        };
        if let Some(frames) = self.endpoint.frames(victim) {
            self.audit_frames(&frames)?;
        }
        match self.endpoint.audit(victim) {
            Some(audit) => check(audit.findings.is_empty(), || audit.to_string()),
            None => Ok(()),
        }
    }

    /// No frame is in no place or in two, and none is out: the survivor keeps none that it has not sent.
    fn audit_frames(&self, frames: &PoolAudit) -> Checked {
        let right = frames.astray.is_empty() && frames.out == 0;
        check(right && frames.free + frames.lent == frames.frames, || {
            format!("{frames:?}, {:?}", self.ledger())
        })
    }

    /// No shared frame is with anybody any more.
    fn shared_frames_are_back(&mut self) -> Checked {
        let deadline = Instant::now() + PATIENCE;
        loop {
            // Whoever wants one looks for those that have come back.
            let one = self.endpoint.shared_frame(1);
            drop(one.map_err(|error| format!("a shared frame: {error}"))?);
            let frames = self.endpoint.shared_frames();
            self.audit_frames(&frames)?;
            if frames.lent == 0 {
                return Ok(());
            }
            check(Instant::now() < deadline, || format!("lost: {frames:?}"))?;
            self.poll()?;
        }
    }

    /// How much of the victim's doing has been seen: the same victim killed later has got at least as far.
    pub(crate) fn progress(&self) -> u64 {
        let of_end = |end: &End| u64::from(end.closed) + end.late_answers();
        self.delivered() + self.end.as_ref().map_or(0, of_end)
    }

    pub(crate) fn told(&self) -> u64 {
        self.told
    }

    /// Waits until the victim's channel is over and nothing of it is left, then accounts for every message.
    pub(crate) fn bury(&mut self) -> Checked {
        let before = self.before;
        self.until("everything back", |survivor| {
            !survivor.is_open() && survivor.late.is_empty() && Belongings::now().within(before)
        })
        .map_err(|wrong| {
            let now = Belongings::now();
            format!("{wrong}: {now:?}, before {before:?}; {:?}", descriptors())
        })?;
        self.before = self.before.least(Belongings::now());
        self.shared_frames_are_back()?;
        let ledger = &self.ledger;
        let [attempted, published, handled, wrong] =
            [ATTEMPTED, PUBLISHED, HANDLED, WRONG].map(|word| ledger.read(word));
        check(wrong == 0, || {
            format!("the victim was not told what was sent: number {wrong}")
        })?;
        check(handled <= self.told, || {
            format!("{handled} handled of {}", self.told)
        })?;
        let Some(End { counters, .. }) = &self.end else {
            return check(published == 0, || {
                format!("no channel, but {published} sent")
            });
        };
        let count = |counter| counters.get(counter);
        let (delivered, late) = (self.delivered(), count(Counter::DropLateReply));
        check((published..=attempted).contains(&delivered), || {
            format!("{published} published, {attempted} attempted, {delivered} delivered")
        })?;
        let dropped = count(Counter::DropNoHandler) + count(Counter::DropMalformed);
        let scraps = self.endpoint.state().scraps;
        let adds_up = count(Counter::Received) == delivered + scraps + late && dropped == 0;
        let adds_up = adds_up && scraps <= 1;
        check(adds_up, || {
            format!("{delivered} delivered, counted {counters:?}")
        })?;
        // Replies are the survivor's only messages beside those that it counts itself.
        let replies = count(Counter::Sent).checked_sub(self.told);
        check(replies.is_some_and(|n| n <= 1), || {
            format!("{} told, counted {counters:?}", self.told)
        })
    }
}
