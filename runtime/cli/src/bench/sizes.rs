//! `tightbeam bench sizes`: latency and rate against the size of a message, and what handing a frame over costs.
//!
//! ```text
//!   steps     call with n bytes, answered with them; 0 B to 1 MiB, each size 1.25 times the last     a Unix socket beside it
//!   hand-over call with a frame of n bytes that nobody touches; 4 KiB to 64 MiB                      56 bytes beside it
//!   work      every byte of n written, handed over, read, and the same back; 64 KiB to 16 MiB        plain shared memory beside it
//!   rate      n bytes sent one way, each message copied out; 8 B to 64 MiB
//! ```
//!
//! In each round every size is measured once, in a short batch: a step is the ratio of two neighbours of one round.

mod serve;

use super::fault::BenchError;
use super::machine::Machine;
use super::plan::{self, parse_cpus, parse_seconds};
use super::report::{SCHEMA, round};
use super::second::{self, Board, PATIENCE, address, other};
use super::stats::{Spread, median};
use super::{picture, print, table};
use crate::cleanup::{self, PrivateDir};
use comfy_table::Table;
use serde::Serialize;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tightbeam::{Endpoint, MAX_MESSAGE, Wait};
use tightbeam_sys::clock::TickClock;
use tightbeam_sys::turns::{self, Turns};

use serve::{COUNT, ECHO, MODE, Mode, UNTOUCHED, WORDS, WORK, Word, sum_of, write_run};
pub(crate) use serve::{PeerArgs, serve};

/// The largest message of the steps, and of the work.
const LARGEST_STEP: usize = 1 << 20;
const LARGEST_WORK: usize = 16 << 20;
/// About how long a batch shall take.
const BATCH: Duration = Duration::from_micros(500);
/// Exchanges of a batch, besides the first, which are not timed: until both frames that take turns on either side have come round.
const MOST: u32 = 500;
const WARM: u32 = 4;
/// The message that frames are compared with.
const SMALL: usize = 56;

/// Options of `tightbeam bench sizes`.
#[derive(Debug, clap::Args)]
pub(crate) struct SizesArgs {
    /// CPUs of the two processes, by default two of different cores
    #[arg(long, value_parser = parse_cpus, value_name = "A,B")]
    cpus: Option<[usize; 2]>,
    /// Time for the measurements in seconds
    #[arg(long, default_value_t = 20.0, value_parser = parse_seconds, allow_negative_numbers = true)]
    seconds: f64,
    /// Draw the latency against the size as SVG
    #[arg(long, value_name = "FILE.svg")]
    picture: Option<PathBuf>,
    /// Print one JSON object instead of tables
    #[arg(long)]
    json: bool,
}

/// A size of the steps.
#[derive(Debug, Serialize)]
struct Step {
    bytes: usize,
    /// Of a call that is answered with the same bytes.
    ns: f64,
    /// By the next smaller size, in the same round.
    step: Option<Spread>,
    /// The same exchange over a Unix stream socket.
    unix_ns: f64,
}

/// A size whose figure is compared with something else of the same round.
#[derive(Debug, Serialize)]
struct Compared {
    bytes: usize,
    ns: f64,
    reference_ns: f64,
    ratio: Spread,
    /// Hand-over: by the smallest size. Work: the share of the rate of plain shared memory.
    beside: Spread,
}

#[derive(Debug, Serialize)]
struct Rate {
    bytes: usize,
    messages_per_s: f64,
    gigabytes_per_s: f64,
}

#[derive(Debug, Serialize)]
struct Found {
    rounds: usize,
    steps: Vec<Step>,
    /// The largest of the steps' medians.
    largest_step: f64,
    hand_over: Vec<Compared>,
    work: Vec<Compared>,
    rate: Vec<Rate>,
}

#[derive(Debug, Serialize)]
struct Report {
    schema: u32,
    machine: Machine,
    sizes: Found,
}

/// 0, and from 8 on each 1.25 times the last.
fn ladder() -> Vec<usize> {
    let mut sizes = vec![0, 8];
    let mut next = 8.0f64;
    while sizes.last().is_some_and(|last| *last < LARGEST_STEP) {
        next *= 1.25;
        sizes.push((next.round() as usize).min(LARGEST_STEP));
    }
    sizes
}

fn powers(from: usize, to: usize) -> Vec<usize> {
    let mut sizes = vec![from];
    while let Some(last) = sizes.last().copied().filter(|last| *last < to) {
        sizes.push((last * 4).min(to));
    }
    sizes
}

/// Measures and prints.
pub(crate) fn run(args: &SizesArgs) -> Result<(), Box<dyn std::error::Error>> {
    let allowed = tightbeam_sys::cpu::allowed()
        .map_err(BenchError::setup("ask for the CPUs of this process"))?;
    let together = |a, b| super::Relation::between(a, b) == super::Relation::SmtSiblings;
    let cpus = plan::choose_cpus(args.cpus, &allowed, together)?;
    cleanup::on_interrupt(|| {})?;
    let clock = TickClock::calibrate();
    let found = measure(args, cpus, &clock).map_err(BenchError::setup("measure sizes"))?;
    let machine = Machine::read(cpus);
    if let Some(path) = &args.picture {
        draw(path, &found).map_err(BenchError::setup("draw the picture"))?;
    }
    let text = match args.json {
        true => {
            let report = Report {
                schema: SCHEMA,
                machine,
                sizes: found,
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
    client: Endpoint,
    stream: UnixStream,
    turns: Turns,
    /// Batches so far.
    number: u64,
    /// A message of the largest step, and room for another.
    said: Vec<u8>,
    heard: Vec<u8>,
}

fn measure(args: &SizesArgs, cpus: [usize; 2], clock: &TickClock) -> io::Result<Found> {
    let directory = PrivateDir::create()?;
    let board = Board::open(directory.path(), WORDS)?;
    let own = turns::block(LARGEST_WORK / 8)?;
    let more = [
        ("--cpu", cpus[1].to_string()),
        ("--block", own.fd().as_raw_fd().to_string()),
    ];
    let child = second::start("bench-sizes-peer", directory.path(), &more)?;
    board.wait_for(Word::Done as usize, 1)?;
    let stream = UnixStream::connect(directory.path().join("unix"))?;
    let builder = Endpoint::builder().wait(Wait::Spin).deadline(PATIENCE);
    let client = builder.open_within(PATIENCE);
    let client = client
        .connect(&address(directory.path(), "channel"))
        .map_err(other)?;
    let block = board.get(Word::Block as usize);
    let pid = board.get(Word::Pid as usize);
    let block = second::descriptor_of(pid, block)?;
    tightbeam_sys::cpu::pin(cpus[0])?;
    let mut bench = Bench {
        clock,
        board,
        client,
        stream,
        turns: Turns::new(own, block, LARGEST_WORK / 8)?,
        number: 1,
        said: (0..LARGEST_STEP).map(|n| n as u8).collect(),
        heard: vec![0; LARGEST_STEP],
    };
    let found = bench.all(args.seconds)?;
    bench.board.set(MODE, Mode::Quit as u64);
    child.wait_until(Instant::now() + PATIENCE);
    Ok(found)
}

fn spread(values: impl IntoIterator<Item = f64>) -> io::Result<Spread> {
    let spread = Spread::of(values).map(|spread| spread.map(round));
    spread.ok_or_else(|| other("too little time for a measurement"))
}

fn middle(values: &[f64]) -> f64 {
    round(median(values.iter().copied()).unwrap_or(0.0))
}

fn ratios<'a>(above: &'a [f64], below: &'a [f64]) -> impl Iterator<Item = f64> + 'a {
    above.iter().zip(below).map(|(above, below)| above / below)
}

impl Bench<'_> {
    fn all(&mut self, seconds: f64) -> io::Result<Found> {
        let share = |part: f64| Duration::from_secs_f64(seconds * part);
        let (rounds, steps) = self.steps(share(0.45))?;
        let largest_step = steps.iter().filter_map(|step| step.step);
        let largest_step = largest_step.map(|step| step.median).fold(0.0, f64::max);
        Ok(Found {
            rounds,
            steps,
            largest_step,
            hand_over: self.hand_over(share(0.15))?,
            work: self.work(share(0.3))?,
            rate: self.rate(share(0.1))?,
        })
    }

    /// Measures all sizes once a round, until the time is over.
    fn rounds(
        &mut self,
        time: Duration,
        sizes: &[usize],
        mut exchange: impl FnMut(&mut Self, usize) -> io::Result<f64>,
    ) -> io::Result<Vec<Vec<f64>>> {
        let mut found = vec![Vec::new(); sizes.len()];
        let end = Instant::now() + time;
        // The first round makes memory, and maps it.
        let mut warm = false;
        while Instant::now() < end || found.iter().any(Vec::is_empty) {
            for (size, found) in sizes.iter().zip(&mut found) {
                let ns = exchange(self, *size)?;
                if warm {
                    found.push(ns);
                }
            }
            warm = true;
        }
        Ok(found)
    }

    fn mode(&mut self, mode: Mode, bytes: usize, count: u32) -> io::Result<()> {
        self.number += 1;
        let turn = serve::turn(mode, bytes, count, self.number);
        self.board.set(MODE, turn);
        self.board.wait_for(Word::Ack as usize, turn)
    }

    /// Nanoseconds an exchange, of a batch of which the first are not timed.
    fn batch(
        &mut self,
        count: u32,
        mut exchange: impl FnMut(&mut Self, u32) -> io::Result<()>,
    ) -> io::Result<f64> {
        let mut start = 0;
        for number in 0..WARM + count {
            if number == WARM {
                start = self.clock.now();
            }
            exchange(self, number)?;
        }
        let ticks = self.clock.now().wrapping_sub(start);
        Ok(self.clock.ns(ticks) / f64::from(count))
    }

    fn steps(&mut self, time: Duration) -> io::Result<(usize, Vec<Step>)> {
        let sizes = ladder();
        // Sizes take very different times: each batch is as long as the first round has found.
        let mut counts = vec![3u32; sizes.len()];
        let mut unix_counts = counts.clone();
        let place = |bytes: usize| sizes.iter().position(|size| *size == bytes).unwrap_or(0);
        let fits = |ns: f64| ((BATCH.as_nanos() as f64 / ns) as u32).clamp(3, MOST);
        let mut unix = vec![Vec::new(); sizes.len()];
        let found = self.rounds(time, &sizes, |bench, bytes| {
            let place = place(bytes);
            bench.mode(Mode::Serve, 0, 0)?;
            let ns = bench.batch(counts[place], |bench, number| bench.call(bytes, number))?;
            counts[place] = fits(ns);
            // Of an empty message a stream has nothing to say.
            let count = unix_counts[place];
            bench.mode(Mode::Unix, bytes.max(1), count + WARM)?;
            let socket = bench.batch(count, |bench, number| bench.socket(bytes.max(1), number))?;
            unix_counts[place] = fits(socket);
            unix[place].push(socket);
            Ok(ns)
        })?;
        let rounds = found[0].len();
        let mut steps = Vec::new();
        for (place, bytes) in sizes.iter().enumerate() {
            let step = place.checked_sub(1);
            let step = step.map(|below| spread(ratios(&found[place], &found[below])));
            steps.push(Step {
                bytes: *bytes,
                ns: middle(&found[place]),
                step: step.transpose()?,
                unix_ns: middle(&unix[place]),
            });
        }
        Ok((rounds, steps))
    }

    fn call(&mut self, bytes: usize, number: u32) -> io::Result<()> {
        let said = &mut self.said[..bytes];
        if let Some(head) = said.first_chunk_mut() {
            *head = number.to_ne_bytes();
        }
        let heard = self.client.call(ECHO, said).map_err(other)?;
        check(heard.len() == bytes && heard.first_chunk::<4>() == said.first_chunk())
    }

    fn socket(&mut self, bytes: usize, number: u32) -> io::Result<()> {
        let said = &mut self.said[..bytes];
        if let Some(head) = said.first_chunk_mut() {
            *head = number.to_ne_bytes();
        }
        serve::write_while_reading(&mut self.stream, said, &mut self.heard[..bytes])?;
        check(self.heard.first_chunk::<4>() == said.first_chunk() || bytes < 4)
    }

    fn hand_over(&mut self, time: Duration) -> io::Result<Vec<Compared>> {
        self.mode(Mode::Serve, 0, 0)?;
        let sizes = powers(4096, MAX_MESSAGE);
        let mut small = vec![Vec::new(); sizes.len()];
        let found = self.rounds(time, &sizes, |bench, bytes| {
            let reference = bench.batch(MOST, |bench, number| bench.call(SMALL, number))?;
            let place = sizes.iter().position(|size| *size == bytes).unwrap_or(0);
            small[place].push(reference);
            bench.batch(MOST, |bench, _| {
                let frame = bench.client.frame(bytes).map_err(other)?;
                let heard = bench.client.call_frame(UNTOUCHED, frame).map_err(other)?;
                check(heard == bytes.to_ne_bytes())
            })
        })?;
        let mut rows = Vec::new();
        for (place, bytes) in sizes.iter().enumerate() {
            rows.push(Compared {
                bytes: *bytes,
                ns: middle(&found[place]),
                reference_ns: middle(&small[place]),
                ratio: spread(ratios(&found[place], &small[place][1..]))?,
                beside: spread(ratios(&found[place], &found[0]))?,
            });
        }
        Ok(rows)
    }

    fn work(&mut self, time: Duration) -> io::Result<Vec<Compared>> {
        let sizes = powers(64 << 10, LARGEST_WORK);
        let mut plain = vec![Vec::new(); sizes.len()];
        let found = self.rounds(time, &sizes, |bench, bytes| {
            let count = ((8 << 20) / bytes).clamp(4, 64) as u32;
            bench.mode(Mode::Plain, bytes, count + WARM)?;
            let reference = bench.batch(count, |bench, number| bench.plain(bytes, number))?;
            let place = sizes.iter().position(|size| *size == bytes).unwrap_or(0);
            plain[place].push(reference);
            bench.mode(Mode::Serve, 0, 0)?;
            bench.batch(count, |bench, number| {
                let first = u64::from(number);
                let mut frame = bench.client.frame(bytes).map_err(other)?;
                write_run(&mut frame, first);
                let heard = bench.client.call_frame_in_place(WORK, frame);
                let heard = heard.map_err(other)?;
                check(sum_of(&heard) == serve::sum(bytes / 8, first + 1))
            })
        })?;
        let mut rows = Vec::new();
        for (place, bytes) in sizes.iter().enumerate() {
            let plain = &plain[place][1..];
            rows.push(Compared {
                bytes: *bytes,
                ns: middle(&found[place]),
                reference_ns: middle(plain),
                ratio: spread(ratios(&found[place], plain))?,
                beside: spread(ratios(plain, &found[place]))?,
            });
        }
        Ok(rows)
    }

    /// The same through plain shared memory.
    fn plain(&mut self, bytes: usize, number: u32) -> io::Result<()> {
        let first = u64::from(number);
        self.turns.say(bytes / 8, first);
        let heard = serve::hear(&mut self.turns, bytes / 8)?;
        check(heard == serve::sum(bytes / 8, first + 1))
    }

    fn rate(&mut self, time: Duration) -> io::Result<Vec<Rate>> {
        self.mode(Mode::Serve, 0, 0)?;
        let sizes = powers(8, MAX_MESSAGE);
        let said = vec![0x5a; MAX_MESSAGE];
        let mut handled = 0;
        let found = self.rounds(time, &sizes, |bench, bytes| {
            let count = ((16 << 20) / bytes).clamp(2, 10_000) as u64;
            handled += count;
            let start = bench.clock.now();
            for _ in 0..count {
                bench.client.send(COUNT, &said[..bytes]).map_err(other)?;
            }
            while bench.board.get(Word::Handled as usize) != handled {
                std::hint::spin_loop();
            }
            let ticks = bench.clock.now().wrapping_sub(start);
            Ok(bench.clock.ns(ticks) / count as f64)
        })?;
        let rows = sizes.iter().zip(&found).map(|(bytes, found)| {
            let ns = median(found.iter().copied()).unwrap_or(f64::NAN);
            Rate {
                bytes: *bytes,
                messages_per_s: (1e9 / ns).round(),
                gigabytes_per_s: round(*bytes as f64 / ns),
            }
        });
        Ok(rows.collect())
    }
}

fn check(right: bool) -> io::Result<()> {
    match right {
        true => Ok(()),
        false => Err(other("a wrong answer")),
    }
}

fn draw(path: &std::path::Path, found: &Found) -> io::Result<()> {
    let of = |get: fn(&Step) -> f64| {
        let steps = found.steps.iter().filter(|step| step.bytes > 0);
        steps.map(|step| (step.bytes as f64, get(step))).collect()
    };
    let lines = [
        picture::Line::new("Tightbeam", of(|step| step.ns)),
        picture::Line::new("Unix stream socket", of(|step| step.unix_ns)),
    ];
    picture::draw(
        path,
        "Round trip against the size of the message",
        ("bytes", "ns"),
        &lines,
    )
}

/// Bytes with a binary unit, as far as that is exact enough.
fn bytes(bytes: usize) -> String {
    match bytes {
        0..4096 => format!("{bytes} B"),
        4096..0x10_0000 => format!("{:.4} KiB", bytes as f64 / 1024.0),
        _ => format!("{:.4} MiB", bytes as f64 / 1_048_576.0),
    }
    .replace(".0000", "")
}

fn render(found: &Found, machine: &Machine) -> String {
    let whole = |value: f64| table::grouped(value.round() as u64);
    let mut steps: Table = table::new_table(
        &[
            "call, answered with as much",
            "ns",
            "step [p10-p90]",
            "Unix socket, ns",
        ],
        1,
    );
    for step in &found.steps {
        steps.add_row([
            bytes(step.bytes),
            whole(step.ns),
            step.step.as_ref().map(table::spread).unwrap_or_default(),
            whole(step.unix_ns),
        ]);
    }
    let compared = |heads: [&str; 5], rows: &[Compared]| {
        let mut table = table::new_table(&heads, 1);
        for row in rows {
            table.add_row([
                bytes(row.bytes),
                whole(row.ns),
                whole(row.reference_ns),
                table::spread(&row.ratio),
                table::spread(&row.beside),
            ]);
        }
        table
    };
    let hand_over = compared(
        [
            "frame handed over, untouched",
            "ns",
            "56 B, ns",
            "by 56 B",
            "by the smallest",
        ],
        &found.hand_over,
    );
    let work = compared(
        [
            "every byte written and read, both ways",
            "ns",
            "plain memory, ns",
            "by plain",
            "share of its rate",
        ],
        &found.work,
    );
    let mut rate = table::new_table(&["sent one way, copied out", "messages/s", "GB/s"], 1);
    for row in &found.rate {
        rate.add_row([
            bytes(row.bytes),
            whole(row.messages_per_s),
            format!("{:.2}", row.gigabytes_per_s),
        ]);
    }
    format!(
        "Sizes, {} rounds\n{steps}\nlargest step {:.2}\n\n{hand_over}\n\n{work}\n\n{rate}\n\n{}",
        found.rounds,
        found.largest_step,
        table::facts(machine)
    )
}
