//! Rows C5 and R5 to R7: handlers that panic, wake-ups, the control socket.

use crate::liar::{ASLEEP, CPU, Liar, Opener, STATE_LINE, Side, WAKE, liars_address, path, report};
use crate::long;
use crate::support::opening::{HELLO, identity, opening, receive, segment, send};
use crate::support::{Ledger, PATIENCE, patiently};
use crate::victim::{ANSWERED, BUDGET, ECHO, GO, NOTE, NUMBER, PANIC, PROGRESS, REST, Stage};
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tightbeam::{Counter, Endpoint, Event, PeerFault, SendError, Wait};
use tightbeam_segment::{MAX_CALLS, Outgoing};
use tightbeam_sys::{control, wake};

/// What the liar does.
pub(crate) fn act(side: Side, act: &str, address: &str) -> bool {
    match act {
        "make handlers panic" => make_handlers_panic(side, address),
        "wake all the time" => wake_all_the_time(side, address),
        "run everywhere" => run_everywhere(side, address),
        "ask and sleep" => ask_and_sleep(side, address, 1),
        "ask and sleep on the connection" => ask_and_sleep(side, address, 2),
        "flood the control socket" => flood_control(side, address),
        "flood the opening" => flood_the_opening(address),
        "say nothing" => say_nothing(address, false),
        "say no more than hello" => say_nothing(address, true),
        "move sleepers" => move_sleepers(side, address),
        _ => return false,
    }
    true
}

const PANICS: u64 = 20;

/// Sends what its victim cannot handle.
fn make_handlers_panic(side: Side, address: &str) {
    let liar = Opener::new(side, address).open();
    Ledger::of(address).wait_for(GO, 1);
    for number in 0..PANICS {
        let out = Outgoing::message(PANIC);
        patiently(|| liar.port.try_send(out, &number.to_ne_bytes()).ok());
        liar.say(0..1);
    }
    Ledger::of(address).wait_for(GO, 2);
    liar.leave();
}

/// Each such message is handled once; those behind it, and everybody else, go on.
#[test]
fn c05_handlers_that_panic() {
    for side in Side::BOTH {
        let mut stage = Stage::new("c05");
        let liar = stage.liar(side, "make handlers panic");
        let channel = stage.meet(side);
        let answered = stage.ledger.read(ANSWERED);
        stage.go(1);
        let mut panics = 0;
        patiently(|| {
            let polled = catch_unwind(AssertUnwindSafe(|| stage.victim.poll(64)));
            panics += u64::from(polled.is_err());
            (stage.log(channel).messages == 2 * PANICS).then_some(())
        });
        stage.goes_on();
        assert_eq!(panics, PANICS);
        let counters = stage.victim.counters(channel).expect("still open");
        assert_eq!(counters.get(Counter::HandlerUnwound), PANICS);
        assert_eq!(counters.get(Counter::Received), 2 * PANICS);
        assert!(stage.ledger.read(ANSWERED) > answered);
        stage.go(2);
        let end = stage.event();
        assert!(matches!(end, Event::Closed { .. }), "{end:?}");
        assert!(liar.finish());
        stage.quarantined(channel);
        stage.end();
    }
}

/// Says that it sleeps, always, and wakes its victim without a reason, as fast as it can.
fn wake_all_the_time(side: Side, address: &str) {
    let liar = Opener::new(side, address).open();
    liar.own.write(STATE_LINE, ASLEEP, 1);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (own, over) = (&liar.own, &over);
        scope.spawn(move || {
            let word = own.word(STATE_LINE, WAKE);
            let ledger = Ledger::of(address);
            for number in 1.. {
                word.fetch_add(1, Ordering::Relaxed);
                wake::wake_one(word);
                ledger.write(NUMBER, number);
                if over.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        report(address, 1);
        Ledger::of(address).wait_for(GO, 1);
        over.store(true, Ordering::Relaxed);
    });
    liar.leave();
}

/// Calls of the third party in this time, while the victim waits as it is set to.
fn calls_in(stage: &mut Stage, time: Duration) -> u64 {
    let before = stage.ledger.read(ANSWERED);
    let end = Instant::now() + time;
    while Instant::now() < end {
        stage.victim.poll_for(64, Duration::from_millis(5));
    }
    stage.ledger.read(ANSWERED) - before
}

/// It costs its victim a system call for each message that it sends from outside a handler, and naps that are shorter: nobody waits, and nothing is lost.
#[test]
fn r05_a_storm_of_wake_ups() {
    let time = Duration::from_millis(if long() { 5_000 } else { 300 });
    for side in Side::BOTH {
        let mut stage = Stage::with("r05", |builder| builder.wait(Wait::Park));
        let without = calls_in(&mut stage, time);
        let liar = stage.liar(side, "wake all the time");
        let channel = stage.meet(side);
        stage.until_progress(1);
        let before = stage.ledger.read(NUMBER);
        let with = calls_in(&mut stage, time);
        let storm = stage.ledger.read(NUMBER) - before;
        println!(
            "{with} calls of the third party beside {storm} wake-ups, {without} before, {side:?}"
        );
        assert!(storm > with, "that was no storm");
        let (sent, refused) = stage.fill(channel);
        assert_eq!(refused, SendError::Full);
        let counters = stage.victim.counters(channel).expect("still open");
        assert_eq!(counters.get(Counter::Wakes), sent, "one for each message");
        stage.goes_on();
        assert!(stage.victim.next_event().is_none());
        stage.go(1);
        let end = stage.event();
        assert!(matches!(end, Event::Closed { .. }), "{end:?}");
        assert!(liar.finish());
        stage.quarantined(channel);
        stage.end();
    }
}

/// Says that it runs on each CPU in turn, and on none that there is, and sends meanwhile.
fn run_everywhere(side: Side, address: &str) {
    let liar = Opener::new(side, address).open();
    for (number, cpu) in (0..3000).zip([1, 2, u64::MAX, 0].into_iter().cycle()) {
        liar.own.write(STATE_LINE, CPU, cpu);
        liar.say(number..number + 1);
    }
    Ledger::of(address).wait_for(GO, 1);
    liar.leave();
}

/// A peer that its victim takes for a neighbour costs it time, no message, and no channel.
#[test]
fn r05_a_peer_that_claims_to_run_everywhere() {
    for (side, wait) in Side::BOTH.into_iter().zip([Wait::Adaptive, Wait::Park]) {
        let mut stage = Stage::with("r05-cpu", |builder| builder.wait(wait));
        let liar = stage.liar(side, "run everywhere");
        let channel = stage.meet(side);
        patiently(|| {
            stage.victim.poll_for(64, Duration::from_millis(5));
            (stage.log(channel).messages == 3000).then_some(())
        });
        stage.goes_on();
        stage.go(1);
        let end = stage.event();
        assert!(matches!(end, Event::Closed { .. }), "{end:?}");
        assert!(liar.finish());
        stage.quarantined(channel);
        stage.end();
    }
}

/// As many as a channel allows.
const CALLS: u64 = MAX_CALLS as u64;

/// Calls many times at once, and says that it sleeps, and how it is to be woken.
fn ask_and_sleep(side: Side, address: &str, how: u64) {
    let liar = Opener::new(side, address).open();
    liar.own.write(STATE_LINE, ASLEEP, how);
    Ledger::of(address).wait_for(GO, 1);
    for number in 0..CALLS {
        let call = Outgoing::call(ECHO);
        let sent = liar.port.try_send(call, &number.to_ne_bytes());
        sent.expect("there is room");
    }
    report(address, 1);
    // What comes over the connection it does not take meanwhile.
    Ledger::of(address).wait_for(GO, 2);
    while control::receive(liar.socket.as_fd(), &mut [0; 2]).is_ok_and(|got| got.bytes > 0) {}
    liar.leave();
}

/// However many answers there are: it is woken no more than twice a look. And however often it is woken over a connection that it
/// does not read: nobody waits for it.
#[test]
fn r05_answers_to_a_peer_that_always_sleeps() {
    for (side, act) in [
        (Side::Client, "ask and sleep"),
        (Side::Server, "ask and sleep"),
        (Side::Client, "ask and sleep on the connection"),
        (Side::Server, "ask and sleep on the connection"),
    ] {
        let mut stage = Stage::new("r05-answers");
        let liar = stage.liar(side, act);
        let channel = stage.meet(side);
        stage.go(1);
        stage.ledger.wait_for(PROGRESS, 1);
        stage.victim.poll(BUDGET);
        let counters = stage.victim.counters(channel).expect("still open");
        assert_eq!(counters.get(Counter::Sent), CALLS, "all answers at once");
        let wakes = counters.get(Counter::Wakes);
        assert!((1..=2).contains(&wakes), "{wakes} for {CALLS} answers");
        let (sent, refused) = stage.fill(channel);
        assert_eq!(refused, SendError::Full);
        let counters = stage.victim.counters(channel).expect("still open");
        assert_eq!(counters.get(Counter::Wakes), wakes + sent);
        stage.goes_on();
        stage.go(2);
        let end = stage.event();
        assert!(matches!(end, Event::Closed { .. }), "{end:?}");
        assert!(liar.finish());
        stage.quarantined(channel);
        stage.end();
    }
}

/// Sends large messages until no more are taken, and how many were.
fn flood(socket: &OwnedFd) -> u64 {
    let much = vec![0x5a; 100_000];
    let mut sent = 0;
    loop {
        match control::send(socket.as_fd(), &much, None) {
            Ok(()) => sent += 1,
            Err(Errno::AGAIN | Errno::PIPE | Errno::CONNRESET) => return sent,
            Err(other) => panic!("{other}"),
        }
    }
}

/// Fills its victim's end of an open channel's connection.
fn flood_control(side: Side, address: &str) {
    let liar = Opener::new(side, address).open();
    liar.say(0..10);
    Ledger::of(address).wait_for(GO, 1);
    assert!(flood(&liar.socket) > 0);
    liar.wait_for_hang_up();
}

#[test]
fn r06_the_control_socket_of_a_channel_is_flooded() {
    for side in Side::BOTH {
        let mut stage = Stage::new("r06");
        let liar = stage.liar(side, "flood the control socket");
        let channel = stage.meet(side);
        stage.until_noted(channel, 10);
        stage.go(1);
        assert_eq!(stage.faulted(channel), PeerFault::Control);
        stage.quarantined(channel);
        assert!(liar.finish());
        stage.end();
    }
}

const FLOODS: u64 = 200;

/// Fills connections before and after a hello.
fn flood_the_opening(address: &str) {
    let (_formatted, memory) = segment();
    for n in 0..FLOODS {
        let socket = patiently(|| control::connect(&path(address)).ok());
        if n % 2 == 1 {
            send(&socket, &opening(HELLO, identity()), &[memory.as_fd()]);
        }
        flood(&socket);
        while receive(&socket).is_some() {}
    }
}

#[test]
fn r06_openings_are_flooded() {
    let mut stage = Stage::new("r06-opening");
    let liar = stage.liar(Side::Client, "flood the opening");
    stage.until(|stage| {
        let openings = stage.victim.openings();
        (openings.broken_off == FLOODS).then_some(())
    });
    assert!(liar.finish());
    assert!(stage.victim.next_event().is_none(), "none had a channel");
    stage.end();
}

/// Connections that are held at a time.
const SILENT: usize = 150;

/// Holds connections over which it says nothing, or no more than the first word, until it is hung up on.
fn say_nothing(address: &str, hello: bool) {
    let (_formatted, memory) = segment();
    let mut held = Vec::new();
    let end = |held: &Vec<OwnedFd>| held.len() == SILENT;
    while !end(&held) {
        // The backlog is full until some of the first have had their time.
        let socket = patiently(|| control::connect(&path(address)).ok());
        if hello {
            send(&socket, &opening(HELLO, identity()), &[memory.as_fd()]);
        }
        held.push(socket);
        report(address, held.len() as u64);
    }
    for socket in held {
        while receive(&socket).is_some() {}
    }
}

/// Whoever comes meanwhile waits behind them at that door, at no other, and at most until their time is over.
fn silence(name: &str, act: &str) {
    const WITHIN: Duration = Duration::from_millis(300);
    let mut stage = Stage::with(name, |builder| builder.open_within(WITHIN));
    let second = liars_address(&stage.address());
    stage.victim.accept_at(&second).expect("a free path");
    let before = open_descriptors();
    let liar = stage.liar(Side::Client, act);
    stage.until_progress(70);
    for (address, door) in [(second, "another"), (stage.address(), "the same")] {
        let since = Instant::now();
        let client = std::thread::spawn(move || {
            let builder = Endpoint::builder().open_within(PATIENCE);
            builder.connect(&address).map(drop)
        });
        let event = stage.event();
        assert!(matches!(event, Event::Opened { .. }), "{event:?}");
        println!("{door} door: let in after {:?}", since.elapsed());
        let end = stage.event();
        assert!(matches!(end, Event::Closed { .. }), "{end:?}");
        client.join().expect("no panic").expect("let in");
    }
    stage.until(|stage| (stage.victim.openings().broken_off == SILENT as u64).then_some(()));
    assert!(liar.finish());
    patiently(|| (open_descriptors() <= before).then_some(()));
    stage.end();
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("proc").count()
}

#[test]
fn r06_clients_that_say_nothing() {
    silence("r06-silent", "say nothing");
}

#[test]
fn r06_clients_that_say_no_more_than_hello() {
    silence("r06-hello", "say no more than hello");
}

/// Messages that are sent to a sleeper.
fn sleeps() -> u64 {
    if long() { 20_000 } else { 100 }
}

/// The low half of a word, where futexes are.
fn futex(word: &AtomicU64) -> *const u32 {
    let half = usize::from(cfg!(target_endian = "big"));
    word.as_ptr().cast::<u32>().cast_const().wrapping_add(half)
}

/// Moves everybody who sleeps on one word to another; how many.
fn requeue(from: &AtomicU64, to: &AtomicU64) -> i64 {
    // SAFETY: lifetime: both words are borrowed for the call, which uses their addresses only to find sleepers.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            futex(from),
            libc::FUTEX_REQUEUE,
            0,
            i64::from(i32::MAX),
            futex(to),
            0,
        )
    }
}

/// Moves its victim, whenever that sleeps, to a word on which nobody wakes it; then sends it a message and wakes it by the rules.
fn move_sleepers(side: Side, address: &str) {
    let liar = Opener::new(side, address).open();
    let [word, elsewhere, further] = [WAKE, 7, 6].map(|word| liar.own.word(STATE_LINE, word));
    let asleep = |liar: &Liar| liar.seen.read(STATE_LINE, ASLEEP) != 0;
    let mut missed = 0u64;
    for number in 0..sleeps() {
        // It sleeps for 10 ms at a time, so it will be found asleep.
        patiently(|| (requeue(word, elsewhere) > 0).then_some(()));
        let now = monotonic();
        patiently(|| {
            liar.port
                .try_send(Outgoing::message(NOTE), &now.to_ne_bytes())
                .ok()
        });
        if asleep(&liar) {
            wake::wake_one(liar.port.bump_wake_word());
        }
        // Who sleeps on was not reached by that.
        missed += u64::from(requeue(elsewhere, further) > 0);
        Ledger::of(address).write(NUMBER, missed);
        report(address, number + 1);
        Ledger::of(address).wait_for(GO, number + 1);
    }
    liar.leave();
}

/// Nanoseconds on the clock that all processes share.
fn monotonic() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// A sleeper that was moved away looks again when its own bound is over: late, and nothing is lost.
#[test]
fn r07_a_sleeper_is_moved_away() {
    for side in Side::BOTH {
        let mut stage = Stage::with("r07", |builder| builder.wait(Wait::Park));
        // Whose calls would wake the sleeper as well.
        stage.ledger.write(REST, 50_000);
        let liar = stage.liar(side, "move sleepers");
        let channel = stage.meet(side);
        let mut latencies = Vec::new();
        for number in 1..=sleeps() {
            patiently(|| {
                stage.victim.poll_for(64, PATIENCE);
                (stage.log(channel).messages == number).then_some(())
            });
            let sent = stage.log(channel).last;
            let sent = u64::from_ne_bytes(sent.try_into().expect("a time"));
            latencies.push(Duration::from_nanos(monotonic() - sent));
            let event = stage.victim.next_event();
            assert!(event.is_none(), "{event:?}");
            stage.until_progress(number);
            stage.go(number);
        }
        latencies.sort();
        let (half, most) = (
            latencies[latencies.len() / 2],
            latencies[latencies.len() - 1],
        );
        let missed = stage.ledger.read(NUMBER);
        println!("{missed} wake-ups reached nobody; late by {half:?} p50, {most:?} max, {side:?}");
        assert!(missed > sleeps() / 4, "{missed} of {}", sleeps());
        stage.ledger.write(REST, 0);
        let end = stage.event();
        assert!(matches!(end, Event::Closed { .. }), "{end:?}");
        assert_eq!(stage.log(channel).messages, sleeps());
        assert!(liar.finish());
        stage.quarantined(channel);
        stage.end();
    }
}
