//! The table of network faults in `README.md` names every test that carries a row, and no other.

use std::collections::BTreeSet;

const TABLE: &str = include_str!("README.md");
const SOURCES: [&str; 3] = [
    include_str!("opening.rs"),
    include_str!("pair.rs"),
    include_str!("raw.rs"),
];

/// Whether a test carries a row: `n`, two digits, `_`.
fn carries_a_row(name: &str) -> bool {
    matches!(name.as_bytes(), [b'n', b'0'..=b'9', b'0'..=b'9', b'_', ..])
}

#[test]
fn every_row_is_there_and_every_test_exists() {
    let rows: Vec<&str> = TABLE.lines().filter(|l| l.starts_with("| N")).collect();
    for (number, row) in (1..).zip(&rows) {
        assert!(row.starts_with(&format!("| N{number} |")), "{row}");
        let last = row.trim_end_matches(" |").rsplit(" | ").next();
        assert!(last.is_some_and(|reason| reason.len() > 10), "{row}");
    }
    assert_eq!(rows.len(), 16);

    let named: BTreeSet<&str> = TABLE.split('`').filter(|t| carries_a_row(t)).collect();
    let tests = SOURCES.iter().flat_map(|source| {
        let behind = source.split("#[test]\nfn ").skip(1);
        behind.filter_map(|rest| rest.split('(').next())
    });
    let tests: BTreeSet<&str> = tests.filter(|t| carries_a_row(t)).collect();
    assert_eq!(named, tests);
}
