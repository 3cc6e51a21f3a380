//! All interleavings of two or three threads on a ring of two slots:
//! `RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom cargo test --release -p tightbeam-segment --test loom`.
//!
//! The code under test is the code that ships, over loom's atomics. Each file says what its models cannot see, and which
//! test does. What none can see: other processes and real mappings (`tests/processes.rs`), kills (`tests/steps`, `tests/faults`),
//! hostile values (`tests/hostile`, `tests/scribbler`), rings deeper than two slots (`model.rs`, in one thread), and what the
//! hardware does beyond the C11 model that loom has.

#![cfg(loom)]

mod attach;
mod frames;
mod ring;
mod sleep;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Every interleaving: nothing bounds the preemptions, and no loop spins where both sides would.
///
/// Who spins tries over and over, and each time is a case of its own: with a loop that waits for credit three messages took more
/// than 800,000 executions, without one 196,000. So a thread tries so many times and then gives up, at any moment that the
/// model likes; what it did not get to is done when the other has ended.
fn model(f: impl Fn() + Sync + Send + 'static) {
    let executions = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&executions);
    let mut builder = loom::model::Builder::new();
    builder.max_branches = 20_000;
    builder.check(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        f();
    });
    println!("{} executions", executions.load(Ordering::Relaxed));
}
