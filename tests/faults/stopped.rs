//! Stopped processes: a consumer that does not look any more costs others nothing, and loses nothing; a writer that was
//! stopped in the middle, given up and continued reaches nobody.

use crate::board::{Board, Holding, Random, Room, Word, fill, long, percentile, room, seed};
use crate::nursery::Nursery;
use crate::support::{Scratch, patiently};
use crate::traffic::{Books, ECHO, MUTE, NUMBERED, answers_to, builder, now};
use rustix::process::{Pid, Signal, kill_process};
use std::time::{Duration, Instant};
use tightbeam::{CallError, ChannelId, Counter, Endpoint, Event, SendError, Wait};

/// The roles here; they are numbers on the board too.
const CONSUMERS: [u64; 4] = [10, 11, 12, 13];
const TIMED: [u64; 2] = [14, 15];
const ZOMBIE: u64 = 16;
pub(crate) const ROLES: std::ops::RangeInclusive<u64> = CONSUMERS[0]..=ZOMBIE;

/// What the zombie's channels send under, one after the other; and who comes beside it.
const INCARNATIONS: u64 = 1 << 16;
const NEWCOMER: u64 = 30;

pub(crate) fn child(board: &Board, role: u64, address: &str) {
    match role {
        ZOMBIE => zombie(board, address),
        role if CONSUMERS.contains(&role) => consumer(board, role, address),
        _ => timed(board, role, address),
    }
}

/// Those who call: one for each CPU that this process leaves, so that what is timed is not whose turn it is.
fn callers() -> &'static [u64] {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    &TIMED[..cpus.saturating_sub(1).clamp(1, TIMED.len())]
}

/// Takes whatever comes.
fn consumer(board: &Board, number: u64, address: &str) {
    let mut client = patiently(|| builder().connect(address).ok());
    client.state_mut().expect(answers_to(number));
    while board.get(number, Word::Wish) == 0 {
        client.poll_for(64, Duration::from_millis(1));
        let books = client.state();
        board.set(number, Word::Received, books.count(answers_to(number)));
        board.set(number, Word::Wrong, books.wrong);
        if client.next_event().is_some() {
            return board.add(number, Word::Ends, 1);
        }
    }
}

/// Calls without a pause; of each batch that the test wishes it tells how long the slowest in a hundred calls took.
fn timed(board: &Board, number: u64, address: &str) {
    let mut client = patiently(|| builder().connect(address).ok());
    let (mut batch, mut times) = (0, Vec::with_capacity(1 << 20));
    loop {
        let start = now();
        let answer = client.call(ECHO, b"in time").expect("an answer");
        assert_eq!(answer, b"in time");
        times.push(now() - start);
        let wish = board.get(number, Word::Wish);
        if wish != batch {
            times.sort_unstable();
            board.set(number, Word::Published, percentile(&times, 0.99));
            board.set(number, Word::Answered, times.len() as u64);
            board.set(number, Word::Received, wish);
            times.clear();
            batch = wish;
            if wish == END {
                return;
            }
        }
    }
}

const END: u64 = u64::MAX;

/// Stops a process that is not our own child; when this returns it does nothing any more.
pub(crate) fn stop(pid: Pid) {
    kill_process(pid, Signal::STOP).expect("it lives");
    patiently(|| {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_pid()));
        let stat = stat.expect("it lives");
        let (_, state) = stat.rsplit_once(") ").expect("a state");
        state.starts_with('T').then_some(())
    });
}

pub(crate) fn go_on(pid: Pid) {
    kill_process(pid, Signal::CONT).expect("it lives");
}

/// Who is stopped.
struct Consumer {
    number: u64,
    pid: Pid,
    channel: ChannelId,
    sent: u64,
    full: u64,
    /// Messages of which nobody keeps count.
    fillers: u64,
    /// The next message, of so many bytes once it is written.
    next: Room,
    len: usize,
}

/// The endpoint that all are connected to.
struct Hub {
    endpoint: Endpoint<Books>,
    board: Board,
    consumers: Vec<Consumer>,
}

impl Hub {
    /// Serves for so long, and sends to the consumers, one in each turn, whenever there is room. Returns the slowest in a hundred calls of
    /// each of the others.
    fn batch(&mut self, number: u64, duration: Duration, sends: bool) -> Vec<u64> {
        self.ask(2 * number);
        let end = Instant::now() + duration;
        let mut turn = 0;
        while Instant::now() < end {
            self.endpoint.poll(64);
            if sends {
                turn = (turn + 1) % self.consumers.len();
                self.consumers[turn].send(&mut self.endpoint);
            }
        }
        self.ask(2 * number + 1);
        let p99 = |&timed: &u64| self.board.get(timed, Word::Published);
        callers().iter().map(p99).collect()
    }

    /// Has the others begin anew.
    fn ask(&mut self, batch: u64) {
        for &timed in callers() {
            self.board.set(timed, Word::Wish, batch);
        }
        patiently(|| {
            self.endpoint.poll(64);
            let has = |&timed: &u64| self.board.get(timed, Word::Received) == batch;
            callers().iter().all(has).then_some(())
        });
    }

    /// All that was sent has come.
    fn is_drained(&self) -> bool {
        let has_all =
            |consumer: &Consumer| self.board.get(consumer.number, Word::Received) == consumer.sent;
        self.consumers.iter().all(has_all)
    }
}

impl Consumer {
    fn send(&mut self, endpoint: &mut Endpoint<Books>) {
        for _ in 0..8 {
            // Written once: what that takes is no cost of those who are stopped.
            if self.len == 0 {
                self.len = fill(&mut self.next, answers_to(self.number), self.sent + 1).len();
            }
            match endpoint.try_send_to(self.channel, NUMBERED, &self.next[..self.len]) {
                Ok(()) => (self.sent, self.len) = (self.sent + 1, 0),
                Err(SendError::Full) => return self.full += 1,
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn send_until_full(&mut self, endpoint: &mut Endpoint<Books>) {
        let full = self.full;
        while self.full == full {
            self.send(endpoint);
        }
    }

    /// A stopped consumer is no dead one, and whoever waits for it waits no longer than wanted.
    fn assert_stopped(&mut self, endpoint: &mut Endpoint<Books>) {
        const SHORT: Duration = Duration::from_millis(2);
        // Where a long message has no room a short one may have some.
        while endpoint.try_send_to(self.channel, MUTE, b"").is_ok() {
            self.fillers += 1;
        }
        let late = endpoint.send_to(self.channel, MUTE, b"", SHORT);
        assert_eq!(late, Err(SendError::DeadlineExceeded));
        let late = endpoint.call_to(self.channel, ECHO, b"", SHORT);
        assert_eq!(late, Err(CallError::NotSent(SendError::DeadlineExceeded)));
        assert!(endpoint.next_event().is_none());
    }
}

/// How long others are timed while nobody is stopped.
const IDLE: Duration = Duration::from_millis(250);

/// Consumers are stopped again and again while others call.
pub(crate) fn consumers() {
    let (stops, duration) = (if long() { 1000 } else { 12 }, Duration::from_secs(1));
    let start = Instant::now();
    let rounds = stops / CONSUMERS.len();
    let mut ratios: Vec<f64> = Vec::new();
    let (mut sent, mut full, mut done) = (0, 0, 0);
    while done < rounds {
        // Fresh helpers, so that none comes near the end of its life.
        let some = (rounds - done).min(30);
        let (of_these, refused) = stop_all(some, duration, &mut ratios);
        (sent, full, done) = (sent + of_these, full + refused, done + some);
    }
    ratios.sort_by(f64::total_cmp);
    println!(
        "{stops} stops of {duration:?}, {} at a time, in {:.1?}: {sent} messages delivered, {full} times no room; p99 of a third party's calls beside stopped consumers by that beside idle ones: median {:.3}, p10 {:.3}, p90 {:.3}",
        CONSUMERS.len(),
        start.elapsed(),
        percentile(&ratios, 0.5),
        percentile(&ratios, 0.1),
        percentile(&ratios, 0.9)
    );
    if long() {
        let median = percentile(&ratios, 0.5);
        assert!(median <= 1.2, "p99 beside stopped consumers: {median}");
    }
}

fn stop_all(rounds: usize, duration: Duration, ratios: &mut Vec<f64>) -> (u64, u64) {
    let scratch = Scratch::new("stopped");
    let board = Board::of(&scratch.address());
    let mut nursery = Nursery::start(&scratch);
    let builder = builder().wait(Wait::Spin);
    let mut endpoint = builder.listen(&scratch.address()).expect("a free path");
    let consumers = CONSUMERS.map(|number| {
        let pid = nursery.fork(number, number);
        let channel = opened_of(&mut endpoint, pid);
        Consumer {
            number,
            pid,
            channel,
            sent: 0,
            full: 0,
            fillers: 0,
            next: room(),
            len: 0,
        }
    });
    for &timed in callers() {
        let caller = nursery.fork(timed, timed);
        opened_of(&mut endpoint, caller);
    }
    while endpoint.next_event().is_some() {}
    let mut hub = Hub {
        endpoint,
        board,
        consumers: consumers.into(),
    };
    hub.batch(1, IDLE, true);
    let before = Holding::now();
    for round in 1..=rounds as u64 {
        let mut both = [Vec::new(), Vec::new()];
        for stopped in [round % 2, 1 - round % 2] {
            if stopped == 1 {
                hub.consumers.iter().for_each(|consumer| stop(consumer.pid));
            }
            let duration = [IDLE, duration][stopped as usize];
            both[stopped as usize] = hub.batch(2 * round + stopped, duration, stopped == 1);
            if stopped == 1 {
                for consumer in &mut hub.consumers {
                    consumer.send_until_full(&mut hub.endpoint);
                    consumer.assert_stopped(&mut hub.endpoint);
                    go_on(consumer.pid);
                }
            }
            patiently(|| {
                hub.endpoint.poll(64);
                hub.is_drained().then_some(())
            });
        }
        let [idle, stopped] = both;
        ratios.extend(
            stopped
                .iter()
                .zip(&idle)
                .map(|(s, i)| *s as f64 / *i as f64),
        );
    }
    Holding::now().assert_no_more_than(before);
    for consumer in &hub.consumers {
        assert_eq!(hub.board.get(consumer.number, Word::Wrong), 0);
        assert_eq!(hub.board.get(consumer.number, Word::Ends), 0);
        assert!(consumer.full > 0, "it was never full");
        let counters = hub.endpoint.counters(consumer.channel);
        let sent = counters.expect("it lives").get(Counter::Sent);
        assert_eq!(sent, consumer.sent + consumer.fillers);
    }
    let of_all = |what: fn(&Consumer) -> u64| hub.consumers.iter().map(what).sum();
    (
        of_all(|consumer| consumer.sent),
        of_all(|consumer| consumer.full),
    )
}

/// Sends without a pause over one channel after the other, each until it is told that it was closed.
fn zombie(board: &Board, address: &str) {
    let mut room = room();
    let mut client = builder()
        .listen(&format!("{address}.zombie"))
        .expect("a free path");
    for incarnation in 0.. {
        let channel = patiently(|| client.open(address).ok());
        let mut sent = 0;
        let end = loop {
            let payload = fill(&mut room, INCARNATIONS + incarnation, sent + 1);
            match client.try_send_to(channel, NUMBERED, payload) {
                Ok(()) => sent += 1,
                Err(SendError::Full) => {}
                // Told below.
                Err(SendError::NoChannel) => {}
                Err(_) => return board.add(ZOMBIE, Word::Failed, 1),
            }
            client.poll(1);
            if let Some(event) = client.next_event() {
                break event;
            }
        };
        let told = matches!(end, Event::Closed { channel: ended, .. } if ended == channel);
        let again = client.try_send_to(channel, NUMBERED, b"again");
        let wrong = !told || again != Err(SendError::NoChannel);
        board.add(ZOMBIE, Word::Wrong, u64::from(wrong));
        board.add(ZOMBIE, Word::Ends, 1);
    }
}

/// A writer is stopped while it sends, given up, and continued once others have come.
pub(crate) fn zombies() {
    let rounds = if long() { 1000 } else { 40 };
    let mut random = Random::new(seed());
    let (start, mut done, mut messages) = (Instant::now(), 0, 0);
    while done < rounds {
        let some = (rounds - done).min(200);
        messages += evictions(some, &mut random);
        done += some;
    }
    println!(
        "{rounds} zombies in {:.1?}: {messages} messages of theirs before, none after",
        start.elapsed()
    );
}

fn evictions(rounds: u64, random: &mut Random) -> u64 {
    let scratch = Scratch::new("zombie");
    let board = Board::of(&scratch.address());
    let mut nursery = Nursery::start(&scratch);
    let mut hub = builder().listen(&scratch.address()).expect("a free path");
    hub.state_mut().expect(INCARNATIONS);
    let zombie = nursery.fork(ZOMBIE, ZOMBIE);
    let mut messages = 0;
    for round in 0..rounds {
        let channel = opened_of(&mut hub, zombie);
        let sender = INCARNATIONS + round;
        let some = 1 + random.below(500);
        patiently(|| {
            hub.poll(64);
            (hub.state().count(sender) >= some).then_some(())
        });
        let end = Instant::now() + random.micros(500);
        while Instant::now() < end {
            hub.poll(64);
        }
        // Anywhere, also in the middle of a message.
        stop(zombie);
        for _ in 0..random.below(20) {
            hub.poll(64);
        }
        assert!(hub.close(channel));
        messages += hub.state_mut().close(sender);
        hub.state_mut().expect(sender + 1);
        // Somebody gets what it had: descriptors, addresses, a place among the channels.
        let number = NEWCOMER + round % 8;
        board.clear(number);
        hub.state_mut().expect(number);
        let newcomer = nursery.fork(crate::kills::CONNECTING, number);
        let new = opened_of(&mut hub, newcomer);
        go_on(zombie);
        patiently(|| {
            hub.poll(64);
            let told = board.get(ZOMBIE, Word::Ends) == round + 1;
            (told && hub.state().count(number) > 200).then_some(())
        });
        board.set(number, Word::Wish, 1);
        finish(&mut hub, &board, number, new);
        assert_eq!(nursery.reap(newcomer), 0);
        assert_eq!(hub.state().wrong, 0, "round {round}");
        for word in [Word::Wrong, Word::Failed] {
            assert_eq!(board.get(ZOMBIE, word), 0, "round {round}: {word:?}");
        }
    }
    messages
}

/// The next channel of this process. An event of another is kept for nobody.
fn opened_of(hub: &mut Endpoint<Books>, of: Pid) -> ChannelId {
    patiently(|| {
        hub.poll(16);
        hub.channels().find(|&channel| {
            hub.peer(channel)
                .is_some_and(|peer| peer.pid == of.as_raw_pid())
        })
    })
}

/// The newcomer ends as it wants to, and all that it has sent has come.
fn finish(hub: &mut Endpoint<Books>, board: &Board, number: u64, channel: ChannelId) {
    let counters = patiently(|| {
        hub.poll(64);
        match hub.next_event()? {
            Event::Closed {
                channel: ended,
                counters,
            } if ended == channel => Some(counters),
            Event::Opened { .. } => None,
            other => panic!("{other:?}"),
        }
    });
    let count = hub.state_mut().close(number);
    assert_eq!(count, board.get(number, Word::Published));
    assert_eq!(counters.get(Counter::Received), count);
    for word in [Word::Wrong, Word::Failed, Word::Ends] {
        assert_eq!(board.get(number, word), 0, "{word:?}");
    }
}
