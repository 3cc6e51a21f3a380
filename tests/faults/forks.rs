//! A process that forks while it has channels. They stay its own: a fork that uses its copy of an endpoint is ended by the
//! kernel (its parent's segments are not mapped there), one that drops it changes nothing, and one that makes an endpoint
//! for itself has one like anybody else. Only the end of the process that opened a channel is told to its peer.

use crate::board::{Board, Word};
use crate::nursery::{Nursery, fork, leave, reap};
use crate::support::{PATIENCE, Scratch, connect, next_event, opened, patiently};
use crate::traffic::{Books, ECHO, builder, now};
use rustix::process::{
    Pid, Signal, kill_process, set_parent_process_death_signal, test_kill_process,
};
use std::os::unix::process::CommandExt;
use std::time::{Duration, Instant};
use tightbeam::{Endpoint, Event};

/// The first of the roles here.
pub(crate) const FIRST: u64 = 100;
/// What a fork does.
const EXITS: u64 = 100;
const EXECS: u64 = 101;
const DROPS: u64 = 102;
const SENDS: u64 = 103;
const POLLS: u64 = 104;
const CONNECTS: u64 = 105;
/// It lives, and its parent does not.
const SURVIVES: u64 = 106;
/// It drops the copy of an endpoint that listens.
const DROPS_LISTENER: u64 = 107;

/// A client, or a listener, that forks as its role says, and goes on after that.
pub(crate) fn parent(board: &Board, role: u64, number: u64, address: &str) {
    let mut endpoint = Some(match role {
        DROPS_LISTENER => builder().listen(&listens_at(address)).expect("a free path"),
        _ => patiently(|| builder().connect(address).ok()),
    });
    if role != DROPS_LISTENER {
        call(endpoint.as_mut().expect("it is there"));
    }
    let forked = fork(|| child(&mut endpoint, role, address));
    board.set(number, Word::Attempted, forked.as_raw_pid() as u64);
    if role == SURVIVES {
        leave(0);
    }
    let status = reap(forked);
    board.set(
        number,
        Word::Received,
        status.terminating_signal().unwrap_or(0) as u64,
    );
    board.set(
        number,
        Word::Wrong,
        status.exit_status().unwrap_or(0) as u64,
    );
    board.set(number, Word::Published, 1);
    let mut endpoint = endpoint.expect("its copy only is gone");
    while board.get(number, Word::Wish) == 0 {
        if role == DROPS_LISTENER {
            endpoint.poll(16);
            endpoint.next_event();
            continue;
        }
        call(&mut endpoint);
        board.add(number, Word::Answered, 1);
        board.add(
            number,
            Word::Ends,
            u64::from(endpoint.next_event().is_some()),
        );
    }
}

fn listens_at(address: &str) -> String {
    format!("{address}.forks")
}

fn call(client: &mut Endpoint<Books>) {
    let answer = client.call(ECHO, b"as before").expect("an answer");
    assert_eq!(answer, b"as before");
}

/// What the fork does with its copy.
fn child(copy: &mut Option<Endpoint<Books>>, role: u64, address: &str) {
    let endpoint = copy.as_mut().expect("a copy");
    match role {
        EXECS => {
            let error = std::process::Command::new("/bin/true").exec();
            panic!("{error}");
        }
        DROPS | DROPS_LISTENER => drop(copy.take()),
        SENDS => {
            let _ = endpoint.try_send(ECHO, b"from the fork");
        }
        POLLS => {
            endpoint.poll(1);
        }
        CONNECTS => {
            let mut own = connect(address);
            let answer = own.call(ECHO, b"from the fork").expect("an answer");
            assert_eq!(answer, b"from the fork");
            // Whoever comes to it is answered by a control thread of its own.
            let mut both = builder()
                .listen(&format!("{address}.own"))
                .expect("a free path");
            let out = both.open(&format!("{address}.own")).expect("it listens");
            let answer = both.call_to(out, ECHO, b"to itself", PATIENCE);
            assert_eq!(answer.expect("an answer"), b"to itself");
        }
        SURVIVES => {
            set_parent_process_death_signal(None).expect("it outlives its parent");
            std::thread::sleep(2 * PATIENCE);
        }
        _ => {}
    }
}

/// Starts a client that forks, and waits until it has a channel.
fn start(nursery: &mut Nursery, board: &Board, server: &mut Endpoint<Books>, role: u64) -> Pid {
    board.clear(role);
    let pid = nursery.fork(role, role);
    opened(server);
    pid
}

fn forked(board: &Board, server: &mut Endpoint<Books>, role: u64) {
    patiently(|| {
        server.poll(64);
        (board.get(role, Word::Published) > 0).then_some(())
    });
}

/// Whatever the fork does, its parent's channel goes on, and nobody is told of an end.
pub(crate) fn the_parent_goes_on() {
    let scratch = Scratch::new("forks");
    let (board, mut nursery) = (Board::of(&scratch.address()), Nursery::start(&scratch));
    let mut server = builder().listen(&scratch.address()).expect("a free path");
    let segv = Signal::SEGV.as_raw() as u64;
    for (role, signal) in [
        (EXITS, 0),
        (EXECS, 0),
        (DROPS, 0),
        (SENDS, segv),
        (POLLS, segv),
        (CONNECTS, 0),
    ] {
        let pid = start(&mut nursery, &board, &mut server, role);
        forked(&board, &mut server, role);
        let told = (
            board.get(role, Word::Received),
            board.get(role, Word::Wrong),
        );
        assert_eq!(told, (signal, 0), "{role}: how the fork ended");
        // The control thread, too, has had time to see what it would see.
        let end = Instant::now() + Duration::from_millis(300);
        let mut expected = if role == CONNECTS { 2 } else { 0 };
        while Instant::now() < end {
            server.poll(64);
            if let Some(event) = server.next_event() {
                expected -= 1;
                assert!(expected >= 0, "{role}: {event:?}");
            }
        }
        assert_eq!(expected, 0, "{role}");
        let before = board.get(role, Word::Answered);
        patiently(|| {
            server.poll(64);
            (board.get(role, Word::Answered) > before + 100).then_some(())
        });
        assert_eq!(board.get(role, Word::Ends), 0, "{role}");
        board.set(role, Word::Wish, 1);
        let end = next_event(&mut server);
        assert!(matches!(end, Event::Closed { .. }), "{role}: {end:?}");
        assert_eq!(nursery.reap(pid), 0);
    }
}

/// The descriptors that a fork holds keep no channel of a dead parent alive.
pub(crate) fn the_fork_outlives_its_parent() {
    let scratch = Scratch::new("orphans");
    let (board, mut nursery) = (Board::of(&scratch.address()), Nursery::start(&scratch));
    let mut server = builder().listen(&scratch.address()).expect("a free path");
    for _ in 0..5 {
        let parent = start(&mut nursery, &board, &mut server, SURVIVES);
        let end = next_event(&mut server);
        assert!(matches!(end, Event::Dead { .. }), "{end:?}");
        assert_eq!(server.channels().count(), 0);
        assert_eq!(nursery.reap(parent), 0);
        let orphan = board.get(SURVIVES, Word::Attempted) as i32;
        let orphan = Pid::from_raw(orphan).expect("a process id");
        test_kill_process(orphan).expect("it lives");
        kill_process(orphan, Signal::KILL).expect("it lives");
        let end = now() + 50_000_000;
        while now() < end {
            assert_eq!(server.poll(64), 0);
            assert!(server.next_event().is_none());
        }
    }
}

/// The path is that of the process that listens, not of its forks.
pub(crate) fn a_fork_drops_a_listener() {
    let scratch = Scratch::new("fork-listens");
    let (board, mut nursery) = (Board::of(&scratch.address()), Nursery::start(&scratch));
    board.clear(DROPS_LISTENER);
    let pid = nursery.fork(DROPS_LISTENER, DROPS_LISTENER);
    patiently(|| (board.get(DROPS_LISTENER, Word::Published) > 0).then_some(()));
    let told = [Word::Received, Word::Wrong].map(|word| board.get(DROPS_LISTENER, word));
    assert_eq!(told, [0, 0], "how the fork ended");
    let builder = || builder().open_within(PATIENCE);
    let mut client = builder()
        .connect(&listens_at(&scratch.address()))
        .expect("it listens");
    call(&mut client);
    board.set(DROPS_LISTENER, Word::Wish, 1);
    let end = next_event(&mut client);
    assert!(matches!(end, Event::Closed { .. }), "{end:?}");
    assert_eq!(nursery.reap(pid), 0);
}
