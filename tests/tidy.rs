//! The repository checks its own rules, those that no lint can hold.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Who may name whom, lowest layer first; `tightbeam` is the façade.
const ARROWS: &[(&str, &[&str])] = &[
    ("runtime/segment", &[]),
    ("runtime/sys", &["tightbeam-segment"]),
    ("runtime/proto", &[]),
    (
        "runtime/endpoint",
        &["tightbeam-proto", "tightbeam-segment", "tightbeam-sys"],
    ),
    ("hw/udp", &["tightbeam-segment", "tightbeam-sys"]),
    (
        "hw/xdp",
        &["tightbeam-segment", "tightbeam-sys", "tightbeam-proto"],
    ),
    (
        ".",
        &["tightbeam-endpoint", "tightbeam-udp", "tightbeam-xdp"],
    ),
    (
        "runtime/cli",
        &[
            "tightbeam",
            "tightbeam-segment",
            "tightbeam-sys",
            "tightbeam-xdp",
        ],
    ),
];

/// What each crate may depend on beside ours. A new name needs a reason in DESIGN or in the commit that adds it.
const ALLOWED: &[(&str, &[&str])] = &[
    ("runtime/segment", &["cpufeatures", "thiserror", "loom"]),
    ("runtime/sys", &["io-uring", "libc", "rustix", "thiserror"]),
    // siphasher: the tokens of the opening exchange.
    ("runtime/proto", &["crc32c", "siphasher", "thiserror"]),
    ("hw/udp", &["rustix", "thiserror"]),
    ("hw/xdp", &["rustix", "thiserror"]),
    // tokio and futures-util: for the feature `tokio` only.
    (
        "runtime/endpoint",
        &[
            // For the queue of worker threads.
            "crossbeam-channel",
            "futures-util",
            "thiserror",
            "tokio",
            "zerocopy",
        ],
    ),
    (".", &[]),
    // tokio: for `bench wait`.
    (
        "runtime/cli",
        &[
            "clap",
            "comfy-table",
            "ctrlc",
            "hdrhistogram",
            "indicatif",
            "plotters",
            "rustix",
            "serde",
            "serde_json",
            "thiserror",
            "tokio",
        ],
    ),
];

const MAY_BE_UNSAFE: &[&str] = &["runtime/segment/", "runtime/sys/", "tests/", "benches/"];
const MOST_LINES: usize = 600;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below `folder` with this ending, but build output.
fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)
        .expect("a folder of the repository")
        .flatten()
    {
        let path = entry.path();
        let name = entry.file_name();
        if path.is_dir() && name != "target" && name != ".git" {
            found.extend(files(&path, ending));
        } else if path.extension().is_some_and(|e| e == ending) {
            found.push(path);
        }
    }
    found
}

fn sources() -> Vec<(String, String)> {
    files(root(), "rs")
        .into_iter()
        .map(|path| {
            let name = path
                .strip_prefix(root())
                .expect("below the root")
                .display()
                .to_string();
            (
                name,
                fs::read_to_string(&path).expect("a source file is text"),
            )
        })
        .collect()
}

/// The names in a `[...dependencies]` table of a manifest.
fn dependencies(manifest: &str, tables: &[&str]) -> BTreeSet<String> {
    let mut within = false;
    let mut names = BTreeSet::new();
    for line in manifest.lines() {
        if let Some(table) = line.strip_prefix('[') {
            within = tables.iter().any(|t| table.trim_end_matches(']') == *t);
        } else if within && let Some((name, _)) = line.split_once(['=', '.', ' ']) {
            names.insert(name.trim().to_owned());
        }
    }
    names.remove("");
    names
}

#[test]
fn arrows_and_dependencies() {
    for &(folder, arrows) in ARROWS {
        let manifest = fs::read_to_string(root().join(folder).join("Cargo.toml"))
            .unwrap_or_else(|e| panic!("{folder}/Cargo.toml: {e}"));
        let tables = ["dependencies", "target.'cfg(loom)'.dependencies"];
        let (_, allowed) = ALLOWED
            .iter()
            .find(|(f, _)| *f == folder)
            .expect("each crate has a list");
        for name in dependencies(&manifest, &tables) {
            let ours = name.starts_with("tightbeam");
            let known = if ours { arrows } else { allowed };
            assert!(
                known.contains(&name.as_str()),
                "{folder} must not depend on {name} (I1)"
            );
        }
    }
    for layer in ["runtime", "hw"] {
        let members = fs::read_dir(root().join(layer)).expect(layer).flatten();
        for member in members.filter(|m| m.path().is_dir()) {
            let folder = format!("{layer}/{}", member.file_name().to_string_lossy());
            assert!(
                ARROWS.iter().any(|(f, _)| *f == folder),
                "{folder} has no place in the arrows"
            );
        }
    }
}

#[test]
fn unsafe_and_libc_stay_behind_their_border() {
    for (name, text) in sources() {
        let code: Vec<&str> = text
            .lines()
            .filter(|l| !l.trim_start().starts_with("//"))
            .collect();
        let is_unsafe = code.iter().any(|line| {
            [
                "unsafe {",
                "unsafe fn",
                "unsafe impl",
                "unsafe trait",
                "unsafe extern",
            ]
            .iter()
            .any(|word| line.contains(word))
        });
        let may = MAY_BE_UNSAFE.iter().any(|prefix| name.starts_with(prefix));
        assert!(
            may || !is_unsafe || name == "tests/tidy.rs",
            "{name}: unsafe outside its border (I1)"
        );
        let ours = name.starts_with("runtime/") || name.starts_with("hw/");
        let libc = ours && code.iter().any(|l| l.contains("libc::"));
        assert!(
            !libc || name.starts_with("runtime/sys/"),
            "{name} names libc (I1)"
        );
    }
    for root_file in [
        "runtime/lib.rs",
        "runtime/proto/src/lib.rs",
        "runtime/endpoint/src/lib.rs",
        "hw/udp/src/lib.rs",
        "hw/xdp/src/lib.rs",
        "runtime/cli/src/main.rs",
    ] {
        let text = fs::read_to_string(root().join(root_file)).expect(root_file);
        assert!(text.contains("#![forbid(unsafe_code)]"), "{root_file}");
    }
}

#[test]
fn every_ordering_says_what_it_pairs_with() {
    for (name, text) in sources() {
        if !name.starts_with("runtime/segment/src") && !name.starts_with("runtime/endpoint/src") {
            continue;
        }
        let lines: Vec<&str> = text.lines().collect();
        for (n, line) in lines.iter().enumerate() {
            let strong = [
                "Ordering::Acquire",
                "Ordering::Release",
                "Ordering::AcqRel",
                "Ordering::SeqCst",
            ]
            .iter()
            .any(|o| line.contains(o));
            let said = lines[n.saturating_sub(3)..n]
                .iter()
                .any(|l| l.contains("airs with"));
            assert!(!strong || said, "{name}:{}: say what it pairs with", n + 1);
        }
        let door = name.ends_with("sync.rs") || !name.starts_with("runtime/segment/src");
        assert!(
            door || !text.contains("sync::atomic"),
            "{name}: atomics come from sync.rs"
        );
    }
}

#[test]
fn safety_comments_are_proofs() {
    for (name, text) in sources()
        .into_iter()
        .filter(|(n, _)| n.starts_with("runtime/") || n.starts_with("hw/"))
    {
        let lines: Vec<&str> = text.lines().map(str::trim_start).collect();
        for (n, _) in lines
            .iter()
            .enumerate()
            .filter(|(_, l)| l.starts_with("// SAFETY"))
        {
            let comment: Vec<&str> = lines[n..]
                .iter()
                .copied()
                .take_while(|l| l.starts_with("//"))
                .collect();
            let comment = comment.join(" ");
            for word in ["obviously", " should ", "barring"] {
                assert!(
                    !comment.contains(word),
                    "{name}:{}: `{word}` is no proof",
                    n + 1
                );
            }
            let items = [
                "bounds:",
                "alignment:",
                "initialised",
                "aliasing:",
                "lifetime:",
                "1. ",
            ];
            assert!(
                items.iter().any(|i| comment.contains(i)),
                "{name}:{}: name what is proved",
                n + 1
            );
        }
    }
}

#[test]
fn files_are_small_introduced_and_finished() {
    // Put together, so that this file does not find itself.
    let unfinished = ["FIX", "TO", "XX"].map(|head| match head {
        "FIX" => "FIXME".to_owned(),
        "TO" => "TODO".to_owned(),
        _ => "XXX".to_owned(),
    });
    for (name, text) in sources() {
        let lines = text.lines().count();
        assert!(
            lines <= MOST_LINES,
            "{name} has {lines} lines, the most is {MOST_LINES}"
        );
        let introduced = text.starts_with("//!") || text.starts_with("#![doc");
        assert!(
            introduced || name.starts_with("tests/compile_fail/"),
            "{name} is not introduced"
        );
        if name != "tests/tidy.rs" {
            for word in unfinished
                .iter()
                .map(String::as_str)
                .chain(["todo!(", "unimplemented!("])
            {
                assert!(!text.contains(word), "{name} has a {word}");
            }
        }
    }
}

/// A file that no module declares is read by nobody but readers.
#[test]
fn no_file_is_dead() {
    let sources = sources();
    for (name, _) in sources.iter().filter(|(n, _)| n.contains("/src/")) {
        let path = Path::new(name);
        let (stem, folder) = (
            path.file_stem().expect("a name"),
            path.parent().expect("a folder"),
        );
        let stem = stem.to_string_lossy();
        if ["lib", "main"].contains(&&*stem) {
            continue;
        }
        let (module, declared_in) = match &*stem {
            "mod" => (
                folder.file_name().expect("a name").to_string_lossy(),
                folder.parent(),
            ),
            _ => (stem, Some(folder)),
        };
        let declared_in = declared_in.expect("a parent").display().to_string();
        let parents = ["lib.rs", "main.rs", "mod.rs"].map(|f| format!("{declared_in}/{f}"));
        let beside = format!("{declared_in}.rs");
        let declared = sources.iter().any(|(other, text)| {
            (parents.contains(other) || *other == beside)
                && text.contains(&format!("mod {module};"))
        });
        assert!(declared, "{name} is in no module");
    }
}

/// Each counter is incremented somewhere and looked at by a test.
#[test]
fn every_counter_is_used() {
    let sources = sources();
    let counters =
        fs::read_to_string(root().join("runtime/segment/src/counters.rs")).expect("counters");
    let names = counters.lines().filter_map(|line| {
        let (name, label) = line.trim().split_once(" = \"")?;
        label.ends_with("\",").then(|| name.to_owned())
    });
    for name in names {
        let used = |wanted: &dyn Fn(&str) -> bool| {
            sources
                .iter()
                .any(|(file, text)| wanted(file) && text.contains(&format!("Counter::{name}")))
        };
        assert!(
            used(&|f| f.starts_with("runtime/") && !f.contains("/tests/")),
            "{name} is never counted"
        );
        let in_tests =
            used(&|f| f.starts_with("tests/") || f.contains("/tests/") || f.ends_with("port.rs"));
        assert!(in_tests, "{name} is looked at by no test");
    }
}

#[test]
fn the_changelog_and_the_licences_are_there() {
    let changelog = fs::read_to_string(root().join("CHANGELOG.md")).expect("CHANGELOG.md");
    let version = env!("CARGO_PKG_VERSION");
    assert!(
        changelog.contains(&format!("## {version}")),
        "CHANGELOG.md does not know {version}"
    );
    for name in ["LICENSE-MIT", "LICENSE-APACHE", "README.md", ".ci/run"] {
        assert!(root().join(name).exists(), "{name} is missing");
    }
}
