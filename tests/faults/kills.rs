//! Random kill and restart under load: what the survivor has got is what was sent, up to some message; it is told once;
//! a third party does not notice; nothing is left.

use crate::board::{
    Board, FIXED, Holding, PLACES, Random, Word, descriptors, fill, long, percentile, place, seed,
};
use crate::nursery::Nursery;
use crate::support::{PATIENCE, Scratch, patiently};
use crate::traffic::{
    Books, CALLED, CALLS, END, NUMBERED, SELDOM, answers_to, builder, listens_at, now,
};
use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use tightbeam::{
    CallError, ChannelId, Counter, Endpoint, Event, MAX_INLINE, OpenError, SendError, Wait,
};

/// Children that talk at a time.
pub(crate) const SLOTS: u64 = 2;
/// Kills before what the survivor holds is first looked at.
const WARM_UP: u64 = 60;
/// Kills after which fresh helpers go on, so that none comes near the end of its life; and the longest time.
const ROUND: u64 = 4000;
const ROUND_TIME: Duration = Duration::from_secs(60);
/// Of so many kills one is of a child beside which nothing else changes.
const EACH_ALONE: u64 = 32;
/// Descriptors of a channel: its socket, its peer's process, its segment.
pub(crate) const EACH: usize = 3;
/// The third party's number.
const THIRD: u64 = 0;

/// What a child does.
pub(crate) const CONNECTING: u64 = 0;
pub(crate) const LISTENING: u64 = 1;
pub(crate) const THIRD_PARTY: u64 = 2;

/// One child from its start to its end.
struct Life {
    pid: Pid,
    channel: Option<ChannelId>,
    /// Messages of ours to it, and those of them that were calls and answered.
    sent: u64,
    answered: u64,
    /// The killer has been asked to kill it; if so while nothing else changed, how many descriptors there were.
    doomed: bool,
    before: Option<usize>,
    /// It died without a channel that we knew of, and another has its place.
    replaced: bool,
    /// When who had its place before was killed.
    since: u64,
    /// When its end was told.
    told: u64,
    /// Nobody polled while it died, so that what it had sent is found together with its end.
    unseen: bool,
}

/// Kills at its own moments, so that the survivor may be anywhere; and when it did so.
struct Killer(mpsc::Sender<(u64, Pid, Duration)>);

static KILLED_AT: [AtomicU64; PLACES as usize] = [const { AtomicU64::new(0) }; PLACES as usize];

static GONE_AT: [AtomicU64; PLACES as usize] = [const { AtomicU64::new(0) }; PLACES as usize];

fn gone_at(number: u64) -> &'static AtomicU64 {
    &GONE_AT[place(number)]
}

fn killed_at(number: u64) -> &'static AtomicU64 {
    &KILLED_AT[place(number)]
}

impl Killer {
    fn start() -> Killer {
        let (orders, taken) = mpsc::channel::<(u64, Pid, Duration)>();
        std::thread::spawn(move || {
            for (number, pid, delay) in taken {
                let process = pidfd_open(pid, PidfdFlags::empty()).expect("it is not reaped");
                std::thread::sleep(delay);
                killed_at(number).store(now(), Ordering::Release);
                kill_process(pid, Signal::KILL).expect("nobody else reaps it");
                // What the kernel needs for it, for the record.
                let mut gone = [PollFd::new(&process, PollFlags::IN)];
                while rustix::event::poll(&mut gone, None).is_err() {}
                gone_at(number).store(now(), Ordering::Release);
            }
        });
        Killer(orders)
    }

    fn order(&self, number: u64, pid: Pid, delay: Duration) {
        self.0.send((number, pid, delay)).expect("it waits");
    }
}

/// What was found.
#[derive(Default)]
struct Findings {
    kills: u64,
    /// Killed before it had a channel.
    early: u64,
    messages: u64,
    answers: u64,
    third: u64,
    gone: Vec<u64>,
    own: Vec<u64>,
    noticed: Vec<u64>,
    back: Vec<u64>,
    again: Vec<u64>,
}

struct Survivor {
    endpoint: Endpoint<Books>,
    scratch: Scratch,
    board: Board,
    random: Random,
    listening: bool,
    /// Whether more processes are busy than there are CPUs.
    crowd: bool,
    next: u64,
    lives: HashMap<u64, Life>,
    third: Option<(Pid, Option<ChannelId>)>,
    found: Findings,
    turn: u64,
}

impl Survivor {
    fn new(listening: bool, crowd: bool, seed: u64, name: &str) -> Survivor {
        let scratch = Scratch::new(name);
        let builder = builder().wait(Wait::Spin).open_within(PATIENCE);
        let endpoint = builder.listen(&scratch.address()).expect("a free path");
        Survivor {
            endpoint,
            board: Board::of(&scratch.address()),
            scratch,
            random: Random::new(seed),
            listening,
            crowd,
            next: FIXED,
            lives: HashMap::new(),
            third: None,
            found: Findings::default(),
            turn: 0,
        }
    }

    fn start(&mut self, nursery: &mut Nursery, slot: u64, since: u64) {
        self.next += SLOTS;
        let number = self.next / SLOTS * SLOTS + slot;
        self.board.clear(number);
        for at in [killed_at(number), gone_at(number)] {
            at.store(0, Ordering::Release);
        }
        self.endpoint.state_mut().expect(number);
        let role = match self.listening {
            true => CONNECTING,
            false => LISTENING,
        };
        let life = Life {
            pid: nursery.fork(role, number),
            channel: None,
            sent: 0,
            answered: 0,
            doomed: false,
            before: None,
            replaced: false,
            since,
            told: 0,
            unseen: false,
        };
        self.lives.insert(number, life);
    }

    fn of_channel(&self, channel: ChannelId) -> Option<u64> {
        let mut lives = self.lives.iter();
        lives.find_map(|(&number, life)| (life.channel == Some(channel)).then_some(number))
    }

    fn began(&mut self, number: u64, channel: ChannelId) {
        let life = self.lives.get_mut(&number).expect("it lived");
        life.channel = Some(channel);
        if life.since > 0 {
            self.found.again.push(now() - life.since);
        }
    }

    fn events(&mut self, nursery: &mut Nursery, go_on: bool) {
        while let Some(event) = self.endpoint.next_event() {
            match event {
                Event::Opened { channel, peer } => self.opened(channel, peer.pid),
                Event::Dead { channel, counters } => {
                    let number = self
                        .of_channel(channel)
                        .expect("one that was not told of yet");
                    self.died(number, &counters);
                    let life = self.lives.remove(&number).expect("it lived");
                    self.bury(nursery, number, &life, go_on);
                }
                other => panic!("{other:?}"),
            }
        }
    }

    fn opened(&mut self, channel: ChannelId, pid: i32) {
        if let Some((third, known @ None)) = &mut self.third
            && third.as_raw_pid() == pid
        {
            *known = Some(channel);
            return;
        }
        let mut lives = self.lives.iter();
        let found = lives.find(|(_, life)| life.channel.is_none() && life.pid.as_raw_pid() == pid);
        let number = *found.expect("one of ours").0;
        self.began(number, channel);
    }

    /// Everything that is known of a channel whose end was told.
    fn died(&mut self, number: u64, counters: &tightbeam::Counters) {
        let at = killed_at(number).load(Ordering::Acquire);
        assert_ne!(at, 0, "{number} lives");
        let life = self.lives.get_mut(&number).expect("it lived");
        life.told = now();
        if !life.unseen {
            self.found.noticed.push(life.told - at);
        }
        let told = |word| self.board.get(number, word);
        let count = self.endpoint.state_mut().close(number);
        let range = told(Word::Published)..=told(Word::Attempted);
        assert!(range.contains(&count), "{number}: {count} of {range:?}");
        // Of its messages each eighth was a call, which we have answered.
        let replies = count / CALLS;
        let sent = life.sent + replies..=life.sent + replies + 1;
        assert!(
            sent.contains(&counters.get(Counter::Sent)),
            "{number}: {sent:?}"
        );
        assert_eq!(
            counters.get(Counter::Received),
            count + life.answered,
            "{number}"
        );
        assert!(told(Word::Received) <= life.sent + 1, "{number}");
        assert!(told(Word::Answered) <= replies, "{number}");
        for word in [Word::Wrong, Word::Failed, Word::Ends] {
            assert_eq!(told(word), 0, "{number}: {word:?}");
        }
        if let Some(before) = life.before {
            patiently(|| {
                self.endpoint.poll(1);
                (descriptors() <= before - EACH).then_some(())
            });
            self.found.back.push(now() - at);
        }
        self.found.messages += count + life.sent;
        self.found.answers += life.answered + replies;
    }

    fn bury(&mut self, nursery: &mut Nursery, number: u64, life: &Life, go_on: bool) {
        if life.replaced {
            return;
        }
        let gone = patiently(|| Some(gone_at(number).load(Ordering::Acquire)).filter(|&at| at > 0));
        let killed = killed_at(number).load(Ordering::Acquire);
        self.found.gone.push(gone - killed);
        if life.told > 0 && !life.unseen {
            self.found.own.push(life.told.saturating_sub(gone));
        }
        assert_eq!(nursery.reap(life.pid), Signal::KILL.as_raw());
        self.found.kills += 1;
        if go_on {
            let since = killed_at(number).load(Ordering::Acquire);
            self.start(nursery, number % SLOTS, since);
        }
    }

    /// Those who were killed before they had a channel: one may yet begin, and then end.
    fn early(&mut self, nursery: &mut Nursery, go_on: bool) {
        let found = self.lives.iter().find_map(|(&number, life)| {
            let killed = killed_at(number).load(Ordering::Acquire) > 0;
            let early = killed && life.channel.is_none() && !life.replaced;
            early.then_some(number)
        });
        let Some(number) = found else { return };
        let mut life = self.lives.remove(&number).expect("it lived");
        self.bury(nursery, number, &life, go_on);
        life.replaced = true;
        self.lives.insert(number, life);
        self.found.early += 1;
    }

    /// Messages to everybody, and now and then a call.
    fn talk(&mut self) {
        self.turn += 1;
        let mut room = [0; MAX_INLINE];
        for (&number, life) in &mut self.lives {
            let Some(channel) = life.channel else {
                continue;
            };
            for _ in 0..8 {
                let payload = fill(&mut room, answers_to(number), life.sent + 1);
                match self.endpoint.try_send_to(channel, NUMBERED, payload) {
                    Ok(()) => life.sent += 1,
                    Err(SendError::Full | SendError::NoChannel) => break,
                    Err(error) => panic!("{number}: {error}"),
                }
            }
            if !self.turn.is_multiple_of(128) {
                continue;
            }
            let payload = fill(&mut room, answers_to(number), life.sent + 1);
            match self.endpoint.call_to(channel, CALLED, payload, PATIENCE) {
                Ok(answer) => {
                    assert_eq!(answer, payload, "{number}");
                    life.sent += 1;
                    life.answered += 1;
                }
                Err(CallError::Ended | CallError::NotSent(SendError::NoChannel)) => {
                    // Its end is told next, whatever has arrived of this.
                    let killed = killed_at(number).load(Ordering::Acquire);
                    assert_ne!(killed, 0, "{number} lives");
                }
                Err(error) => panic!("{number}: {error}"),
            }
        }
    }

    fn connect(&mut self) {
        let waiting = self.lives.iter().find_map(|(&number, life)| {
            let waits = life.channel.is_none() && !life.replaced;
            waits.then_some(number)
        });
        let Some(number) = waiting else { return };
        match self
            .endpoint
            .open(&listens_at(&self.scratch.address(), number))
        {
            Ok(channel) => self.began(number, channel),
            Err(OpenError::NobodyListens { .. }) => {}
            Err(error) => {
                let killed = killed_at(number).load(Ordering::Acquire);
                assert_ne!(killed, 0, "{number} lives: {error}");
            }
        }
    }

    fn doom(&mut self, killer: &Killer, go_on: bool) {
        let current = || self.lives.iter().filter(|(_, life)| !life.replaced);
        if current().any(|(_, life)| life.before.is_some()) {
            return;
        }
        let quiet = current().all(|(_, life)| life.channel.is_some() && !life.doomed);
        let strays = self
            .lives
            .values()
            .any(|life| life.replaced && life.channel.is_some());
        // Now and then nobody is chosen until all are there, so that one is killed while nothing else changes.
        let due = go_on && self.found.back.len() as u64 <= self.found.kills / EACH_ALONE;
        let alone = due && quiet && !strays;
        if due && !alone {
            return;
        }
        for (&number, life) in &mut self.lives {
            // Soon after it began, often enough before.
            let times = if life.channel.is_some() { 20 } else { 100 };
            if life.doomed || (go_on && !alone && !self.random.once_in(times)) {
                continue;
            }
            life.doomed = true;
            life.before = alone.then(descriptors);
            let delay = if alone {
                Duration::ZERO
            } else {
                self.random.micros(3000)
            };
            killer.order(number, life.pid, delay);
            if !alone && life.channel.is_some() && self.random.once_in(8) {
                life.unseen = true;
                while gone_at(number).load(Ordering::Acquire) == 0 {
                    std::thread::sleep(Duration::from_micros(100));
                }
                // The notice is in the mailbox by now, or comes soon.
                std::thread::sleep(Duration::from_micros(500));
            }
            if alone {
                break;
            }
        }
    }
}

impl Survivor {
    /// Kills until there were so many, with fresh helpers; in the end nobody is left.
    fn round(&mut self, kills: u64) {
        let mut nursery = Nursery::start(&self.scratch);
        let killer = Killer::start();
        self.board.clear(THIRD);
        let before = descriptors();
        let third = nursery.fork(THIRD_PARTY, THIRD);
        self.third = Some((third, None));
        patiently(|| {
            self.endpoint.poll(64);
            self.events(&mut nursery, true);
            self.third?.1
        });
        // Those of the opening are closed soon.
        patiently(|| {
            self.endpoint.poll(64);
            (descriptors() == before + EACH).then_some(())
        });
        if !self.crowd {
            self.board.set(THIRD, Word::Wish, SELDOM);
        }
        for slot in 0..if self.crowd { SLOTS } else { 1 } {
            self.start(&mut nursery, slot, 0);
        }
        let end = Instant::now() + ROUND_TIME;
        let aim = self.found.kills + kills;
        let mut progress = (0, Instant::now());
        while !self.lives.is_empty() {
            let go_on = self.found.kills < aim && Instant::now() < end;
            self.endpoint.poll(1 + self.random.below(64) as usize);
            self.events(&mut nursery, go_on);
            self.early(&mut nursery, go_on);
            if !self.listening {
                self.connect();
            }
            self.talk();
            self.doom(&killer, go_on);
            if self.found.kills > progress.0 {
                progress = (self.found.kills, Instant::now());
            }
            // Whoever was killed before it had a channel has had time to show itself.
            let over = !go_on
                && self
                    .lives
                    .values()
                    .all(|life| life.replaced && life.channel.is_none());
            if over && progress.1.elapsed() > Duration::from_millis(300) {
                for (number, _) in self.lives.drain() {
                    assert_eq!(self.endpoint.state_mut().close(number), 0, "{number}");
                }
            }
            assert!(progress.1.elapsed() < PATIENCE, "no more kills");
        }
        self.leave_third(&mut nursery);
    }

    fn leave_third(&mut self, nursery: &mut Nursery) {
        let (pid, channel) = self.third.take().expect("it is there");
        let answered = self.board.get(THIRD, Word::Answered);
        // It goes on after all of them.
        patiently(|| {
            self.endpoint.poll(64);
            (self.board.get(THIRD, Word::Answered) > answered + 100).then_some(())
        });
        self.board.set(THIRD, Word::Wish, END);
        let end = crate::support::next_event(&mut self.endpoint);
        assert!(
            matches!(end, Event::Closed { channel: ended, .. } if Some(ended) == channel),
            "{end:?}"
        );
        assert_eq!(nursery.reap(pid), 0, "it ends well");
        for word in [Word::Wrong, Word::Failed, Word::Ends] {
            assert_eq!(self.board.get(THIRD, word), 0, "third party: {word:?}");
        }
        assert_eq!(self.endpoint.channels().count(), 0);
        assert_eq!(self.endpoint.state().wrong, 0);
        self.found.third += answered;
    }

    /// What this process holds once nothing is under way.
    fn holding(&mut self, most: usize) -> Holding {
        patiently(|| {
            self.endpoint.poll(1);
            let holding = Holding::now();
            (holding.descriptors <= most).then_some(holding)
        })
    }
}

fn print(name: &str, times: &mut [u64]) {
    times.sort_unstable();
    if times.is_empty() {
        return;
    }
    let at = |share| percentile(times, share) as f64 / 1e6;
    println!(
        "  {name}: p50 {:.3} ms, p99 {:.3} ms, max {:.3} ms of {}",
        at(0.5),
        at(0.99),
        at(1.0),
        times.len()
    );
}

/// Kills `kills` children that have connected to us, or to whom we have connected: two at a time beside a third party that is
/// as busy, or, without the crowd, one at a time beside one that is seldom heard.
pub(crate) fn campaign(listening: bool, crowd: bool, kills: u64) {
    let name = match (listening, crowd) {
        (true, true) => "clients",
        (false, true) => "listeners",
        (true, false) => "clients, one at a time",
        (false, false) => "listeners, one at a time",
    };
    let start = Instant::now();
    let mut survivor = Survivor::new(listening, crowd, seed(), name);
    let idle = descriptors();
    survivor.round(WARM_UP);
    let before = survivor.holding(idle);
    // So that what is measured takes no memory in between.
    for times in [
        &mut survivor.found.gone,
        &mut survivor.found.own,
        &mut survivor.found.noticed,
        &mut survivor.found.back,
        &mut survivor.found.again,
    ] {
        times.clear();
        times.resize(kills as usize + 2 * ROUND as usize, 1);
        times.clear();
    }
    let kibibytes = Holding::now().kibibytes;
    let before = Holding {
        kibibytes,
        ..before
    };
    survivor.found.kills = 0;
    while survivor.found.kills < kills {
        survivor.round((kills - survivor.found.kills).min(ROUND));
    }
    let after = survivor.holding(idle);
    after.assert_no_more_than(before);
    let shared = std::fs::read_dir("/dev/shm")
        .into_iter()
        .flatten()
        .flatten();
    let ours = |name: &std::ffi::OsStr| name.to_string_lossy().contains("tightbeam");
    assert!(
        !shared
            .map(|entry| entry.file_name())
            .any(|name| ours(&name))
    );
    let found = &mut survivor.found;
    let took = start.elapsed();
    println!(
        "{name}: {} kills ({} before the channel was open) in {took:.1?}, {} messages and {} answers checked, {} calls of a third party; {before:?}, then {after:?}",
        found.kills, found.early, found.messages, found.answers, found.third
    );
    print("killed to gone, by the kernel", &mut found.gone);
    print("gone to told, by us", &mut found.own);
    print("killed to told", &mut found.noticed);
    print("killed to all given back", &mut found.back);
    print("killed to the next one's channel", &mut found.again);
    if long() {
        // How soon the kernel ends a process, and runs a thread, is not ours.
        assert!(percentile(&found.own, 0.5) <= 1_000_000, "p50 above 1 ms");
    }
    assert!(!found.back.is_empty());
    nothing_left(survivor);
}

/// Beside what the test itself has put there, only the paths of listeners that were killed.
fn nothing_left(survivor: Survivor) {
    let Survivor {
        endpoint, scratch, ..
    } = survivor;
    drop(endpoint);
    let mut left: Vec<String> = std::fs::read_dir(scratch.path(""))
        .expect("our own directory")
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .into_string()
                .expect("a name")
        })
        .collect();
    left.retain(|name| name != "sock.board");
    for slot in 0..SLOTS {
        let address = listens_at(&scratch.address(), slot);
        let name = format!("sock.{slot}");
        if left.contains(&name) {
            // The next listener takes it, and leaves nothing.
            drop(builder().listen(&address).expect("nobody is there"));
            left.retain(|other| *other != name);
        }
    }
    assert!(left.is_empty(), "{left:?}");
}
