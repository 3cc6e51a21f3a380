//! `peers`: the ping-pong and the one-way rate of `tightbeam bench`, over
//! other people's shared-memory libraries.
//!
//! A person runs it; it also runs itself, as the far process of a path between
//! two processes. It exits with 2 when the command line makes no sense, and
//! never prints anything but its report on standard output.

mod cpus;
mod far;
mod fault;
mod floor;
mod harness;
mod link;
mod machine;
mod near;
mod paths;
mod payload;
mod report;
mod sizes;
mod stats;
mod wait;
mod words;

use std::io::{IsTerminal, Write, stderr, stdout};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use tightbeam_sys::clock::TickClock;

use crate::cpus::{Cpus, pin};
use crate::fault::Fault;
use crate::harness::Plan;
use crate::machine::Machine;
use crate::paths::{FarOrder, Path, Purpose};
use crate::report::Report;

/// Ping-pong and one-way rate over other shared-memory libraries, by the method of `tightbeam bench`
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Options {
    #[command(subcommand)]
    role: Option<Role>,

    /// What to measure
    #[arg(long, value_delimiter = ',', default_values_t = Path::value_variants().to_vec())]
    paths: Vec<Path>,

    /// Bytes of a message in the ping-pong
    #[arg(long, value_delimiter = ',', default_values_t = [8, 56, 64, 256, 1024])]
    sizes: Vec<usize>,

    /// Bytes of a message in the one-way rate
    #[arg(long, value_delimiter = ',', default_values_t = [1, 32, 64, 1024])]
    rate_sizes: Vec<usize>,

    /// The near side's CPU and the far side's [default: the first two allowed]
    #[arg(long)]
    cpus: Option<Cpus>,

    /// Seconds of measuring for the whole run
    #[arg(long, default_value_t = 20.0, value_parser = seconds)]
    seconds: f64,

    /// Messages that fit in one direction, in place of each path's own setting
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    depth: Option<u32>,

    /// One JSON object instead of tables
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// The far side of a path; this program starts itself so
    #[command(hide = true)]
    Far(FarOrder),
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= 86_400.0 => Ok(seconds),
        _ => Err("a number of seconds, more than 0 and at most a day".into()),
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let done = match &options.role {
        Some(Role::Far(order)) => paths::be_far(order),
        None => run(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("peers: {fault}");
            ExitCode::from(2)
        }
    }
}

fn run(options: &Options) -> Result<(), Fault> {
    sizes::check(&options.sizes)?;
    sizes::check(&options.rate_sizes)?;
    let cpus = match options.cpus {
        Some(cpus) => cpus,
        None => Cpus::first_two()?,
    }
    .check()?;
    pin(cpus.near)?;
    let report = measure(options, cpus);
    let text = if options.json {
        serde_json::to_string(&report).map_err(Fault::doing("writing JSON"))? + "\n"
    } else {
        report.for_people()
    };
    // A reader that went away is no mistake of ours, and nobody is left to tell.
    let _ = stdout().write_all(text.as_bytes());
    Ok(())
}

fn measure(options: &Options, cpus: Cpus) -> Report {
    let mut plan = Plan {
        paths: each_once(&options.paths),
        sizes: each_once(&options.sizes),
        rate_sizes: each_once(&options.rate_sizes),
        cpus,
        depth: options.depth.map(|depth| depth as usize),
        time: Duration::ZERO,
        clock: TickClock::calibrate(),
    };
    let pings: Vec<(Path, usize)> = plan
        .paths
        .iter()
        .filter(|path| path.does(Purpose::PingPong))
        .flat_map(|path| plan.sizes.iter().map(|size| (*path, *size)))
        .collect();
    let rows = pings.len() + plan.rate_sizes.len() * plan.rate_paths().len();
    plan.time = Duration::from_secs_f64(options.seconds / rows.max(1) as f64);

    let machine = Machine::look(cpus, &plan.clock);
    let mut pingpong = Vec::new();
    for (path, size) in pings {
        progress(&format!("round trips: {path}, {size} bytes"));
        pingpong.push(harness::ping_pong(&plan, path, size));
    }
    let mut rate = Vec::new();
    for size in &plan.rate_sizes {
        progress(&format!("one way: {size} bytes, all paths in turn"));
        rate.extend(harness::rates(&plan, *size));
    }
    progress("");
    Report::new(machine, &plan.paths, plan.depth, pingpong, rate)
}

fn each_once<T: Copy + PartialEq>(list: &[T]) -> Vec<T> {
    let mut once = Vec::new();
    for item in list {
        if !once.contains(item) {
            once.push(*item);
        }
    }
    once
}

/// One line that is written over, where somebody is there to read it.
fn progress(what: &str) {
    let mut err = stderr();
    if err.is_terminal() {
        let _ = write!(err, "\r\x1b[K{what}");
        let _ = err.flush();
    }
}
