//! All interleavings of two or three threads on a ring of two slots:
//! `RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom cargo test --release -p tightbeam-segment --test loom`.
//!
//! The code under test is the code that ships, over loom's atomics. Each file says what its models cannot see, and which
//! test does. What none can see: other processes and real mappings (`tests/processes.rs`), kills (`tests/endings.rs`), hostile
//! values (`tests/bad_peers.rs`), rings deeper than two slots (`model.rs`, in one thread), and what the hardware does beyond
//! the C11 model that loom has.

#![cfg(loom)]

mod attach;
mod frames;
mod ring;
mod sleep;

use loom::thread;
use tightbeam_segment::{Outgoing, Port, TrySendError};

/// Every interleaving.
fn model(f: impl Fn() + Sync + Send + 'static) {
    build(None, f);
}

/// Every interleaving with at most so many preemptions of each thread, where all of them take hours; with `TIGHTBEAM_LONG=1`
/// all of them.
fn explore(preemptions: usize, f: impl Fn() + Sync + Send + 'static) {
    let long = std::env::var_os("TIGHTBEAM_LONG").is_some();
    build((!long).then_some(preemptions), f);
}

fn build(preemptions: Option<usize>, f: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = preemptions;
    builder.max_branches = 20_000;
    builder.check(f);
}

fn send(port: &Port, out: Outgoing, bytes: &[u8]) {
    loop {
        match port.try_send(out, bytes) {
            Ok(()) => return,
            Err(TrySendError::Full) => thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
}
