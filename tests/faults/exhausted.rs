//! Out of descriptors or of address space: an opening fails with an error that names what is missing, what is open goes on,
//! and once there is room again so does the rest. (Locked memory and huge pages: `tests/bad_input.rs`.)

use crate::board::{Board, Word, descriptors};
use crate::kills::EACH;
use crate::nursery::Nursery;
use crate::support::{Scratch, assert_says, patiently};
use crate::traffic::{Books, ECHO, builder};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::collections::BTreeSet;
use std::time::Duration;
use tightbeam::{CallError, Endpoint, Event, OpenError};

/// The first of the roles here.
pub(crate) const FIRST: u64 = 200;
const CLIENT_FILES: u64 = 200;
const CLIENT_SPACE: u64 = 201;
const FIRST_FILES: u64 = 202;
const FIRST_SPACE: u64 = 203;
const LISTENER_FILES: u64 = 204;
const LISTENER_SPACE: u64 = 205;

/// How much more than it has a process may have: descriptors, or lots of address space.
const MORE: u64 = 12;
const LOT: u64 = 64 << 10;

pub(crate) fn child(board: &Board, role: u64, number: u64, address: &str) {
    match role {
        CLIENT_FILES => client(address, Resource::Nofile, true),
        CLIENT_SPACE => client(address, Resource::As, true),
        FIRST_FILES => client(address, Resource::Nofile, false),
        FIRST_SPACE => first(address, number),
        LISTENER_FILES => listener(board, number, address, Resource::Nofile),
        _ => listener(board, number, address, Resource::As),
    }
}

/// Has the kernel make the stack as large as it will ever be: to grow it without address space is fatal for any process.
fn grow_stack() {
    let stack = std::hint::black_box([1u8; 512 << 10]);
    assert_eq!(stack[0], stack[stack.len() - 1]);
}

/// Whether all threads of this process but the first wait for something.
fn others_sleep() -> bool {
    let threads = std::fs::read_dir("/proc/self/task").expect("proc");
    let first = std::process::id().to_string();
    let others = threads
        .flatten()
        .filter(|thread| thread.file_name() != first.as_str());
    let mut stats = others.map(|thread| std::fs::read_to_string(thread.path().join("stat")));
    stats.all(|stat| stat.is_ok_and(|stat| stat.contains(") S ")))
}

/// Lets this process have so much more of a resource than it has now, at most.
fn limit(resource: Resource, more: u64) {
    let now = match resource {
        Resource::As => space() + more * LOT,
        _ => {
            // So many that are free, also between those that are open.
            let is_open = |n: &u64| std::fs::symlink_metadata(format!("/proc/self/fd/{n}")).is_ok();
            let free = (0u64..).filter(|n| !is_open(n));
            free.take(more as usize + 1).last().expect("one more")
        }
    };
    set(resource, Some(now));
}

/// Bytes of address space that this process has.
fn space() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("proc");
    let pages = statm.split(' ').next().and_then(|n| n.parse().ok());
    pages
        .map(|pages: u64| pages * tightbeam_sys::memory::page_size() as u64)
        .expect("pages")
}

fn set(resource: Resource, current: Option<u64>) {
    let Rlimit { maximum, .. } = getrlimit(resource);
    let current = current.or(maximum);
    setrlimit(resource, Rlimit { current, maximum }).expect("below the hard limit");
}

fn call(client: &mut Endpoint<Books>) {
    assert_eq!(client.call(ECHO, b"still").expect("an answer"), b"still");
}

/// Opens channels with less and less room, until it is clear what is missing; then with room.
fn client(address: &str, resource: Resource, has_one: bool) {
    grow_stack();
    let mut first = has_one.then(|| builder().connect(address).expect("it listens"));
    let mut failures = 0;
    for more in 0..MORE {
        limit(resource, more);
        let outcome = builder().connect(address);
        if let Some(first) = &mut first {
            call(first);
        }
        set(resource, None);
        match outcome {
            Ok(mut client) => call(&mut client),
            Err(error) => {
                failures += 1;
                eprintln!("{resource:?} + {more}: {error}");
                let words: &[&str] = match resource {
                    Resource::As => &["Cannot allocate memory"],
                    _ => &["Too many open files"],
                };
                assert_says(&error, words);
            }
        }
        if let Some(first) = &mut first {
            call(first);
        }
        call(&mut builder().connect(address).expect("there is room"));
        // A process that never had an endpoint is no longer one.
        if !has_one {
            return assert_eq!(failures, 1);
        }
    }
    assert!((1..MORE).contains(&failures), "{failures} failures");
}

/// Opens the first channel of a process, which starts threads, with a little more space each time.
fn first(address: &str, pages: u64) {
    grow_stack();
    // A process of Rust's ends where a few bytes are not to be had. As much is kept when it is free.
    drop(std::hint::black_box(vec![1u8; 100 << 10]));
    set(Resource::As, Some(space() + pages * PAGES));
    let outcome = builder().connect(address);
    set(Resource::As, None);
    match outcome {
        Ok(mut client) => call(&mut client),
        Err(error) => assert_says(&error, &["Cannot allocate memory"]),
    }
}

/// Two pages: as little as a thread may lack for the rest of its stack.
const PAGES: u64 = 8 << 10;

/// Processes that may have any amount of space up to what three threads and a channel take.
pub(crate) fn first_threads() {
    const ENOUGH: u64 = (12 << 20) / PAGES;
    let scratch = Scratch::new("tight-first");
    let mut nursery = Nursery::start(&scratch);
    let mut server = builder().listen(&scratch.address()).expect("a free path");
    let (mut opened, mut closed) = (0, 0);
    std::thread::scope(|scope| {
        let reaper = scope.spawn(|| {
            for pages in 0..ENOUGH {
                let pid = nursery.fork(FIRST_SPACE, pages);
                assert_eq!(
                    nursery.reap(pid),
                    0,
                    "{pages} times {PAGES} bytes: see above"
                );
            }
        });
        while !reaper.is_finished() {
            server.poll(64);
            match server.next_event() {
                Some(Event::Opened { .. }) => opened += 1,
                Some(_) => closed += 1,
                None => std::thread::yield_now(),
            }
        }
        reaper.join().expect("see above");
    });
    assert!(
        (1..ENOUGH).contains(&opened),
        "{opened} opened, {closed} closed"
    );
}

/// Serves with as much as the test allows, and says so.
fn listener(board: &Board, number: u64, address: &str, resource: Resource) {
    let mut server = builder()
        .listen(&format!("{address}.tight"))
        .expect("a free path");
    let idle = descriptors();
    grow_stack();
    board.set(number, Word::Published, 1);
    let mut obeyed = 0;
    loop {
        server.poll(64);
        let wish = board.get(number, Word::Wish);
        if wish != obeyed {
            match wish {
                END => return,
                ROOM => set(resource, None),
                more => {
                    // What has ended has been given back, and no thread that did that is still at its beginning: to have the rest
                    // of its stack refused there is fatal for any process.
                    patiently(|| {
                        server.poll(64);
                        (descriptors() == idle + EACH && others_sleep()).then_some(())
                    });
                    limit(resource, more - 1);
                }
            }
            obeyed = wish;
            board.set(number, Word::Received, wish);
        }
    }
}

const END: u64 = u64::MAX;
const ROOM: u64 = 1 << 20;

/// Processes that open.
pub(crate) fn clients() {
    let scratch = Scratch::new("tight");
    let mut nursery = Nursery::start(&scratch);
    let mut server = builder().listen(&scratch.address()).expect("a free path");
    for role in [CLIENT_FILES, CLIENT_SPACE, FIRST_FILES] {
        let pid = nursery.fork(role, role);
        let ended = std::thread::scope(|scope| {
            let reaper = scope.spawn(|| nursery.reap(pid));
            patiently(|| {
                server.poll(64);
                reaper.is_finished().then_some(())
            });
            reaper.join().expect("no panic")
        });
        assert_eq!(ended, 0, "{role}: see above");
    }
    patiently(|| {
        server.poll(64);
        (server.channels().count() == 0).then_some(())
    });
}

/// A process that is opened to.
pub(crate) fn listeners() {
    let scratch = Scratch::new("tight-listener");
    let board = Board::of(&scratch.address());
    let mut nursery = Nursery::start(&scratch);
    let address = format!("{}.tight", scratch.address());
    for role in [LISTENER_FILES, LISTENER_SPACE] {
        board.clear(role);
        let pid = nursery.fork(role, role);
        patiently(|| (board.get(role, Word::Published) == 1).then_some(()));
        let wish = |what| {
            board.set(role, Word::Wish, what);
            patiently(|| (board.get(role, Word::Received) == what).then_some(()));
        };
        let mut first = builder().connect(&address).expect("it listens");
        call(&mut first);
        let mut told = BTreeSet::new();
        for more in 0..MORE {
            wish(more + 1);
            let builder = || builder().open_within(Duration::from_millis(300));
            match builder().connect(&address) {
                // What it lacks it may find out last: then the channel ends at once.
                Ok(mut client) => match client.call(ECHO, b"begun") {
                    Ok(answer) => assert_eq!(answer, b"begun"),
                    Err(error) => assert_eq!(error, CallError::Ended),
                },
                Err(error) => {
                    eprintln!("{role}: + {more}: {error}");
                    let expected = matches!(
                        error,
                        OpenError::ListenerExhausted | OpenError::TimedOut { .. }
                    );
                    assert!(expected, "{error}");
                    told.insert(error.to_string());
                }
            }
            call(&mut first);
            // What it could not accept waits; what it has refused asks again.
            wish(ROOM);
            let mut client = patiently(|| builder().connect(&address).ok());
            call(&mut client);
        }
        assert!(
            told.iter().any(|text| text.contains("descriptors")),
            "{told:?}"
        );
        assert!(first.next_event().is_none());
        board.set(role, Word::Wish, END);
        assert_eq!(nursery.reap(pid), 0);
    }
}
