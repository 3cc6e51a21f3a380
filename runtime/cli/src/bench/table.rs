//! The result as tables for people.

use super::load::RATE;
use super::machine::Machine;
use super::report::{LatencyRow, LoadRow, RateRow, Report, Row, SkippedRow, Standing};
use super::spec::Wait;
use super::stats::Spread;
use comfy_table::{Cell, CellAlignment, ContentArrangement, LineStyle, Table, TableStyle};
use std::fmt::Write;

/// Ratios so close to 1 are no difference.
const SAME: f64 = 0.05;

/// Lines around the heads and below, none between columns: the figures are the picture.
const LINE: LineStyle = LineStyle::none().fill('─').junction('─');
const STYLE: TableStyle = TableStyle::new()
    .top_border(LINE)
    .header_separator(LINE)
    .bottom_border(LINE);

/// All tables and the machine's facts.
pub(crate) fn render(report: &Report) -> String {
    let mut text = String::new();
    if !report.pingpong.is_empty() {
        section(
            &mut text,
            "Round trip, payload written and read on both sides",
            &latencies(&report.pingpong),
        );
    }
    if !report.rate.is_empty() {
        section(
            &mut text,
            "One-way messages, the faster way of waiting",
            &rates(&report.rate),
        );
    }
    if !report.call.is_empty() {
        section(
            &mut text,
            "Null call: empty request and reply for shm, one byte each for the others",
            &latencies(&report.call),
        );
    }
    if !report.load.is_empty() {
        let rate = grouped(RATE as u64);
        section(
            &mut text,
            &format!("CPU time a message in ns, {rate} messages/s, each sent at its moment"),
            &loads(&report.load),
        );
    }
    text.push_str(&facts(&report.machine));
    text
}

fn section(text: &mut String, title: &str, table: &Table) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{title}\n{table}\n");
}

pub(crate) fn new_table(heads: &[&str], left: usize) -> Table {
    let mut table = Table::new();
    table.load_style(STYLE);
    // A wrapped row cannot be read, a wide one can be scrolled.
    table.set_content_arrangement(ContentArrangement::Disabled);
    let align = |index: usize| {
        if index < left {
            CellAlignment::Left
        } else {
            CellAlignment::Right
        }
    };
    table.set_header(
        heads
            .iter()
            .enumerate()
            .map(|(index, head)| Cell::new(head).set_alignment(align(index))),
    );
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_cell_alignment(align(index));
    }
    table
}

const LATENCY_HEADS: [&str; 10] = [
    "path",
    "wait",
    "size",
    "p50 ns",
    "p90",
    "p99",
    "p99.9",
    "max",
    "x floor [p10-p90]",
    "to best socket",
];

/// What only some tables have.
const XDP_FLOOR: &str = "x xdp-floor [p10-p90]";
const CALLS: &str = "calls/message, sender + receiver";

/// The measured ones.
fn measured<T>(rows: &[Row<T>]) -> impl Iterator<Item = &T> {
    rows.iter().filter_map(|row| match row {
        Row::Measured(row) => Some(row),
        Row::Skipped(_) => None,
    })
}

/// Heads with some more before the last one.
fn with<'a>(heads: &[&'a str], more: &[(bool, &'a str)]) -> Vec<&'a str> {
    let mut heads = heads.to_vec();
    for (_, head) in more.iter().filter(|(there, _)| *there) {
        heads.insert(heads.len() - 1, head);
    }
    heads
}

fn latencies(rows: &[Row<LatencyRow>]) -> Table {
    let over_floor = measured(rows).any(|row| row.ratio_to_xdp_floor.is_some());
    let heads = with(&LATENCY_HEADS, &[(over_floor, XDP_FLOOR)]);
    let mut table = new_table(&heads, 2);
    let group = |row: &Row<LatencyRow>| match row {
        Row::Measured(row) => (Some(row.wait), row.size.max(1)),
        Row::Skipped(row) => (row.wait, row.size.unwrap_or(0).max(1)),
    };
    for (index, row) in rows.iter().enumerate() {
        if index > 0 && group(&rows[index - 1]) != group(row) {
            table.add_row([""]);
        }
        let cells = match row {
            Row::Measured(row) => {
                let mut cells = vec![
                    row.path.clone(),
                    row.wait.to_string(),
                    row.size.to_string(),
                    grouped(row.rtt_ns.p50),
                    grouped(row.rtt_ns.p90),
                    grouped(row.rtt_ns.p99),
                    grouped(row.rtt_ns.p999),
                    grouped(row.rtt_ns.max),
                    spread(&row.ratio_to_floor),
                ];
                cells.extend(over_floor.then(|| ratio(row.ratio_to_xdp_floor.as_ref())));
                cells.push(standing(&row.path, row.standing.as_ref()));
                cells
            }
            Row::Skipped(row) => skipped(row, heads.len()),
        };
        table.add_row(cells);
    }
    table
}

const RATE_HEADS: [&str; 8] = [
    "path",
    "wait",
    "size",
    "messages/s",
    "MB/s",
    "lost",
    "to best coalesced",
    "to best socket",
];

fn rates(rows: &[Row<RateRow>]) -> Table {
    let over_floor = measured(rows).any(|row| row.ratio_to_xdp_floor.is_some());
    let counted = measured(rows).any(|row| row.calls_per_message.is_some());
    let more = [(counted, CALLS), (over_floor, XDP_FLOOR)];
    let heads = with(&RATE_HEADS, &more);
    let mut table = new_table(&heads, 2);
    let group = |row: &Row<RateRow>| match row {
        Row::Measured(row) => Some(row.size),
        Row::Skipped(row) => row.size,
    };
    for (index, row) in rows.iter().enumerate() {
        if index > 0 && group(&rows[index - 1]) != group(row) {
            table.add_row([""]);
        }
        let cells = match row {
            Row::Measured(row) => {
                let coalesced = row.ratio_to_best_coalesced;
                let mut cells = vec![
                    row.path.clone(),
                    row.wait.to_string(),
                    row.size.to_string(),
                    grouped(row.messages_per_s as u64),
                    format!("{:.1}", row.messages_per_s * row.size as f64 / 1e6),
                    lost(row),
                    coalesced.map_or_else(|| "-".into(), faster),
                ];
                let calls = row.calls_per_message.map_or_else(
                    || "-".into(),
                    |calls| format!("{:.4} + {:.4}", calls.sender, calls.receiver),
                );
                cells.extend(counted.then_some(calls));
                cells.extend(over_floor.then(|| ratio(row.ratio_to_xdp_floor.as_ref())));
                cells.push(standing(&row.path, row.standing.as_ref()));
                cells
            }
            Row::Skipped(row) => skipped(row, heads.len()),
        };
        table.add_row(cells);
    }
    table
}

const LOAD_HEADS: [&str; 8] = [
    "path",
    "wait",
    "size",
    "sender",
    "receiver",
    "both",
    "arrived",
    "x udp-veth [p10-p90]",
];

fn loads(rows: &[Row<LoadRow>]) -> Table {
    let mut table = new_table(&LOAD_HEADS, 2);
    for row in rows {
        table.add_row(match row {
            Row::Measured(row) => vec![
                row.path.clone(),
                row.wait.to_string(),
                row.size.to_string(),
                grouped(row.sender_ns.median as u64),
                grouped(row.receiver_ns.median as u64),
                grouped(row.cpu_ns.median as u64),
                format!("{:.1} %", row.arrived * 100.0),
                ratio(row.ratio_to_udp.as_ref()),
            ],
            Row::Skipped(row) => skipped(row, LOAD_HEADS.len()),
        });
    }
    table
}

fn ratio(ratio: Option<&Spread>) -> String {
    ratio.map_or_else(|| "-".into(), spread)
}

/// The reason stands in the last column, where there is room.
fn skipped(row: &SkippedRow, columns: usize) -> Vec<String> {
    let mut cells = vec![String::new(); columns];
    cells[0] = row.path.clone();
    cells[1] = row.wait.as_ref().map_or_else(String::new, Wait::to_string);
    cells[2] = row.size.map_or_else(String::new, |size| size.to_string());
    cells[columns - 1] = format!("skipped: {}", row.skipped);
    cells
}

fn lost(row: &RateRow) -> String {
    match row.lost {
        0 => "0".into(),
        lost => format!("{:.3} %", lost as f64 * 100.0 / row.sent.max(1) as f64),
    }
}

pub(crate) fn spread(ratio: &Spread) -> String {
    let digits = if ratio.median < 10.0 { 2 } else { 1 };
    format!(
        "{:.digits$} [{:.digits$}-{:.digits$}]",
        ratio.median, ratio.p10, ratio.p90
    )
}

fn standing(path: &str, standing: Option<&Standing>) -> String {
    match standing {
        None => "-".into(),
        Some(standing) if standing.best_socket == path => "best".into(),
        Some(standing) => faster(standing.ratio_to_best_socket),
    }
}

/// A ratio of speeds in words.
pub(crate) fn faster(ratio: f64) -> String {
    match ratio {
        ratio if (1.0 - SAME..=1.0 + SAME).contains(&ratio) => "as fast".into(),
        ratio if ratio > 1.0 => format!("{ratio:.1}x faster"),
        ratio => format!("{:.1}x slower", 1.0 / ratio),
    }
}

/// 1234567 as `1,234,567`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The machine, in lines.
pub(crate) fn facts(machine: &Machine) -> String {
    let unknown = || "unknown".to_owned();
    let [first, second] = machine.cpus;
    let guest = if machine.hypervisor {
        "; a virtual machine, which may place them otherwise"
    } else {
        ""
    };
    let online = machine
        .cpus_online
        .map_or_else(unknown, |count| count.to_string());
    let floor = machine.floor_ns.as_ref().map_or_else(
        || "not measured".into(),
        |floor| {
            format!(
                "{:.0} ns median, {:.0} p10, {:.0} p90",
                floor.median, floor.p10, floor.p90
            )
        },
    );
    let model = machine.cpu_model.clone().unwrap_or_else(unknown);
    let governor = machine
        .governor
        .clone()
        .unwrap_or_else(|| "not to be seen".into());
    let clock = machine.clocksource.clone().unwrap_or_else(unknown);
    let stamps = machine.stamps.as_deref().unwrap_or("unknown");
    format!(
        "machine  {model}, {}, {online} CPUs online\n\
         cpus     {first} and {second}: {}{guest}\n\
         floor    {floor}: two processes bounce one word, no payload\n\
         system   {}, clocksource {clock}, stamps {stamps}, governor {governor}\n\
         notes    round trips and ratios are medians; ratios are of batches measured side by side\n\
         \u{20}        best socket: the fastest of unix-*, tcp and udp* of the same size (and wait)\n\
         \u{20}        coalesced: the application itself packs messages into writes of 64 KiB\n",
        machine.architecture,
        machine.relation.text(),
        machine.kernel,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::SCHEMA;
    use crate::bench::stats::Percentiles;

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1000), "1,000");
        assert_eq!(grouped(1234567), "1,234,567");
    }

    #[test]
    fn ratios_are_words() {
        assert_eq!(faster(12.34), "12.3x faster");
        assert_eq!(faster(0.5), "2.0x slower");
        assert_eq!(faster(1.02), "as fast");
    }

    #[test]
    fn the_table_shows_figures_reasons_and_the_machine() {
        let ratio = Spread {
            p10: 1.05,
            median: 1.084,
            p90: 1.12,
        };
        let report = Report {
            schema: SCHEMA,
            machine: Machine::read([0, 0]),
            pingpong: vec![
                Row::Measured(LatencyRow {
                    path: "shm".into(),
                    size: 56,
                    wait: Wait::Spin,
                    rtt_ns: Percentiles {
                        p50: 123,
                        p90: 130,
                        p99: 150,
                        p999: 1999,
                        max: 123_456,
                    },
                    floor_ns: 110.0,
                    ratio_to_floor: ratio,
                    ratio_to_xdp_floor: None,
                    standing: Standing::of("pipe", [21.04]),
                    samples: 10,
                }),
                Row::Skipped(SkippedRow {
                    path: "tcp".into(),
                    size: Some(56),
                    wait: Some(Wait::Spin),
                    skipped: "no loopback".into(),
                }),
            ],
            rate: vec![],
            call: vec![],
            load: vec![],
        };
        let text = render(&report);
        for part in [
            "1.08 [1.05-1.12]",
            "21.0x faster",
            "123,456",
            "skipped: no loopback",
            "the same CPU",
            "floor",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        assert!(!text.contains("One-way"));
    }
}
