//! Clocks that cannot be trusted: a wall clock that jumps by a day, monotonic clocks that differ between the two sides by
//! a day, and all processes stopped for seconds. None of it is a death, and a deadline is as long as it says.
//!
//! The machine's clocks are left alone. The wall clock is this binary's own `clock_gettime`, which stands before the C
//! library's; the monotonic one is that of a time namespace, which only root may make.

use crate::board::{Board, Word};
use crate::nursery::{Nursery, fork, leave, reap};
use crate::stopped::{go_on, stop};
use crate::support::{Scratch, patiently};
use crate::traffic::{ECHO, builder};
use rustix::process::Pid;
use rustix::thread::UnshareFlags;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};
use tightbeam::{CallError, SendError, Wait};

/// The roles here; they are numbers on the board too. Each has another clock.
const SERVER: u64 = 20;
const CLIENTS: std::ops::RangeInclusive<u64> = 21..=23;
pub(crate) const ROLES: std::ops::RangeInclusive<u64> = SERVER..=23;

const DAY: i64 = 86_400;
/// All are stopped for so long.
const PAUSE: Duration = Duration::from_secs(5);
/// How long a call waits.
const DEADLINE: Duration = Duration::from_millis(50);

/// The wall clock jumps, and how often it was read meanwhile.
static JUMPS: AtomicBool = AtomicBool::new(false);
static READS: AtomicU64 = AtomicU64::new(0);

type ClockGettime = unsafe extern "C" fn(libc::clockid_t, *mut libc::timespec) -> libc::c_int;

/// The C library's, as found by the dynamic linker behind this binary.
fn the_true_one() -> Option<ClockGettime> {
    static FOUND: AtomicUsize = AtomicUsize::new(0);
    let mut found = FOUND.load(Ordering::Relaxed);
    if found == 0 {
        // SAFETY: bounds: the name ends with a NUL; nothing else is read.
        found = unsafe { libc::dlsym(libc::RTLD_NEXT, c"clock_gettime".as_ptr()) } as usize;
        FOUND.store(found, Ordering::Relaxed);
    }
    // SAFETY: bounds: what has this name in a C library is a function of this type; and a null pointer is None.
    unsafe { std::mem::transmute::<usize, Option<ClockGettime>>(found) }
}

/// In front of the C library's: the standard library of this process reads this one.
///
/// # Safety
///
/// As of the C library's: `at` is valid for a write.
#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, at: *mut libc::timespec) -> libc::c_int {
    let Some(clock_gettime) = the_true_one() else {
        return -1;
    };
    // SAFETY: bounds: as the caller vouches.
    let result = unsafe { clock_gettime(clock, at) };
    let wall = [
        libc::CLOCK_REALTIME,
        libc::CLOCK_REALTIME_COARSE,
        libc::CLOCK_TAI,
    ]
    .contains(&clock);
    if result == 0 && wall && JUMPS.load(Ordering::Relaxed) {
        let reads = READS.fetch_add(1, Ordering::Relaxed);
        let jump = if reads.is_multiple_of(2) { DAY } else { -DAY };
        // SAFETY: bounds: as the caller vouches, and the call above has written it.
        unsafe { (*at).tv_sec += jump };
    }
    result
}

/// Runs with a monotonic clock of its own, if there may be one, and a wall clock that jumps.
pub(crate) fn child(board: &Board, role: u64, address: &str) {
    let shift = match role {
        21 => DAY,
        22 => -uptime().min(DAY),
        23 => 10 * 365 * DAY,
        _ => 0,
    };
    let shifted = shift != 0 && shift_clocks(shift);
    board.set(role, Word::Published, 1 + u64::from(shifted));
    // A time namespace is for children only.
    let forked = fork(|| {
        // Its mapping is not for forks.
        let board = &Board::of(address);
        JUMPS.store(true, Ordering::Relaxed);
        match role {
            SERVER => serve(board, address),
            _ => call(board, role, address),
        }
        board.add(role, Word::Wrong, READS.load(Ordering::Relaxed));
        // That it does jump, and that this is seen.
        let [one, two] = [SystemTime::now(), SystemTime::now()];
        assert!(
            one.duration_since(two)
                .is_ok_and(|gap| gap > Duration::from_secs(DAY as u64))
        );
        assert!(READS.load(Ordering::Relaxed) >= 2);
    });
    board.set(role, Word::Attempted, forked.as_raw_pid() as u64);
    leave(reap(forked).exit_status().unwrap_or(100));
}

fn uptime() -> i64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    // What would be below zero is refused.
    now.tv_sec - 10
}

fn shift_clocks(seconds: i64) -> bool {
    // SAFETY: lifetime: this process has one thread, and the flag changes nothing but in which time its children live.
    let unshared = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWTIME) };
    let offsets = format!("monotonic {seconds} 0\nboottime {seconds} 0\n");
    unshared.is_ok() && std::fs::write("/proc/self/timens_offsets", offsets).is_ok()
}

fn serve(board: &Board, address: &str) {
    let mut server = builder().listen(address).expect("a free path");
    while board.get(SERVER, Word::Wish) == 0 {
        server.poll_for(64, Duration::from_millis(5));
        while let Some(event) = server.next_event() {
            let ended = !matches!(event, tightbeam::Event::Opened { .. });
            board.add(SERVER, Word::Ends, u64::from(ended));
        }
    }
}

/// Calls without a pause; a deadline that is told must have been as long as it says.
fn call(board: &Board, number: u64, address: &str) {
    let wait = match number % 3 {
        0 => Wait::Spin,
        1 => Wait::Park,
        _ => Wait::Adaptive,
    };
    let builder = || builder().deadline(DEADLINE).wait(wait);
    let mut client = patiently(|| builder().connect(address).ok());
    while board.get(number, Word::Wish) == 0 {
        let start = Instant::now();
        match client.call(ECHO, b"what time is it") {
            Ok(b"what time is it") => board.add(number, Word::Answered, 1),
            // Of a call that was not answered, or had no room, nothing can be wrong but the time.
            Err(CallError::DeadlineExceeded | CallError::NotSent(SendError::DeadlineExceeded))
                if start.elapsed() >= DEADLINE =>
            {
                board.add(number, Word::Failed, 1);
            }
            _ => board.add(number, Word::Wrong, 1),
        }
        let ended = client.next_event().is_some();
        board.add(number, Word::Ends, u64::from(ended));
    }
}

/// All that must be true of all of them at any time.
fn assert_alive(board: &Board) {
    for role in ROLES {
        for word in [Word::Wrong, Word::Ends] {
            assert_eq!(board.get(role, word), 0, "{role}: {word:?}");
        }
    }
}

/// Everybody calls and is answered.
fn assert_answered(board: &Board) {
    let before: Vec<u64> = CLIENTS
        .map(|role| board.get(role, Word::Answered))
        .collect();
    patiently(|| {
        let mut clients = CLIENTS.zip(&before);
        let all = clients.all(|(role, before)| board.get(role, Word::Answered) > before + 50);
        all.then_some(())
    });
    assert_alive(board);
}

pub(crate) fn broken() {
    let scratch = Scratch::new("clocks");
    let board = Board::of(&scratch.address());
    let mut nursery = Nursery::start(&scratch);
    let parents: Vec<Pid> = ROLES.map(|role| nursery.fork(role, role)).collect();
    let pids: Vec<Pid> = ROLES
        .map(|role| patiently(|| Pid::from_raw(board.get(role, Word::Attempted) as i32)))
        .collect();
    let shifted = CLIENTS
        .filter(|&role| board.get(role, Word::Published) == 2)
        .count();
    if shifted < CLIENTS.count() {
        println!(
            "skipped: clocks of their own for {} of {} clients: not root",
            CLIENTS.count() - shifted,
            CLIENTS.count()
        );
    }
    assert_answered(&board);

    // Only the server is stopped: each call has its deadline, on the clock of who calls.
    let late = |board: &Board| CLIENTS.map(|role| board.get(role, Word::Failed)).min();
    stop(pids[0]);
    let before = late(&board);
    patiently(|| (late(&board) >= before.map(|n| n + 5)).then_some(()));
    go_on(pids[0]);
    assert_answered(&board);

    // All are, and then nobody knows.
    for &pid in &pids {
        stop(pid);
    }
    let start = Instant::now();
    let calls: u64 = CLIENTS.map(|role| board.get(role, Word::Answered)).sum();
    std::thread::sleep(PAUSE);
    assert_eq!(
        CLIENTS
            .map(|role| board.get(role, Word::Answered))
            .sum::<u64>(),
        calls
    );
    for &pid in pids.iter().rev() {
        go_on(pid);
    }
    assert_answered(&board);
    println!(
        "{shifted} clients with a monotonic clock of their own, wall clocks that jump by a day at each look (never looked at); all paused for {:.1?}: no false death, {calls} calls answered before, and all goes on",
        start.elapsed()
    );
    for role in ROLES.rev() {
        // The clients first: the end of the server would be an end to tell.
        board.set(role, Word::Wish, 1);
        assert_eq!(nursery.reap(parents[(role - SERVER) as usize]), 0, "{role}");
        assert_eq!(
            board.get(role, Word::Wrong),
            0,
            "{role}: the wall clock was read"
        );
    }
}
