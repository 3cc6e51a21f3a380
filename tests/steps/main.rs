//! Ends and stops a process after each instruction of what it can do with a channel, and looks at who survives.
//!
//! A *victim* process goes through one operation under `ptrace`. After *n* instructions it is killed, for each *n*; or
//! stopped, and later continued. Its peer, the *survivor*, is an endpoint in this process with another channel, to a
//! *third party*. It must hear of the victim's end once, have got a prefix of what the victim says (in a ledger of its own)
//! that it has sent, each message whole and in its place, be able to talk to the third party at any time, and be left with
//! the descriptors and mappings that it had before. While the victim stands still an audit of the survivor's side finds
//! each slot and credit in one place. A victim that was stopped finishes what it was at, then fills the rings both ways;
//! nothing may be missing.
//!
//! ```text
//!   cargo test --release --test steps                        every 16th instruction, from one that the seed gives
//!   TIGHTBEAM_LONG=1 cargo test --release --test steps       every instruction
//!   TIGHTBEAM_EVERY=32 ...                                   every 32nd: with the seeds 0 to 31 that is each of them, in parts
//!   cargo test --test steps                                  fewer points of the long operations
//!   cargo test --test steps -- send                          the operations whose name contains this
//!   TIGHTBEAM_SEED=7 cargo test --test steps                 the same points again
//! ```
//!
//! Covered is the thread that does the operation: of opening, closing, and everything on the data path the caller's; of
//! accepting also the control thread of the one that listens. A kernel call is one instruction, a look at the clock, too, and so is
//! one that repeats itself and writes what nobody else maps. The survivor polls after each step of the victim at every other point, and not before its end
//! at the others. The victim is a child with rings of 16 slots; messages, bounds and counts are in `operation.rs`.

#[path = "../support/numbered.rs"]
mod numbered;
#[path = "../support/ptrace.rs"]
mod ptrace;
#[path = "../support/mod.rs"]
mod support;

mod operation;
mod plan;
mod rounds;
mod survivor;
mod victim;
mod walk;

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
fn start(role: &str, place: &str) -> Command {
    let program = std::env::current_exe().expect("the test binary");
    let mut command = Command::new(program);
    command.env(ROLE, role).env(PLACE, place);
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
    // Nobody is left to be traced: it would start all over.
    let traced = ptrace::Traced::start(&mut start(THIRD_PARTY, ""));
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
    println!("steps: {plan}");
    let wanted = std::env::args().skip(1).find(|a| !a.starts_with('-'));
    let wanted = |operation: &Operation| {
        let name = operation.name();
        wanted.as_ref().is_none_or(|wanted| name.contains(wanted))
    };
    let chosen = Operation::ALL.into_iter().filter(wanted);
    println!("{}", plan::COLUMNS);
    let carry_out = |operation| {
        let row = plan.carry_out(operation);
        println!("{row}");
        row
    };
    let all = Row::sum(&chosen.map(carry_out).collect::<Vec<Row>>());
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
            eprintln!("steps: hangs after {before} points");
            std::process::abort();
        }
    }
}
