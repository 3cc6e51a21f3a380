//! The built command from outside: what it prints, how it ends, what it leaves behind. No test looks at a time that was measured.

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;
use std::io::Read;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Nothing here takes a fraction of this.
const PATIENCE: Duration = Duration::from_secs(60);

/// Benches take two CPUs each and spin: side by side they would take for ever.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn tightbeam(arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tightbeam"));
    command
        .args(arguments.split_whitespace())
        .stdin(Stdio::null());
    command
}

fn run(arguments: &str) -> Output {
    finish(start(arguments))
}

fn start(arguments: &str) -> Child {
    tightbeam(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Waits until it ends; what is longer than patience is killed and fails.
fn finish(mut child: Child) -> Output {
    let mut stderr = child.stderr.take().unwrap();
    let errors = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        stderr.read_to_end(&mut bytes).map(|_| bytes)
    });
    let mut stdout = child.stdout.take().unwrap();
    let text = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        stdout.read_to_end(&mut bytes).map(|_| bytes)
    });
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if Instant::now() > deadline => {
                child.kill().unwrap();
                child.wait().unwrap();
                panic!("it did not end within {PATIENCE:?}");
            }
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    let (stdout, stderr) = (
        text.join().unwrap().unwrap(),
        errors.join().unwrap().unwrap(),
    );
    Output {
        status,
        stdout,
        stderr,
    }
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Waits for something that must come true.
fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The second process of a bench.
fn child_of(parent: &Child) -> Pid {
    let path = format!("/proc/{0}/task/{0}/children", parent.id());
    eventually("the second process", || {
        let children = std::fs::read_to_string(&path).ok()?;
        Pid::from_raw(children.split_whitespace().next()?.parse().ok()?)
    })
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_child(child)
}

fn ended(pid: Pid) -> Option<()> {
    // A process that has ended but is not reaped yet has no command line.
    let gone = test_kill_process(pid).is_err();
    let path = format!("/proc/{}/cmdline", pid.as_raw_nonzero());
    (gone || std::fs::read(path).is_ok_and(|line| line.is_empty())).then_some(())
}

fn is_spread(value: &Value) -> bool {
    ["p10", "median", "p90"]
        .iter()
        .all(|key| value[key].as_f64().is_some_and(|number| number > 0.0))
}

#[track_caller]
fn check_latency(row: &Value) {
    let rtt = &row["rtt_ns"];
    let percentiles = ["p50", "p90", "p99", "p999", "max"].map(|key| rtt[key].as_u64().unwrap());
    assert!(percentiles.is_sorted() && percentiles[0] > 0, "{row}");
    assert!(row["floor_ns"].as_f64().unwrap() > 0.0, "{row}");
    assert!(is_spread(&row["ratio_to_floor"]), "{row}");
    assert!(row["ratio_to_best_socket"].as_f64().unwrap() > 0.0, "{row}");
    assert!(row["samples"].as_u64().unwrap() > 0, "{row}");
    assert!(
        ["spin", "block"].contains(&row["wait"].as_str().unwrap()),
        "{row}"
    );
}

fn two_cpus() -> bool {
    let two = std::thread::available_parallelism().is_ok_and(|count| count.get() > 1);
    if !two {
        eprintln!("skipped: one CPU");
    }
    two
}

#[test]
fn json_follows_the_schema() {
    let _alone = alone();
    let output = run("bench --seconds 2 --json --paths pipe,unix-stream --sizes 8 --rate-sizes 32");
    assert!(output.status.success(), "{}", errors(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["schema"], 1);
    let machine = &report["machine"];
    assert!(machine["kernel"].as_str().unwrap().starts_with("Linux"));
    assert_eq!(machine["cpus"].as_array().unwrap().len(), 2);
    assert!(is_spread(&machine["floor_ns"]));
    let pingpong = report["pingpong"].as_array().unwrap();
    assert_eq!(pingpong.len(), 4);
    for row in pingpong {
        assert_eq!(row["size"], 8);
        check_latency(row);
    }
    let call = report["call"].as_array().unwrap();
    assert_eq!(call.len(), 4);
    call.iter().for_each(check_latency);
    let rate = report["rate"].as_array().unwrap();
    let paths: Vec<_> = rate
        .iter()
        .map(|row| row["path"].as_str().unwrap())
        .collect();
    assert_eq!(
        paths,
        [
            "pipe",
            "pipe-coalesced",
            "unix-stream",
            "unix-stream-coalesced"
        ]
    );
    for row in rate {
        assert!(row["messages_per_s"].as_f64().unwrap() > 0.0, "{row}");
        assert!(row["ratio_to_best_socket"].as_f64().unwrap() > 0.0, "{row}");
        assert_eq!(
            (row["size"].as_u64(), row["lost"].as_u64()),
            (Some(32), Some(0)),
            "{row}"
        );
    }
}

#[test]
fn handoff_has_a_figure_for_each_way_size_and_number_of_stages() {
    let _alone = alone();
    let output = run("bench handoff --seconds 0.1 --json");
    assert!(output.status.success(), "{}", errors(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["schema"], 1);
    let rows = report["handoff"].as_array().unwrap();
    let mut places = Vec::new();
    for row in rows {
        places.push(["bytes", "stages"].map(|key| row[key].as_u64().unwrap()));
        let ways = row["ways"].as_array().unwrap();
        let names: Vec<_> = ways
            .iter()
            .map(|way| way["way"].as_str().unwrap())
            .collect();
        let all = ["copied", "mapped", "populated", "secured", "moved"];
        assert_eq!(names, all, "{row}");
        for way in ways {
            let spreads = ["busy_ns", "by_moved", "by_smallest"];
            assert!(spreads.iter().all(|key| is_spread(&way[key])), "{way}");
            assert!(way["elapsed_ns"].as_f64().unwrap() > 0.0, "{way}");
        }
        assert_eq!(ways[4]["by_moved"]["median"], 1.0, "{row}");
    }
    let sizes = [4 << 10, 64 << 10, 1 << 20];
    let all = sizes
        .iter()
        .flat_map(|size| (1..=5).map(|stages| [*size, stages]));
    assert!(places.iter().copied().eq(all), "{places:?}");
}

#[test]
fn every_path_runs_and_a_pipe_gets_the_table_alone() {
    let _alone = alone();
    let output = run("bench --seconds 2 --sizes 56 --rate-sizes 64");
    assert!(output.status.success(), "{}", errors(&output));
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    for path in [
        "shm",
        "futex",
        "pipe",
        "unix-stream",
        "unix-seqpacket",
        "tcp-coalesced",
        "udp",
        "udp-io_uring",
    ] {
        assert!(
            text.lines().any(|line| line.trim_start().starts_with(path)),
            "{path} in\n{text}"
        );
    }
    assert!(
        text.contains("x floor") && text.contains("machine"),
        "{text}"
    );
    // io_uring may be missing or forbidden, the others not.
    let skipped = text
        .lines()
        .filter(|line| line.contains("skipped") && !line.contains("is not to be had"));
    assert_eq!(skipped.count(), 0, "{text}");
    assert_eq!(errors(&output), "");
    assert!(!text.contains('\u{1b}'), "control characters in\n{text}");
}

#[test]
fn a_message_too_large_for_a_path_is_a_skipped_row() {
    let _alone = alone();
    let output = run(
        "bench --seconds 0.2 --json --paths shm,unix-stream --sizes 4096 --jobs pingpong --wait block",
    );
    assert!(output.status.success(), "{}", errors(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(
        report["pingpong"][0]["skipped"]
            .as_str()
            .unwrap()
            .contains("too large")
    );
    check_latency(&report["pingpong"][1]);
}

#[test]
fn both_on_one_cpu_warns_and_works() {
    let _alone = alone();
    let output = run(
        "bench --seconds 0.2 --json --paths shm,unix-stream --sizes 8 --rate-sizes 8 --cpus 0,0",
    );
    assert!(output.status.success(), "{}", errors(&output));
    assert!(errors(&output).contains("both on one CPU"));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["machine"]["relation"], "same-cpu");
    for row in report["pingpong"].as_array().unwrap() {
        check_latency(row);
    }
}

#[test]
fn wrong_arguments_are_explained() {
    let _alone = alone();
    for (arguments, words) in [
        (
            "bench --cpus 0,4095",
            "there is no CPU 4095 for this process; it may run on: ",
        ),
        ("bench --cpus 0", "two CPU numbers are needed"),
        ("bench --paths smoke", "possible values: shm, futex"),
        ("bench --sizes 0", "from 1 to"),
        ("bench --wait nap", "possible values: spin, block"),
        ("bench --depth 7", "power of two"),
        ("bench --seconds -1", "above 0"),
        ("bench-peer --parent 1", "started by itself"),
        ("ping nowhere", "write shm:PATH"),
        ("ping tcp:here", "unknown scheme `tcp`"),
        ("ping shm:/nonexistent/x.sock", "does not exist"),
        ("ping shm:/tmp/x.sock --size 100000", "from 0 to"),
        ("ping shm:/tmp/x.sock --interval 5", "with a unit"),
        ("ping shm:/tmp/x.sock --cpu 4095", "there is no CPU 4095"),
        ("pong shm:/etc/passwd", "is no socket"),
        ("pong shm:/tmp/x.sock --cpu 4095", "there is no CPU 4095"),
        ("dance", "unrecognized subcommand"),
    ] {
        let output = run(arguments);
        assert!(!output.status.success(), "{arguments}");
        assert!(output.stdout.is_empty(), "{arguments}");
        assert!(
            errors(&output).contains(words),
            "{arguments}: {}",
            errors(&output)
        );
    }
}

#[test]
fn a_killed_second_process_is_reported() {
    let _alone = alone();
    for wait in ["spin", "block"] {
        for path in ["shm", "futex", "pipe", "udp", "udp-io_uring"] {
            if (wait, path) == ("spin", "futex") || (wait == "spin" && !two_cpus()) {
                continue;
            }
            let bench = start(&format!(
                "bench --seconds 600 --paths {path} --sizes 8 --jobs pingpong --wait {wait}"
            ));
            let second = child_of(&bench);
            // It may be at any point, from its own start to the middle of a batch.
            std::thread::sleep(Duration::from_millis(300));
            kill_process(second, Signal::KILL).unwrap();
            let output = finish(bench);
            assert_eq!(
                output.status.code(),
                Some(1),
                "{path} {wait}: {}",
                errors(&output)
            );
            assert!(
                errors(&output).contains("second process ended unexpectedly"),
                "{path} {wait}: {}",
                errors(&output)
            );
            assert!(output.stdout.is_empty());
        }
    }
}

#[test]
fn an_interrupt_ends_both_processes() {
    let _alone = alone();
    for signal in [Signal::INT, Signal::TERM] {
        let bench = start("bench --seconds 600 --paths shm,pipe --sizes 8");
        let second = child_of(&bench);
        std::thread::sleep(Duration::from_millis(300));
        kill_process(pid_of(&bench), signal).unwrap();
        let output = finish(bench);
        assert_eq!(output.status.code(), Some(130), "{}", errors(&output));
        assert!(output.stdout.is_empty());
        assert!(
            test_kill_process(second).is_err(),
            "the second process was not reaped"
        );
    }
}

#[test]
fn a_killed_bench_takes_the_second_process_with_it() {
    let _alone = alone();
    let mut bench = start("bench --seconds 600 --paths pipe --sizes 8");
    let second = child_of(&bench);
    std::thread::sleep(Duration::from_millis(300));
    bench.kill().unwrap();
    bench.wait().unwrap();
    eventually("the end of the second process", || ended(second));
}

struct Pong {
    child: Child,
    address: String,
    _directory: TempDir,
}

struct TempDir(std::path::PathBuf);

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn pong(name: &str, options: &str) -> Pong {
    let directory =
        std::env::temp_dir().join(format!("tightbeam-test-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let address = format!("shm:{}", directory.join("x.sock").display());
    let mut child = start(&format!("pong {address} --wait adaptive {options}"));
    let mut first = [0; 12];
    child
        .stderr
        .as_mut()
        .unwrap()
        .read_exact(&mut first)
        .unwrap();
    assert_eq!(&first, b"listening at");
    Pong {
        child,
        address,
        _directory: TempDir(directory),
    }
}

impl Drop for Pong {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn ping_counts_and_sums_up() {
    let _alone = alone();
    let pong = pong("count", "");
    let output = run(&format!("ping {} --count 1000 --size 100", pong.address));
    assert!(output.status.success(), "{}", errors(&output));
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(
        text.starts_with("1,000 calls of 100 bytes") && text.contains("p99.9"),
        "{text}"
    );
    assert_eq!(errors(&output), "", "the live line is for terminals");
}

#[test]
fn ping_sums_up_at_an_interrupt_and_pong_ends_at_one() {
    let _alone = alone();
    let mut pong = pong("interrupt", "");
    let ping = start(&format!("ping {} --interval 1ms", pong.address));
    std::thread::sleep(Duration::from_millis(300));
    kill_process(pid_of(&ping), Signal::INT).unwrap();
    let output = finish(ping);
    assert!(output.status.success(), "{}", errors(&output));
    assert!(String::from_utf8_lossy(&output.stdout).contains("p99.9"));
    kill_process(pid_of(&pong.child), Signal::INT).unwrap();
    assert!(eventually("pong's end", || pong.child.try_wait().unwrap()).success());
}

#[test]
fn each_side_says_that_the_other_was_killed() {
    let _alone = alone();
    let mut first = pong("dead-pong", "");
    let ping = start(&format!("ping {} --interval 1ms", first.address));
    std::thread::sleep(Duration::from_millis(300));
    first.child.kill().unwrap();
    let output = finish(ping);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        errors(&output).contains("has ended without closing"),
        "{}",
        errors(&output)
    );
    assert!(
        String::from_utf8_lossy(&output.stdout).contains("p99.9"),
        "what was measured is summed up"
    );

    let mut second = pong("dead-ping", "--once");
    let mut ping = start(&format!("ping {} --interval 1ms", second.address));
    std::thread::sleep(Duration::from_millis(300));
    ping.kill().unwrap();
    ping.wait().unwrap();
    assert!(eventually("pong's end", || second.child.try_wait().unwrap()).success());
    let mut said = String::new();
    second
        .child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    assert!(said.contains("has ended without closing"), "{said}");
}
