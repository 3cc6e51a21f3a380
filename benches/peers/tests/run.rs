//! The program as a person runs it: every path once, briefly, and the mistakes
//! that a command line can contain. Judges no figure, only that there is one.

use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::available_parallelism;

use serde_json::Value;

fn peers(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_peers"))
        .args(arguments)
        .output()
        .expect("the program that was just built starts")
}

/// Two CPUs for one test at a time: two runs would spin against each other.
/// `None` on a machine that cannot run this at all.
fn both_cpus() -> Option<MutexGuard<'static, ()>> {
    static BOTH: Mutex<()> = Mutex::new(());
    let enough = available_parallelism().is_ok_and(|cpus| cpus.get() >= 2);
    enough.then(|| BOTH.lock().unwrap_or_else(PoisonError::into_inner))
}

fn rows<'a>(report: &'a Value, part: &str) -> &'a [Value] {
    report[part].as_array().map_or(&[], Vec::as_slice)
}

#[test]
fn every_path_gives_its_rows() {
    let Some(_cpus) = both_cpus() else {
        return;
    };
    let output = peers(&["--sizes=56", "--rate-sizes=32", "--seconds=0.1", "--json"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!(report["schema"], 1);
    assert_eq!(rows(&report, "settings").len(), 5);

    let pingpong = rows(&report, "pingpong");
    assert_eq!(pingpong.len(), 4, "rtrb-chunks has no round trip");
    for row in pingpong {
        assert!(row["rtt_ns"]["p50"].as_u64() > Some(0), "{row}");
        assert!(row["floor_ns"].as_f64() > Some(0.0), "{row}");
        assert!(
            row["ratio_to_floor"]["median"].as_f64() > Some(0.0),
            "{row}"
        );
    }
    let rate = rows(&report, "rate");
    assert_eq!(rate.len(), 5);
    for row in rate {
        assert!(row["messages_per_s"].as_f64() > Some(0.0), "{row}");
        let alone = row["path"] == "rtrb";
        assert_eq!(row["ratio_to_rtrb"].is_null(), alone, "{row}");
    }
    assert_eq!(rows(&report, "call").len(), 0);
}

#[test]
fn without_json_there_are_tables_for_people() {
    let Some(_cpus) = both_cpus() else {
        return;
    };
    let output = peers(&[
        "--paths=crossbeam",
        "--sizes=8",
        "--rate-sizes=1",
        "--seconds=0.1",
    ]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success());
    for word in ["x floor", "x rtrb", "crossbeam", "Linux"] {
        assert!(text.contains(word), "{word} is missing in\n{text}");
    }
    assert!(!text.contains("iceoryx2"), "{text}");
}

#[test]
fn mistakes_get_an_answer_that_helps() {
    for (arguments, expected) in [
        (["--sizes=57"], "the built sizes are 1, 8"),
        (["--rate-sizes=2000"], "the built sizes are 1, 8"),
        (["--cpus=0,0"], "both sides on CPU 0"),
        (["--cpus=0,100000"], "CPU 100000 is not there"),
        (["--cpus=0"], "like 0,1"),
        (["--paths=kafka"], "iceoryx2"),
        (["--seconds=0"], "more than 0"),
        (["--depth=0"], "1..=65536"),
    ] {
        let output = peers(&arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {errors}");
        assert!(errors.contains(expected), "{arguments:?}: {errors}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}
