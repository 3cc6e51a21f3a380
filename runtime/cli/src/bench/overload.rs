//! `tightbeam bench overload`: what a consumer gets while it is offered more than it takes.
//!
//! ```text
//!   first process                              second process
//!   offers at 2x, 5x, 10x of the peak -------> takes a microsecond or two for each message
//!   counts what was sent and dropped           GOT: how many
//! ```
//!
//! The peak is what the consumer takes of a publisher that waits for it ([`Policy::Block`]). It is measured anew before each overload,
//! and the ratio is of the two. After each, the books are closed: whatever was offered was sent or dropped by the policy's own
//! cause, and what was sent has been got. That nothing grows is shown by the publisher's memory before, with the most that ever waits,
//! and after.

use super::fault::BenchError;
use super::machine::Machine;
use super::memory::{self, Memory};
use super::plan::{self, parse_cpus, parse_seconds};
use super::report::{SCHEMA, round};
use super::second::{self, Board, PATIENCE, address, other};
use super::stats::{Spread, median};
use super::{print, table};
use crate::cleanup::{self, PrivateDir};
use comfy_table::Table;
use serde::Serialize;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tightbeam::{ChannelId, Counter, Endpoint, Handlers, Message, Offered, Policy, Wait};
use tightbeam_sys::clock::TickClock;

const WORK: u16 = 1;
const SIZE: usize = 56;
const DEPTH: usize = 256;
/// What the consumer takes for a message, at least.
const TAKES_NS: f64 = 2000.0;
/// How long it is overloaded at a time, and how long it is not.
const SLICE: Duration = Duration::from_millis(60);
const FACTORS: [u32; 3] = [2, 5, 10];

/// Options of `tightbeam bench overload`.
#[derive(Debug, clap::Args)]
pub(crate) struct OverloadArgs {
    /// CPUs of the two processes, by default two of different cores
    #[arg(long, value_parser = parse_cpus, value_name = "A,B")]
    cpus: Option<[usize; 2]>,
    /// Time for the measurements in seconds
    #[arg(long, default_value_t = 6.0, value_parser = parse_seconds, allow_negative_numbers = true)]
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
    #[arg(long)]
    cpu: usize,
}

/// Shared words; the first process writes the first.
#[derive(Debug, Clone, Copy)]
enum Word {
    Quit,
    Ready,
    Got,
}

const WORDS: usize = 3;

struct Consumer {
    clock: TickClock,
    got: u64,
}

/// The second process.
pub(crate) fn serve(args: &PeerArgs) -> Result<(), BenchError> {
    serve_until_quit(args).map_err(BenchError::setup("consume"))
}

fn serve_until_quit(args: &PeerArgs) -> io::Result<()> {
    super::peer::die_with_parent(args.parent)?;
    let board = Board::open(&args.directory, WORDS)?;
    let handlers = Handlers::new().on(WORK, |consumer: &mut Consumer, message: Message<'_>, _| {
        let start = consumer.clock.now();
        consumer.got += u64::from(!message.bytes().is_empty());
        while consumer.clock.ns(consumer.clock.now().wrapping_sub(start)) < TAKES_NS {
            std::hint::spin_loop();
        }
    });
    let clock = TickClock::calibrate();
    let builder = Endpoint::builder().state(Consumer { clock, got: 0 });
    let builder = builder.handlers(handlers).wait(Wait::Spin);
    let mut server = builder
        .listen(&address(&args.directory, "work"))
        .map_err(other)?;
    tightbeam_sys::cpu::pin(args.cpu)?;
    board.set(Word::Ready as usize, 1);
    while board.get(Word::Quit as usize) == 0 {
        if server.poll(16) > 0 {
            board.set(Word::Got as usize, server.state().got);
        }
        while server.next_event().is_some() {}
    }
    Ok(())
}

#[derive(Debug, Serialize)]
struct Row {
    policy: &'static str,
    /// Offered by what the consumer takes.
    factor: u32,
    offered_per_s: f64,
    got_per_s: f64,
    /// Of the peak beside it.
    goodput: Spread,
    dropped_percent: f64,
    memory: Over,
}

/// The publisher's memory.
#[derive(Debug, Clone, Copy, Serialize)]
struct Over {
    /// Before the first overload of this kind.
    before: Memory,
    /// At the end of an overload, while all that waits is there: the most of all of them.
    full: Memory,
    /// After the last, when nothing is under way.
    after: Memory,
}

impl Over {
    fn until(self, next: Over) -> Over {
        Over {
            before: self.before,
            full: self.full.max(next.full),
            after: next.after,
        }
    }

    fn resident(&self) -> String {
        let all = [self.before, self.full, self.after];
        let [before, full, after] = all.map(|memory| table::grouped(memory.resident_kib));
        format!("{before}, {full}, {after}")
    }

    /// Of segments and frames what there is, or from what to what that has changed.
    fn shared(&self) -> String {
        let shared = |memory: Memory| {
            let Memory {
                segments,
                segments_kib,
                frames,
                ..
            } = memory;
            format!("{segments}, {segments_kib}, {frames}")
        };
        let [before, full, after] = [self.before, self.full, self.after].map(shared);
        match before == full && full == after {
            true => before,
            false => format!("{before} -> {full} -> {after}"),
        }
    }
}

#[derive(Debug, Serialize)]
struct Found {
    depth: usize,
    peak_per_s: f64,
    rows: Vec<Row>,
    /// By how much the publisher has grown from the first to the last measurement.
    grown_kib: i64,
}

#[derive(Debug, Serialize)]
struct Report {
    schema: u32,
    machine: Machine,
    overload: Found,
}

/// Measures and prints.
pub(crate) fn run(args: &OverloadArgs) -> Result<(), Box<dyn std::error::Error>> {
    let allowed = tightbeam_sys::cpu::allowed()
        .map_err(BenchError::setup("ask for the CPUs of this process"))?;
    let together = |a, b| super::Relation::between(a, b) == super::Relation::SmtSiblings;
    let cpus = plan::choose_cpus(args.cpus, &allowed, together)?;
    cleanup::on_interrupt(|| {})?;
    let found = measure(args, cpus).map_err(BenchError::setup("measure overload"))?;
    let machine = Machine::read(cpus);
    let text = match args.json {
        true => {
            let report = Report {
                schema: SCHEMA,
                machine,
                overload: found,
            };
            serde_json::to_string_pretty(&report).map_err(other)? + "\n"
        }
        false => render(&found, &machine),
    };
    print(&text).map_err(|error| BenchError::Output(error).into())
}

struct Bench {
    board: Board,
    publisher: Endpoint,
    channel: ChannelId,
}

/// What one slice has shown.
struct Slice {
    offered: u64,
    got: u64,
    dropped: u64,
    seconds: f64,
    memory: Over,
}

fn measure(args: &OverloadArgs, cpus: [usize; 2]) -> io::Result<Found> {
    let directory = PrivateDir::create()?;
    let board = Board::open(directory.path(), WORDS)?;
    let more = [("--cpu", cpus[1].to_string())];
    let child = second::start("bench-overload-peer", directory.path(), &more)?;
    board.wait_for(Word::Ready as usize, 1)?;
    let builder = Endpoint::builder().depth(DEPTH).queue(DEPTH, 1 << 20);
    let publisher = builder.wait(Wait::Spin).deadline(PATIENCE);
    let publisher = publisher
        .connect(&address(directory.path(), "work"))
        .map_err(other)?;
    tightbeam_sys::cpu::pin(cpus[0])?;
    let channel = publisher.channels().next();
    let mut bench = Bench {
        board,
        publisher,
        channel: channel.ok_or_else(|| other("the channel has ended"))?,
    };
    let found = bench.all(args.seconds)?;
    bench.board.set(Word::Quit as usize, 1);
    child.wait_until(Instant::now() + PATIENCE);
    Ok(found)
}

impl Bench {
    fn all(&mut self, seconds: f64) -> io::Result<Found> {
        let cells: Vec<(Policy, u32)> = [Policy::DropNewest, Policy::DropOldest]
            .into_iter()
            .flat_map(|policy| FACTORS.map(|factor| (policy, factor)))
            .collect();
        let mut slices: Vec<Vec<(Slice, f64)>> = cells.iter().map(|_| Vec::new()).collect();
        let mut peaks = Vec::new();
        // All that is ever needed has been touched: what waits, and what this measurement itself takes. Twice, because the allocator
        // gives the memory of a queue back to the kernel the first time, and keeps it from then on.
        let first = [(Policy::Block(PATIENCE), 0)];
        for (policy, _) in [&first[..], &cells[..]].concat().repeat(2) {
            self.slice(policy, f64::INFINITY)?;
        }
        let before = memory::resident();
        let end = Instant::now() + Duration::from_secs_f64(seconds);
        while Instant::now() < end || slices.iter().any(Vec::is_empty) {
            for ((policy, factor), slices) in cells.iter().zip(&mut slices) {
                let peak = self.slice(Policy::Block(PATIENCE), f64::INFINITY)?;
                let peak = peak.got as f64 / peak.seconds;
                let slice = self.slice(*policy, peak * f64::from(*factor))?;
                peaks.push(peak);
                slices.push((slice, peak));
            }
        }
        let grown_kib = memory::resident() as i64 - before as i64;
        let rows = cells.iter().zip(&slices);
        let rows: Option<Vec<Row>> = rows.map(|(cell, slices)| row(*cell, slices)).collect();
        Ok(Found {
            depth: DEPTH,
            peak_per_s: median(peaks).unwrap_or(0.0).round(),
            rows: rows.ok_or_else(|| other("too little time for a measurement"))?,
            grown_kib,
        })
    }

    fn count(&self, counter: Counter) -> u64 {
        let counters = self.publisher.counters(self.channel);
        counters.map_or(0, |counters| counters.get(counter))
    }

    /// Offers at a rate for a while, and closes the books.
    fn slice(&mut self, policy: Policy, per_second: f64) -> io::Result<Slice> {
        self.publisher.set_policy(self.channel, policy);
        let cause = match policy {
            Policy::DropOldest => Counter::DropOldest,
            _ => Counter::DropNewest,
        };
        let before = [Counter::Offered, Counter::Sent, cause].map(|counter| self.count(counter));
        let memory = Memory::of(&self.publisher, self.channel);
        let got = self.board.get(Word::Got as usize);
        let (start, mut offered) = (Instant::now(), 0u64);
        let mut gone = Duration::ZERO;
        while gone < SLICE {
            let due = gone.as_secs_f64() * per_second;
            // Not so many at a time that the clock is late.
            for _ in 0..64 {
                if offered as f64 > due {
                    break;
                }
                let message = [0x3c; SIZE];
                let taken = self.publisher.offer_to(self.channel, WORK, &message);
                let _: Offered = taken.map_err(other)?;
                offered += 1;
            }
            self.publisher.poll(16);
            gone = start.elapsed();
        }
        let taken = self.board.get(Word::Got as usize) - got;
        let full = Memory::of(&self.publisher, self.channel);
        self.settle()?;
        let after = [Counter::Offered, Counter::Sent, cause].map(|counter| self.count(counter));
        let [counted, sent, dropped] = std::array::from_fn(|n| after[n] - before[n]);
        let all = self.board.get(Word::Got as usize) - got;
        if counted != offered || sent + dropped != offered || all != sent {
            return Err(other(format!(
                "the books do not agree: offered {offered}, sent {sent}, dropped {dropped}, got {all}"
            )));
        }
        while self.publisher.next_event().is_some() {}
        Ok(Slice {
            offered,
            got: taken,
            dropped,
            seconds: gone.as_secs_f64(),
            memory: Over {
                before: memory,
                full,
                after: Memory::of(&self.publisher, self.channel),
            },
        })
    }

    /// Until nothing is under way.
    fn settle(&mut self) -> io::Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            self.publisher.poll(16);
            let queued = self.publisher.load(self.channel).map(|load| load.queued);
            let sent = self.count(Counter::Sent);
            if queued == Some(0) && self.board.get(Word::Got as usize) == sent {
                return Ok(());
            }
            if Instant::now() > end {
                return Err(other("the consumer does not get what was sent"));
            }
        }
    }
}

fn row((policy, factor): (Policy, u32), slices: &[(Slice, f64)]) -> Option<Row> {
    let rate = |count: fn(&Slice) -> u64| {
        let rates = slices.iter();
        median(rates.map(|(slice, _)| count(slice) as f64 / slice.seconds))
    };
    let goodput = slices
        .iter()
        .map(|(slice, peak)| slice.got as f64 / slice.seconds / peak);
    let shares = slices
        .iter()
        .map(|(slice, _)| slice.dropped as f64 / slice.offered.max(1) as f64);
    let memory = slices.iter().map(|(slice, _)| slice.memory);
    Some(Row {
        policy: match policy {
            Policy::DropOldest => "drop oldest",
            _ => "drop newest",
        },
        factor,
        offered_per_s: rate(|slice| slice.offered)?.round(),
        got_per_s: rate(|slice| slice.got)?.round(),
        goodput: Spread::of(goodput)?.map(round),
        dropped_percent: round(median(shares)? * 100.0),
        memory: memory.reduce(Over::until)?,
    })
}

fn render(found: &Found, machine: &Machine) -> String {
    let mut table: Table = table::new_table(
        &[
            "policy",
            "offered",
            "a second",
            "got a second",
            "dropped %",
            "of the peak [p10-p90]",
            "resident KiB: before, full, after",
            "segments, KiB, frames",
        ],
        1,
    );
    for row in &found.rows {
        table.add_row([
            row.policy.to_owned(),
            format!("{}x", row.factor),
            table::grouped(row.offered_per_s as u64),
            table::grouped(row.got_per_s as u64),
            format!("{:.1}", row.dropped_percent),
            table::spread(&row.goodput),
            row.memory.resident(),
            row.memory.shared(),
        ]);
    }
    format!(
        "A consumer that takes {} messages of {SIZE} B a second, depth {}; nothing is astray, the publisher has grown by {} KiB\n{table}\n\n{}",
        table::grouped(found.peak_per_s as u64),
        found.depth,
        found.grown_kib,
        table::facts(machine)
    )
}
