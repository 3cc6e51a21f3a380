//! Random kill and restart under load: what the survivor has got is what was sent, up to some message; it is told once;
//! a third party does not notice; nothing is left.

use crate::board::{
    Board, FIXED, Holding, Random, Word, channel_descriptors, descriptors, fill, long, room, seed,
};
use crate::found::Findings;
use crate::killer::{Killer, gone_at, killed_at};
use crate::nursery::Nursery;
use crate::support::{PATIENCE, Scratch, patiently};
use crate::traffic::{
    Books, CALLED, CALLS, END, EVERYBODY, NUMBERED, SELDOM, SHARED, answers_to, assert_conserved,
    builder, listens_at, now,
};
use rustix::process::{Pid, Signal};
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tightbeam::{CallError, ChannelId, Counter, Endpoint, Event, OpenError, SendError, Wait};

/// Children that talk at a time.
pub(crate) const SLOTS: u64 = 2;
/// Kills, at least, before what the survivor holds is first looked at: by then its heap has had the worst of everything once.
const WARM_UP: u64 = 300;
/// Kills after which fresh helpers go on, so that none comes near the end of its life; and the longest time.
const ROUND: u64 = 4000;
const ROUND_TIME: Duration = Duration::from_secs(60);
/// Of so many kills one is of a child beside which nothing else changes.
const EACH_ALONE: u64 = 32;
/// Descriptors of a channel: its socket, its peer's process, its segment.
pub(crate) const EACH: usize = 3;
/// Rounds of talk of which in one everybody gets the same frame; and bytes of that.
const SHARES: u64 = 16;
const SHARED_LEN: usize = 6000;
/// Bytes of memory for them, and for those of each channel.
const FRAME_LIMIT: usize = 1 << 20;
/// Kibibytes that a long run may have more at its end: 4 pages, which is a hundredth of 1.6 MiB.
const PAGES: u64 = 16;
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
    /// Frames that others got too.
    shared: u64,
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
        let builder = builder.frame_limit(FRAME_LIMIT);
        let mut endpoint = builder.listen(&scratch.address()).expect("a free path");
        // All that is made for these is made now, and stays.
        let all = std::iter::from_fn(|| endpoint.shared_frame(SHARED_LEN).ok());
        drop(all.collect::<Vec<_>>());
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
        let pid = nursery.fork(role, number);
        self.forget_namesakes(pid);
        let life = Life {
            pid,
            channel: None,
            sent: 0,
            answered: 0,
            shared: 0,
            doomed: false,
            before: None,
            replaced: false,
            since,
            told: 0,
            unseen: false,
        };
        self.lives.insert(number, life);
    }

    /// Whoever had this process id before was killed before he had a channel, and has none now: ids come round after 10,000 children of
    /// three threads. What is opened under this id from now on is the new one's.
    fn forget_namesakes(&mut self, pid: Pid) {
        let is_over = |life: &Life| life.pid == pid && life.channel.is_none();
        let over = self.lives.extract_if(|_, life| is_over(life));
        for (number, life) in over.collect::<Vec<_>>() {
            assert!(life.replaced, "{number} has the id of one who lives");
            assert_eq!(self.endpoint.state_mut().close(number), 0, "{number}");
        }
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
                    self.audit();
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
        let books = self.endpoint.state();
        let (wrong, first) = (books.wrong, &books.first_wrong);
        assert!(
            range.contains(&count),
            "{number}: {count} of {range:?}; {wrong} wrong, {first:?}; {counters:?}"
        );
        // Of its messages each eighth was a call, which we have answered.
        let replies = count / CALLS;
        let sent = life.sent + life.shared + replies;
        let sent = sent..=sent + 1;
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
                (channel_descriptors() <= before - EACH).then_some(())
            });
            self.found.back.push(now() - at);
        }
        self.found.lent += life.shared;
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

    /// Each frame of this side is in one place: those for several, and those of each channel.
    fn audit(&mut self) {
        assert_conserved(self.endpoint.shared_frames());
        for channel in self.endpoint.channels() {
            let frames = self.endpoint.frames(channel).expect("it is open");
            assert_conserved(frames);
        }
        self.found.audits += 1;
    }

    /// All get the same frame; whoever has no room for it now goes without.
    fn share(&mut self) {
        let mut frame = match self.endpoint.shared_frame(SHARED_LEN) {
            Ok(frame) => frame,
            // Those who live have not read theirs yet.
            Err(SendError::Full) => return,
            Err(error) => panic!("{error}"),
        };
        let mut room = room();
        let payload = fill(&mut room, EVERYBODY, self.turn);
        frame.set_len(payload.len()).expect("it is as long");
        frame.copy_from_slice(payload);
        let frame = frame.freeze();
        let third = self.third.and_then(|(_, channel)| channel);
        let mut lent = |channel| match self.endpoint.try_publish_to(channel, SHARED, &frame) {
            Ok(()) => 1,
            Err(SendError::Full | SendError::NoChannel) => 0,
            Err(error) => panic!("{error}"),
        };
        self.found.lent += third.map_or(0, &mut lent);
        for life in self.lives.values_mut() {
            life.shared += life.channel.map_or(0, &mut lent);
        }
        self.found.shared += 1;
    }

    /// Nobody has a shared frame any more.
    fn shared_frames_are_back(&mut self) {
        patiently(|| {
            self.endpoint.poll(64);
            // Whoever wants one looks for those that have come back.
            drop(self.endpoint.shared_frame(1).expect("a frame"));
            (self.endpoint.shared_frames().lent == 0).then_some(())
        });
        self.audit();
    }

    /// Messages to everybody, and now and then a call.
    fn talk(&mut self) {
        self.turn += 1;
        if self.turn.is_multiple_of(SHARES) {
            self.share();
        }
        let mut room = room();
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
            life.before = alone.then(channel_descriptors);
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
        let before = channel_descriptors();
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
            (channel_descriptors() == before + EACH).then_some(())
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
        self.shared_frames_are_back();
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

    /// What this process holds once nothing is under way: a mapping goes behind its descriptor, and by another thread.
    fn holding(&mut self, descriptors: usize, mappings: usize) -> Holding {
        patiently(|| {
            self.endpoint.poll(1);
            let holding = Holding::now();
            let settled = holding.descriptors <= descriptors && holding.mappings <= mappings;
            settled.then_some(holding)
        })
    }
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
    // And that of the memory for frames that is made ahead, once frames have been used.
    let idle = descriptors() + 1;
    // As long a round as any later one: of those who die before they have a channel each takes a place until its end.
    survivor.round(WARM_UP.max(kills.min(ROUND)));
    let before = survivor.holding(idle, usize::MAX);
    survivor
        .found
        .make_room(kills as usize + 2 * ROUND as usize);
    let kibibytes = Holding::now().kibibytes;
    let before = Holding {
        kibibytes,
        ..before
    };
    while survivor.found.kills < kills {
        survivor.round((kills - survivor.found.kills).min(ROUND));
    }
    let after = survivor.holding(idle, before.mappings);
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
    found.print(name, start.elapsed());
    println!("  {before:?}, then {after:?}");
    if long() {
        let most = before.kibibytes + (before.kibibytes / 100).max(PAGES);
        assert!(after.kibibytes <= most, "{before:?}, then {after:?}");
    }
    if long() && !crowd {
        found.assert_soon();
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
