//! `tightbeam bench net` from outside: with root it measures, without it says what is missing, and nothing stays behind.

use serde_json::Value;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};

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
    let of = |table: &str| report[table].as_array().unwrap().iter();
    of("pingpong").chain(of("rate")).collect()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn root_gets_figures_of_every_path() {
    if !is_root() {
        return eprintln!("skipped: not root");
    }
    let output = tightbeam("bench net --seconds 4 --json").output().unwrap();
    let report = report(&output);
    assert_eq!(report["schema"], 1);
    let paths = [
        "tightbeam-udp",
        "xdp-generic",
        "xdp-native",
        "udp-veth",
        "udp-veth-io_uring",
    ];
    for path in paths {
        let of = |table: &str| {
            let rows = report[table].as_array().unwrap().iter();
            rows.filter(|row| row["path"] == path).count()
        };
        assert_eq!((of("pingpong"), of("rate")), (2, 1), "{path}");
    }
    for row in rows(&report) {
        let figure = row["rtt_ns"]["p50"].as_f64();
        let figure = figure.or(row["messages_per_s"].as_f64());
        assert!(figure.is_some_and(|figure| figure > 0.0), "{row}");
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
