//! How many instructions the data path takes: `cargo bench --bench instructions` (with `-- --json` for programs).
//!
//! Counted, not timed: a child process with both ends of a channel is executed one instruction at a time through each step,
//! many times over, and every instruction between two marks is one. So the counts hold for this build on any machine, busy
//! or not. They differ from round to round, because a ring decides something every few messages: hence least, median, mean, most.
//!
//! *Dispatch* runs from the load of the header word, counted, to the handler's first instruction, not counted. The load is
//! the last instruction before the handler that reads 8 bytes of a segment. What the marks themselves take is subtracted
//! from the other counts.

#[cfg(target_arch = "x86_64")]
#[path = "../tests/support/ptrace.rs"]
mod ptrace;
#[cfg(target_arch = "x86_64")]
#[path = "instructions/report.rs"]
mod report;
#[cfg(target_arch = "x86_64")]
#[path = "instructions/subject.rs"]
mod subject;
#[cfg(target_arch = "x86_64")]
#[path = "instructions/trace.rs"]
mod trace;

#[cfg(target_arch = "x86_64")]
fn main() -> std::process::ExitCode {
    report::main()
}

#[cfg(not(target_arch = "x86_64"))]
fn main() {
    println!("skipped: reads x86-64 instructions only");
}
