//! Stopped processes: a consumer that does not look any more costs others nothing, and loses nothing; a writer that was
//! stopped in the middle, given up and continued reaches nobody.

use crate::board::{Board, Holding, Random, Word, fill, long, percentile, room, seed};
use crate::nursery::Nursery;
use crate::support::{Scratch, opened, patiently};
use crate::traffic::{Books, ECHO, MUTE, NUMBERED, answers_to, builder, now};
use rustix::process::{Pid, Signal, kill_process};
use std::time::{Duration, Instant};
use tightbeam::{CallError, ChannelId, Counter, Endpoint, Event, SendError, Wait};

/// The roles here; they are numbers on the board too.
const CONSUMER: u64 = 10;
const TIMED: [u64; 2] = [11, 12];
const ZOMBIE: u64 = 13;
pub(crate) const ROLES: std::ops::RangeInclusive<u64> = CONSUMER..=ZOMBIE;

/// What the zombie's channels send under, one after the other; and who comes beside it.
const INCARNATIONS: u64 = 1 << 16;
const NEWCOMER: u64 = 30;

pub(crate) fn child(board: &Board, role: u64, address: &str) {
    match role {
        CONSUMER => consumer(board, address),
        ZOMBIE => zombie(board, address),
        _ => timed(board, role, address),
    }
}

/// Takes whatever comes.
fn consumer(board: &Board, address: &str) {
    let mut client = patiently(|| builder().connect(address).ok());
    client.state_mut().expect(answers_to(CONSUMER));
    while board.get(CONSUMER, Word::Wish) == 0 {
        client.poll_for(64, Duration::from_millis(1));
        let books = client.state();
        board.set(CONSUMER, Word::Received, books.count(answers_to(CONSUMER)));
        board.set(CONSUMER, Word::Wrong, books.wrong);
        if client.next_event().is_some() {
            return board.add(CONSUMER, Word::Ends, 1);
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

/// The endpoint that all are connected to.
struct Hub {
    endpoint: Endpoint<Books>,
    board: Board,
    consumer: ChannelId,
    sent: u64,
    full: u64,
    /// Messages of which nobody keeps count.
    fillers: u64,
}

impl Hub {
    /// Serves for so long, and sends to the consumer whenever there is room. Returns the slowest in a hundred calls of each
    /// of the others.
    fn batch(&mut self, number: u64, duration: Duration, sends: bool) -> [u64; 2] {
        self.ask(2 * number);
        let end = Instant::now() + duration;
        while Instant::now() < end {
            self.endpoint.poll(64);
            if sends {
                self.send();
            }
        }
        self.ask(2 * number + 1);
        TIMED.map(|timed| self.board.get(timed, Word::Published))
    }

    /// Has the others begin anew.
    fn ask(&mut self, batch: u64) {
        for timed in TIMED {
            self.board.set(timed, Word::Wish, batch);
        }
        patiently(|| {
            self.endpoint.poll(64);
            let all = TIMED.map(|timed| self.board.get(timed, Word::Received) == batch);
            (all == [true; 2]).then_some(())
        });
    }

    fn send(&mut self) {
        let mut room = room();
        for _ in 0..8 {
            let payload = fill(&mut room, answers_to(CONSUMER), self.sent + 1);
            match self.endpoint.try_send_to(self.consumer, NUMBERED, payload) {
                Ok(()) => self.sent += 1,
                Err(SendError::Full) => return self.full += 1,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// A stopped consumer is no dead one, and whoever waits for it waits no longer than wanted.
    fn assert_stopped(&mut self) {
        const SHORT: Duration = Duration::from_millis(2);
        // Where a long message has no room a short one may have some.
        while self.endpoint.try_send_to(self.consumer, MUTE, b"").is_ok() {
            self.fillers += 1;
        }
        let late = self.endpoint.send_to(self.consumer, MUTE, b"", SHORT);
        assert_eq!(late, Err(SendError::DeadlineExceeded));
        let late = self.endpoint.call_to(self.consumer, ECHO, b"", SHORT);
        assert_eq!(late, Err(CallError::NotSent(SendError::DeadlineExceeded)));
        assert!(self.endpoint.next_event().is_none());
    }
}

/// A consumer is stopped again and again while others call.
pub(crate) fn consumers() {
    let (rounds, duration) = match long() {
        true => (1000, Duration::from_secs(1)),
        false => (10, Duration::from_millis(250)),
    };
    let start = Instant::now();
    let mut ratios: Vec<f64> = Vec::with_capacity(2 * rounds);
    let (mut sent, mut full, mut done) = (0, 0, 0);
    while done < rounds {
        // Fresh helpers, so that none comes near the end of its life.
        let some = (rounds - done).min(30);
        let hub = stops(some, duration, &mut ratios);
        (sent, full, done) = (sent + hub.0, full + hub.1, done + some);
    }
    ratios.sort_by(f64::total_cmp);
    let at = |share: f64| ratios[((ratios.len() - 1) as f64 * share) as usize];
    println!(
        "{rounds} stops of {duration:?} in {:.1?}: {sent} messages delivered, {full} times no room; p99 of a third party's calls beside a stopped consumer by that beside an idle one: median {:.3}, p10 {:.3}, p90 {:.3}",
        start.elapsed(),
        at(0.5),
        at(0.1),
        at(0.9)
    );
    if long() {
        assert!(at(0.5) <= 1.2, "p99 beside a stopped consumer");
    }
}

fn stops(rounds: usize, duration: Duration, ratios: &mut Vec<f64>) -> (u64, u64) {
    let scratch = Scratch::new("stopped");
    let board = Board::of(&scratch.address());
    let mut nursery = Nursery::start(&scratch);
    let builder = builder().wait(Wait::Spin);
    let mut endpoint = builder.listen(&scratch.address()).expect("a free path");
    let consumer = nursery.fork(CONSUMER, CONSUMER);
    opened(&mut endpoint);
    let channel = endpoint.channels().next().expect("a channel");
    for timed in TIMED {
        nursery.fork(timed, timed);
        opened(&mut endpoint);
    }
    let mut hub = Hub {
        endpoint,
        board,
        consumer: channel,
        sent: 0,
        full: 0,
        fillers: 0,
    };
    hub.batch(1, duration, true);
    let before = Holding::now();
    for round in 1..=rounds as u64 {
        let mut both = [[0; 2]; 2];
        for stopped in [round % 2, 1 - round % 2] {
            if stopped == 1 {
                stop(consumer);
            }
            both[stopped as usize] = hub.batch(2 * round + stopped, duration, stopped == 1);
            if stopped == 1 {
                hub.send_until_full();
                hub.assert_stopped();
                go_on(consumer);
            }
            patiently(|| {
                hub.endpoint.poll(64);
                (hub.board.get(CONSUMER, Word::Received) == hub.sent).then_some(())
            });
        }
        ratios.extend((0..2).map(|n| both[1][n] as f64 / both[0][n] as f64));
    }
    Holding::now().assert_no_more_than(before);
    assert_eq!(hub.board.get(CONSUMER, Word::Wrong), 0);
    assert_eq!(hub.board.get(CONSUMER, Word::Ends), 0);
    assert!(hub.full > 0, "it was never full");
    let counters = hub.endpoint.counters(channel).expect("it lives");
    assert_eq!(counters.get(Counter::Sent), hub.sent + hub.fillers);
    (hub.sent, hub.full)
}

impl Hub {
    fn send_until_full(&mut self) {
        let full = self.full;
        while self.full == full {
            self.send();
        }
    }
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
