//! What is printed: one JSON object with the schema of `tightbeam bench
//! --json`, or two tables for people.
//!
//! `main` prints what this makes. It measures nothing and judges nothing.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;

use crate::fault::Fault;
use crate::machine::Machine;
use crate::paths::{LARGE, Path, Purpose, Settings};
use crate::stats::{Percentiles, Spread};

/// The one number that a reader of the JSON must compare.
const SCHEMA: u32 = 1;

/// A row, or why there is none.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Row<T> {
    Measured(T),
    Skipped {
        path: &'static str,
        size: usize,
        skipped: String,
    },
}

impl<T> Row<T> {
    pub(crate) fn skipped(path: Path, size: usize, fault: &Fault) -> Self {
        Self::Skipped {
            path: path.name(),
            size,
            skipped: fault.to_string(),
        }
    }
}

impl<T> Row<T> {
    fn measured(&self) -> Option<&T> {
        match self {
            Self::Measured(row) => Some(row),
            Self::Skipped { .. } => None,
        }
    }

    /// For people: why there is no row.
    fn reason(&self) -> Option<String> {
        match self {
            Self::Measured(_) => None,
            Self::Skipped {
                path,
                size,
                skipped,
            } => Some(format!("no row for {path}, {size} bytes: {skipped}")),
        }
    }
}

impl Row<Rate> {
    pub(crate) fn path(&self) -> &'static str {
        match self {
            Self::Measured(rate) => rate.path,
            Self::Skipped { path, .. } => path,
        }
    }
}

/// Round trips of one path at one size.
#[derive(Debug, Serialize)]
pub(crate) struct PingPong {
    pub(crate) path: &'static str,
    pub(crate) size: usize,
    pub(crate) wait: &'static str,
    pub(crate) sides: &'static str,
    pub(crate) depth: usize,
    pub(crate) rtt_ns: Percentiles,
    pub(crate) floor_ns: f64,
    pub(crate) ratio_to_floor: Spread,
    pub(crate) samples: u64,
}

/// Messages one way of one path at one size.
#[derive(Debug, Serialize)]
pub(crate) struct Rate {
    pub(crate) path: &'static str,
    pub(crate) size: usize,
    pub(crate) sides: &'static str,
    pub(crate) depth: usize,
    pub(crate) messages_per_s: f64,
    pub(crate) floor_ns: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ratio_to_rtrb: Option<Spread>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ratio_to_rtrb_chunks: Option<Spread>,
}

/// How a path was set up.
#[derive(Debug, Serialize)]
struct Setup {
    path: &'static str,
    package: &'static str,
    version: String,
    sides: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pingpong_depth: Option<usize>,
    rate_depth: usize,
    /// From [`LARGE`] bytes on.
    rate_depth_large: usize,
    how: &'static str,
}

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    schema: u32,
    machine: Machine,
    settings: Vec<Setup>,
    pingpong: Vec<Row<PingPong>>,
    rate: Vec<Row<Rate>>,
    /// Null calls: no peer here has a call.
    call: [(); 0],
}

impl Report {
    pub(crate) fn new(
        machine: Machine,
        paths: &[Path],
        depth: Option<usize>,
        pingpong: Vec<Row<PingPong>>,
        rate: Vec<Row<Rate>>,
    ) -> Self {
        Self {
            schema: SCHEMA,
            machine,
            settings: paths.iter().map(|path| setup(*path, depth)).collect(),
            pingpong,
            rate,
            call: [],
        }
    }

    /// The tables, what is missing in them, the machine and the settings.
    pub(crate) fn for_people(&self) -> String {
        let mut lines = vec![
            "Round trips, spinning, ns (x floor: median [p10-p90] of batches paired with the floor)"
                .to_owned(),
            self.pingpong_table().to_string(),
        ];
        lines.extend(self.pingpong.iter().filter_map(Row::reason));
        lines.extend([
            String::new(),
            "One way, million messages a second (x rtrb: batches paired with rtrb's, more is faster)"
                .to_owned(),
            self.rate_table().to_string(),
        ]);
        lines.extend(self.rate.iter().filter_map(Row::reason));
        lines.extend([String::new(), self.machine.line()]);
        lines.extend(self.settings.iter().map(Setup::line));
        lines.join("\n") + "\n"
    }

    fn pingpong_table(&self) -> Table {
        let mut table = table(&[
            "path", "bytes", "depth", "sides", "p50", "p90", "p99", "p99.9", "max", "floor",
            "x floor",
        ]);
        for row in self.pingpong.iter().filter_map(Row::measured) {
            let mut cells = vec![
                row.path.to_owned(),
                row.size.to_string(),
                row.depth.to_string(),
                row.sides.to_owned(),
            ];
            cells.extend(row.rtt_ns.columns().map(|ns| ns.to_string()));
            cells.push(format!("{:.0}", row.floor_ns));
            cells.push(spread(Some(row.ratio_to_floor)));
            table.add_row(cells);
        }
        align(table, &["path", "sides"])
    }

    fn rate_table(&self) -> Table {
        let mut table = table(&[
            "path",
            "bytes",
            "depth",
            "sides",
            "M/s",
            "floor",
            "x rtrb",
            "x rtrb-chunks",
        ]);
        for row in self.rate.iter().filter_map(Row::measured) {
            table.add_row(vec![
                row.path.to_owned(),
                row.size.to_string(),
                row.depth.to_string(),
                row.sides.to_owned(),
                format!("{:.2}", row.messages_per_s / 1e6),
                format!("{:.0}", row.floor_ns),
                spread(row.ratio_to_rtrb),
                spread(row.ratio_to_rtrb_chunks),
            ]);
        }
        align(table, &["path", "sides"])
    }
}

impl Setup {
    fn line(&self) -> String {
        let pingpong = self
            .pingpong_depth
            .map_or_else(String::new, |depth| format!("ping-pong depth {depth}, "));
        format!(
            "{}: {} {}, two {}, {pingpong}rate depth {} ({} from {LARGE} bytes on); {}",
            self.path,
            self.package,
            self.version,
            self.sides,
            self.rate_depth,
            self.rate_depth_large,
            self.how
        )
    }
}

fn table(head: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_FULL_CONDENSED)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(head);
    table
}

/// Everything to the right but the columns of words.
fn align(mut table: Table, words: &[&str]) -> Table {
    let head: Vec<String> = table
        .header()
        .map(|row| row.cell_iter().map(|cell| cell.content()).collect())
        .unwrap_or_default();
    for (name, column) in head.iter().zip(table.column_iter_mut()) {
        if !words.contains(&name.as_str()) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn spread(spread: Option<Spread>) -> String {
    spread.map_or_else(
        || "-".into(),
        |spread| format!("{:.2} [{:.2}-{:.2}]", spread.median, spread.p10, spread.p90),
    )
}

fn setup(path: Path, depth: Option<usize>) -> Setup {
    let settings = path.settings();
    let in_use = |purpose, size| depth.unwrap_or(settings.depth(purpose, size));
    Setup {
        path: path.name(),
        package: settings.package,
        version: version(settings),
        sides: settings.sides,
        pingpong_depth: path
            .does(Purpose::PingPong)
            .then(|| in_use(Purpose::PingPong, 0)),
        rate_depth: in_use(Purpose::Rate, 0),
        rate_depth_large: in_use(Purpose::Rate, LARGE),
        how: settings.how,
    }
}

/// The version that was compiled in, as the lock file names it.
fn version(settings: Settings) -> String {
    let lock = include_str!("../Cargo.lock");
    let name = format!("name = \"{}\"", settings.package);
    lock.lines()
        .skip_while(|line| *line != name)
        .nth(1)
        .and_then(|line| line.split('"').nth(1))
        .unwrap_or("unknown")
        .to_owned()
}
