//! `tightbeam bench net` from outside: with root it measures, without it says what is missing, and nothing stays behind.

use serde_json::Value;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

fn tightbeam(arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tightbeam"));
    command.args(arguments.split_whitespace());
    command.stdin(Stdio::null());
    command
}

fn report(output: &Output) -> Value {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn rows(report: &Value) -> Vec<&Value> {
    // A table that was not asked for is not there.
    let of = |table: &str| report[table].as_array().into_iter().flatten();
    of("pingpong").chain(of("rate")).chain(of("load")).collect()
}

/// Each takes both CPUs.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn root_gets_figures_of_every_path() {
    if !is_root() {
        return eprintln!("skipped: not root");
    }
    let _alone = alone();
    let output = tightbeam("bench net --seconds 4 --json").output().unwrap();
    let report = report(&output);
    assert_eq!(report["schema"], 1);
    // Rows of round trips, which spin or sleep; of rates, by the faster; of loads.
    let paths = [
        ("tightbeam-udp", [2, 1, 2]),
        ("tightbeam-udp-gather", [0, 1, 1]),
        ("tightbeam-udp-io_uring", [2, 1, 2]),
        ("xdp-generic", [2, 1, 2]),
        ("xdp-generic-gather", [0, 1, 1]),
        ("xdp-floor-generic", [1, 1, 0]),
        ("xdp-device-generic", [1, 1, 0]),
        ("xdp-native", [2, 1, 2]),
        ("xdp-native-gather", [0, 1, 1]),
        ("xdp-floor-native", [1, 1, 0]),
        ("xdp-device-native", [1, 1, 0]),
        ("udp-veth", [2, 1, 2]),
        ("udp-veth-gather", [0, 0, 1]),
        ("udp-veth-io_uring", [2, 1, 0]),
    ];
    for (path, expected) in paths {
        let of = |table: &str| {
            let rows = report[table].as_array().unwrap().iter();
            rows.filter(|row| row["path"] == path).count()
        };
        assert_eq!(["pingpong", "rate", "load"].map(of), expected, "{path}");
    }
    for row in rows(&report) {
        let figure = row["rtt_ns"]["p50"].as_f64();
        let figure = figure.or(row["messages_per_s"].as_f64());
        let figure = figure.or(row["cpu_ns"]["median"].as_f64());
        assert!(figure.is_some_and(|figure| figure > 0.0), "{row}");
    }
}

fn is_spread(value: &Value) -> bool {
    ["p10", "median", "p90"]
        .iter()
        .all(|key| value[key].as_f64().is_some_and(|number| number > 0.0))
}

#[test]
fn paths_over_af_xdp_stand_beside_the_bare_loop() {
    if !is_root() {
        return eprintln!("skipped: not root");
    }
    let _alone = alone();
    let words = "bench net --seconds 2 --jobs pingpong,rate --json --paths udp-veth,";
    let paths = "xdp-generic,xdp-floor-generic,xdp-native,xdp-floor-native";
    let report = report(&tightbeam(&format!("{words}{paths}")).output().unwrap());
    assert!(report["load"].is_null(), "{report}");
    for row in rows(&report) {
        let path = row["path"].as_str().unwrap();
        let ratio = &row["ratio_to_xdp_floor"];
        // A bare loop that sleeps there is not.
        let has_floor = path != "udp-veth" && (row["wait"] == "spin" || row["sent"].is_u64());
        assert_eq!(is_spread(ratio), has_floor, "{row}");
        if path.starts_with("xdp-floor") {
            assert_eq!(ratio["median"], 1.0, "{row}");
        }
    }
}

#[test]
fn a_load_has_the_cost_of_each_side_and_a_rate_the_calls() {
    if !is_root() {
        return eprintln!("skipped: not root");
    }
    let _alone = alone();
    let words = "bench net --seconds 2 --jobs rate,load --json --paths udp-veth,tightbeam-udp,";
    let report = report(&tightbeam(&format!("{words}xdp-generic")).output().unwrap());
    let loads = report["load"].as_array().unwrap();
    assert_eq!(loads.len(), 6, "{report}");
    for row in loads {
        let spreads = ["sender_ns", "receiver_ns", "cpu_ns", "ratio_to_udp"];
        assert!(spreads.iter().all(|key| is_spread(&row[key])), "{row}");
        assert_eq!(
            (&row["size"], &row["offered_per_s"]),
            (&64.into(), &50_000.0.into())
        );
        let (sent, arrived) = (row["sent"].as_u64(), row["arrived"].as_f64());
        assert!(
            sent > Some(0) && arrived > Some(0.0) && arrived <= Some(1.0),
            "{row}"
        );
    }
    for row in report["rate"].as_array().unwrap() {
        let calls = &row["calls_per_message"];
        let count = |side: &str| calls[side].as_f64();
        match row["path"] == "udp-veth" {
            true => assert!(calls.is_null(), "{row}"),
            // Those that open a channel are among them.
            false => assert!(
                count("sender") > Some(0.0) && count("receiver") > Some(0.0),
                "{row}"
            ),
        }
    }
}

#[test]
fn who_is_not_root_is_told_what_is_missing() {
    let mut command = tightbeam("bench net --seconds 1 --json");
    if is_root() {
        command.uid(65534).gid(65534);
    }
    let output = match command.output() {
        // The program is in a folder that others may not enter.
        Err(error) => return eprintln!("skipped: not root, but {error}"),
        Ok(output) => output,
    };
    let report = report(&output);
    assert!(!rows(&report).is_empty());
    for row in rows(&report) {
        let said = "needs CAP_BPF, CAP_NET_ADMIN, CAP_NET_RAW";
        assert_eq!(row["skipped"], said, "{row}");
    }
}

#[test]
fn loss_is_counted_by_cause_and_credits_lose_nothing() {
    if !is_root() {
        return eprintln!("skipped: not root");
    }
    let _alone = alone();
    // Nobody takes 2,000 messages a second if each takes a millisecond.
    let words = "bench loss --seconds 4 --rates 2000 --work 1000000 --json";
    let report = report(&tightbeam(words).output().unwrap());
    let rows = report["loss"].as_array().unwrap();
    let of = |by: &str| rows.iter().find(|row| row["by"] == by).unwrap();
    for row in rows {
        let count = |name: &str| row[name].as_u64().unwrap();
        assert!(count("sent") > 0, "{row}");
        assert_eq!(count("sent"), count("received") + count("lost"), "{row}");
        assert_eq!(count("offered"), count("sent") + count("refused"), "{row}");
    }
    assert_eq!(of("shm")["lost"], 0);
    for by in ["tightbeam-udp", "xdp-generic"] {
        let row = of(by);
        let counted = row["counted"].as_array().unwrap().iter();
        let counted: u64 = counted.filter_map(|cause| cause[1].as_u64()).sum();
        assert!(row["lost"] == 0 || counted > 0, "{row}");
    }
}

#[test]
fn n90_has_a_share_for_each_size() {
    if !is_root() {
        return eprintln!("skipped: not root");
    }
    let _alone = alone();
    let words = "bench n90 --seconds 2 --links 50 --json";
    let report = report(&tightbeam(words).output().unwrap());
    let rows = report["n90"].as_array().unwrap();
    let paths: Vec<_> = rows.iter().map(|row| row["by"].as_str().unwrap()).collect();
    let expected = ["udp", "udp-mmsg", "tcp", "tightbeam-udp", "xdp-generic"];
    assert_eq!(paths, expected);
    for row in rows {
        let shares = row["shares"].as_array().unwrap();
        assert!(
            shares.iter().all(|share| share[1].as_f64() > Some(0.0)),
            "{row}"
        );
    }
}

#[test]
fn loss_and_n90_say_what_is_missing() {
    for what in ["loss", "n90"] {
        let mut command = tightbeam(&format!("bench {what} --json"));
        if is_root() {
            command.uid(65534).gid(65534);
        }
        match command.output() {
            // The program is in a folder that others may not enter.
            Err(error) => return eprintln!("skipped: not root, but {error}"),
            Ok(output) => {
                let said = "needs CAP_BPF, CAP_NET_ADMIN, CAP_NET_RAW";
                assert_eq!(report(&output)["skipped"], said);
            }
        }
    }
}
