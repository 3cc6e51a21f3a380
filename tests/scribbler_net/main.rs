//! A hostile peer on the network floods its victim's device with packets of every kind, while the victim serves a third party over the same
//! device, and another one through shared memory.
//!
//! It has a channel of its own, so that it knows a cookie and its packets come from the right address: what is refused then is refused for
//! what it is. `flood.rs` has what it sends, `victim.rs` what is watched: no panic, nothing handled that its sender has not sent, or twice;
//! no poll above a millisecond of own CPU time; each packet of the third party handled, or counted as lost; all frames, slots and credits
//! in one place. Who only guesses is in `tests/over_udp.rs`, who scribbles over shared memory in `tests/scribbler`.
//!
//! `cargo test --test scribbler_net` floods for some seconds over `udp:`, and as root over `xdp:`, generic and native;
//! `TIGHTBEAM_LONG=1 cargo test --release --test scribbler_net` for a minute each. `TIGHTBEAM_SEED` is printed.

mod flood;
#[allow(dead_code, reason = "`tests/steps_net` uses the rest")]
#[path = "../steps_net/ground.rs"]
mod ground;
#[path = "../../hw/xdp/tests/support/netns.rs"]
mod netns;
#[path = "../support/mod.rs"]
mod support;
mod third;
mod victim;

use ground::Ground;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use support::{Ledger, Peer, Scratch, role};

/// The victim's local door, beside that on the network, tells children where the board is.
const BOARD: &str = "TIGHTBEAM_TEST_BOARD";

// Words on the board, each with one writer. The test: who shall stop, and the seed.
pub(crate) const STOP: usize = 0;
pub(crate) const SEED: usize = 1;
// The victim.
pub(crate) const READY: usize = 2;
pub(crate) const POLLS: usize = 3;
pub(crate) const OVER: usize = 4;
pub(crate) const LONGEST: usize = 5;
pub(crate) const HANDLED: usize = 6;
pub(crate) const LOST: usize = 7;
/// Polls above the bound in which channels were opened, or memory was made for frames.
pub(crate) const MAKING: usize = 14;
// The hostile one.
pub(crate) const SENT: usize = 8;
pub(crate) const OPENED: usize = 9;
// The third party, and the local one.
pub(crate) const ASKED: usize = 10;
pub(crate) const UNANSWERED: usize = 11;
/// Packets that the third party has sent, when it sends no more, plus one.
pub(crate) const PACKETS: usize = 12;
pub(crate) const LOCAL_ASKED: usize = 13;

/// Who is told to stop, one after the other.
pub(crate) const HOSTILE: u64 = 1;
pub(crate) const THIRD: u64 = 2;
pub(crate) const VICTIM: u64 = 3;

// Handlers of the victim.
pub(crate) const ECHO: u16 = 1;
pub(crate) const NUMBERED: u16 = 2;
/// The longest poll.
pub(crate) const BOUND: Duration = Duration::from_millis(1);

/// A message that nobody makes by chance.
pub(crate) fn numbered(number: u64) -> [u8; 16] {
    let mut message = [0; 16];
    message[..8].copy_from_slice(&number.to_le_bytes());
    message[8..].copy_from_slice(&sum(number).to_le_bytes());
    message
}

/// The number of such a message.
pub(crate) fn number_of(message: &[u8]) -> Option<u64> {
    let (number, rest) = message.split_first_chunk::<8>()?;
    let number = u64::from_le_bytes(*number);
    (rest == sum(number).to_le_bytes()).then_some(number)
}

fn sum(number: u64) -> u64 {
    (number ^ 0x5bd1_e995).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Not a test: what the child processes run.
#[test]
fn child_role() {
    let Some((role, place)) = role() else {
        return;
    };
    let board = Ledger::of(&std::env::var(BOARD).expect("what the parent tells"));
    match role.as_str() {
        "victim" => victim::run(&board, &place),
        "third" => third::run(&board, &place),
        "local" => third::run_local(&board, &place),
        "hostile" => flood::run(&board, &place),
        other => panic!("no such role: {other}"),
    }
}

fn start(role: &str, ground: &Ground, board: &str, place: &str) -> Peer {
    let mut command = Command::new(std::env::current_exe().expect("the test binary"));
    command.args(["child_role", "--exact", "--nocapture", "--test-threads=1"]);
    command
        .env("TIGHTBEAM_TEST_ROLE", role)
        .env("TIGHTBEAM_TEST_PLACE", place);
    command.env(BOARD, board);
    ground.tell(&mut command);
    let command = command.stdin(Stdio::null()).stdout(Stdio::null());
    Peer(command.spawn().expect("a child process"))
}

fn seed() -> u64 {
    let given = std::env::var("TIGHTBEAM_SEED").ok();
    let given = given.and_then(|seed| seed.parse().ok());
    given.unwrap_or_else(|| u64::from(std::process::id()))
}

fn long() -> bool {
    std::env::var_os("TIGHTBEAM_LONG").is_some()
}

fn flood(ground: &Ground) {
    let scratch = Scratch::new("scribbler-net");
    let board_of = scratch.address();
    let board = Ledger::of(&board_of);
    let seed = seed();
    board.write(SEED, seed);
    // Where each finds the victim: a socket's address has no scheme.
    let by_socket = &ground.there_by_socket;
    let host = by_socket.strip_prefix("udp:").expect("a socket's address");
    let victim = start("victim", ground, &board_of, &ground.listens);
    board.wait_for(READY, 1);
    let third = start("third", ground, &board_of, by_socket);
    let local = start("local", ground, &board_of, &board_of);
    board.wait_for(ASKED, 1);
    board.wait_for(LOCAL_ASKED, 1);
    let hostile = start("hostile", ground, &board_of, host);
    board.wait_for(OPENED, 1);
    let begin = Instant::now();
    std::thread::sleep(Duration::from_secs(if long() { 60 } else { 3 }));
    board.write(STOP, HOSTILE);
    assert!(hostile.finish(), "the hostile one failed");
    let took = begin.elapsed();
    board.write(STOP, THIRD);
    board.wait_for(PACKETS, 1);
    board.write(STOP, VICTIM);
    let status = victim.status();
    assert!(status.success(), "the victim: {status:?}");
    assert!(third.finish() && local.finish(), "a third party failed");
    let read = |word| board.read(word);
    println!(
        "{}, seed {seed}: {} packets in {took:.1?}, {} channels; {} messages of it handled; {} polls, longest {} us of own CPU time, above 1 ms {} in which a channel was opened or memory made for frames, and {} others; the third party: {} calls, {} without an answer, {} packets lost and counted; the local one: {} calls, all answered",
        ground.name,
        read(SENT),
        read(OPENED),
        read(HANDLED),
        read(POLLS),
        read(LONGEST) / 1000,
        read(MAKING),
        read(OVER),
        read(ASKED),
        read(UNANSWERED),
        read(LOST),
        read(LOCAL_ASKED),
    );
    assert!(
        read(SENT) > 1000 && read(HANDLED) > 100,
        "it has become tame"
    );
    // As in `tests/scribbler`: what the hypervisor takes meanwhile the clock cannot tell, and a debug build is another thing.
    if long() && !cfg!(debug_assertions) {
        let over = read(OVER);
        assert!(
            over <= read(POLLS) / 100_000,
            "{over} polls above {BOUND:?}"
        );
    }
}

#[test]
fn a_flood_hurts_nobody_but_its_sender() {
    Ground::each(47411, flood);
}
