//! `tightbeam bench loss`: offered rate against loss, where the receiver takes a fixed time for each message.
//!
//! Kernel UDP drops what its receiver has no room for, and tells nobody. A Raw channel loses such messages, too, and counts each by its
//! cause. A channel within a host has credits: what has no room is refused, and the sender knows.

use super::cable::{self, Cable, CableError};
use super::flow::{By, Flow, Heard, LENGTHS, Pace, Said};
use crate::bench::fault::BenchError;
use crate::bench::machine::{Machine, Relation};
use crate::bench::picture::{self, Line};
use crate::bench::plan::{self, parse_cpus, parse_seconds};
use crate::bench::report::{SCHEMA, round};
use crate::bench::{print, table};
use crate::cleanup;
use serde::Serialize;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

const SIZE: usize = 64;
const ALL: [By; 4] = [By::Udp, By::TightbeamUdp, By::Xdp, By::Shm];
/// On a logarithmic axis nothing lost is drawn as so many percent.
const NOTHING: f64 = 0.001;

/// Options of `tightbeam bench loss`.
#[derive(Debug, clap::Args)]
pub(crate) struct LossArgs {
    /// Messages offered a second
    #[arg(long, value_delimiter = ',', default_values_t = [50_000, 100_000, 150_000, 200_000, 300_000, 400_000, 600_000], value_parser = clap::value_parser!(u64).range(1..=100_000_000), value_name = "RATE,...")]
    rates: Vec<u64>,
    /// Nanoseconds that the receiver takes for each message
    #[arg(long, default_value_t = 4_000, value_parser = clap::value_parser!(u64).range(..=1_000_000), value_name = "NS")]
    work: u64,
    /// CPUs of the two processes, by default two of different cores
    #[arg(long, value_parser = parse_cpus, value_name = "A,B")]
    cpus: Option<[usize; 2]>,
    /// Time for the measurements in seconds
    #[arg(long, default_value_t = 15.0, value_parser = parse_seconds, allow_negative_numbers = true)]
    seconds: f64,
    /// Draw loss against rate into this SVG file
    #[arg(long, value_name = "FILE")]
    picture: Option<PathBuf>,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

/// One path at one rate.
#[derive(Debug, Serialize)]
struct Row {
    by: By,
    rate: u64,
    offered: u64,
    /// An error has said that they were not sent.
    refused: u64,
    sent: u64,
    received: u64,
    lost: u64,
    lost_percent: f64,
    runs: u64,
    /// Runs of 1, 2-3, 4-7, … messages.
    run_lengths: [u64; LENGTHS],
    /// How much likelier a message is lost behind a lost one than at all: P(loss | loss) / P(loss).
    clustering: Option<f64>,
    /// What either side has counted, by cause.
    counted: Vec<(String, u64)>,
}

impl Row {
    fn new(by: By, rate: u64, said: Said, heard: Heard) -> Row {
        let share = heard.lost as f64 / said.sent.max(1) as f64;
        let behind = (heard.lost - heard.runs) as f64 / heard.lost.max(1) as f64;
        Row {
            by,
            rate,
            offered: said.offered,
            refused: said.refused,
            sent: said.sent,
            received: heard.received,
            lost: heard.lost,
            lost_percent: round(share * 100.0),
            runs: heard.runs,
            run_lengths: heard.lengths,
            clustering: (heard.lost > 0).then(|| round(behind / share)),
            counted: said.causes.into_iter().chain(heard.causes).collect(),
        }
    }

    fn counted(&self) -> String {
        let all = self.counted.iter();
        let all: Vec<_> = all
            .map(|(name, count)| format!("{name} {}", table::grouped(*count)))
            .collect();
        match all.is_empty() {
            true => "-".into(),
            false => all.join(", "),
        }
    }
}

#[derive(Debug, Serialize)]
struct Report {
    schema: u32,
    machine: Machine,
    work_ns: u64,
    loss: Vec<Row>,
    #[serde(skip_serializing_if = "Option::is_none")]
    skipped: Option<&'static str>,
}

/// Measures and prints.
pub(crate) fn run(args: &LossArgs) -> Result<(), Box<dyn std::error::Error>> {
    let allowed = tightbeam_sys::cpu::allowed()
        .map_err(BenchError::setup("ask for the CPUs of this process"))?;
    let together = |a, b| Relation::between(a, b) == Relation::SmtSiblings;
    let cpus = plan::choose_cpus(args.cpus, &allowed, together)?;
    cleanup::on_interrupt(|| {})?;
    let mut report = Report {
        schema: SCHEMA,
        machine: Machine::read(cpus),
        work_ns: args.work,
        loss: Vec::new(),
        skipped: None,
    };
    match Cable::lay(2) {
        Ok(cable) => {
            let found = measure(args, &cable, cpus);
            report.loss = found.map_err(BenchError::setup("measure loss"))?;
        }
        Err(CableError::Forbidden) => report.skipped = Some(cable::NEEDS),
        Err(other) => return Err(other.into()),
    }
    if let Some(path) = &args.picture {
        draw(path, &report).map_err(BenchError::Output)?;
    }
    let text = match args.json {
        true => serde_json::to_string_pretty(&report)? + "\n",
        false => render(&report),
    };
    print(&text).map_err(|error| BenchError::Output(error).into())
}

fn measure(args: &LossArgs, cable: &Cable, cpus: [usize; 2]) -> io::Result<Vec<Row>> {
    let mut flow = Flow::start(cable, 2, cpus)?;
    let cells = (args.rates.len() * ALL.len()) as f64;
    let time = Duration::from_secs_f64(args.seconds / cells);
    let mut rows = Vec::new();
    for &rate in &args.rates {
        for by in ALL {
            let (said, heard) =
                flow.run((by, SIZE, args.work), Pace::PerSecond(rate as f64), time)?;
            rows.push(Row::new(by, rate, said, heard));
        }
    }
    rows.sort_by_key(|row| ALL.iter().position(|by| *by == row.by));
    Ok(rows)
}

fn draw(path: &std::path::Path, report: &Report) -> io::Result<()> {
    let line = |by: By| {
        let rows = report.loss.iter().filter(|row| row.by == by);
        let points = rows.map(|row| (row.rate as f64, row.lost_percent.max(NOTHING)));
        Line::new(by.name(), points.collect())
    };
    picture::draw(
        path,
        "Messages lost without an error, 64 B (none: at the bottom)",
        ("offered a second", "lost, percent"),
        &ALL.map(line),
    )
}

const HEADS: [&str; 9] = [
    "path",
    "offered/s",
    "sent",
    "refused",
    "lost",
    "lost %",
    "messages a run",
    "P(loss|loss)/P(loss)",
    "counted",
];

fn render(report: &Report) -> String {
    let mut table = table::new_table(&HEADS, 1);
    for row in &report.loss {
        let run = row.lost as f64 / row.runs.max(1) as f64;
        table.add_row([
            row.by.name().to_owned(),
            table::grouped(row.rate),
            table::grouped(row.sent),
            table::grouped(row.refused),
            table::grouped(row.lost),
            format!("{:.2}", row.lost_percent),
            format!("{run:.1}"),
            row.clustering
                .map_or_else(|| "-".into(), |times| format!("{times:.1}")),
            row.counted(),
        ]);
    }
    if let Some(reason) = report.skipped {
        table.add_row([format!("skipped: {reason}")]);
    }
    format!(
        "One way, 64 B, a receiver that takes {} ns for each message; lost: without an error\n{table}\n\n{}",
        report.work_ns,
        table::facts(&report.machine)
    )
}
