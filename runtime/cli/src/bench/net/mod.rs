//! `tightbeam bench net`: messages between two hosts, which are network namespaces of this machine joined by a virtual cable.
//!
//! The same method as between two processes: a process on each host, each on its own CPU, short batches of every path in turn. The
//! references are the kernel's UDP sockets over the same cable, in each way of using them.

pub(crate) mod cable;
mod flow;
pub(crate) mod loss;
pub(crate) mod n90;
pub(crate) mod sink;
mod source;

use super::fault::BenchError;
use super::harness::{Harness, Rows};
use super::machine::{Machine, Relation};
use super::paths;
use super::plan::{self, Group, parse_cpus, parse_seconds};
use super::report::{Report, Row, SCHEMA, SkippedRow};
use super::spec::{Job, Spec, Wait};
use super::{print, table};
use cable::{Cable, CableError};
use clap::builder::PossibleValuesParser;
use std::time::Duration;
use tightbeam_sys::clock::TickClock;

/// Bytes of a message in round trips, and one way.
const ROUND_TRIP: usize = 56;
const ONE_WAY: usize = 64;

/// Options of `tightbeam bench net`.
#[derive(Debug, clap::Args)]
pub(crate) struct NetArgs {
    /// Paths to compare, by default all
    #[arg(long, value_delimiter = ',', value_parser = path_names(), value_name = "PATH,...")]
    paths: Vec<String>,
    /// What to measure: round trips, one-way rates, CPU time at a fixed rate
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = [NetJob::PingPong, NetJob::Rate, NetJob::Load], value_name = "JOB,...")]
    jobs: Vec<NetJob>,
    /// CPUs of the two processes, by default two of different cores
    #[arg(long, value_parser = parse_cpus, value_name = "A,B")]
    cpus: Option<[usize; 2]>,
    /// Time for the measurements in seconds
    #[arg(long, default_value_t = 20.0, value_parser = parse_seconds, allow_negative_numbers = true)]
    seconds: f64,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

/// What can be measured between hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "lower")]
enum NetJob {
    PingPong,
    Rate,
    Load,
}

impl From<NetJob> for Job {
    fn from(job: NetJob) -> Job {
        match job {
            NetJob::PingPong => Job::PingPong,
            NetJob::Rate => Job::Rate,
            NetJob::Load => Job::Load,
        }
    }
}

fn path_names() -> PossibleValuesParser {
    PossibleValuesParser::new(paths::NET.iter().map(|path| path.name()))
}

/// Round trips, rates, and what a message costs when there is not always a next one.
const MEASURED: [(Job, &[Wait], usize); 4] = [
    (Job::PingPong, &[Wait::Spin], ROUND_TRIP),
    (Job::PingPong, &[Wait::Block], ROUND_TRIP),
    (Job::Rate, &[Wait::Spin, Wait::Block], ONE_WAY),
    (Job::Load, &[Wait::Spin, Wait::Block], ONE_WAY),
];

fn groups(args: &NetArgs) -> Vec<Group> {
    let chosen = |name: &str| args.paths.is_empty() || args.paths.iter().any(|path| path == name);
    let wanted: Vec<_> = args.jobs.iter().copied().map(Job::from).collect();
    let measured = || MEASURED.iter().filter(|(job, ..)| wanted.contains(job));
    let group = |&(job, waits, size): &(Job, &[Wait], usize)| {
        let paths = paths::NET.iter().filter(|path| chosen(path.name()));
        let cells = paths.flat_map(|path| {
            let does = waits.iter().filter(move |wait| path.does(job, **wait));
            does.map(move |&wait| Spec {
                path: path.name().into(),
                job,
                size,
                wait,
                depth: None,
                shared_cpu: false,
            })
        });
        Group {
            job,
            cells: cells.collect(),
            budget: Duration::from_secs_f64(args.seconds / measured().count().max(1) as f64),
        }
    };
    let all = measured().map(group);
    all.filter(|group| !group.cells.is_empty()).collect()
}

/// Measures and prints.
pub(crate) fn run(args: &NetArgs) -> Result<(), Box<dyn std::error::Error>> {
    let allowed = tightbeam_sys::cpu::allowed()
        .map_err(BenchError::setup("ask for the CPUs of this process"))?;
    let together = |a, b| Relation::between(a, b) == Relation::SmtSiblings;
    let cpus = plan::choose_cpus(args.cpus, &allowed, together)?;
    crate::cleanup::on_interrupt(|| {})?;
    let groups = groups(args);
    let mut report = Report {
        schema: SCHEMA,
        machine: Machine::read(cpus),
        pingpong: Vec::new(),
        rate: Vec::new(),
        call: Vec::new(),
        load: Vec::new(),
    };
    match Cable::lay(2) {
        Ok(cable) => measure(cable, cpus, &groups, &mut report)?,
        Err(CableError::Forbidden) => skip_all(&groups, &mut report),
        Err(other) => return Err(other.into()),
    }
    let text = match args.json {
        true => serde_json::to_string_pretty(&report)? + "\n",
        false => table::render(&report),
    };
    print(&text).map_err(|error| BenchError::Output(error).into())
}

fn measure(
    cable: Cable,
    cpus: [usize; 2],
    groups: &[Group],
    report: &mut Report,
) -> Result<(), Box<dyn std::error::Error>> {
    // From here on this thread, and whom it starts, is on the first host.
    cable.move_to(Some(0))?;
    cable::share(cable);
    let mut harness = Harness::start(cpus, TickClock::calibrate())?;
    for group in groups {
        match harness.measure(group, &mut |_| {})? {
            Rows::PingPong(rows) => report.pingpong.extend(rows),
            Rows::Call(rows) => report.call.extend(rows),
            Rows::Rate(rows) => report.rate.extend(rows),
            Rows::Load(rows) => report.load.extend(rows),
        }
    }
    report.machine.floor_ns = harness.floor();
    Ok(())
}

/// A row for each that says what is missing.
fn skip_all(groups: &[Group], report: &mut Report) {
    for cell in groups.iter().flat_map(|group| &group.cells) {
        let row = SkippedRow {
            path: cell.path.clone(),
            size: Some(cell.size),
            wait: Some(cell.wait),
            skipped: cable::NEEDS.into(),
        };
        match cell.job {
            Job::Rate => report.rate.push(Row::Skipped(row)),
            Job::Load => report.load.push(Row::Skipped(row)),
            Job::PingPong | Job::Call => report.pingpong.push(Row::Skipped(row)),
        }
    }
}
