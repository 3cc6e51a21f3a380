//! `tightbeam bench n90`: the smallest message that fills 90 % of a link, which is the slowest part of the way.
//!
//! ```text
//!   first host ---------- middle host ===== shaped (token bucket) ===== last host
//! ```
//!
//! A link of 100 Mbit/s is full of small messages long before a sender is, if many of them share a packet; if each has a packet of its
//! own, headers fill the link, or the sender's system calls are the limit. N90 is read off a line of goodput over message size, between
//! two measured sizes in proportion of their logarithms.

use super::cable::{self, Cable, CableError};
use super::flow::{By, Flow, Heard, Pace};
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

const ALL: [By; 5] = [By::Udp, By::UdpMmsg, By::Tcp, By::TightbeamUdp, By::Xdp];
/// The longest that goes into a packet of every path is 1,440 bytes; beyond, only TCP goes on.
const SIZES: [usize; 9] = [8, 16, 32, 64, 128, 256, 512, 1024, 1440];
/// Bytes of the longest packet over Ethernet.
const LONGEST: u32 = 1514;
/// The share of a full link that N90 is about.
const SHARE: f64 = 0.9;

/// Options of `tightbeam bench n90`.
#[derive(Debug, clap::Args)]
pub(crate) struct N90Args {
    /// Rates of the link in Mbit/s
    #[arg(long, value_delimiter = ',', default_values_t = [20, 100, 400, 1_000], value_parser = clap::value_parser!(u32).range(1..=100_000), value_name = "MBIT,...")]
    links: Vec<u32>,
    /// CPUs of the two processes, by default two of different cores
    #[arg(long, value_parser = parse_cpus, value_name = "A,B")]
    cpus: Option<[usize; 2]>,
    /// Time for the measurements in seconds, besides opening and waiting for the last messages
    #[arg(long, default_value_t = 30.0, value_parser = parse_seconds, allow_negative_numbers = true)]
    seconds: f64,
    /// What the queue in front of the link counts
    #[arg(long, value_enum, default_value_t = Queue::Packets)]
    queue: Queue,
    /// Draw N90 against the rate of the link into this SVG file
    #[arg(long, value_name = "FILE")]
    picture: Option<PathBuf>,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

/// What the queue in front of the link is limited in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Queue {
    /// Packets, as the queues of most NICs and of Linux are
    Packets,
    /// Bytes: where it is full a short packet finds room more often than a long one
    Bytes,
}

/// One path over one link.
#[derive(Debug, Serialize)]
struct Row {
    link_mbit: u32,
    by: By,
    /// Goodput as a share of the full link's, by the size of messages.
    shares: Vec<(usize, f64)>,
    /// In bytes; none if no size fills so much.
    n90: Option<f64>,
    /// Even the smallest size does: the true figure may be less.
    at_the_floor: bool,
}

impl Row {
    fn new(link_mbit: u32, by: By, shares: Vec<(usize, f64)>) -> Row {
        Row {
            link_mbit,
            by,
            n90: n90(&shares),
            at_the_floor: shares.first().is_some_and(|first| first.1 >= SHARE),
            shares: shares
                .iter()
                .map(|&(size, share)| (size, round(share)))
                .collect(),
        }
    }
}

/// Where the line first crosses the share.
fn n90(shares: &[(usize, f64)]) -> Option<f64> {
    let above = shares.iter().position(|&(_, share)| share >= SHARE)?;
    let (size, share) = shares[above];
    let Some(&(smaller, less)) = above.checked_sub(1).and_then(|below| shares.get(below)) else {
        return Some(size as f64);
    };
    let part = (SHARE - less) / (share - less);
    let (from, to) = ((smaller as f64).ln(), (size as f64).ln());
    Some(round((from + part * (to - from)).exp()))
}

#[derive(Debug, Serialize)]
struct Report {
    schema: u32,
    machine: Machine,
    queue: Queue,
    n90: Vec<Row>,
    #[serde(skip_serializing_if = "Option::is_none")]
    skipped: Option<&'static str>,
}

/// Measures and prints.
pub(crate) fn run(args: &N90Args) -> Result<(), Box<dyn std::error::Error>> {
    let allowed = tightbeam_sys::cpu::allowed()
        .map_err(BenchError::setup("ask for the CPUs of this process"))?;
    let together = |a, b| Relation::between(a, b) == Relation::SmtSiblings;
    let cpus = plan::choose_cpus(args.cpus, &allowed, together)?;
    cleanup::on_interrupt(|| {})?;
    let mut report = Report {
        schema: SCHEMA,
        machine: Machine::read(cpus),
        queue: args.queue,
        n90: Vec::new(),
        skipped: None,
    };
    match Cable::lay(3) {
        Ok(cable) => {
            let found = measure(args, &cable, cpus);
            report.n90 = found.map_err(BenchError::setup("fill a link"))?;
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

fn measure(args: &N90Args, cable: &Cable, cpus: [usize; 2]) -> io::Result<Vec<Row>> {
    let mut flow = Flow::start(cable, 3, cpus)?;
    let cells = (args.links.len() * ALL.len() * SIZES.len()) as f64;
    let time = Duration::from_secs_f64(args.seconds / cells);
    let mut rows = Vec::new();
    for &link in &args.links {
        shape(cable, link, args.queue).map_err(io::Error::other)?;
        let mut goodputs = ALL.map(|_| Vec::new());
        for size in SIZES {
            for (by, goodputs) in ALL.iter().zip(&mut goodputs) {
                let (_, heard) = flow.run((*by, size, 0), Pace::AsManyAsGo, time)?;
                goodputs.push((size, goodput(&heard)));
            }
        }
        // A full link: the payload of the largest packets, IPv4 and UDP over Ethernet.
        let full = f64::from(link) * 1e6 / 8.0 * 1472.0 / 1514.0;
        for (by, goodputs) in ALL.into_iter().zip(goodputs) {
            let shares = goodputs
                .iter()
                .map(|&(size, goodput)| (size, goodput / full));
            rows.push(Row::new(link, by, shares.collect()));
        }
    }
    Ok(rows)
}

/// Shapes the middle link: a bucket of a few milliseconds, or of some packets; behind it a queue of a few more.
fn shape(cable: &Cable, mbit: u32, queue: Queue) -> Result<(), CableError> {
    let burst = (mbit * 1_000 / 8 * 2).max(20_000);
    let limit = burst * 4;
    let bucket = format!("tbf rate {mbit}mbit burst {burst} limit {limit}");
    cable.run(
        1,
        &format!("tc qdisc replace dev eth2 root handle 1: {bucket}"),
    )?;
    let inner = match queue {
        Queue::Bytes => format!("bfifo limit {limit}"),
        Queue::Packets => format!("pfifo limit {}", limit / LONGEST),
    };
    cable.run(1, &format!("tc qdisc replace dev eth2 parent 1:1 {inner}"))
}

/// Payload bytes a second at the receiver, without what the bucket let through at once.
fn goodput(heard: &Heard) -> f64 {
    heard.bytes as f64 * 1e9 / heard.nanoseconds.max(1) as f64
}

fn draw(path: &std::path::Path, report: &Report) -> io::Result<()> {
    let line = |by: By| {
        let rows = report.n90.iter().filter(|row| row.by == by);
        let points = rows.filter_map(|row| Some((f64::from(row.link_mbit), row.n90?)));
        Line::new(by.name(), points.collect())
    };
    picture::draw(
        path,
        "The smallest message that fills 90 % of a link",
        ("link, Mbit/s", "bytes"),
        &ALL.map(line),
    )
}

fn render(report: &Report) -> String {
    let sizes = SIZES.map(|size| format!("{size} B"));
    let mut heads = vec!["link Mbit/s", "path"];
    heads.extend(sizes.iter().map(String::as_str));
    heads.extend(["N90", "to udp"]);
    let mut table = table::new_table(&heads, 2);
    for (index, row) in report.n90.iter().enumerate() {
        if index > 0 && report.n90[index - 1].link_mbit != row.link_mbit {
            table.add_row([""]);
        }
        let udp = report
            .n90
            .iter()
            .find(|udp| udp.link_mbit == row.link_mbit && udp.by == By::Udp);
        let ratio = udp.and_then(|udp| Some(udp.n90? / row.n90?));
        let floor = if row.at_the_floor { "<" } else { "" };
        let mut cells = vec![
            table::grouped(row.link_mbit.into()),
            row.by.name().to_owned(),
        ];
        cells.extend(
            row.shares
                .iter()
                .map(|(_, share)| format!("{:.0} %", share * 100.0)),
        );
        cells.push(
            row.n90
                .map_or_else(|| "-".into(), |n90| format!("{floor}{n90:.0} B")),
        );
        cells.push(ratio.map_or_else(|| "-".into(), |ratio| format!("{ratio:.1}x smaller")));
        table.add_row(cells);
    }
    if let Some(reason) = report.skipped {
        table.add_row([format!("skipped: {reason}")]);
    }
    format!(
        "Goodput as a share of what the link carries in the largest packets; a sender that sends all it can\n{table}\n\n{}",
        table::facts(&report.machine)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn n90_is_where_the_line_crosses() {
        assert_eq!(n90(&[(8, 0.95), (16, 1.0)]), Some(8.0));
        assert_eq!(n90(&[(8, 0.1), (16, 0.5)]), None);
        let between = n90(&[(64, 0.8), (256, 1.0)]).unwrap();
        assert!((between - 128.0).abs() < 0.01, "{between}");
    }
}
