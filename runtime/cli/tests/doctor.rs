//! `tightbeam doctor` from outside: it finds what a test has broken, what it says mends it, and without root it says what is missing.

mod support;

use serde_json::Value;
use std::os::unix::process::CommandExt;
use std::process::Output;
use support::netns::{Cable, ip};
use support::{Pong, errors, hosts, run, run_at, said, tightbeam};

fn report(output: &Output) -> Value {
    let report = serde_json::from_slice(&output.stdout);
    let report: Value = report.unwrap_or_else(|error| panic!("{error}: {}", errors(output)));
    assert_eq!(report["schema"], 1);
    let healthy = report["problems"] == 0;
    let code = if healthy { 0 } else { 1 };
    assert_eq!(output.status.code(), Some(code), "{report}");
    report
}

fn finding<'a>(report: &'a Value, part: &str, name: &str) -> &'a Value {
    let findings = report["findings"].as_array().unwrap();
    let found = findings
        .iter()
        .find(|f| f["part"] == part && f["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} of {part}: {report}"))
}

/// What is said about `eth` at the left end of the cable.
fn of_eth<'a>(report: &'a Value, name: &str) -> &'a Value {
    finding(report, "eth", name)
}

#[test]
fn the_host_has_what_the_tests_need() {
    let report = report(&run("doctor --json"));
    for name in [
        "kernel",
        "SO_PEERPIDFD",
        "membarrier",
        "memfd seals",
        "futex_waitv",
    ] {
        assert_eq!(finding(&report, "host", name)["verdict"], "ok", "{name}");
    }
    for name in ["memlock", "CPUs", "cores", "governor", "clock"] {
        assert_ne!(finding(&report, "host", name)["says"], "", "{name}");
    }
}

#[test]
fn lines_and_json_say_the_same() {
    let (lines, json) = (run("doctor --dev lo"), run("doctor --dev lo --json"));
    assert_eq!(lines.status.code(), json.status.code());
    let (lines, report) = (said(&lines), report(&json));
    let flat = lines.split_whitespace().collect::<Vec<_>>().join(" ");
    for finding in report["findings"].as_array().unwrap() {
        let [verdict, name, says] =
            ["verdict", "name", "says"].map(|key| finding[key].as_str().unwrap());
        let line = match verdict {
            "skipped" => format!("{name} skipped: {says}"),
            _ => format!("{verdict} {name} {says}"),
        };
        assert!(flat.contains(&line), "{line}: {lines}");
        if let Some(mend) = finding["mend"].as_str() {
            assert!(lines.contains(&format!("> {mend}\n")), "{mend}: {lines}");
        }
    }
}

#[test]
fn wrong_arguments_and_interfaces_that_are_not_there() {
    for words in ["doctor --self-test", "doctor --dev", "doctor eth0"] {
        assert_eq!(run(words).status.code(), Some(2), "{words}");
    }
    for name in ["no-such", "much-too-long-a-name"] {
        let report = report(&run(&format!("doctor --dev {name} --self-test --json")));
        let missing = finding(&report, name, "interface");
        assert_eq!(missing["verdict"], "problem");
        let says = missing["says"].as_str().unwrap();
        assert!(says.contains("there is ") && says.ends_with("lo"), "{says}");
    }
}

#[test]
fn lo_sends_itself_a_packet() {
    let Some((cable, _turn)) = hosts() else {
        return;
    };
    let report = report(&run_at(&cable, 0, "doctor --dev lo --self-test --json"));
    let test = finding(&report, "lo", "self-test");
    assert_eq!(test["verdict"], "ok", "{report}");
    let says = test["says"].as_str().unwrap();
    assert!(
        says.contains("came back as it was") && says.contains("mode generic, copy"),
        "{says}"
    );
}

#[test]
fn a_packet_leaves_a_veth_end_and_nothing_stays_behind() {
    let Some((cable, _turn)) = hosts() else {
        return;
    };
    for _ in 0..2 {
        let report = report(&run_at(&cable, 0, "doctor --dev eth --self-test --json"));
        assert_eq!(report["problems"], 0, "{report}");
        assert_eq!(
            of_eth(&report, "driver")["says"],
            "veth, a virtual interface (veth)"
        );
        assert_eq!(of_eth(&report, "self-test")["verdict"], "ok");
        let arrival = &of_eth(&report, "arrival")["mend"];
        assert_eq!(arrival, "tightbeam pong xdp:eth/10.77.0.1:7000");
    }
}

/// Runs the command that a finding names, on the host.
fn mend(cable: &Cable, finding: &Value) {
    let command = finding["mend"].as_str().expect("a command");
    let words = command.strip_prefix("ip ").expect("a command of ip's");
    ip(&format!("-n {} {words}", cable.name(0))).expect("what mends it");
}

#[test]
fn what_is_broken_is_found_and_the_command_mends_it() {
    let Some((cable, _turn)) = hosts() else {
        return;
    };
    let host = cable.name(0);
    let broken = [
        ("interface", "link set eth down"),
        ("addresses", "address flush dev eth"),
    ];
    for (name, breaks) in broken {
        ip(&format!("-n {host} {breaks}")).unwrap();
        let before = report(&run_at(&cable, 0, "doctor --dev eth --json"));
        assert_eq!(of_eth(&before, name)["verdict"], "problem", "{before}");
        mend(&cable, of_eth(&before, name));
        let after = report(&run_at(&cable, 0, "doctor --dev eth --json"));
        assert_eq!(of_eth(&after, name)["verdict"], "ok", "{after}");
    }
}

#[test]
fn who_has_the_interface_is_named() {
    let Some((cable, _turn)) = hosts() else {
        return;
    };
    let pong = cable.at(0, || Pong::start("xdp:eth/10.77.0.1:7000"));
    let taken = report(&run_at(&cable, 0, "doctor --dev eth --self-test --json"));
    let program = of_eth(&taken, "program");
    assert_eq!(program["verdict"], "problem");
    let who = "generic, id ";
    let says = program["says"].as_str().unwrap();
    let pid = pong.child.id();
    assert!(
        says.contains(who) && says.contains(&format!("{pid} (tightbeam)")),
        "{says}"
    );
    assert_eq!(program["mend"], format!("kill {pid}"));
    let test = of_eth(&taken, "self-test");
    assert_eq!(test["verdict"], "problem");
    assert!(test["mend"].as_str().unwrap().contains("bpftool"), "{test}");
    drop(pong);
    let free = report(&run_at(&cable, 0, "doctor --dev eth --json"));
    assert_eq!(of_eth(&free, "program")["verdict"], "ok", "{free}");
}

#[test]
fn packets_longer_than_a_frame_are_noted() {
    let Some((cable, _turn)) = hosts() else {
        return;
    };
    for (mtu, verdict) in [(1500, "ok"), (9000, "note")] {
        ip(&format!("-n {} link set eth mtu {mtu}", cable.name(0))).unwrap();
        let report = report(&run_at(&cable, 0, "doctor --dev eth --json"));
        assert_eq!(of_eth(&report, "mtu")["verdict"], verdict, "{report}");
    }
}

#[test]
fn who_is_not_root_is_told_what_is_missing() {
    let mut command = tightbeam("doctor --dev lo --self-test --json");
    if rustix::process::geteuid().is_root() {
        command.uid(65534).gid(65534);
    }
    let output = match command.output() {
        // The program is in a folder that others may not enter.
        Err(error) => return println!("skipped: not root, but {error}"),
        Ok(output) => output,
    };
    let report = report(&output);
    let test = finding(&report, "lo", "self-test");
    assert_eq!(test["verdict"], "skipped");
    let says = test["says"].as_str().unwrap();
    assert_eq!(says, "needs CAP_BPF, CAP_NET_ADMIN, CAP_NET_RAW");
    let capabilities = finding(&report, "lo", "capabilities");
    assert_eq!(capabilities["verdict"], "note");
    let mend = capabilities["mend"].as_str().unwrap();
    assert!(
        mend.starts_with("setcap cap_bpf,cap_net_admin,cap_net_raw+ep /"),
        "{mend}"
    );
}
