//! `tightbeam pong` answers, `tightbeam ping` calls it and shows the latency live.
//!
//! `ping` prints its live line on standard error if that is a terminal, and a summary on standard output at the end: after
//! `--count` calls, at Ctrl-C, or when the other side has gone. A sample is the time of one `call`, request written and reply
//! compared; with `--interval` a late call is not made up for, so samples do not include waiting for their turn.
//!
//! Over `udp:` and `xdp:` a call or its answer may be lost: then `ping` counts that and goes on, and says at the end how the device stands
//! and what was lost, by cause.

use crate::bench::payload::Sequence;
use crate::bench::stats::Samples;
use crate::bench::table::grouped;
use crate::bench::{CpuError, print};
use std::error::Error;
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tightbeam::{CallError, DeviceStatus, Endpoint, Event, Handlers, MAX_INLINE, SendError};
use tightbeam_sys::clock::TickClock;

/// The handler that answers with what it was sent.
const ECHO: u16 = 1;
/// Between two live lines.
const REFRESH: Duration = Duration::from_millis(250);
/// Messages of one poll.
const BUDGET: usize = 256;
/// A sleeping `pong` looks at signals as often.
const LOOK: Duration = Duration::from_millis(100);
/// Calls without an answer in a row, over a device, after which nobody is taken to be there.
const MOST_LOST: u32 = 5;
/// How long the reason for a broken call may take to arrive.
const REASON: Duration = Duration::from_millis(500);
/// Sleeps end late by about so much; the rest of an interval is spun.
const OVERSLEEP: Duration = Duration::from_micros(100);

/// Set by the first Ctrl-C.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// How an endpoint waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Waiting {
    /// Keeps a CPU busy: the lowest latency
    Spin,
    /// Spins a little, then sleeps
    Adaptive,
    /// Sleeps at once
    Park,
}

impl From<Waiting> for tightbeam::Wait {
    fn from(waiting: Waiting) -> tightbeam::Wait {
        match waiting {
            Waiting::Spin => tightbeam::Wait::Spin,
            Waiting::Adaptive => tightbeam::Wait::Adaptive,
            Waiting::Park => tightbeam::Wait::Park,
        }
    }
}

/// Options of `tightbeam pong`.
#[derive(Debug, clap::Args)]
pub(crate) struct PongArgs {
    /// Where to listen: shm:/tmp/x.sock for this host, udp:10.0.0.2:7000 or xdp:eth0/10.0.0.2:7000 for others
    ///
    /// xdp: needs CAP_BPF, CAP_NET_ADMIN and CAP_NET_RAW, udp: and shm: need nothing. Options stand behind a question mark:
    /// udp: takes engine=mmsg|io_uring, rcvbuf=BYTES and sndbuf=BYTES; xdp: takes queue=N, mode=auto|generic|native,
    /// copy=auto|copy|zerocopy and strict.
    address: String,
    /// CPU to run on
    #[arg(long)]
    cpu: Option<usize>,
    /// How to wait: adaptive sleeps after a while, so that a busy machine's other work gets the CPU
    #[arg(long, value_enum, default_value_t = Waiting::Adaptive)]
    wait: Waiting,
    /// End when the first client has gone
    #[arg(long)]
    once: bool,
}

/// Options of `tightbeam ping`.
#[derive(Debug, clap::Args)]
pub(crate) struct PingArgs {
    /// Where `tightbeam pong` listens: shm:/tmp/x.sock, udp:10.0.0.2:7000, or xdp:eth0/10.0.0.2:7000 with eth0 as the way there
    ///
    /// The other side may have a udp: address and this one xdp:, or the other way round. Options are as those of `tightbeam pong`.
    address: String,
    /// Bytes of each message
    #[arg(long, default_value_t = 56, value_parser = parse_size)]
    size: usize,
    /// Calls to make, by default until Ctrl-C
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Time from one call to the next, as in 100us, 1ms or 2s; by default none
    #[arg(long, default_value = "0ns", value_parser = parse_interval)]
    interval: Duration,
    /// CPU to run on
    #[arg(long)]
    cpu: Option<usize>,
    /// How to wait: adaptive sleeps after a while, so that a busy machine's other work gets the CPU
    #[arg(long, value_enum, default_value_t = Waiting::Adaptive)]
    wait: Waiting,
}

fn parse_size(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(size) if size <= MAX_INLINE => Ok(size),
        _ => Err(format!(
            "a size is a number of bytes from 0 to {MAX_INLINE}"
        )),
    }
}

fn parse_interval(text: &str) -> Result<Duration, String> {
    const HELP: &str = "an interval is a number with a unit: 500ns, 100us, 1ms or 2s";
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| HELP)?;
    match unit {
        "ns" => Ok(Duration::from_nanos(number)),
        "us" => Ok(Duration::from_micros(number)),
        "ms" => Ok(Duration::from_millis(number)),
        "s" => Ok(Duration::from_secs(number)),
        _ => Err(HELP.into()),
    }
}

/// Refuses a CPU that this process may not run on.
fn check_cpu(cpu: Option<usize>) -> Result<(), Box<dyn Error>> {
    let allowed = tightbeam_sys::cpu::allowed()?;
    match cpu {
        Some(missing) if !allowed.contains(&missing) => {
            Err(CpuError::Missing { missing, allowed }.into())
        }
        _ => Ok(()),
    }
}

/// Pins this thread if asked to. After opening: threads that the endpoint has started need not share the CPU.
fn pin(cpu: Option<usize>) -> Result<(), Box<dyn Error>> {
    match cpu {
        Some(cpu) => Ok(tightbeam_sys::cpu::pin(cpu)?),
        None => Ok(()),
    }
}

/// Lets the first Ctrl-C end the loop, and the second one the process.
fn on_interrupt() -> Result<(), ctrlc::Error> {
    ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            std::process::exit(crate::cleanup::INTERRUPTED);
        }
    })
}

fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Answers until Ctrl-C, or with `--once` until the first client has gone.
pub(crate) fn pong(args: &PongArgs) -> Result<(), Box<dyn Error>> {
    check_cpu(args.cpu)?;
    on_interrupt()?;
    let waiting = args.wait;
    let handlers = Handlers::new().on(ECHO, |_, message, reply| reply.send(message.bytes()));
    let mut endpoint = Endpoint::builder()
        .handlers(handlers)
        .wait(waiting.into())
        .listen(&args.address)?;
    pin(args.cpu)?;
    eprintln!("listening at {}; Ctrl-C ends", args.address);
    while !interrupted() {
        endpoint.poll_for(BUDGET, LOOK);
        while let Some(event) = endpoint.next_event() {
            eprintln!("{}", describe(&event));
            if args.once && !matches!(event, Event::Opened { .. }) {
                return Ok(());
            }
        }
    }
    Ok(())
}

fn describe(event: &Event) -> String {
    match event {
        Event::Opened { peer, .. } => match peer.host {
            Some(host) => format!("opened: {host}"),
            None => format!("opened: process {} of user {}", peer.pid, peer.uid),
        },
        Event::Closed { .. } => "closed: the other side has closed the channel".into(),
        Event::Dead { .. } => {
            "dead: the other process has ended without closing the channel".into()
        }
        Event::Faulted { fault, .. } => format!("faulted: {fault}"),
        other => format!("{other:?}"),
    }
}

/// Calls until the count is reached, Ctrl-C, or the end of the other side.
pub(crate) fn ping(args: &PingArgs) -> Result<(), Box<dyn Error>> {
    check_cpu(args.cpu)?;
    on_interrupt()?;
    let clock = TickClock::calibrate();
    let waiting = args.wait;
    let mut endpoint = Endpoint::builder()
        .wait(waiting.into())
        .connect(&args.address)?;
    pin(args.cpu)?;
    let mut session = Session::new(args.size);
    let ended = session.run(&mut endpoint, &clock, args);
    session.live.clear();
    print(&session.summary(args))?;
    ended
}

/// How the device of the only channel stands, if it has one.
fn device(endpoint: &Endpoint) -> Option<DeviceStatus> {
    let channel = endpoint.channels().next()?;
    endpoint.device_status(channel)
}

/// A line for what it is, and one for what was lost.
fn device_lines(status: &DeviceStatus) -> String {
    let facts = ["interface", "driver", "engine", "mode", "copy", "fell_back"];
    let facts = facts.map(|name| Some((name, status.fact(name)?)));
    let told = facts.iter().flatten();
    // It is worth a word only if it did.
    let told = told.filter(|fact| **fact != ("fell_back", "no"));
    let facts: String = told
        .map(|(name, value)| format!("  {name} {value}"))
        .collect();
    let losses: String = status
        .losses()
        .map(|(cause, count)| format!("  {cause} {}", grouped(count)))
        .collect();
    let losses = if losses.is_empty() {
        "  nothing"
    } else {
        &losses
    };
    format!("device {}{facts}\nlost{losses}\n", status.kind)
}

struct Session {
    message: Box<[u8]>,
    sequence: Sequence,
    /// Of the whole session but what is in `recent`.
    all: Samples,
    /// Since the last live line.
    recent: Samples,
    start: Instant,
    live: LiveLine,
    /// Calls without an answer, in all and in a row.
    lost: u64,
    lost_in_a_row: u32,
    /// The last that was seen of it.
    device: Option<DeviceStatus>,
}

impl Session {
    fn new(size: usize) -> Session {
        Session {
            message: vec![0; size].into_boxed_slice(),
            sequence: Sequence::new(),
            all: Samples::new(),
            recent: Samples::new(),
            start: Instant::now(),
            live: LiveLine::new(),
            lost: 0,
            lost_in_a_row: 0,
            device: None,
        }
    }

    /// Whether a call without an answer is one that the way has lost, and the next may have more luck.
    fn may_go_on(&mut self, endpoint: &Endpoint, error: CallError) -> bool {
        if error != CallError::DeadlineExceeded {
            return false;
        }
        let Some(status) = device(endpoint) else {
            return false;
        };
        self.device = Some(status);
        self.lost += 1;
        self.lost_in_a_row += 1;
        self.lost_in_a_row < MOST_LOST
    }

    fn run(
        &mut self,
        endpoint: &mut Endpoint,
        clock: &TickClock,
        args: &PingArgs,
    ) -> Result<(), Box<dyn Error>> {
        let mut next = Instant::now();
        let mut left = args.count.unwrap_or(u64::MAX);
        while left > 0 && !interrupted() {
            self.sequence.write(&mut self.message);
            let before = clock.now();
            let answer = endpoint.call(ECHO, &self.message);
            let after = clock.now();
            match answer.map(|bytes| *bytes == *self.message) {
                Ok(true) => {
                    self.recent.record(clock.ns(after.wrapping_sub(before)));
                    self.lost_in_a_row = 0;
                }
                Ok(false) => return Err("the answer is not what was sent".into()),
                Err(_) if interrupted() => break,
                Err(error) if self.may_go_on(endpoint, error) => {}
                Err(error) => return Err(reason(endpoint, error).into()),
            }
            left -= 1;
            if self.live.due() {
                self.live.show(&self.recent);
                self.merge();
                // When the channel has ended it is too late.
                self.device = device(endpoint);
            }
            if !args.interval.is_zero() {
                next = (next + args.interval).max(Instant::now());
                wait_until(next);
            }
        }
        self.device = device(endpoint).or(self.device.take());
        Ok(())
    }

    fn merge(&mut self) {
        self.all.add(&self.recent);
        self.recent.clear();
    }

    fn summary(&mut self, args: &PingArgs) -> String {
        self.merge();
        let seconds = self.start.elapsed().as_secs_f64();
        let count = self.all.count();
        let mut text = match count {
            0 => "no call was answered\n".to_owned(),
            _ => self.figures(args, seconds),
        };
        if self.lost > 0 {
            text += &format!("{} calls without an answer\n", grouped(self.lost));
        }
        text + &self.device.as_ref().map(device_lines).unwrap_or_default()
    }

    fn figures(&self, args: &PingArgs, seconds: f64) -> String {
        let count = self.all.count();
        let rtt = self.all.percentiles();
        format!(
            "{} calls of {} bytes to {} in {seconds:.1} s, {} a second\n\
             ns  min {}  mean {}  p50 {}  p90 {}  p99 {}  p99.9 {}  max {}\n",
            grouped(count),
            args.size,
            args.address,
            grouped((count as f64 / seconds) as u64),
            grouped(self.all.min()),
            grouped(self.all.mean() as u64),
            grouped(rtt.p50),
            grouped(rtt.p90),
            grouped(rtt.p99),
            grouped(rtt.p999),
            grouped(rtt.max),
        )
    }
}

/// Why a call failed, in the words of the event that says why the channel ended, if there is one.
fn reason(endpoint: &mut Endpoint, error: CallError) -> String {
    let ended = matches!(
        error,
        CallError::Ended | CallError::NotSent(SendError::NoChannel) | CallError::DeadlineExceeded
    );
    let deadline = Instant::now() + REASON;
    while ended && Instant::now() < deadline {
        endpoint.poll_for(BUDGET, LOOK);
        while let Some(event) = endpoint.next_event() {
            if !matches!(event, Event::Opened { .. }) {
                return describe(&event);
            }
        }
    }
    error.to_string()
}

/// Sleeps, then spins for the last part, which no sleep hits.
fn wait_until(moment: Instant) {
    loop {
        let left = moment.saturating_duration_since(Instant::now());
        if left.is_zero() || interrupted() {
            return;
        }
        match left.checked_sub(OVERSLEEP) {
            Some(sleep) => std::thread::sleep(sleep.min(LOOK)),
            None => std::hint::spin_loop(),
        }
    }
}

/// One line on the terminal, written again and again.
struct LiveLine {
    shown: Option<Instant>,
    started: Instant,
    terminal: bool,
    /// Calls between two looks at the clock.
    skip: u32,
    skipped: u32,
}

impl LiveLine {
    fn new() -> LiveLine {
        let terminal = io::stderr().is_terminal();
        LiveLine {
            shown: None,
            started: Instant::now(),
            terminal,
            skip: 0,
            skipped: 0,
        }
    }

    /// Whether it is time for the next one.
    fn due(&mut self) -> bool {
        self.skipped += 1;
        if self.skipped <= self.skip {
            return false;
        }
        self.skipped = 0;
        let due = self.since().elapsed() >= REFRESH;
        // Looking at the clock at one call in 16 is enough when calls are quick.
        self.skip = if due || self.since().elapsed() < REFRESH / 2 {
            15
        } else {
            0
        };
        due
    }

    fn since(&self) -> Instant {
        self.shown.unwrap_or(self.started)
    }

    fn show(&mut self, recent: &Samples) {
        if self.terminal {
            let rate = recent.count() as f64 / self.since().elapsed().as_secs_f64();
            let rtt = recent.percentiles();
            let line = format!(
                "\rp50 {} ns  p99 {}  max {}  {} messages/s\x1b[K",
                grouped(rtt.p50),
                grouped(rtt.p99),
                grouped(rtt.max),
                grouped(rate as u64),
            );
            // A terminal that has gone will not be missed by its reader.
            let _ = io::stderr().write_all(line.as_bytes());
        }
        self.shown = Some(Instant::now());
    }

    fn clear(&self) {
        if self.terminal && self.shown.is_some() {
            let _ = io::stderr().write_all(b"\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_have_a_unit() {
        assert_eq!(parse_interval("100us"), Ok(Duration::from_micros(100)));
        assert_eq!(parse_interval("0ns"), Ok(Duration::ZERO));
        assert_eq!(parse_interval("2s"), Ok(Duration::from_secs(2)));
        for wrong in ["", "5", "ms", "1.5ms", "-1ms", "1 ms", "1h"] {
            assert!(
                parse_interval(wrong).unwrap_err().contains("unit"),
                "{wrong}"
            );
        }
    }

    #[test]
    fn sizes_are_those_of_a_message() {
        assert_eq!(parse_size("0"), Ok(0));
        assert!(
            parse_size(&(MAX_INLINE + 1).to_string())
                .unwrap_err()
                .contains("from 0 to")
        );
    }
}
