//! `tightbeam doctor`: what this host offers, and an interface of it, line by line; and what mends each problem.
//!
//! Nothing is changed. `--self-test` opens a device for a moment, in generic mode, and sends it a packet.

mod capabilities;
mod cpus;
mod finding;
mod holder;
mod host;
mod nic;
mod print;
mod self_test;

use crate::bench::print as put;
use comfy_table::Table;
use finding::{Finding, Verdict};
use serde::Serialize;

/// Version of the JSON, raised when a name in it changes or goes.
const SCHEMA: u32 = 1;

/// Options of `tightbeam doctor`.
#[derive(Debug, clap::Args)]
pub(crate) struct DoctorArgs {
    /// Interface to look at too, as in eth0
    #[arg(long, value_name = "INTERFACE")]
    dev: Option<String>,
    /// Open the interface for a moment through AF_XDP, in generic mode, and send it a packet
    #[arg(long, requires = "dev")]
    self_test: bool,
    /// Print one JSON object instead of lines
    #[arg(long)]
    json: bool,
}

/// What was found, as one JSON object.
#[derive(Serialize)]
struct Report<'a> {
    schema: u32,
    findings: &'a [Finding],
    problems: usize,
}

/// The end of a run that has found problems.
#[derive(Debug, thiserror::Error)]
#[error(
    "{} found; the line below each says what mends it",
    match .0 { 1 => "a problem was".to_owned(), many => format!("{many} problems were") }
)]
struct Problems(usize);

/// Looks and prints; an error if there is a problem.
pub(crate) fn run(args: &DoctorArgs) -> Result<(), Box<dyn std::error::Error>> {
    let mut findings = host::look();
    findings.extend(cpus::look());
    if let Some(name) = &args.dev {
        findings.extend(nic::look(name, args.self_test));
    }
    let problem = |finding: &&Finding| finding.verdict == Verdict::Problem;
    let problems = findings.iter().filter(problem).count();
    let text = match args.json {
        true => {
            let report = Report {
                schema: SCHEMA,
                findings: &findings,
                problems,
            };
            serde_json::to_string_pretty(&report)? + "\n"
        }
        false => print::lines(&findings, Table::new().width().map(usize::from)),
    };
    put(&text)?;
    match problems {
        0 => Ok(()),
        many => Err(Problems(many).into()),
    }
}
