//! The report as lines that fit into a terminal.

use super::finding::{Finding, Verdict};
use std::fmt::Write;

/// Without a terminal, and the most of a wide one: longer lines are hard to read.
const WIDTH: usize = 100;
const NARROWEST: usize = 50;
/// Verdict and name stand before the text.
const VERDICT: usize = 9;
const NAME: usize = 16;
const BEFORE: usize = 2 + VERDICT + NAME;

/// All findings, under the name of what they are about, for a terminal of so many columns.
pub(super) fn lines(findings: &[Finding], columns: Option<usize>) -> String {
    let columns = columns.unwrap_or(WIDTH).clamp(NARROWEST, WIDTH);
    let mut text = String::new();
    let mut part = "";
    for finding in findings {
        if finding.part != part {
            part = &finding.part;
            let gap = if text.is_empty() { "" } else { "\n" };
            push(&mut text, format_args!("{gap}{part}\n"));
        }
        add(&mut text, finding, columns);
    }
    let count = |verdict| findings.iter().filter(|f| f.verdict == verdict).count();
    let [problems, notes, skipped] = [Verdict::Problem, Verdict::Note, Verdict::Skipped].map(count);
    push(
        &mut text,
        format_args!("\nproblems: {problems}, notes: {notes}, skipped: {skipped}\n"),
    );
    text
}

fn push(text: &mut String, what: std::fmt::Arguments<'_>) {
    // Writing to a string does not fail.
    let _ = text.write_fmt(what);
}

fn add(text: &mut String, finding: &Finding, columns: usize) {
    // What is skipped is found by looking for this word and a colon, as in the tests.
    let (verdict, says) = match finding.verdict {
        Verdict::Skipped => ("", format!("skipped: {}", finding.says)),
        other => (other.text(), finding.says.clone()),
    };
    let name = finding.name;
    push(text, format_args!("  {verdict:<VERDICT$}{name:<NAME$}"));
    push_indented(text, 0, &wrapped(&says, columns - BEFORE));
    match &finding.mend {
        None => {}
        // Words in which commands are quoted.
        Some(words) if words.contains('`') => {
            let words = wrapped(&format!("> {words}"), columns - BEFORE);
            push_indented(text, BEFORE, &words);
        }
        // A command is in one piece, however long: it is there to be copied.
        Some(command) => push(text, format_args!("{:BEFORE$}> {command}\n", "")),
    }
}

/// The first line so far in, the others below the text.
fn push_indented(text: &mut String, first: usize, lines: &[String]) {
    for (n, line) in lines.iter().enumerate() {
        let indent = if n == 0 { first } else { BEFORE };
        push(text, format_args!("{:indent$}{line}\n", ""));
    }
}

/// Breaks at spaces; a word that is longer than a line is not broken.
fn wrapped(text: &str, columns: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let last = lines.len() - 1;
        let line = &mut lines[last];
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= columns {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.into());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_broken_at_spaces_and_commands_are_not() {
        let command = "ethtool -K eth0 ".repeat(9);
        let long = "word ".repeat(40);
        let words = "say `this` or ".repeat(9);
        let findings = [
            Finding::ok("kernel", "Linux 6.18"),
            Finding::problem("seals", "none", words.trim()),
            Finding::problem("offloads", long.trim(), command.trim()).of("eth0"),
        ];
        for columns in [80, 120] {
            let text = lines(&findings, Some(columns));
            assert!(text.contains(command.trim()), "{text}");
            let fits = |line: &&str| line.contains("ethtool") || line.len() <= columns.min(WIDTH);
            assert!(text.lines().all(|line| fits(&line)), "{text}");
            assert!(text.starts_with("host\n  ok       kernel"), "{text}");
            assert!(text.contains("\n\neth0\n  problem  offloads"), "{text}");
            assert!(text.ends_with("problems: 2, notes: 0, skipped: 0\n"));
        }
    }

    #[test]
    fn a_word_that_is_too_long_has_a_line_of_its_own() {
        assert_eq!(wrapped("a bcdefgh i j", 4), ["a", "bcdefgh", "i j"]);
    }
}
