//! That `README.md` has a test, or a reason, for every row of the catalogue, and that the tests are there.

use std::collections::BTreeMap;
use std::path::Path;

const TABLE: &str = include_str!("README.md");

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The cells of each row, by its number.
fn rows() -> BTreeMap<&'static str, Vec<&'static str>> {
    let mut rows = BTreeMap::new();
    for line in TABLE.lines() {
        let Some(cells) = line.strip_prefix('|').and_then(|l| l.strip_suffix('|')) else {
            continue;
        };
        let cells: Vec<_> = cells.split('|').map(str::trim).collect();
        let number = cells[0];
        let (letter, digits) = number.split_at(number.len().min(1));
        if "SLCR".contains(letter) && digits.parse::<u32>().is_ok() {
            let before = rows.insert(number, cells);
            assert!(before.is_none(), "row {number} is there twice");
        }
    }
    rows
}

/// What is between backquotes.
fn names(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// All that a test target consists of, or `None` if there is none of that name.
fn sources(target: &str) -> Option<String> {
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    let tests = root().join("tests");
    let ours = tests.join("hostile").join(format!("{target}.rs"));
    let single = tests.join(format!("{target}.rs"));
    if let Some(text) = [ours, single].iter().find_map(|path| read(path)) {
        return Some(text);
    }
    let folders = [tests, root().join("runtime/segment/tests")];
    let mut folders = folders.iter().map(|folder| folder.join(target));
    let folder = folders.find_map(|folder| std::fs::read_dir(folder).ok())?;
    let files = folder.flatten().map(|file| file.path());
    Some(files.filter_map(|file| read(&file)).collect())
}

#[test]
fn every_row_has_a_test_or_a_reason() {
    let rows = rows();
    for (letter, last) in [('S', 16), ('L', 10), ('C', 8), ('R', 8)] {
        for n in 1..=last {
            let number = format!("{letter}{n}");
            let cells = rows.get(number.as_str());
            let cells = cells.unwrap_or_else(|| panic!("row {number} is missing"));
            assert_eq!(cells.len(), 4, "row {number}");
            let mut reasons = ["Cannot arise:", "Not defended:"].iter();
            let reason = reasons.any(|told| cells[2].starts_with(told)) && cells[2].len() > 60;
            let tests = names(cells[3]).count();
            assert!(tests > 0 || reason, "row {number} has neither");
        }
    }
    assert_eq!(rows.len(), 42, "rows that are none");
}

#[test]
fn every_test_that_is_named_is_there() {
    for (number, cells) in rows() {
        for name in names(cells[3]) {
            let (target, test) = match name.split_once("::") {
                Some((target, test)) => (target, Some(test)),
                None => (name, None),
            };
            let text = sources(target);
            let text = text.unwrap_or_else(|| panic!("{number}: no {target}"));
            if let Some(test) = test {
                let there = text.contains(&format!("#[test]\nfn {test}("));
                assert!(there, "{number}: {target} has no test {test}");
            }
        }
    }
}

/// The other way round: a test that is named after a row stands in that row.
#[test]
fn every_test_of_a_row_is_named() {
    let rows = rows();
    for module in [
        "rings", "words", "segments", "identity", "waking", "lending", "memory",
    ] {
        let text = sources(module).expect("a module of this target");
        for after in text.split("#[test]\nfn ").skip(1) {
            let name = after.split('(').next().expect("a name");
            let (letter, rest) = name.split_at(1);
            let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
            let Ok(n) = digits.parse::<u32>() else {
                continue;
            };
            let number = format!("{}{n}", letter.to_uppercase());
            let cells = rows.get(number.as_str()).expect("a row");
            let full = format!("{module}::{name}");
            assert!(names(cells[3]).any(|n| n == full), "{number}: {full}");
        }
    }
}
