//! `tightbeam bench`: compares the ways in which two processes of one machine can exchange messages.
//!
//! ```text
//!   plan ----> harness ----> latency, rate, load -> report ----> table or JSON
//!                |  ^            |
//!                v  |            v
//!            process (second process: peer)    paths (one file each)
//!                |
//!            watch (nothing waits for ever)    link (floor, commands)
//! ```
//!
//! The method is DESIGN.md, section 7: short batches that alternate with the hardware floor on the same two CPUs, figures that are
//! medians of paired ratios, payload written and read on both sides of every path, every path with its best settings.

mod channel;
pub(crate) mod channels;
pub(crate) mod fanout;
mod fault;
pub(crate) mod handoff;
mod harness;
mod latency;
mod link;
mod load;
pub(crate) mod machine;
mod memory;
pub(crate) mod net;
pub(crate) mod overload;
mod paths;
pub(crate) mod payload;
pub(crate) mod peer;
mod picture;
mod plan;
mod process;
mod rate;
mod report;
mod second;
pub(crate) mod sizes;
mod spec;
pub(crate) mod stats;
pub(crate) mod table;
pub(crate) mod wait;
mod watch;

use fault::BenchError;
use harness::{Harness, Rows};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use machine::{Machine, Relation};
use plan::Group;
use report::{Report, Row, SCHEMA, SkippedRow};
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};
use tightbeam_sys::clock::{TickClock, TickSource};

pub(crate) use plan::BenchArgs;
pub(crate) use plan::CpuError;

/// Between two drawings of the progress bar: it is drawn by the measuring thread, between batches.
const REDRAW: Duration = Duration::from_millis(200);

/// Measures and prints.
pub(crate) fn run(args: &BenchArgs) -> Result<(), Box<dyn std::error::Error>> {
    let allowed = tightbeam_sys::cpu::allowed()
        .map_err(BenchError::setup("ask for the CPUs of this process"))?;
    let together = |a, b| Relation::between(a, b) == Relation::SmtSiblings;
    let cpus = plan::choose_cpus(args.cpus, &allowed, together)?;
    if cpus[0] == cpus[1] {
        eprintln!(
            "warning: both on one CPU ({}): whoever waits gives the CPU away, and the floor is the scheduler's",
            cpus[0]
        );
    }
    let groups = plan::groups(args);
    let bar = progress_bar(&groups);
    let on_signal = bar.clone();
    crate::cleanup::on_interrupt(move || on_signal.finish_and_clear())?;
    let clock = TickClock::calibrate();
    let mut report = Report {
        schema: SCHEMA,
        machine: Machine::read(cpus),
        pingpong: idle_rows(args, &groups),
        rate: Vec::new(),
        call: Vec::new(),
        load: Vec::new(),
    };
    let mut harness = Harness::start(cpus, clock)?;
    let measured = measure_all(&mut harness, &groups, &bar, &mut report);
    bar.finish_and_clear();
    measured?;
    report.machine.floor_ns = harness.floor();
    report.machine.stamps = Some(match clock.source() {
        TickSource::Counter => "counter".into(),
        TickSource::Monotonic => "monotonic".into(),
    });
    drop(harness);
    let text = match args.json {
        true => {
            serde_json::to_string_pretty(&report)
                .map_err(|error| BenchError::Output(error.into()))?
                + "\n"
        }
        false => table::render(&report),
    };
    print(&text).map_err(|error| BenchError::Output(error).into())
}

fn measure_all(
    harness: &mut Harness,
    groups: &[Group],
    bar: &ProgressBar,
    report: &mut Report,
) -> Result<(), BenchError> {
    let mut before = Duration::ZERO;
    for group in groups {
        bar.set_message(group.title());
        let mut drawn = Instant::now();
        let rows = harness.measure(group, &mut |gone| {
            if drawn.elapsed() >= REDRAW {
                drawn = Instant::now();
                bar.set_position((before + gone.min(group.budget)).as_millis() as u64);
            }
        })?;
        before += group.budget;
        bar.set_position(before.as_millis() as u64);
        match rows {
            Rows::PingPong(rows) => report.pingpong.extend(rows),
            Rows::Call(rows) => report.call.extend(rows),
            Rows::Rate(rows) => report.rate.extend(rows),
            Rows::Load(rows) => report.load.extend(rows),
        }
    }
    Ok(())
}

/// A row for each path that was asked for and does nothing of what was asked for.
fn idle_rows<T>(args: &BenchArgs, groups: &[Group]) -> Vec<Row<T>> {
    let skipped = |path| {
        let skipped = "does none of this in this way of waiting".into();
        Row::Skipped(SkippedRow {
            path,
            size: None,
            wait: None,
            skipped,
        })
    };
    plan::idle_paths(args, groups)
        .into_iter()
        .map(skipped)
        .collect()
}

/// On standard error, and only if that is a terminal.
fn progress_bar(groups: &[Group]) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let total: Duration = groups.iter().map(|group| group.budget).sum();
    let bar =
        ProgressBar::with_draw_target(Some(total.as_millis() as u64), ProgressDrawTarget::stderr());
    match ProgressStyle::with_template("{bar:30} {percent:>3} %  {msg}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// Writes to standard output; a reader that has gone has seen enough.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}
