//! `tightbeam ping` and `pong` between hosts: over a kernel socket, and through AF_XDP with a socket on the other side.

mod support;

use support::{Pong, errors, hosts, run, run_at, said};

#[test]
fn over_udp_ping_says_how_the_device_stands() {
    let address = "udp:127.0.0.1:47461";
    let mut pong = Pong::start(address);
    let output = run(&format!("ping {address} --count 500"));
    assert!(output.status.success(), "{}", errors(&output));
    let text = said(&output);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 4, "{text}");
    assert!(lines[0].contains("calls of 56 bytes to udp:"), "{text}");
    let device = "device udp  interface lo  driver loopback";
    assert!(lines[2].starts_with(device), "{text}");
    assert!(lines[3].starts_with("lost  "), "{text}");
    let opened = pong.line();
    assert!(opened.starts_with("opened: 127.0.0.1:"), "{opened}");
}

#[test]
fn through_af_xdp_ping_says_the_mode() {
    let Some((cable, _turn)) = hosts() else {
        return;
    };
    let _pong = cable.at(0, || Pong::start("udp:10.77.0.1:7000"));
    let output = run_at(&cable, 1, "ping xdp:eth/10.77.0.1:7000 --count 500");
    assert!(output.status.success(), "{}", errors(&output));
    let text = said(&output);
    assert!(
        text.contains("device xdp  interface eth  driver veth  mode generic  copy copy"),
        "{text}"
    );
    assert!(text.lines().last().unwrap().starts_with("lost  "), "{text}");
}

/// The device is opened with privilege, and used without, by its address.
#[test]
fn through_a_device_that_was_handed_over() {
    let Some((cable, _turn)) = hosts() else {
        return;
    };
    let _pong = cable.at(0, || Pong::start("udp:10.77.0.1:7000"));
    let me = env!("CARGO_BIN_EXE_tightbeam");
    let words = format!(
        "xdp-open --dev eth --port 0 -- {me} ping xdp:inherited/10.77.0.1:7000 --count 500"
    );
    let output = run_at(&cable, 1, &words);
    assert!(output.status.success(), "{}", errors(&output));
    let text = said(&output);
    assert!(text.contains("device xdp  interface eth"), "{text}");
    // Nothing was handed over to a process that was started without it.
    let output = run_at(&cable, 1, "ping xdp:inherited/10.77.0.1:7000");
    assert!(
        errors(&output).contains("tightbeam xdp-open"),
        "{}",
        errors(&output)
    );
}

/// The other host goes without a word: calls are lost one after the other until nobody is taken to be there.
#[test]
fn who_is_not_there_any_more_is_noticed_and_the_losses_are_said() {
    let Some((cable, _turn)) = hosts() else {
        return;
    };
    let mut pong = cable.at(0, || Pong::start("udp:10.77.0.1:7000"));
    let ping = cable.at(1, || {
        let mut command = support::tightbeam("ping udp:10.77.0.1:7000 --interval 1ms");
        let command = command.stdout(std::process::Stdio::piped());
        command
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap()
    });
    assert!(pong.line().starts_with("opened"));
    netns_down(&cable);
    let output = ping.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        errors(&output).contains("no reply until the deadline"),
        "{}",
        errors(&output)
    );
    let text = said(&output);
    assert!(text.contains("5 calls without an answer"), "{text}");
    assert!(text.contains("device udp"), "{text}");
}

fn netns_down(cable: &support::netns::Cable) {
    support::netns::ip(&format!("-n {} link set eth down", cable.name(0))).unwrap();
}

#[test]
fn help_and_errors_name_all_kinds_of_address() {
    for words in ["help ping", "help pong", "ping nowhere", "ping tcp:here"] {
        let output = run(words);
        let text = said(&output) + &errors(&output);
        for scheme in ["shm:", "udp:", "xdp:"] {
            assert!(text.contains(scheme), "{words}: {text}");
        }
    }
}
