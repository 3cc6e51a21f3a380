//! What the tests of the built command share: starting it here or on a host of a test's own, and a `pong` that listens.
#![allow(dead_code, reason = "each test binary uses a part of it")]

#[path = "../../../../tests/support/netns.rs"]
pub(crate) mod netns;

use netns::Cable;
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Namespaces are made by one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// Two hosts on a cable, and the turn to use them; `None`, and the reason printed, where they cannot be had.
pub(crate) fn hosts() -> Option<(Cable, MutexGuard<'static, ()>)> {
    let turn = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    match Cable::lay() {
        Ok(cable) => Some((cable, turn)),
        Err(reason) => {
            println!("skipped: {reason}");
            None
        }
    }
}

/// The built command with these words.
pub(crate) fn tightbeam(words: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tightbeam"));
    command.args(words.split_whitespace()).stdin(Stdio::null());
    command
}

/// Runs it to its end here.
pub(crate) fn run(words: &str) -> Output {
    tightbeam(words).output().expect("the built command runs")
}

/// Runs it to its end on a host.
pub(crate) fn run_at(cable: &Cable, end: usize, words: &str) -> Output {
    cable.at(end, || run(words))
}

pub(crate) fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A `tightbeam pong` that listens; killed and reaped when this is dropped.
pub(crate) struct Pong {
    pub(crate) child: Child,
    /// What it says from then on.
    pub(crate) says: BufReader<ChildStderr>,
}

impl Pong {
    /// Starts one, and waits until it listens.
    pub(crate) fn start(address: &str) -> Pong {
        let mut command = tightbeam(&format!("pong {address} --wait adaptive"));
        let mut child = command.stderr(Stdio::piped()).spawn().expect("it starts");
        let says = child.stderr.take().expect("a pipe");
        let mut pong = Pong {
            child,
            says: BufReader::new(says),
        };
        let first = pong.line();
        assert!(first.starts_with("listening at"), "{first}");
        pong
    }

    /// The next line that it says.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.says.read_line(&mut line).expect("text");
        line
    }
}

impl Drop for Pong {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
