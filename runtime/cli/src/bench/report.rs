//! The result as data: what `--json` prints, and what the table is made of. Schema 1.
//!
//! `ratio_to_floor` is time over the floor's time: 1 is the hardware, less is better. `ratio_to_best_socket` says how many times
//! *faster* than the best socket of the same wait mode and size a row is: more is better. A pipe is no socket, so it has a
//! ratio but never is the reference. Both are medians of ratios that were measured side by side. For rates, the reference is
//! the best socket that is given each message by itself; the best path where the application packs messages into 64 KiB writes
//! (`*-coalesced`, pipe included) is a reference of its own, `ratio_to_best_coalesced`. Paths over AF_XDP have a floor of their own, the bare
//! loop over the kernel's rings in the same mode: `ratio_to_xdp_floor`.

use super::machine::Machine;
use super::spec::Wait;
use super::stats::{Percentiles, Spread};
use serde::{Deserialize, Serialize};

/// Version of the schema: changes when a field changes its meaning or goes.
pub(crate) const SCHEMA: u32 = 1;

/// Everything.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) schema: u32,
    pub(crate) machine: Machine,
    pub(crate) pingpong: Vec<Row<LatencyRow>>,
    pub(crate) rate: Vec<Row<RateRow>>,
    pub(crate) call: Vec<Row<LatencyRow>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) load: Vec<Row<LoadRow>>,
}

/// A row, or why there is none.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Row<T> {
    Measured(T),
    Skipped(SkippedRow),
}

/// A row that could not be measured.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SkippedRow {
    pub(crate) path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) size: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) wait: Option<Wait>,
    pub(crate) skipped: String,
}

/// Round trips of one path, size and wait mode.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct LatencyRow {
    pub(crate) path: String,
    pub(crate) size: usize,
    pub(crate) wait: Wait,
    pub(crate) rtt_ns: Percentiles,
    /// Median of the floor's batches beside this row's.
    pub(crate) floor_ns: f64,
    pub(crate) ratio_to_floor: Spread,
    /// Time over that of the bare loop over the same rings; less is better.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ratio_to_xdp_floor: Option<Spread>,
    #[serde(flatten)]
    pub(crate) standing: Option<Standing>,
    pub(crate) samples: u64,
}

/// One-way messages of one path and size.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RateRow {
    pub(crate) path: String,
    pub(crate) size: usize,
    /// The faster way of waiting.
    pub(crate) wait: Wait,
    pub(crate) messages_per_s: f64,
    pub(crate) messages_per_s_spread: Spread,
    #[serde(flatten)]
    pub(crate) standing: Option<Standing>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ratio_to_best_coalesced: Option<f64>,
    /// Messages over those of the bare loop over the same rings, one a packet; more is better.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ratio_to_xdp_floor: Option<Spread>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) calls_per_message: Option<CallsPerMessage>,
    pub(crate) sent: u64,
    pub(crate) lost: u64,
}

/// System calls of each end, waiting included, by its messages, opening included.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct CallsPerMessage {
    pub(crate) sender: f64,
    pub(crate) receiver: f64,
}

/// What messages cost at a fixed rate, each sent at its moment: CPU time of one path and wait mode.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct LoadRow {
    pub(crate) path: String,
    pub(crate) size: usize,
    pub(crate) wait: Wait,
    pub(crate) offered_per_s: f64,
    /// Nanoseconds of CPU time a message: in the calls that send, in all of the receiving process, and the sum.
    pub(crate) sender_ns: Spread,
    pub(crate) receiver_ns: Spread,
    pub(crate) cpu_ns: Spread,
    /// Of `cpu_ns`, to a kernel UDP socket that is sent to and waited for a message a call; less is better.
    pub(crate) ratio_to_udp: Option<Spread>,
    pub(crate) sent: u64,
    /// How much of that came, at most 1.
    pub(crate) arrived: f64,
}

/// How a row stands to the best socket.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Standing {
    pub(crate) best_socket: String,
    pub(crate) ratio_to_best_socket: f64,
    pub(crate) ratio_to_best_socket_spread: Spread,
}

impl Standing {
    /// From the ratios of all rounds.
    pub(crate) fn of(best: &str, ratios: impl IntoIterator<Item = f64>) -> Option<Standing> {
        let spread = Spread::of(ratios)?.map(round);
        Some(Standing {
            best_socket: best.into(),
            ratio_to_best_socket: spread.median,
            ratio_to_best_socket_spread: spread,
        })
    }
}

/// To three decimals: there is no more to know.
pub(crate) fn round(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json, to_value};

    fn spread() -> Spread {
        Spread {
            p10: 1.0,
            median: 2.0,
            p90: 3.0,
        }
    }

    #[test]
    fn a_measured_row_has_the_fields_of_the_schema() {
        let row = Row::Measured(LatencyRow {
            path: "shm".into(),
            size: 56,
            wait: Wait::Spin,
            rtt_ns: Percentiles {
                p50: 1,
                p90: 2,
                p99: 3,
                p999: 4,
                max: 5,
            },
            floor_ns: 0.5,
            ratio_to_floor: spread(),
            ratio_to_xdp_floor: None,
            standing: Standing::of("tcp", [2.0]),
            samples: 9,
        });
        let expected = json!({
            "path": "shm", "size": 56, "wait": "spin",
            "rtt_ns": {"p50": 1, "p90": 2, "p99": 3, "p999": 4, "max": 5},
            "floor_ns": 0.5, "ratio_to_floor": {"p10": 1.0, "median": 2.0, "p90": 3.0},
            "best_socket": "tcp", "ratio_to_best_socket": 2.0,
            "ratio_to_best_socket_spread": {"p10": 2.0, "median": 2.0, "p90": 2.0},
            "samples": 9,
        });
        assert_eq!(to_value(&row).unwrap(), expected);
    }

    #[test]
    fn a_skipped_row_has_a_reason_and_no_figures() {
        let row: Row<RateRow> = Row::Skipped(SkippedRow {
            path: "tcp".into(),
            size: Some(8),
            wait: None,
            skipped: "no loopback".into(),
        });
        assert_eq!(
            to_value(&row).unwrap(),
            json!({"path": "tcp", "size": 8, "skipped": "no loopback"})
        );
    }

    #[test]
    fn a_report_can_be_read_back() {
        let report = Report {
            schema: SCHEMA,
            machine: Machine::read([0, 0]),
            pingpong: vec![],
            rate: vec![Row::Measured(RateRow {
                path: "udp".into(),
                size: 1,
                wait: Wait::Block,
                messages_per_s: 2.0,
                messages_per_s_spread: spread(),
                standing: None,
                ratio_to_best_coalesced: None,
                ratio_to_xdp_floor: None,
                calls_per_message: None,
                sent: 3,
                lost: 1,
            })],
            call: vec![],
            load: vec![],
        };
        let text = serde_json::to_string(&report).unwrap();
        let again: Report = serde_json::from_str(&text).unwrap();
        assert!(
            matches!(&again.rate[0], Row::Measured(row) if row.lost == 1 && row.standing.is_none())
        );
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["schema"], 1);
        assert!(value["machine"].is_object());
    }
}
