//! Starts the child, counts what it went through, and prints the counts: a table for people, or a line of JSON.

use crate::subject::{self, Case};
use crate::trace::{Step, Stretch, Traced};
use std::fmt::Write;
use std::io;
use std::path::Path;
use std::process::{Command, ExitCode};

/// Rounds of each case: enough to pass through several laps of a ring's first slots; and few, to see that it works.
const ROUNDS: u32 = 256;
const FEW_ROUNDS: u32 = 3;
/// Tells the child that it is one, and where to listen.
const ADDRESS: &str = "TIGHTBEAM_INSTRUCTIONS_ADDRESS";
const MANY: &str = "TIGHTBEAM_INSTRUCTIONS_ROUNDS";

/// Where the way from a header to its handler is looked at.
const DISPATCHES: [(&str, Case); 2] = [
    ("header load to handler, in poll", Case::PollSilent),
    ("header load to handler, in poll_for", Case::SpinSilent),
];

/// Counts of one thing over the rounds.
struct Row {
    what: &'static str,
    counts: Vec<usize>,
}

impl Row {
    fn new(what: &'static str, mut counts: Vec<usize>) -> Row {
        counts.sort_unstable();
        Row { what, counts }
    }

    fn median(&self) -> usize {
        let middle = self.counts.get(self.counts.len() / 2);
        middle.copied().unwrap_or_default()
    }

    /// Least, median, mean, most.
    fn summary(&self) -> [usize; 4] {
        let end = |count: Option<&usize>| count.copied().unwrap_or_default();
        let sum: usize = self.counts.iter().sum();
        let mean = sum.checked_div(self.counts.len()).unwrap_or_default();
        let (least, most) = (end(self.counts.first()), end(self.counts.last()));
        [least, self.median(), mean, most]
    }
}

/// As the child if the parent says so, else as the parent.
pub(crate) fn main() -> ExitCode {
    if let (Ok(address), Ok(rounds)) = (std::env::var(ADDRESS), std::env::var(MANY)) {
        subject::run(&address, rounds.parse().expect("the parent gives a number"));
        return ExitCode::SUCCESS;
    }
    let given = |flag| std::env::args().any(|argument| argument == flag);
    let few = given("--test") || !given("--bench");
    let rounds = if few { FEW_ROUNDS } else { ROUNDS };
    let socket = std::env::temp_dir().join(format!("tb-instructions-{}", std::process::id()));
    let mut traced = match start(&socket, rounds) {
        Ok(traced) => traced,
        Err(error) => {
            println!("skipped: this process may not trace another: {error}");
            return ExitCode::SUCCESS;
        }
    };
    let counted = count(&mut traced, rounds);
    // A child that ended well has removed it.
    let _ = std::fs::remove_file(&socket);
    match counted {
        Ok(stretches) => {
            report(&stretches, rounds, given("--json"));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("instructions: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start(socket: &Path, rounds: u32) -> io::Result<Traced> {
    let mut command = Command::new(std::env::current_exe()?);
    command.env(ADDRESS, format!("shm:{}", socket.display()));
    command.env(MANY, rounds.to_string());
    Traced::start(&mut command)
}

/// All that the child goes through; every case must have done what it is named after.
fn count(traced: &mut Traced, rounds: u32) -> io::Result<Vec<Stretch>> {
    let mut stretches = Vec::new();
    while let Some(stretch) = traced.next()? {
        stretches.push(stretch);
    }
    for case in Case::ALL {
        let fail = |why: &str| Err(io::Error::other(format!("{}: {why}", case.what())));
        let of_case = || stretches.iter().filter(|s| s.case == case as u64);
        if of_case().count() != rounds as usize {
            return fail("not all rounds were seen");
        }
        if of_case().any(|s| s.handler.is_some() != case.dispatches()) {
            return fail("a handler was entered that is not called, or the reverse");
        }
        if case.dispatches() && of_case().any(|s| dispatch(s).is_none()) {
            return fail("no load of a header word before the handler");
        }
        let sends = matches!(case, Case::Send8 | Case::Send56);
        if sends && !of_case().all(|s| s.steps.iter().any(|step| step.writes_segment)) {
            return fail("nothing was written to a segment");
        }
    }
    Ok(stretches)
}

/// From the load of the header word to the last instruction before the handler.
fn dispatch(stretch: &Stretch) -> Option<&[Step]> {
    let before = &stretch.steps[..stretch.handler?];
    let load = before.iter().rposition(|step| step.reads_segment)?;
    Some(&before[load..])
}

fn rows(stretches: &[Stretch]) -> Vec<Row> {
    let of_case = |case: Case| stretches.iter().filter(move |s| s.case == case as u64);
    let steps = |case| of_case(case).map(|s| s.steps.len()).collect();
    let marks = Row::new(Case::Nothing.what(), steps(Case::Nothing)).median();
    let dispatches = |case| of_case(case).filter_map(dispatch).map(<[Step]>::len);
    let mut rows: Vec<Row> = DISPATCHES
        .iter()
        .map(|&(what, case)| Row::new(what, dispatches(case).collect()))
        .collect();
    for case in Case::ALL {
        if case != Case::Nothing {
            let counts: Vec<usize> = steps(case);
            let counts = counts.iter().map(|c| c.saturating_sub(marks)).collect();
            rows.push(Row::new(case.what(), counts));
        }
    }
    rows
}

fn report(stretches: &[Stretch], rounds: u32, json: bool) {
    let rows = rows(stretches);
    let mut text = table(&rows, rounds);
    for ((what, case), row) in DISPATCHES.iter().zip(&rows) {
        let of_case = stretches.iter().filter(|s| s.case == *case as u64);
        // Writing to a String cannot fail.
        let _ = writeln!(text, "\n{what}:");
        disassemble(&mut text, of_case, row.median());
    }
    if json {
        eprint!("{text}");
        println!("{}", as_json(&rows, rounds));
    } else {
        print!("{text}");
    }
}

fn build() -> &'static str {
    if cfg!(debug_assertions) {
        "debug"
    } else {
        "release"
    }
}

fn table(rows: &[Row], rounds: u32) -> String {
    let width = rows
        .iter()
        .map(|row| row.what.len())
        .max()
        .unwrap_or_default();
    let title = format!("instructions ({} build)", build());
    let mut text = format!("{title:width$}  least  median  mean  most  ({rounds} rounds)\n");
    for row in rows {
        let [least, median, mean, most] = row.summary();
        let what = row.what;
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{what:width$}  {least:5}  {median:6}  {mean:4}  {most:4}"
        );
    }
    text
}

/// A dispatch of median length, instruction by instruction.
fn disassemble<'a>(
    text: &mut String,
    mut stretches: impl Iterator<Item = &'a Stretch>,
    median: usize,
) {
    let median = stretches.find_map(|s| dispatch(s).filter(|steps| steps.len() == median));
    for Step { instruction, .. } in median.unwrap_or_default() {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {:012x}  {instruction}", instruction.ip());
    }
}

/// The names hold nothing that JSON would want escaped.
fn as_json(rows: &[Row], rounds: u32) -> String {
    let row = |row: &Row| {
        let ([least, median, mean, most], what) = (row.summary(), row.what);
        format!(
            r#"{{"what":"{what}","least":{least},"median":{median},"mean":{mean},"most":{most}}}"#
        )
    };
    let rows: Vec<String> = rows.iter().map(row).collect();
    let (build, rows) = (build(), rows.join(","));
    format!(r#"{{"schema":1,"build":"{build}","rounds":{rounds},"instructions":[{rows}]}}"#)
}
