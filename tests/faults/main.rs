//! Faults that nobody intends: processes killed at random under load, stopped, continued after they were given up, started
//! again at the same place, with another clock, forked, and out of descriptors or memory.
//!
//! The other side is always a real process: this test binary again, or a fork of one that does nothing else. What they say to
//! each other is numbered and known in every byte, see `traffic.rs`.
//!
//! `cargo test --test faults` runs each with some rounds; `TIGHTBEAM_LONG=1 cargo test --release --test faults` with as many as the
//! figures of the issue ask for. `TIGHTBEAM_KILLS=5000` kills fewer or more at random moments, so that many may be killed a part at
//! a time. `TIGHTBEAM_SEED` repeats the random choices of a run. Most of a long run's kills are with a CPU for each process that is busy: with
//! four on two CPUs the kernel alone takes longer to end one than it may take until all is told.

mod board;
mod clocks;
mod exhausted;
mod forks;
mod found;
mod killer;
mod kills;
mod nursery;
mod stale;
mod stopped;
#[path = "../support/mod.rs"]
mod support;
mod traffic;

use board::{Board, long};
use std::sync::{Mutex, MutexGuard, PoisonError};
use support::role;

/// Descriptors and memory are those of the process, so one test runs at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Not a test: what the child processes run.
#[test]
fn child_role() {
    let Some((role, address)) = role() else {
        return;
    };
    match role.as_str() {
        "nursery" => nursery::run(&address, child),
        other => panic!("no such role: {other}"),
    }
}

/// What a fork of the nursery does.
fn child(role: u64, number: u64, address: &str) {
    let board = Board::of(address);
    match role {
        kills::CONNECTING => traffic::connecting(&board, number, address),
        kills::LISTENING => traffic::listening(&board, number, address),
        kills::THIRD_PARTY => traffic::third_party(&board, number, address),
        number if stopped::ROLES.contains(&number) => stopped::child(&board, number, address),
        number if clocks::ROLES.contains(&number) => clocks::child(&board, number, address),
        exhausted::FIRST.. => exhausted::child(&board, role, number, address),
        forks::FIRST.. => forks::parent(&board, role, number, address),
        other => panic!("no such role: {other}"),
    }
}

/// How many are killed.
fn kills(long_run: u64, short_run: u64) -> u64 {
    let part = std::env::var("TIGHTBEAM_KILLS").ok();
    let part = part.and_then(|number| number.parse().ok());
    part.unwrap_or(if long() { long_run } else { short_run })
}

#[test]
fn clients_are_killed_at_random_moments() {
    let _alone = alone();
    kills::campaign(true, true, kills(5_000, 500));
    kills::campaign(true, false, kills(50_000, 200));
}

#[test]
fn listeners_are_killed_at_random_moments() {
    let _alone = alone();
    kills::campaign(false, true, kills(5_000, 500));
    kills::campaign(false, false, kills(50_000, 200));
}

#[test]
fn an_old_id_reaches_no_new_channel() {
    let _alone = alone();
    stale::ids(if long() { 10_000 } else { 100 });
}

#[test]
fn a_segment_of_another_incarnation_is_refused() {
    let _alone = alone();
    stale::segments(if long() { 10_000 } else { 100 });
}

#[test]
fn a_process_that_forks_keeps_its_channels() {
    let _alone = alone();
    forks::the_parent_goes_on();
}

#[test]
fn a_fork_that_outlives_its_parent_does_not_hide_its_end() {
    let _alone = alone();
    forks::the_fork_outlives_its_parent();
}

#[test]
fn a_fork_that_drops_a_listener_takes_nothing_from_its_parent() {
    let _alone = alone();
    forks::a_fork_drops_a_listener();
}

#[test]
fn an_opening_without_descriptors_or_memory_fails_clearly() {
    let _alone = alone();
    exhausted::clients();
}

#[test]
fn a_first_opening_with_little_space_fails_clearly() {
    let _alone = alone();
    exhausted::first_threads();
}

#[test]
fn a_listener_without_descriptors_or_memory_serves_later() {
    let _alone = alone();
    exhausted::listeners();
}

#[test]
fn a_stopped_consumer_costs_others_nothing() {
    let _alone = alone();
    stopped::consumers();
}

#[test]
fn a_zombie_reaches_nobody() {
    let _alone = alone();
    stopped::zombies();
}

#[test]
fn broken_clocks_and_a_pause_of_all_are_no_deaths() {
    let _alone = alone();
    clocks::broken();
}
