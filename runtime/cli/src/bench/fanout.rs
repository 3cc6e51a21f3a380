//! `tightbeam bench fanout`: one frame for 1 to 8 receivers, and what one that stands still costs the others.
//!
//! ```text
//!   first process                         second process                  third process
//!   publishes a frame ------------------> 8 receivers, in turn            1 receiver, stopped (SIGSTOP)
//!                     <-- a small message from each
//! ```
//!
//! Latency is from before the frame is taken to the last answer. Batches with the stopped receiver among those that are published to,
//! whose ring is full, alternate with batches without it. The receivers share one CPU, each an endpoint of its own.

use super::fault::BenchError;
use super::machine::Machine;
use super::plan::{self, parse_cpus, parse_seconds};
use super::report::{SCHEMA, round};
use super::second::{self, Board, PATIENCE, address, other};
use super::stats::{Percentiles, Samples, Spread, median};
use super::{print, table};
use crate::cleanup::{self, PrivateDir};
use comfy_table::Table;
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tightbeam::{
    ChannelId, Counter, Endpoint, Frozen, Handlers, Message, Policy, Published, Reply, SendError,
    Wait,
};
use tightbeam_sys::clock::TickClock;

/// A frame that is answered, and one that is only read.
const ASK: u16 = 1;
const TELL: u16 = 2;
/// An answer; "I am receiver n".
const ANSWER: u16 = 3;
const JOIN: u16 = 4;

const MOST: usize = 8;
const COUNTS: [usize; 4] = [1, 2, 4, MOST];
const SIZE: usize = 4096;
const DEPTH: usize = 64;
/// Frames of a batch.
const ASKED: u32 = 1000;
const TOLD: u32 = 5000;

/// Options of `tightbeam bench fanout`.
#[derive(Debug, clap::Args)]
pub(crate) struct FanoutArgs {
    /// CPUs of the publisher and of the receivers, by default two of different cores
    #[arg(long, value_parser = parse_cpus, value_name = "A,B")]
    cpus: Option<[usize; 2]>,
    /// Time for the measurements in seconds
    #[arg(long, default_value_t = 8.0, value_parser = parse_seconds, allow_negative_numbers = true)]
    seconds: f64,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

/// What the other processes are started with.
#[derive(Debug, clap::Args)]
pub(crate) struct PeerArgs {
    #[arg(long)]
    parent: i32,
    #[arg(long)]
    directory: PathBuf,
    #[arg(long)]
    cpu: usize,
    /// The number of the first receiver, and how many there are.
    #[arg(long)]
    first: u8,
    #[arg(long)]
    count: u8,
}

/// Shared words; the first process writes the first.
#[derive(Debug, Clone, Copy)]
enum Word {
    Quit,
    /// Process of the one that is to be stopped.
    Stopped,
}

const WORDS: usize = 2;

/// The second process and the third.
pub(crate) fn serve(args: &PeerArgs) -> Result<(), BenchError> {
    serve_until_quit(args).map_err(BenchError::setup("receive frames"))
}

fn read_frame(message: &Message<'_>) -> u8 {
    let mut bytes = [0; 64];
    if let Some(frame) = message.frames() {
        frame.copy_to(0, &mut bytes);
    }
    bytes[0]
}

fn serve_until_quit(args: &PeerArgs) -> io::Result<()> {
    super::peer::die_with_parent(args.parent)?;
    let board = Board::open(&args.directory, WORDS)?;
    let mut receivers = Vec::new();
    for number in args.first..args.first + args.count {
        let handlers = Handlers::new()
            .on(ASK, |_: &mut (), message, reply: Reply<'_>| {
                // There is room: not more are under way than the ring holds.
                let _ = reply.try_send(ANSWER, &[read_frame(&message)]);
            })
            .on(TELL, |_, message, _| {
                read_frame(&message);
            });
        let builder = Endpoint::builder().handlers(handlers).wait(Wait::Spin);
        let builder = builder.deadline(PATIENCE);
        let mut receiver = builder
            .connect(&address(&args.directory, "market"))
            .map_err(other)?;
        receiver.send(JOIN, &[number]).map_err(other)?;
        receivers.push(receiver);
    }
    if args.count == 1 {
        board.set(Word::Stopped as usize, u64::from(std::process::id()));
    }
    tightbeam_sys::cpu::pin(args.cpu)?;
    while board.get(Word::Quit as usize) == 0 {
        for receiver in &mut receivers {
            receiver.poll(64);
        }
    }
    Ok(())
}

#[derive(Debug, Serialize)]
struct Row {
    receivers: usize,
    /// Until the last of them has answered.
    ns: Percentiles,
    /// The same with one more that is stopped, and the ratio of p99 of batches beside each other.
    with_stopped_ns: Percentiles,
    p99_ratio: Spread,
    p50_ratio: Spread,
    /// To each of them.
    frames_per_s: f64,
    with_stopped_per_s: f64,
    rate_ratio: Spread,
}

#[derive(Debug, Serialize)]
struct Report {
    schema: u32,
    machine: Machine,
    fanout: Vec<Row>,
}

/// Measures and prints.
pub(crate) fn run(args: &FanoutArgs) -> Result<(), Box<dyn std::error::Error>> {
    let allowed = tightbeam_sys::cpu::allowed()
        .map_err(BenchError::setup("ask for the CPUs of this process"))?;
    let together = |a, b| super::Relation::between(a, b) == super::Relation::SmtSiblings;
    let cpus = plan::choose_cpus(args.cpus, &allowed, together)?;
    cleanup::on_interrupt(|| {})?;
    let clock = TickClock::calibrate();
    let rows = measure(args, cpus, clock).map_err(BenchError::setup("measure fan-out"))?;
    let machine = Machine::read(cpus);
    let text = match args.json {
        true => {
            let report = Report {
                schema: SCHEMA,
                machine,
                fanout: rows,
            };
            serde_json::to_string_pretty(&report).map_err(other)? + "\n"
        }
        false => render(&rows, &machine),
    };
    print(&text).map_err(|error| BenchError::Output(error).into())
}

#[derive(Default)]
struct Desk {
    channels: [Option<ChannelId>; MOST + 1],
    answers: u64,
}

struct Bench {
    clock: TickClock,
    publisher: Endpoint<Desk>,
}

fn measure(args: &FanoutArgs, cpus: [usize; 2], clock: TickClock) -> io::Result<Vec<Row>> {
    let directory = PrivateDir::create()?;
    let board = Board::open(directory.path(), WORDS)?;
    let handlers = Handlers::new()
        .on(
            JOIN,
            |desk: &mut Desk, message: Message<'_>, reply: Reply<'_>| {
                let number = message.bytes().first().map(|number| usize::from(*number));
                if let Some(place) = number.and_then(|number| desk.channels.get_mut(number)) {
                    *place = Some(reply.channel());
                }
            },
        )
        .on(ANSWER, |desk: &mut Desk, _, _| desk.answers += 1);
    let builder = Endpoint::builder()
        .state(Desk::default())
        .handlers(handlers);
    let builder = builder.depth(DEPTH).wait(Wait::Spin).deadline(PATIENCE);
    let publisher = builder
        .listen(&address(directory.path(), "market"))
        .map_err(other)?;
    let start = |first: usize, count: usize| {
        let more = [
            ("--cpu", cpus[1].to_string()),
            ("--first", first.to_string()),
            ("--count", count.to_string()),
        ];
        second::start("bench-fanout-peer", directory.path(), &more)
    };
    let children = [start(0, MOST)?, start(MOST, 1)?];
    let mut bench = Bench { clock, publisher };
    let channels = bench.joined()?;
    let stopped = board.get(Word::Stopped as usize);
    let stopped = Pid::from_raw(stopped as i32).ok_or_else(|| other("no third process"))?;
    kill_process(stopped, Signal::STOP)?;
    tightbeam_sys::cpu::pin(cpus[0])?;
    let rows = bench.all(&channels, args.seconds);
    kill_process(stopped, Signal::CONT)?;
    board.set(Word::Quit as usize, 1);
    drop(bench);
    for child in children {
        child.wait_until(Instant::now() + PATIENCE);
    }
    rows
}

impl Bench {
    fn joined(&mut self) -> io::Result<[ChannelId; MOST + 1]> {
        let end = Instant::now() + PATIENCE;
        while self.publisher.state().channels.iter().any(Option::is_none) {
            self.publisher.poll_for(64, Duration::from_millis(1));
            if Instant::now() > end {
                return Err(other("the receivers do not come"));
            }
        }
        let channels: Vec<ChannelId> = self
            .publisher
            .state()
            .channels
            .into_iter()
            .flatten()
            .collect();
        for (number, channel) in channels.iter().enumerate() {
            let policy = match number {
                MOST => Policy::DropNewest,
                _ => Policy::Block(PATIENCE),
            };
            self.publisher.set_policy(*channel, policy);
        }
        channels
            .try_into()
            .map_err(|_| other("a receiver has come twice"))
    }

    fn all(&mut self, channels: &[ChannelId; MOST + 1], seconds: f64) -> io::Result<Vec<Row>> {
        let victim = channels[MOST];
        // From now on the ring of the one that is stopped is full.
        while self
            .publisher
            .load(victim)
            .is_some_and(|load| load.in_flight < DEPTH)
        {
            let frame = self.frame(0)?;
            self.publisher.publish(&[victim], TELL, &frame);
        }
        let each = Duration::from_secs_f64(seconds / COUNTS.len() as f64);
        let rows: io::Result<Vec<Row>> = COUNTS
            .iter()
            .map(|count| {
                let without = channels[..*count].to_vec();
                let with = [&without[..], &[victim]].concat();
                self.row(&without, &with, each)
            })
            .collect();
        let counters = self.publisher.counters(victim);
        let dropped = counters.map(|counters| counters.get(Counter::DropNewest));
        match dropped {
            Some(1..) => rows,
            _ => Err(other("the one that is stopped was not full")),
        }
    }

    fn row(
        &mut self,
        without: &[ChannelId],
        with: &[ChannelId],
        time: Duration,
    ) -> io::Result<Row> {
        let lists = [without, with];
        let mut all = [Samples::new(), Samples::new()];
        let (mut p99s, mut p50s, mut rates) = (Vec::new(), Vec::new(), Vec::new());
        let mut sums: [Vec<f64>; 2] = Default::default();
        let end = Instant::now() + time;
        while Instant::now() < end || p99s.is_empty() {
            let mut batch = [Samples::new(), Samples::new()];
            for (samples, list) in batch.iter_mut().zip(lists) {
                self.ask(list, without.len(), samples)?;
            }
            let [a, b] = [batch[0].percentiles(), batch[1].percentiles()];
            p99s.push(b.p99 as f64 / a.p99.max(1) as f64);
            p50s.push(b.p50 as f64 / a.p50.max(1) as f64);
            all.iter_mut()
                .zip(&batch)
                .for_each(|(all, batch)| all.add(batch));
            let told = [self.tell(without, without)?, self.tell(with, without)?];
            rates.push(told[1] / told[0]);
            sums.iter_mut()
                .zip(told)
                .for_each(|(sum, rate)| sum.push(rate));
        }
        let spread = |values: Vec<f64>| {
            let spread = Spread::of(values).map(|spread| spread.map(round));
            spread.ok_or_else(|| other("too little time for a measurement"))
        };
        let [frames, stopped] = sums.map(|rates| median(rates).unwrap_or(0.0).round());
        Ok(Row {
            receivers: without.len(),
            ns: all[0].percentiles(),
            with_stopped_ns: all[1].percentiles(),
            p99_ratio: spread(p99s)?,
            p50_ratio: spread(p50s)?,
            frames_per_s: frames,
            with_stopped_per_s: stopped,
            rate_ratio: spread(rates)?,
        })
    }

    fn frame(&mut self, number: u32) -> io::Result<Frozen> {
        loop {
            match self.publisher.shared_frame(SIZE) {
                Ok(mut frame) => {
                    frame[..4].copy_from_slice(&number.to_ne_bytes());
                    return Ok(frame.freeze());
                }
                Err(SendError::Full) => drop(self.publisher.poll(64)),
                Err(error) => return Err(other(error)),
            }
        }
    }

    fn publish(&mut self, channels: &[ChannelId], handler: u16, number: u32) -> io::Result<()> {
        let frame = self.frame(number)?;
        let Published { refused, .. } = self.publisher.publish(channels, handler, &frame);
        match refused {
            0 => Ok(()),
            _ => Err(other("a receiver has ended, or does nothing")),
        }
    }

    /// Publishes frames one by one, and waits for so many answers each time.
    fn ask(&mut self, channels: &[ChannelId], answers: usize, to: &mut Samples) -> io::Result<()> {
        for number in 0..=ASKED {
            let expected = self.publisher.state().answers + answers as u64;
            let start = self.clock.now();
            self.publish(channels, ASK, number)?;
            while self.publisher.state().answers < expected {
                if self.publisher.poll(64) == 0
                    && self.clock.ns(self.clock.now().wrapping_sub(start)) > 1e10
                {
                    return Err(other("a receiver does not answer"));
                }
            }
            // The first one finds everything cold.
            if number > 0 {
                to.record(self.clock.ns(self.clock.now().wrapping_sub(start)));
            }
        }
        Ok(())
    }

    /// Frames a second, as fast as the slowest of those that answer takes them.
    fn tell(&mut self, channels: &[ChannelId], answering: &[ChannelId]) -> io::Result<f64> {
        let start = self.clock.now();
        for number in 0..TOLD {
            self.publish(channels, TELL, number)?;
        }
        // Until all of them have got through.
        let expected = self.publisher.state().answers + answering.len() as u64;
        self.publish(answering, ASK, 0)?;
        while self.publisher.state().answers < expected {
            self.publisher.poll(64);
        }
        Ok(f64::from(TOLD) * 1e9 / self.clock.ns(self.clock.now().wrapping_sub(start)))
    }
}

fn render(rows: &[Row], machine: &Machine) -> String {
    let mut table: Table = table::new_table(
        &[
            "receivers",
            "p50 ns",
            "p99 ns",
            "one more, stopped: p50",
            "p99 [p10-p90]",
            "frames a second to each",
            "one more, stopped",
        ],
        1,
    );
    for row in rows {
        table.add_row([
            row.receivers.to_string(),
            table::grouped(row.ns.p50),
            table::grouped(row.ns.p99),
            table::spread(&row.p50_ratio),
            table::spread(&row.p99_ratio),
            table::grouped(row.frames_per_s as u64),
            table::spread(&row.rate_ratio),
        ]);
    }
    format!(
        "A frame of {SIZE} B to several receivers on one CPU, until the last has answered\n{table}\n\n{}",
        table::facts(machine)
    )
}
