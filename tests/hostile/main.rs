//! Hostile peers: one test for each row of the fault catalogue that can exist between two processes.
//!
//! | file | what |
//! |---|---|
//! | `victim.rs` | the victim, in the test's process, and the third party that it serves |
//! | `liar.rs` | the hostile peer, a process of its own: by the rules up to one point |
//! | `lies.rs` | what it writes into its ring, and which fault that is |
//! | `rings.rs`, `words.rs` | rows S: ring words, descriptors, payload |
//! | `lending.rs` | rows S for frames: parts, returns, what lies in them |
//! | `segments.rs` | rows L1 to L6: segments and descriptors |
//! | `memory.rs` | rows L1 to L6 for memory of frames |
//! | `identity.rs` | rows L8 to L10: who is on the other side |
//! | `waking.rs` | rows C5 and R: handlers, wake-ups, the control socket |
//! | `catalogue.rs` | that `README.md` names a test or a reason for every row |
//!
//! Every mapping of the library has guard pages on both sides, so that an access outside ends the test by a signal.

#[path = "../support/mod.rs"]
mod support;

mod catalogue;
mod identity;
mod lending;
mod liar;
mod lies;
mod memory;
mod rings;
mod segments;
mod victim;
mod waking;
mod words;

use liar::Side;

/// Whether this is the run that takes its time.
pub(crate) fn long() -> bool {
    std::env::var_os("TIGHTBEAM_LONG").is_some()
}

/// Runs what a child is asked to be; in the test runner it does nothing.
#[test]
fn child_role() {
    let Some((role, address)) = support::role() else {
        return;
    };
    if role == "third party" {
        return victim::third_party(&address);
    }
    let (side, act) = match role.split_once(' ') {
        Some(("Client", act)) => (Side::Client, act),
        Some(("Server", act)) => (Side::Server, act),
        _ => panic!("no such role: {role}"),
    };
    let acts = [
        rings::act as fn(Side, &str, &str) -> bool,
        words::act,
        segments::act,
        identity::act,
        waking::act,
        lending::act,
        memory::act,
    ];
    let acted = acts.iter().any(|run| run(side, act, &address));
    assert!(acted, "nobody acts `{act}`");
}
