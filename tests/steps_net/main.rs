//! As `tests/steps`, over devices: ends and stops a process after each instruction of what it can do with a channel to another host, and looks
//! at who survives.
//!
//! The victim is on another host, or at another socket: the survivor is not told of its end by a kernel. It must not wait for it, must be able
//! to talk to a third party over the same device at any time, must have got the first messages that the victim says it has sent, each once,
//! whole and in its place, and have each frame, slot and credit of its own in one place. Of the victim's end it is told at most once: by the
//! victim's CLOSE; by whoever took the victim's port, and does not know the channel; or when the next victim wants its place
//! ([`Builder::idle_limit`](tightbeam::Builder::idle_limit)). A victim that was stopped finishes what it was at; then both compare their books:
//! each packet that was sent has come.
//!
//! ```text
//!   cargo test --test steps_net                        a few points of each operation, over udp, and as root over xdp
//!   TIGHTBEAM_EVERY=16 cargo test --test steps_net     every 16th instruction
//!   TIGHTBEAM_LONG=1 cargo test --release --test steps_net     every one
//!   cargo test --test steps_net -- send                the operations whose name contains this
//!   TIGHTBEAM_SEED=7 cargo test --test steps_net       the same points again
//! ```
//!
//! Opening and accepting are walked from kernel call to kernel call, see [`rounds::Path`]. A victim may go another way than the one that was
//! measured: where it meets its fate then is *elsewhere*, and as good.

mod ground;
#[path = "../../hw/xdp/tests/support/netns.rs"]
mod netns;
#[path = "../support/numbered.rs"]
mod numbered;
mod operation;
mod plan;
#[path = "../support/ptrace.rs"]
mod ptrace;
mod rounds;
#[path = "../support/mod.rs"]
mod support;
mod survivor;
mod victim;
#[path = "../steps/walk.rs"]
mod walk;

use ground::Ground;
use operation::Operation;
use plan::{Plan, Row};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Tells a child what it is, and where.
const ROLE: &str = "TIGHTBEAM_STEPS_ROLE";
const PLACE: &str = "TIGHTBEAM_STEPS_PLACE";
const THIRD_PARTY: &str = "third party";

/// This program again, as something else.
fn start(role: &str, place: &str, ground: &Ground) -> Command {
    let program = std::env::current_exe().expect("the test binary");
    let mut command = Command::new(program);
    ground.tell(&mut command);
    if role == THIRD_PARTY {
        command.env(PLACE, &ground.there_by_socket);
    } else {
        command.env(PLACE, place);
    }
    command.env(ROLE, role);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

fn main() -> ExitCode {
    if let (Ok(role), Ok(place)) = (std::env::var(ROLE), std::env::var(PLACE)) {
        match Operation::named(&role) {
            Some(operation) => victim::run(operation, &place),
            None => victim::echo(&place),
        }
        return ExitCode::SUCCESS;
    }
    if std::env::args().any(|argument| argument == "--list") {
        return ExitCode::SUCCESS;
    }
    // It ends at once, traced or not: it lacks the address.
    let mut nobody = Command::new("/bin/true");
    let traced = ptrace::Traced::start(&mut nobody);
    if let Err(error) = traced.and_then(|traced| traced.task.at()) {
        println!("skipped: this process cannot step another: {error}");
        return ExitCode::SUCCESS;
    }
    std::thread::spawn(watch_for_hangs);
    let number = |name| {
        let given: Option<String> = std::env::var(name).ok();
        given.and_then(|given| given.parse().ok())
    };
    let seed = number("TIGHTBEAM_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    let long = std::env::var_os("TIGHTBEAM_LONG").is_some();
    let plan = Plan::new(long, number("TIGHTBEAM_EVERY"), seed);
    println!("steps_net: {plan}");
    let wanted = std::env::args().skip(1).find(|a| !a.starts_with('-'));
    let wanted = |operation: &Operation| {
        let name = operation.name();
        wanted.as_ref().is_none_or(|wanted| name.contains(wanted))
    };
    let mut rows = Vec::new();
    println!("{}", plan::COLUMNS);
    Ground::each(47401, |ground| {
        for operation in Operation::ALL.into_iter().filter(wanted) {
            let row = plan.carry_out(ground, operation);
            println!("{row}");
            rows.push(row);
        }
    });
    let all = Row::sum(&rows);
    println!("{all}");
    match all.violations {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// Points finished so far.
static FINISHED: AtomicU64 = AtomicU64::new(0);

/// Nothing that a point waits for is waited for longer than this; if it is, nobody is left to say so but this thread.
fn watch_for_hangs() {
    const LONGEST: Duration = Duration::from_secs(90);
    loop {
        let before = FINISHED.load(Ordering::Relaxed);
        std::thread::sleep(LONGEST);
        if FINISHED.load(Ordering::Relaxed) == before {
            eprintln!("steps_net: hangs after {before} points");
            std::process::abort();
        }
    }
}
