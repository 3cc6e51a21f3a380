//! A hostile process that scribbles over everything that it may write, while its victim works at full rate and serves a
//! third party.
//!
//! Three processes beside the test: the victim on one CPU; the third party and the scribbler share another, so that what the
//! third party loses to the scribbler is what the scribbler costs the *victim*. When the scribbler rests, it spins beside them and
//! has a channel that it does not touch.
//! A lie ends a channel, so it opens the next: `acts.rs` has what it does, `victim.rs` what is watched.
//!
//! `cargo test --test scribbler` makes 10^7 mutations, `TIGHTBEAM_LONG=1 cargo test --release --test scribbler` 10^9, or as many
//! as `TIGHTBEAM_MUTATIONS` says: a part of them at a time, each with a seed of its own.

mod acts;
mod board;
mod client;
mod pen;
mod scribe;
#[path = "../support/mod.rs"]
mod support;
mod times;
mod victim;
mod words;

use board::{Board, IDLE, REST, SCRIBBLE, STOP, Word};
use std::time::{Duration, Instant};
use support::{PATIENCE, Peer, Scratch, role};
use times::BOUND;
use victim::ENDS;

/// Channels before the victim's memory is first looked at.
const WARM_UP: u64 = 50;
/// Batches with the scribbler, each beside one without.
const LEAST_PAIRS: usize = 8;
/// What a round makes at most before fresh processes go on, so that none comes near the end of its life.
const ROUND: u64 = 50_000_000;
const ROUND_TIME: Duration = Duration::from_secs(60);
/// Resident memory may differ by so much: the kernel counts it in lots.
const KIBIBYTES: u64 = 512;

struct Size {
    mutations: u64,
    batch: Duration,
    long: bool,
}

fn size() -> Size {
    let part = std::env::var("TIGHTBEAM_MUTATIONS").ok();
    let part = part.and_then(|number| number.parse().ok());
    match std::env::var_os("TIGHTBEAM_LONG") {
        None => Size {
            mutations: 10_000_000,
            batch: Duration::from_millis(100),
            long: false,
        },
        Some(_) => Size {
            mutations: part.unwrap_or(1_000_000_000),
            batch: Duration::from_millis(200),
            long: true,
        },
    }
}

fn seed() -> u64 {
    let given = std::env::var("TIGHTBEAM_SEED").ok();
    let given = given.and_then(|seed| seed.parse().ok());
    given.unwrap_or_else(|| {
        let words = tightbeam_sys::memory::random_words().expect("random words");
        words[0] >> 32
    })
}

/// Not a test: what the child processes run.
#[test]
fn child_role() {
    let Some((role, address)) = role() else {
        return;
    };
    let board = Board::of(&address);
    let usual = std::panic::take_hook();
    let place = address.clone();
    std::panic::set_hook(Box::new(move |panic| {
        Board::of(&place).add(Word::Panics, 1);
        usual(panic);
    }));
    match role.as_str() {
        "victim" => victim::run(&board, &address),
        "client" => client::run(&board, &address),
        "scribbler" => scribe::run(&board, &address),
        other => panic!("no such role: {other}"),
    }
}

/// Waits without taking a CPU from those who are tested.
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what}: nothing happens");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What a victim holds.
#[derive(Debug, Clone, Copy)]
struct Holding {
    descriptors: u64,
    mappings: u64,
    kibibytes: u64,
}

/// The processes of a round.
struct Round {
    board: Board,
    victim: Peer,
    client: Peer,
    scribbler: Peer,
    _scratch: Scratch,
}

impl Round {
    fn start(seed: u64, sleeps: bool) -> Round {
        let scratch = Scratch::new("scribbler");
        let address = scratch.address();
        let board = Board::of(&address);
        board.set(Word::Seed, seed);
        board.set(Word::Sleeps, u64::from(sleeps));
        let victim = Peer::start("victim", &address);
        until("the victim", || board.get(Word::Ready) == 1);
        let client = Peer::start("client", &address);
        until("the client", || board.get(Word::Asked) > 0);
        let scribbler = Peer::start("scribbler", &address);
        until("the scribbler", || board.get(Word::Resting) == 1);
        Round {
            board,
            victim,
            client,
            scribbler,
            _scratch: scratch,
        }
    }

    fn scribble(&self) {
        self.board.set(Word::Mode, SCRIBBLE);
        let (board, opened) = (&self.board, self.board.get(Word::Opened));
        until("a channel", || board.get(Word::Opened) > opened);
    }

    fn rest(&self, mode: u64) {
        self.board.set(Word::Mode, mode);
        until("rest", || self.board.get(Word::Resting) == mode + 1);
    }

    fn holding(&self) -> Holding {
        let board = &self.board;
        board.set(Word::Measure, board.get(Word::Measure) + 1);
        until("the victim's books", || {
            board.get(Word::Measured) == board.get(Word::Measure)
        });
        Holding {
            descriptors: board.get(Word::Descriptors),
            mappings: board.get(Word::Mappings),
            kibibytes: board.get(Word::Kibibytes),
        }
    }

    /// Calls of the third party in a batch: a second of the wall, and a second of its own CPU time. The second is the figure,
    /// because it shares its CPU with the scribbler: what that takes from it is the kernel's doing, not the victim's. While the
    /// victim keeps it waiting, it spins.
    fn rate(&self, batch: Duration) -> Rate {
        let now = || {
            let words = [Word::Asked, Word::AskedThen, Word::Ran];
            (Instant::now(), words.map(|word| self.board.get(word)))
        };
        let (start, before) = now();
        std::thread::sleep(batch);
        let (end, after) = now();
        let [asked, then, ran] = [0, 1, 2].map(|n| (after[n] - before[n]) as f64);
        Rate {
            wall: asked / (end - start).as_secs_f64(),
            running: then / (ran / 1e9),
            enough: then > 100.0,
        }
    }

    /// All processes end well: none by a signal, none by a panic.
    fn end(self) -> Board {
        self.board.set(Word::Mode, STOP);
        assert!(self.scribbler.finish(), "the scribbler failed");
        self.board.set(Word::StopClient, 1);
        assert!(self.client.finish(), "the third party failed");
        self.board.set(Word::StopVictim, 1);
        let status = self.victim.status();
        assert!(status.success(), "the victim: {status:?}");
        self.board
    }
}

struct Rate {
    wall: f64,
    running: f64,
    /// So many calls that they say something.
    enough: bool,
}

/// What all rounds found.
#[derive(Default)]
struct Findings {
    sums: Vec<(Word, u64)>,
    ends: [u64; ENDS.len()],
    /// With the scribbler by without it: see [`Rate`].
    ratios: [Vec<f64>; 2],
    calls: Vec<f64>,
    longest: [u64; 4],
}

const SUMMED: [Word; 21] = [
    Word::Mutations,
    Word::OnOpen,
    Word::Opened,
    Word::Legal,
    Word::Wakes,
    Word::Babbles,
    Word::Refused,
    Word::Polls,
    Word::PollOver,
    Word::PollStolen,
    Word::RestPolls,
    Word::RestOver,
    Word::RestStolen,
    Word::Handled,
    Word::Sends,
    Word::Calls,
    Word::CallsAnswered,
    Word::Asked,
    Word::Slow,
    Word::Torn,
    Word::Strangers,
];

impl Findings {
    fn sum(&self, word: Word) -> u64 {
        let sums = self.sums.iter().filter(|(of, _)| *of == word);
        sums.map(|(_, value)| value).sum()
    }

    fn take(&mut self, board: &Board) {
        for word in SUMMED {
            self.sums.push((word, board.get(word)));
        }
        for (n, end) in self.ends.iter_mut().enumerate() {
            *end += board.at(Word::Ends, n);
        }
        let longest = [
            Word::PollMax,
            Word::PollP9999,
            Word::RestMax,
            Word::RestP9999,
        ];
        for (most, word) in self.longest.iter_mut().zip(longest) {
            *most = board.get(word).max(*most);
        }
    }

    fn print(&mut self, took: Duration) {
        let sum = |word| self.sum(word);
        let share = sum(Word::OnOpen) as f64 / sum(Word::Mutations) as f64;
        println!(
            "{:>14} mutations in {took:.1?}, {:.1} % on an open channel",
            sum(Word::Mutations),
            100.0 * share
        );
        println!(
            "{:>14} channels, {} openings refused",
            sum(Word::Opened),
            sum(Word::Refused)
        );
        println!(
            "{:>14} legal messages, {} wake-ups, {} words over control sockets",
            sum(Word::Legal),
            sum(Word::Wakes),
            sum(Word::Babbles)
        );
        println!(
            "{:>14} messages handled by the victim; it sent {}, called {}, of which answered {}",
            sum(Word::Handled),
            sum(Word::Sends),
            sum(Word::Calls),
            sum(Word::CallsAnswered)
        );
        let ends: Vec<String> = ENDS
            .iter()
            .zip(self.ends)
            .map(|(name, count)| format!("{name} {count}"))
            .collect();
        println!("how channels ended: {}", ends.join(", "));
        let [max, p9999, rest_max, rest_p9999] = self.longest.map(|ns| ns as f64 / 1000.0);
        println!(
            "poll, own CPU time, scribbled: p99.99 {p9999:.1} us, longest {max:.1} us; of {} above 1 ms {}, and {} that the hypervisor interrupted",
            sum(Word::Polls),
            sum(Word::PollOver),
            sum(Word::PollStolen)
        );
        println!(
            "                      resting: p99.99 {rest_p9999:.1} us, longest {rest_max:.1} us; of {} above 1 ms {}, and {} that the hypervisor interrupted",
            sum(Word::RestPolls),
            sum(Word::RestOver),
            sum(Word::RestStolen)
        );
        println!(
            "{:>14} calls of the third party, 0 lost, 0 wrong; {} took longer than 1 ms",
            sum(Word::Asked),
            sum(Word::Slow)
        );
        if self.calls.is_empty() {
            return println!("its rate: too few calls, the machine is busy");
        }
        let pairs = self.calls.len();
        println!(
            "its rate beside a resting scribbler: {:.0} calls a second of running",
            median(&mut self.calls)
        );
        for (name, ratios) in ["while running", "by the wall"]
            .iter()
            .zip(self.ratios.iter_mut().rev())
        {
            let middle = median(ratios);
            let at = |share: f64| ratios[((pairs - 1) as f64 * share) as usize];
            println!(
                "its rate with the scribbler by without, {name}: median {middle:.3}, p10 {:.3}, p90 {:.3} of {pairs} pairs",
                at(0.1),
                at(0.9)
            );
        }
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Runs a round until so many mutations were made, in pairs of batches.
fn round(seed: u64, sleeps: bool, mutations: u64, batch: Duration, findings: &mut Findings) {
    let start = Instant::now();
    let round = Round::start(seed, sleeps);
    round.scribble();
    until("channels", || round.board.get(Word::Opened) >= WARM_UP);
    round.rest(REST);
    let before = round.holding();
    let mut pairs = 0;
    let enough = |pairs| {
        let made = round.board.get(Word::Mutations) >= mutations;
        pairs >= LEAST_PAIRS && (made || start.elapsed() >= ROUND_TIME)
    };
    while !enough(pairs) {
        // First the one, then the other: what drifts hits both.
        let mut rates = [pairs % 2, 1 - pairs % 2].map(|turn| {
            match turn {
                0 => round.rest(IDLE),
                _ => round.scribble(),
            }
            round.rate(batch)
        });
        if pairs % 2 == 1 {
            rates.reverse();
        }
        let [rest, scribbled] = rates;
        // A sleeping victim is woken sooner by who floods it.
        if !sleeps && rest.enough && scribbled.enough {
            findings.ratios[0].push(scribbled.wall / rest.wall);
            findings.ratios[1].push(scribbled.running / rest.running);
            findings.calls.push(rest.running);
        }
        pairs += 1;
    }
    round.rest(REST);
    let after = round.holding();
    let board = round.end();
    findings.take(&board);
    for word in [
        Word::Panics,
        Word::Wrong,
        Word::Lost,
        Word::Torn,
        Word::Strangers,
    ] {
        assert_eq!(board.get(word), 0, "{word:?}, seed {seed}");
    }
    assert_eq!(
        after.descriptors, before.descriptors,
        "{before:?} {after:?}"
    );
    assert_eq!(after.mappings, before.mappings, "{before:?} {after:?}");
    let most = before.kibibytes + (before.kibibytes / 100).max(KIBIBYTES);
    assert!(after.kibibytes <= most, "{before:?} {after:?}");
}

#[test]
fn a_scribbler_hurts_nobody_but_itself() {
    let (size, seed, start) = (size(), seed(), Instant::now());
    println!("TIGHTBEAM_SEED={seed}");
    let mut findings = Findings::default();
    for number in 0.. {
        let made = findings.sum(Word::Mutations);
        // At least a victim that spins and one that sleeps.
        if made >= size.mutations && number >= 2 {
            break;
        }
        let share = (size.mutations / 2).min(ROUND);
        round(
            seed + number,
            number % 2 == 1,
            share,
            size.batch,
            &mut findings,
        );
    }
    findings.print(start.elapsed());
    let open = findings.sum(Word::OnOpen) * 10;
    assert!(
        open >= findings.sum(Word::Mutations) * 9,
        "mostly nobody looked"
    );
    // Of these there is one in 50 to 200 channels.
    let rare = ["Kind", "Slot", "UnknownCall"];
    let many = findings.sum(Word::Opened) >= 2000;
    for (name, count) in ENDS.iter().zip(findings.ends) {
        let wanted = !["other fault", "dead"].contains(name) && (many || !rare.contains(name));
        assert!(
            !wanted || count > 0,
            "the scribbler has become tame: no {name}"
        );
    }
    if size.long {
        let rate = median(&mut findings.ratios[1]);
        assert!(rate >= 0.95, "the third party's rate: {rate}");
        // What the host takes without saying so counts as own CPU time too: a loop on this machine that only reads the clock sees
        // more than 1 ms of it one to three times a minute.
        let (over, polls) = (findings.sum(Word::PollOver), findings.sum(Word::Polls));
        assert!(
            over <= polls / 100_000_000,
            "{over} of {polls} polls above {BOUND} ns"
        );
    }
}
