//! `tightbeam bench wait`: what waiting costs, beside the bare futex and a Unix socket.
//!
//! ```text
//!   first process                                second process
//!   MODE: path, CPUs, batch -------------------> pins itself, ACK
//!   a batch of round trips <-------------------> answers as many, DONE
//! ```
//!
//! All paths are measured in short batches that alternate, first with a CPU for each process, then with both on one. Each path has
//! its own pair of endpoints, so that none pays for another. The reference is the bare futex: two words in shared memory, each
//! stored by one process, which then wakes the other; no bound, no look before the sleep.
//!
//! On two CPUs the bare futex does not always sleep: a wake-up call that wakes nobody takes as long as the other side needs to
//! store the next word, and once both are awake they stay so. Blocking is compared with batches in which it did sleep.

use super::fault::BenchError;
use super::machine::Machine;
use super::plan::{self, parse_cpus, parse_seconds};
use super::report::{SCHEMA, round};
use super::second::{self, Board, PATIENCE, address, other};
use super::stats::{Spread, median};
use super::{print, table};
use crate::cleanup::{self, PrivateDir};
use comfy_table::Table;
use serde::Serialize;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tightbeam::{Endpoint, Handlers, Message, Reply, Wait};
use tightbeam_sys::block::wait_unbounded;
use tightbeam_sys::clock::TickClock;
use tightbeam_sys::wake::wake_one;
use tokio::runtime::{Builder, Runtime};

const ECHO: u16 = 1;
const SIZE: usize = 56;
/// Round trips of a batch, besides the first, which is not timed.
const CALLS: u32 = 300;

/// Options of `tightbeam bench wait`.
#[derive(Debug, clap::Args)]
pub(crate) struct WaitArgs {
    /// CPUs of the two processes, by default two of different cores; on one CPU both run on the first
    #[arg(long, value_parser = parse_cpus, value_name = "A,B")]
    cpus: Option<[usize; 2]>,
    /// Time for the measurements in seconds
    #[arg(long, default_value_t = 10.0, value_parser = parse_seconds, allow_negative_numbers = true)]
    seconds: f64,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

/// What the second process is started with.
#[derive(Debug, clap::Args)]
pub(crate) struct PeerArgs {
    #[arg(long)]
    parent: i32,
    #[arg(long)]
    directory: PathBuf,
}

/// A way to make a round trip.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum By {
    Futex,
    Unix,
    Park,
    Adaptive,
    /// `call_async` in a tokio runtime, to a server that blocks.
    AsyncPark,
    AsyncAdaptive,
}

const ALL: [By; 6] = [
    By::Futex,
    By::Unix,
    By::Park,
    By::Adaptive,
    By::AsyncPark,
    By::AsyncAdaptive,
];
/// Those over an endpoint's channel, and how it waits.
const CHANNELS: [(By, Wait); 4] = [
    (By::Park, Wait::Park),
    (By::Adaptive, Wait::Adaptive),
    (By::AsyncPark, Wait::Park),
    (By::AsyncAdaptive, Wait::Adaptive),
];
/// As a mode: the second process ends.
const QUIT: u64 = u64::MAX;

impl By {
    fn name(self) -> &'static str {
        match self {
            By::Futex => "bare futex",
            By::Unix => "Unix stream socket",
            By::Park => "call, Wait::Park",
            By::Adaptive => "call, Wait::Adaptive",
            By::AsyncPark => "call_async, Wait::Park",
            By::AsyncAdaptive => "call_async, Wait::Adaptive",
        }
    }

    /// What it is compared with.
    fn reference(self) -> By {
        match self {
            By::AsyncPark => By::Park,
            By::AsyncAdaptive => By::Adaptive,
            _ => By::Futex,
        }
    }
}

/// Words on lines of their own, each with one writer: the first process has the first two.
#[derive(Debug, Clone, Copy)]
enum Word {
    Mode,
    Ping,
    Ack,
    Done,
    Pong,
}

const WORDS: usize = 5;

/// One side's step of the bare futex: says `number` with one word and wakes.
fn say(board: &Board, word: Word, number: u64) {
    board.set(word as usize, number);
    wake_one(board.word(word as usize));
}

/// The other: sleeps until the word is `number`. A change of the low half is all that matters.
fn hear(board: &Board, word: Word, number: u64) {
    loop {
        let value = board.get(word as usize);
        if value == number {
            return;
        }
        wait_unbounded(board.word(word as usize), value);
    }
}

/// What the second process shall do next; the number makes each differ from the last.
fn mode(by: By, cpu: usize, number: u64) -> u64 {
    number << 32 | (cpu as u64) << 8 | by as u64
}

/// The second process.
pub(crate) fn serve(args: &PeerArgs) -> Result<(), BenchError> {
    serve_until_quit(args).map_err(BenchError::setup("answer round trips"))
}

fn serve_until_quit(args: &PeerArgs) -> io::Result<()> {
    super::peer::die_with_parent(args.parent)?;
    let board = Board::open(&args.directory, WORDS)?;
    let mut servers = Vec::new();
    for (by, wait) in CHANNELS {
        let handlers = Handlers::new().on(ECHO, |count, message: Message<'_>, reply: Reply<'_>| {
            *count += 1;
            reply.send(message.bytes());
        });
        let builder = Endpoint::builder().state(0u32).handlers(handlers);
        let builder = builder.wait(wait).deadline(PATIENCE);
        servers.push((
            by,
            builder
                .listen(&address(&args.directory, &format!("{by:?}")))
                .map_err(other)?,
        ));
    }
    let listener = UnixListener::bind(args.directory.join("unix"))?;
    board.set(Word::Done as usize, 1);
    let (mut stream, _) = listener.accept()?;
    let (mut last, mut bytes) = (0, [0; SIZE]);
    loop {
        let now = board.get(Word::Mode as usize);
        if now == QUIT {
            return Ok(());
        }
        if now == last {
            for (_, server) in &mut servers {
                server.poll(1);
                while server.next_event().is_some() {}
            }
            std::thread::yield_now();
            continue;
        }
        last = now;
        tightbeam_sys::cpu::pin((now >> 8 & 0xff_ffff) as usize)?;
        board.set(Word::Ack as usize, now);
        let by = ALL[(now & 0xff) as usize];
        match servers.iter_mut().find(|(served, _)| *served == by) {
            Some((_, server)) => {
                *server.state_mut() = 0;
                while *server.state() <= CALLS {
                    // Nothing comes when the first process has given up; then there is an event.
                    if server.poll_for(64, PATIENCE) == 0 && server.next_event().is_none() {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                }
            }
            None if by == By::Unix => {
                for _ in 0..=CALLS {
                    stream.read_exact(&mut bytes)?;
                    stream.write_all(&bytes)?;
                }
            }
            None => {
                let start = board.get(Word::Pong as usize);
                for number in 1..=u64::from(CALLS) + 1 {
                    hear(&board, Word::Ping, start + number);
                    say(&board, Word::Pong, start + number);
                }
            }
        }
        board.set(Word::Done as usize, now);
    }
}

/// A row of a table.
#[derive(Debug, Serialize)]
struct Row {
    by: By,
    /// Of one round trip, the median of the batches.
    ns: f64,
    /// How often a round trip the first process slept, the median of the batches.
    sleeps: f64,
    /// What the ratio compares with.
    reference: By,
    ratio: Spread,
    /// How many times faster than the Unix socket.
    over_unix: Spread,
}

#[derive(Debug, Serialize)]
struct Found {
    batches: usize,
    two_cpus: Vec<Row>,
    one_cpu: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Report {
    schema: u32,
    machine: Machine,
    wait: Found,
}

/// Measures and prints.
pub(crate) fn run(args: &WaitArgs) -> Result<(), Box<dyn std::error::Error>> {
    let allowed = tightbeam_sys::cpu::allowed()
        .map_err(BenchError::setup("ask for the CPUs of this process"))?;
    let together = |a, b| super::Relation::between(a, b) == super::Relation::SmtSiblings;
    let cpus = plan::choose_cpus(args.cpus, &allowed, together)?;
    cleanup::on_interrupt(|| {})?;
    let clock = TickClock::calibrate();
    let found = measure(args, cpus, &clock).map_err(BenchError::setup("measure waiting"))?;
    let machine = Machine::read(cpus);
    let text = match args.json {
        true => {
            let report = Report {
                schema: SCHEMA,
                machine,
                wait: found,
            };
            serde_json::to_string_pretty(&report).map_err(other)? + "\n"
        }
        false => render(&found, &machine),
    };
    print(&text).map_err(|error| BenchError::Output(error).into())
}

struct Bench<'a> {
    clock: &'a TickClock,
    board: Board,
    runtime: Runtime,
    clients: Vec<(By, Endpoint)>,
    stream: UnixStream,
    /// Where the first process runs.
    cpu: usize,
    /// Batches so far.
    number: u64,
}

fn measure(args: &WaitArgs, cpus: [usize; 2], clock: &TickClock) -> io::Result<Found> {
    let directory = PrivateDir::create()?;
    let board = Board::open(directory.path(), WORDS)?;
    let child = second::start("bench-wait-peer", directory.path(), &[])?;
    board.wait_for(Word::Done as usize, 1)?;
    let mut clients = Vec::new();
    let stream = UnixStream::connect(directory.path().join("unix"))?;
    for (by, wait) in CHANNELS {
        let builder = Endpoint::builder().wait(wait).deadline(PATIENCE);
        let builder = builder.open_within(PATIENCE);
        let client = builder.connect(&address(directory.path(), &format!("{by:?}")));
        clients.push((by, client.map_err(other)?));
    }
    tightbeam_sys::cpu::pin(cpus[0])?;
    let mut bench = Bench {
        clock,
        board,
        runtime: Builder::new_current_thread().enable_all().build()?,
        clients,
        stream,
        cpu: cpus[0],
        number: 0,
    };
    let half = Duration::from_secs_f64(args.seconds / 2.0);
    let (two, two_cpus) = bench.alternate(half, cpus[1])?;
    let (one, one_cpu) = bench.alternate(half, cpus[0])?;
    bench.board.set(Word::Mode as usize, QUIT);
    child.wait_until(Instant::now() + PATIENCE);
    Ok(Found {
        batches: two.min(one),
        two_cpus,
        one_cpu,
    })
}

impl Bench<'_> {
    /// Alternates between all ways for so long.
    fn alternate(&mut self, time: Duration, cpu: usize) -> io::Result<(usize, Vec<Row>)> {
        let mut found = ALL.map(|_| Vec::new());
        let end = Instant::now() + time;
        while Instant::now() < end {
            for by in ALL {
                found[by as usize].push(self.batch(by, cpu)?);
            }
        }
        let spread = |above: By, below: By| {
            let apart = below == By::Futex && cpu != self.cpu;
            let (above, below) = (&found[above as usize], &found[below as usize]);
            let only_asleep = apart && below.iter().any(Batch::slept);
            let pairs = above.iter().zip(below);
            let pairs = pairs.filter(|(_, below)| !only_asleep || below.slept());
            let spread = Spread::of(pairs.map(|(above, below)| above.ns / below.ns));
            let spread = spread.map(|spread| spread.map(round));
            spread.ok_or_else(|| other("too little time for a measurement"))
        };
        let middle = |by: By, get: fn(&Batch) -> f64| {
            round(median(found[by as usize].iter().map(get)).unwrap_or(0.0))
        };
        let mut rows = Vec::new();
        for by in ALL {
            rows.push(Row {
                by,
                ns: middle(by, |batch| batch.ns),
                sleeps: middle(by, |batch| batch.sleeps),
                reference: by.reference(),
                ratio: spread(by, by.reference())?,
                over_unix: spread(By::Unix, by)?,
            });
        }
        Ok((found[0].len(), rows))
    }

    fn batch(&mut self, by: By, cpu: usize) -> io::Result<Batch> {
        self.number += 1;
        let mode = mode(by, cpu, self.number);
        self.board.set(Word::Mode as usize, mode);
        self.board.wait_for(Word::Ack as usize, mode)?;
        let client = self.clients.iter_mut().find(|(used, _)| *used == by);
        let (clock, board) = (self.clock, &self.board);
        let slept = sleeps()?;
        let ticks = match client {
            Some((_, client)) if matches!(by, By::AsyncPark | By::AsyncAdaptive) => {
                self.runtime.block_on(async {
                    let (mut said, mut start) = ([0x5a; SIZE], 0);
                    for number in 0..=CALLS {
                        if number == 1 {
                            start = clock.now();
                        }
                        said[..4].copy_from_slice(&number.to_ne_bytes());
                        let heard = client.call_async(ECHO, &said).await;
                        check(&heard.map_err(other)?, &said)?;
                    }
                    Ok::<_, io::Error>(clock.now().wrapping_sub(start))
                })?
            }
            Some((_, client)) => timed(clock, |said| {
                let heard = client.call(ECHO, said);
                check(heard.map_err(other)?, said)
            })?,
            None if by == By::Unix => {
                let (stream, mut heard) = (&mut self.stream, [0; SIZE]);
                timed(clock, |said| {
                    stream.write_all(said)?;
                    stream.read_exact(&mut heard)?;
                    check(&heard, said)
                })?
            }
            None => {
                let mut number = board.get(Word::Ping as usize);
                timed(clock, |_| {
                    number += 1;
                    say(board, Word::Ping, number);
                    hear(board, Word::Pong, number);
                    Ok(())
                })?
            }
        };
        let slept = sleeps()? - slept;
        self.board.wait_for(Word::Done as usize, mode)?;
        Ok(Batch {
            ns: clock.ns(ticks) / f64::from(CALLS),
            sleeps: slept as f64 / f64::from(CALLS),
        })
    }
}

/// What a batch took, a round trip.
#[derive(Debug, Clone, Copy)]
struct Batch {
    ns: f64,
    sleeps: f64,
}

impl Batch {
    /// Whether it was for the most part asleep.
    fn slept(&self) -> bool {
        self.sleeps > 0.5
    }
}

/// How often this thread has given up its CPU to wait for something.
fn sleeps() -> io::Result<u64> {
    let status = std::fs::read_to_string("/proc/thread-self/status")?;
    let mut lines = status.lines();
    let count = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    let count = count.and_then(|count| count.trim().parse().ok());
    count.ok_or_else(|| other("no count of context switches"))
}

/// Ticks that a batch takes, without its first round trip.
fn timed(
    clock: &TickClock,
    mut exchange: impl FnMut(&[u8; SIZE]) -> io::Result<()>,
) -> io::Result<u64> {
    let (mut said, mut start) = ([0x5a; SIZE], 0);
    for number in 0..=CALLS {
        if number == 1 {
            start = clock.now();
        }
        said[..4].copy_from_slice(&number.to_ne_bytes());
        exchange(&said)?;
    }
    Ok(clock.now().wrapping_sub(start))
}

fn check(heard: &[u8], said: &[u8; SIZE]) -> io::Result<()> {
    match heard == said {
        true => Ok(()),
        false => Err(other("a wrong answer")),
    }
}

fn render(found: &Found, machine: &Machine) -> String {
    let section = |title: &str, rows: &[Row]| {
        let mut table: Table = table::new_table(
            &[
                "round trip 56 B",
                "ns",
                "sleeps",
                "by",
                "ratio [p10-p90]",
                "faster than Unix",
            ],
            1,
        );
        for row in rows {
            table.add_row([
                row.by.name().to_owned(),
                table::grouped(row.ns.round() as u64),
                format!("{:.1}", row.sleeps),
                row.reference.name().to_owned(),
                table::spread(&row.ratio),
                table::spread(&row.over_unix),
            ]);
        }
        format!("{title}, {} batches of each\n{table}\n\n", found.batches)
    };
    section("A CPU for each process", &found.two_cpus)
        + &section("Both processes on one CPU", &found.one_cpu)
        + &table::facts(machine)
}
