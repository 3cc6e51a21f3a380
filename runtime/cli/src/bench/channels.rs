//! `tightbeam bench channels`: what many channels of one endpoint cost, beside one channel.
//!
//! ```text
//!   first process                        second process
//!   one:  1 channel  ------------------> listens at "one"
//!   many: N channels ------------------> listens at "many"
//!   MODE --- which it polls -----------> DONE, HANDLED, CPU, MEMORY
//! ```
//!
//! Both measure in short batches that alternate: over the one channel, then over one of the many. The second process polls one
//! of its two endpoints at a time, so that neither pays for the other.

use super::fault::BenchError;
use super::machine::Machine;
use super::plan::{self, parse_cpus, parse_seconds};
use super::report::{SCHEMA, round};
use super::second::{self, Board, PATIENCE, address, other};
use super::stats::{Percentiles, Samples, Spread};
use super::{print, table};
use crate::cleanup::{self, PrivateDir};
use comfy_table::Table;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tightbeam::{ChannelId, Endpoint, Event, Handlers, Message, Reply, SendError, Wait};
use tightbeam_sys::clock::TickClock;

const ECHO: u16 = 1;
const COUNT: u16 = 2;
/// The small configuration.
const DEPTH: usize = 64;
const SIZE: usize = 56;
const BUDGET: usize = 256;
/// Calls and messages of a batch.
const CALLS: u32 = 1000;
const MESSAGES: u64 = 32_000;
/// Messages that go over one channel before the next.
const BURST: u64 = 16;
/// For how long it is looked at what a sleeping endpoint costs.
const IDLE: Duration = Duration::from_secs(2);

/// Options of `tightbeam bench channels`.
#[derive(Debug, clap::Args)]
pub(crate) struct ChannelsArgs {
    /// How many channels
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u16).range(2..=10_000), value_name = "N")]
    channels: u16,
    /// CPUs of the two processes, by default two of different cores
    #[arg(long, value_parser = parse_cpus, value_name = "A,B")]
    cpus: Option<[usize; 2]>,
    /// Time for the measurements in seconds, besides opening the channels and two seconds of rest
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
    #[arg(long)]
    cpu: usize,
    #[arg(long)]
    channels: usize,
}

/// Shared words, each with one writer: the first process has the first one.
#[derive(Debug, Clone, Copy)]
enum Word {
    Mode,
    Done,
    Handled,
    /// Nanoseconds.
    Cpu,
    /// Kibibytes, before and after the channels were opened.
    Before,
    After,
}

const WORDS: usize = 6;

/// What the second process does, once the channels are open.
const ONE: u64 = 1;
const MANY: u64 = 2;
const SLEEP: u64 = 3;
const QUIT: u64 = 4;

/// Each channel takes some descriptors.
fn allow_descriptors() -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    Ok(setrlimit(Resource::Nofile, most)?)
}

/// Kibibytes that this process has in memory, what it shares included.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// The second process.
pub(crate) fn serve(args: &PeerArgs) -> Result<(), BenchError> {
    let failed = BenchError::setup("serve the channels");
    serve_until_quit(args).map_err(failed)
}

fn serve_until_quit(args: &PeerArgs) -> io::Result<()> {
    super::peer::die_with_parent(args.parent)?;
    allow_descriptors()?;
    let board = Board::open(&args.directory, WORDS)?;
    let listen = |name| {
        let handlers = Handlers::new()
            .on(ECHO, |_, message: Message<'_>, reply: Reply<'_>| {
                reply.send(message.bytes());
            })
            .on(COUNT, |count: &mut u64, message, _| {
                *count += u64::from(!message.bytes().is_empty());
            });
        let builder = Endpoint::builder().state(0).handlers(handlers);
        let builder = builder.max_channels(args.channels + 1).depth(DEPTH);
        let builder = builder.wait(Wait::Park).deadline(PATIENCE);
        builder
            .listen(&address(&args.directory, name))
            .map_err(other)
    };
    let (mut one, mut many) = (listen("one")?, listen("many")?);
    board.set(Word::Before as usize, resident());
    // The control thread, started by now, runs where it likes.
    tightbeam_sys::cpu::pin(args.cpu)?;
    let mut mode = u64::MAX;
    loop {
        if board.get(Word::Mode as usize) != mode {
            mode = board.get(Word::Mode as usize);
            board.set(Word::After as usize, resident());
            board.set(Word::Done as usize, mode);
        }
        let server = match mode {
            ONE => &mut one,
            MANY => &mut many,
            SLEEP => {
                many.poll_for(BUDGET, Duration::from_millis(50));
                while many.next_event().is_some() {}
                let used = clock_gettime(ClockId::ProcessCPUTime);
                let used = used.tv_sec as u64 * 1_000_000_000 + used.tv_nsec as u64;
                board.set(Word::Cpu as usize, used);
                continue;
            }
            QUIT => return Ok(()),
            _ => {
                for server in [&mut one, &mut many] {
                    server.poll(BUDGET);
                    while server.next_event().is_some() {}
                }
                continue;
            }
        };
        if server.poll(BUDGET) > 0 {
            board.set(Word::Handled as usize, *server.state());
        }
    }
}

/// What was found.
#[derive(Debug, Serialize)]
struct Found {
    channels: usize,
    depth: usize,
    /// Round trips of 56 bytes.
    one_ns: f64,
    many_ns: f64,
    /// One of many by the only one.
    round_trip_ratio: Spread,
    /// One-way messages of 56 bytes over all channels in turn by those over one.
    one_per_s: f64,
    many_per_s: f64,
    rate_ratio: Spread,
    /// Calls over channels that were not used for a while, while the server spins.
    cold_ns: Percentiles,
    /// Of one CPU, while the server sleeps on all of them.
    idle_cpu_percent: f64,
    /// The server's memory for a channel, both segments.
    kibibytes_a_channel: f64,
}

#[derive(Debug, Serialize)]
struct Report {
    schema: u32,
    machine: Machine,
    channels: Found,
}

/// Measures and prints.
pub(crate) fn run(args: &ChannelsArgs) -> Result<(), Box<dyn std::error::Error>> {
    let allowed = tightbeam_sys::cpu::allowed()
        .map_err(BenchError::setup("ask for the CPUs of this process"))?;
    let together = |a, b| super::Relation::between(a, b) == super::Relation::SmtSiblings;
    let cpus = plan::choose_cpus(args.cpus, &allowed, together)?;
    cleanup::on_interrupt(|| {})?;
    let clock = TickClock::calibrate();
    let found = measure(args, cpus, &clock).map_err(BenchError::setup("measure channels"))?;
    let machine = Machine::read(cpus);
    let text = match args.json {
        true => {
            let report = Report {
                schema: SCHEMA,
                machine,
                channels: found,
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
    one: Endpoint,
    many: Endpoint,
    channels: Vec<ChannelId>,
    /// Messages sent so far to be counted, over the one and over the many.
    sent: [u64; 2],
}

fn measure(args: &ChannelsArgs, cpus: [usize; 2], clock: &TickClock) -> io::Result<Found> {
    let count = usize::from(args.channels);
    allow_descriptors()?;
    let directory = PrivateDir::create()?;
    let board = Board::open(directory.path(), WORDS)?;
    let more = [
        ("--cpu", cpus[1].to_string()),
        ("--channels", count.to_string()),
    ];
    let child = second::start("bench-channels-peer", directory.path(), &more)?;
    let deadline = Instant::now() + PATIENCE;
    while board.get(Word::Before as usize) == 0 {
        if Instant::now() > deadline {
            return Err(other("the second process does not start"));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let connect = |name| {
        let builder = Endpoint::builder().depth(DEPTH).wait(Wait::Spin);
        let builder = builder.deadline(PATIENCE).open_within(PATIENCE);
        builder
            .connect(&address(directory.path(), name))
            .map_err(other)
    };
    let (one, mut many) = (connect("one")?, connect("many")?);
    for _ in 1..count {
        many.open(&address(directory.path(), "many"))
            .map_err(other)?;
    }
    tightbeam_sys::cpu::pin(cpus[0])?;
    let channels = many.channels().collect();
    let mut bench = Bench {
        clock,
        board,
        one,
        many,
        channels,
        sent: [0; 2],
    };
    let found = bench.all(args.seconds)?;
    bench.board.set(Word::Mode as usize, QUIT);
    child.wait_until(Instant::now() + PATIENCE);
    Ok(found)
}

impl Bench<'_> {
    fn all(&mut self, seconds: f64) -> io::Result<Found> {
        let third = Duration::from_secs_f64(seconds / 3.0);
        // Every channel has been used once, and the server has noticed them all.
        self.mode(MANY)?;
        let channels = self.channels.clone();
        for channel in &channels {
            self.call(*channel)?;
        }
        let (mut ones, mut manys) = (Vec::new(), Vec::new());
        let active = channels[channels.len() / 2];
        let only = self.one.channels().next();
        let only = only.ok_or_else(|| other("the one channel has ended"))?;
        self.alternate(third, |bench, mode| {
            // A first call finds the channel again, before the clock runs.
            let channel = if mode == ONE { only } else { active };
            let ns = bench.calls(mode, channel)?;
            (if mode == ONE { &mut ones } else { &mut manys }).push(ns);
            Ok(())
        })?;
        let (mut one_rates, mut many_rates) = (Vec::new(), Vec::new());
        self.alternate(third, |bench, mode| {
            let all = if mode == ONE { &[only][..] } else { &channels };
            let rate = bench.pour(mode, all)?;
            (if mode == ONE {
                &mut one_rates
            } else {
                &mut many_rates
            })
            .push(rate);
            Ok(())
        })?;
        let cold = self.cold(third)?;
        let idle = self.idle()?;
        let grown = self.board.get(Word::After as usize) as f64
            - self.board.get(Word::Before as usize) as f64;
        let ratios = |above: &[f64], below: &[f64]| {
            let ratios = above.iter().zip(below).map(|(above, below)| above / below);
            let spread = Spread::of(ratios).map(|spread| spread.map(round));
            spread.ok_or_else(|| other("too little time for a measurement"))
        };
        let middle = |values: &[f64]| super::stats::median(values.iter().copied()).unwrap_or(0.0);
        Ok(Found {
            channels: channels.len(),
            depth: DEPTH,
            one_ns: round(middle(&ones)),
            many_ns: round(middle(&manys)),
            round_trip_ratio: ratios(&manys, &ones)?,
            one_per_s: middle(&one_rates).round(),
            many_per_s: middle(&many_rates).round(),
            rate_ratio: ratios(&many_rates, &one_rates)?,
            cold_ns: cold.percentiles(),
            idle_cpu_percent: round(idle),
            kibibytes_a_channel: round(grown / (channels.len() + 1) as f64),
        })
    }

    /// Alternates between the one channel and the many for so long.
    fn alternate(
        &mut self,
        time: Duration,
        mut batch: impl FnMut(&mut Self, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            for mode in [ONE, MANY] {
                self.mode(mode)?;
                batch(self, mode)?;
            }
        }
        Ok(())
    }

    fn mode(&self, mode: u64) -> io::Result<()> {
        self.board.set(Word::Mode as usize, mode);
        self.board.wait_for(Word::Done as usize, mode)
    }

    fn endpoint(&mut self, mode: u64) -> &mut Endpoint {
        if mode == ONE {
            &mut self.one
        } else {
            &mut self.many
        }
    }

    fn call(&mut self, channel: ChannelId) -> io::Result<()> {
        let said = [0x5a; SIZE];
        let answer = self.many.call_to(channel, ECHO, &said, PATIENCE);
        match answer.map_err(other)? == said {
            true => Ok(()),
            false => Err(other("a wrong answer")),
        }
    }

    /// Nanoseconds a call.
    fn calls(&mut self, mode: u64, channel: ChannelId) -> io::Result<f64> {
        let clock = self.clock;
        let endpoint = self.endpoint(mode);
        let mut said = [0x5a; SIZE];
        let mut start = clock.now();
        for number in 0..=CALLS {
            if number == 1 {
                start = clock.now();
            }
            said[..4].copy_from_slice(&number.to_ne_bytes());
            let answer = endpoint.call_to(channel, ECHO, &said, PATIENCE);
            if answer.map_err(other)? != said {
                return Err(other("a wrong answer"));
            }
        }
        Ok(clock.ns(clock.now().wrapping_sub(start)) / f64::from(CALLS))
    }

    /// Messages a second, over all of these channels in turn.
    fn pour(&mut self, mode: u64, channels: &[ChannelId]) -> io::Result<f64> {
        let clock = self.clock;
        let start = clock.now();
        let mut left = MESSAGES;
        for channel in channels.iter().cycle() {
            if left == 0 {
                break;
            }
            for _ in 0..BURST.min(left) {
                let endpoint = self.endpoint(mode);
                loop {
                    match endpoint.try_send_to(*channel, COUNT, &[0x33; SIZE]) {
                        Ok(()) => break,
                        Err(SendError::Full) => std::hint::spin_loop(),
                        Err(error) => return Err(other(error)),
                    }
                }
                left -= 1;
            }
        }
        let sent = &mut self.sent[usize::from(mode == MANY)];
        *sent += MESSAGES;
        let sent = *sent;
        while self.board.get(Word::Handled as usize) != sent {
            std::hint::spin_loop();
        }
        Ok(MESSAGES as f64 * 1e9 / clock.ns(clock.now().wrapping_sub(start)))
    }

    /// Calls over all channels in turn, so that each has been quiet when it is called over.
    fn cold(&mut self, time: Duration) -> io::Result<Samples> {
        self.mode(MANY)?;
        let end = Instant::now() + time;
        let mut samples = Samples::new();
        let channels = self.channels.clone();
        while Instant::now() < end {
            for channel in &channels {
                let start = self.clock.now();
                self.call(*channel)?;
                samples.record(self.clock.ns(self.clock.now().wrapping_sub(start)));
            }
        }
        Ok(samples)
    }

    /// Percent of a CPU that the sleeping server takes.
    fn idle(&mut self) -> io::Result<f64> {
        self.mode(SLEEP)?;
        // Until it has gone to sleep.
        std::thread::sleep(IDLE / 4);
        let (before, start) = (self.board.get(Word::Cpu as usize), Instant::now());
        std::thread::sleep(IDLE);
        let used = self.board.get(Word::Cpu as usize) - before;
        if used == 0 {
            return Err(other("the second process does not sleep, or has ended"));
        }
        while let Some(event) = self.many.next_event() {
            if let Event::Faulted { fault, .. } = event {
                return Err(other(fault));
            }
        }
        Ok(used as f64 / start.elapsed().as_nanos() as f64 * 100.0)
    }
}

fn render(found: &Found, machine: &Machine) -> String {
    let many = found.channels;
    let mut table: Table = table::new_table(
        &[
            "what",
            "1 channel",
            &format!("{many} channels"),
            "ratio [p10-p90]",
        ],
        1,
    );
    let whole = |value: f64| table::grouped(value.round() as u64);
    table.add_row([
        "round trip 56 B, one of them used, ns".to_owned(),
        whole(found.one_ns),
        whole(found.many_ns),
        table::spread(&found.round_trip_ratio),
    ]);
    table.add_row([
        "one-way messages 56 B, all used, a second".to_owned(),
        whole(found.one_per_s),
        whole(found.many_per_s),
        table::spread(&found.rate_ratio),
    ]);
    let cold = found.cold_ns;
    let rows = [
        ("call over a quiet one, p50 ns", table::grouped(cold.p50)),
        ("  p99", table::grouped(cold.p99)),
        ("  max", table::grouped(cold.max)),
        (
            "server asleep, % of a CPU",
            format!("{:.2}", found.idle_cpu_percent),
        ),
        (
            "server's memory for a channel, KiB",
            format!("{:.1}", found.kibibytes_a_channel),
        ),
    ];
    for (what, value) in rows {
        table.add_row([what.to_owned(), String::new(), value, String::new()]);
    }
    format!(
        "Channels of one endpoint, depth {DEPTH}\n{table}\n\n{}",
        table::facts(machine)
    )
}
