//! Peers of another build and peers without manners, on either side: each gets an answer or none, costs nobody else
//! anything, and leaves nothing behind. They speak the opening exchange by hand; see `support/opening.rs`.

mod support;

use rustix::fs::{MemfdFlags, SealFlags};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use support::opening::{
    HELLO, READY, REFUSAL, WELCOME, get_ready, greet, identity, map_next, map_whole, misfits,
    opening, receive, receive_all, sealed, segment, segment_bytes, send, unsealed,
};
use support::{PATIENCE, Scratch, assert_says, next_event, opened, patiently};
use tightbeam::{
    CallError, Counter, Endpoint, Event, Handlers, Mismatch, OpenError, PeerFault, PeerMemoryError,
};
use tightbeam_segment::{Identity, Incarnation, LAYOUT_HASH, VERSION};
use tightbeam_sys::control;
use tightbeam_sys::memory::{PeerMemory, SharedWords};

const ECHO: u16 = 1;

/// Tests that count descriptors of the process need it for themselves.
fn alone() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("proc").count()
}

/// How many descriptors there are once the control thread has closed what is over.
fn settled_descriptors() -> usize {
    const QUIET: Duration = Duration::from_millis(30);
    patiently(|| {
        let count = open_descriptors();
        let since = Instant::now();
        while since.elapsed() < QUIET {
            if open_descriptors() != count {
                return None;
            }
            std::thread::yield_now();
        }
        Some(count)
    })
}

fn server(scratch: &Scratch, within: Duration) -> Endpoint {
    let echo = Handlers::new().on(ECHO, |_, message, reply| reply.send(message.bytes()));
    let builder = Endpoint::builder().handlers(echo).open_within(within);
    builder.listen(&scratch.address()).expect("a free path")
}

/// Somebody with manners: opens a channel, calls, and is answered.
fn be_polite(scratch: &Scratch, server: &mut Endpoint) {
    be_polite_beside(scratch, server);
    assert_eq!(server.channels().next(), None, "nobody is left");
}

/// The same while there are others.
fn be_polite_beside(scratch: &Scratch, server: &mut Endpoint) {
    let address = scratch.address();
    let client = std::thread::spawn(move || {
        let builder = Endpoint::builder().deadline(PATIENCE);
        let mut client = builder.connect(&address).expect("not delayed");
        assert_eq!(client.call(ECHO, b"hello").expect("an answer"), b"hello");
    });
    opened(server);
    let end = next_event(server);
    assert!(matches!(end, Event::Closed { .. }), "{end:?}");
    client.join().expect("the client's asserts hold");
}

#[test]
fn a_client_of_another_build_is_told_who_we_are() {
    let _alone = alone();
    let scratch = Scratch::new("misfit");
    let mut server = server(&scratch, PATIENCE);
    for (theirs, what, _) in misfits() {
        let memory = sealed(segment_bytes());
        let hello = opening(HELLO, theirs);
        let socket = greet(&scratch.path("sock"), &hello, &[memory.as_fd()]);
        let answer = receive(&socket).unwrap_or_else(|| panic!("an answer to a wrong {what}"));
        assert_eq!(answer[8..12], REFUSAL.to_ne_bytes(), "{what}");
        assert_eq!(answer[12..16], VERSION.to_ne_bytes());
        assert_eq!(answer[16..24], LAYOUT_HASH.to_ne_bytes());
        assert_eq!(answer[24..28], identity().page_size.to_ne_bytes());
        assert_eq!(answer[48..52], 0u32.to_ne_bytes(), "because of a mismatch");
        assert_eq!(receive(&socket), None, "and is hung up on");
    }
    be_polite(&scratch, &mut server);
    assert!(server.next_event().is_none());
}

/// A client that says nothing holds a descriptor until its time is over, and delays nobody.
#[test]
fn a_client_that_says_nothing() {
    let _alone = alone();
    let scratch = Scratch::new("silent");
    let mut patient = server(&scratch, PATIENCE);
    be_polite(&scratch, &mut patient);
    let before = settled_descriptors();
    let silent = control::connect(&scratch.path("sock")).expect("it listens");
    be_polite(&scratch, &mut patient);
    // It may still make up its mind.
    let (_formatted, memory) = segment();
    send(&silent, &opening(HELLO, identity()), &[memory.as_fd()]);
    let seen = get_ready(&silent);
    opened(&mut patient);
    drop((silent, seen, _formatted, memory));
    let end = next_event(&mut patient);
    assert!(matches!(end, Event::Faulted { .. }), "{end:?}");
    patiently(|| (open_descriptors() <= before).then_some(()));
    drop(patient);

    let mut strict = server(&scratch, Duration::from_millis(100));
    let before = settled_descriptors();
    let silent = control::connect(&scratch.path("sock")).expect("it listens");
    assert_eq!(receive(&silent), None, "hung up on when its time is over");
    drop(silent);
    // More of them than are waited for at a time; who comes after them gets through when theirs is over.
    let crowd: Vec<OwnedFd> = (0..100)
        .map(|_| control::connect(&scratch.path("sock")).expect("there is a backlog"))
        .collect();
    be_polite(&scratch, &mut strict);
    drop(crowd);
    patiently(|| (open_descriptors() <= before).then_some(()));
}

/// Garbage, and descriptors that are missing, too many or wrong.
#[test]
fn clients_without_manners() {
    let _alone = alone();
    let scratch = Scratch::new("manners");
    let mut server = server(&scratch, PATIENCE);
    be_polite(&scratch, &mut server);
    let before = settled_descriptors();
    {
        let (pipe, _writer) = std::io::pipe().expect("a pipe");
        let pipe = OwnedFd::from(pipe);
        let (_formatted, good) = segment();
        let (unsealed, short, empty) = (unsealed(), sealed(4096), sealed(segment_bytes()));
        let hello = opening(HELLO, identity());
        let long = [hello.as_slice(), b"x"].concat();
        let greet = |bytes: &[u8], with: &[_]| greet(&scratch.path("sock"), bytes, with);
        let good = good.as_fd();
        for (bytes, descriptors) in [
            (b"GET / HTTP/1.1\r\n".as_slice(), [].as_slice()),
            (b"GET / HTTP/1.1\r\n", &[pipe.as_fd()]),
            (&[0xff; 200], &[]),
            (&hello[..40], &[good]),
            (&long, &[good]),
            (&hello, &[]),
            (&hello, &[good, good]),
            (&hello, &[good; 3]),
            (&hello, &[good; 20]),
            (&opening(WELCOME, identity()), &[good]),
            (&opening(REFUSAL, identity()), &[]),
            (&opening(9, identity()), &[good]),
        ] {
            let socket = greet(bytes, descriptors);
            assert_eq!(receive(&socket), None, "hung up on without an answer");
        }
        for (descriptor, reason) in [(&unsealed, 3u32), (&pipe, 3), (&short, 3), (&empty, 0)] {
            let answer = receive(&greet(&hello, &[descriptor.as_fd()])).expect("a refusal");
            assert_eq!(answer[8..12], REFUSAL.to_ne_bytes());
            assert_eq!(answer[48..52], reason.to_ne_bytes());
        }
    }
    be_polite(&scratch, &mut server);
    assert!(server.next_event().is_none());
    patiently(|| (open_descriptors() <= before).then_some(()));
}

fn assert_faulted(end: &Event, wanted: PeerFault) {
    let right = matches!(end, Event::Faulted { fault, .. } if *fault == wanted);
    assert!(right, "{end:?}");
}

/// After the opening nothing belongs on the control socket, and it stays connected until the channel is closed.
#[test]
fn clients_that_forget_their_manners_later() {
    let _alone = alone();
    let scratch = Scratch::new("later");
    let mut server = server(&scratch, PATIENCE);
    let (_formatted, memory) = segment();
    let hello = opening(HELLO, identity());
    let babbler = greet(&scratch.path("sock"), &hello, &[memory.as_fd()]);
    let _seen = get_ready(&babbler);
    opened(&mut server);
    send(&babbler, b"and another thing", &[memory.as_fd()]);
    assert_faulted(&next_event(&mut server), PeerFault::Control);
    assert_eq!(receive(&babbler), None, "hung up on");

    // It hangs up, lives, and never closed the channel: it is not dead.
    let quitter = greet(&scratch.path("sock"), &hello, &[memory.as_fd()]);
    let _seen = get_ready(&quitter);
    opened(&mut server);
    drop(quitter);
    assert_faulted(&next_event(&mut server), PeerFault::HungUp);
    be_polite(&scratch, &mut server);
}

/// Who does not put the last seals on a segment, or does not say that it is ready, has no channel.
#[test]
fn an_opening_that_is_not_finished() {
    let _alone = alone();
    let scratch = Scratch::new("unfinished");
    let mut server = server(&scratch, PATIENCE);
    let (_formatted, memory) = segment();
    let hello = opening(HELLO, identity());
    let ready = opening(READY, identity());
    let greet = || greet(&scratch.path("sock"), &hello, &[memory.as_fd()]);

    let unsealed = greet();
    receive(&unsealed).expect("a welcome");
    send(&unsealed, &ready, &[]);
    assert_eq!(receive(&unsealed), None, "hung up on");
    let twice = greet();
    let _seen = map_next(&twice);
    send(&twice, &hello, &[memory.as_fd()]);
    assert_eq!(receive(&twice), None, "hung up on");
    let hasty = greet_ready(&scratch, &ready);
    assert_eq!(receive(&hasty), None, "hung up on");
    let gone = greet();
    drop((map_next(&gone), gone));
    be_polite(&scratch, &mut server);
    assert!(server.next_event().is_none(), "none of them had a channel");

    // The other way round: the listener must have sealed the client's.
    let (_formatted, own) = segment();
    let error = refused(&opening(WELCOME, identity()), &[&own]);
    assert_says(&error, &["has not sealed our segment"]);
}

/// Says that it is ready before it was welcomed.
fn greet_ready(scratch: &Scratch, ready: &[u8]) -> OwnedFd {
    greet(&scratch.path("sock"), ready, &[])
}

/// A client whose segment the test can write as it likes: every second line's first word, slot 0's header among them.
struct Liar {
    words: SharedWords,
    socket: OwnedFd,
    seen: Option<PeerMemory>,
}

impl Liar {
    /// Line 24, where the ring begins, is two lines a word away from line 0.
    const FIRST_HEADER: usize = 12;

    fn connect(scratch: &Scratch) -> Liar {
        let mut liar = Liar::greet(scratch);
        liar.seen = Some(get_ready(&liar.socket));
        liar
    }

    fn greet(scratch: &Scratch) -> Liar {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let memory = rustix::fs::memfd_create("liar", flags).expect("memory");
        let (own, honest) = (identity(), sealed_identity());
        rustix::fs::ftruncate(&memory, segment_bytes() as u64).expect("room");
        rustix::io::pwrite(&memory, &honest, 0).expect("written");
        let words = memory.try_clone().expect("a descriptor");
        // All of it, each word in two lines, so that each page is there.
        let words = SharedWords::open(words, segment_bytes() / 128).expect("mapped");
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&memory, seals).expect("sealed");
        let hello = opening(HELLO, own);
        let socket = greet(&scratch.path("sock"), &hello, &[memory.as_fd()]);
        Liar {
            words,
            socket,
            seen: None,
        }
    }

    fn say(&self, header: u64) {
        let word = self.words.word(Self::FIRST_HEADER);
        word.store(header, std::sync::atomic::Ordering::Release);
    }
}

/// The first line of an honest segment.
fn sealed_identity() -> [u8; 64] {
    let (_formatted, memory) = segment();
    let mut line = [0; 64];
    let read = rustix::io::pread(&memory, &mut line, 0).expect("readable");
    assert_eq!(read, line.len());
    line
}

/// Whoever writes what no honest peer would ends its own channel and no other.
#[test]
fn lies_in_the_ring_end_one_channel() {
    let _alone = alone();
    let scratch = Scratch::new("liar");
    let mut server = server(&scratch, PATIENCE);
    // Lap tag 1; the rest as in `runtime/segment/src/descriptor.rs`.
    let (long, length, slot) = (1 << 11, 1081 << 16, 5000 << 28);
    for (header, fault) in [
        (1 | long | length, PeerFault::Length { len: 1081 }),
        (1 | long, PeerFault::Length { len: 0 }),
        (1 | 7 << 8, PeerFault::Kind { kind: 7 }),
        (1 | 4 << 8 | 12 << 16, PeerFault::Batch { at: 0 }),
        (1 | 1 << 14, PeerFault::Kind { kind: 1 << 6 }),
        (1 | 1 << 8 | 9 << 48, PeerFault::UnknownCall { call: 9 }),
    ] {
        let liar = Liar::connect(&scratch);
        opened(&mut server);
        liar.say(header);
        assert_faulted(&next_event(&mut server), fault);
    }
    let liar = Liar::connect(&scratch);
    opened(&mut server);
    liar.say(1 | 5 << 8 | slot);
    let end = next_event(&mut server);
    let outside = matches!(
        end,
        Event::Faulted {
            fault: PeerFault::Slot { slot: 5000, .. },
            ..
        }
    );
    assert!(outside, "{end:?}");
    // The same header without a lie in it is a message like any other.
    let honest = Liar::connect(&scratch);
    opened(&mut server);
    honest.say(1 | 8 << 16 | u64::from(ECHO) << 48);
    patiently(|| (server.poll(1) == 1).then_some(()));
    be_polite_beside(&scratch, &mut server);
}

/// A reader may be able to write to the segment that it reads: that changes what it reads, and nothing that its owner does.
#[test]
fn a_reader_that_scribbles_hurts_itself_only() {
    let _alone = alone();
    const CALLS: u64 = 2_000;
    let scratch = Scratch::new("scribbler");
    let mut server = server(&scratch, PATIENCE);
    let mut liar = Liar::greet(&scratch);
    let (_, mut descriptors) = receive_all(&liar.socket).expect("a welcome");
    let theirs = descriptors.pop().expect("a segment with it");
    let lines = rustix::fs::fstat(&theirs).expect("a memfd").st_size as usize / 64;
    // Mapped before the last seals, as the reader's own mapping is: every second line's first word.
    let scribble = SharedWords::open(theirs.try_clone().expect("a descriptor"), lines / 2);
    let scribble = scribble.expect("mapped");
    liar.seen = Some(map_whole(theirs));
    send(&liar.socket, &opening(READY, identity()), &[]);
    opened(&mut server);
    let channel = server.channels().next().expect("it is open");
    // The random numbers of Marsaglia's xorshift; any would do.
    let mut random = 88_172_645_463_325_252u64;
    for call in 0..CALLS {
        for word in 0..lines / 2 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let word = scribble.word(word);
            word.store(random, std::sync::atomic::Ordering::Relaxed);
        }
        // One message of one slot each, in slot 0, the last of its lap; what was answered has been read.
        let (tag, credit) = (call % 255 + 1, (call & 0x7_ffff) << 28);
        liar.say(tag | 1 << 12 | 8 << 16 | credit | 1 << 47 | u64::from(ECHO) << 48);
        patiently(|| (server.poll(1) == 1).then_some(()));
    }
    let counters = server.counters(channel).expect("still open");
    assert_eq!(counters.get(Counter::Received), CALLS);
    assert_eq!(counters.get(Counter::Sent), CALLS, "each was answered");
    be_polite_beside(&scratch, &mut server);
    assert_eq!(server.channels().next(), Some(channel));
}

/// Connects to a listener that is a test: it takes the hello, answers as told, and keeps the connection until the client
/// has its result.
fn answered(answer: &[u8], descriptors: &[&OwnedFd]) -> Result<Endpoint, OpenError> {
    let scratch = Scratch::new("listener");
    let listener = control::listen(&scratch.path("sock")).expect("a free path");
    let descriptors: Vec<_> = descriptors.iter().map(|d| d.as_fd()).collect();
    std::thread::scope(|scope| {
        let listening = scope.spawn(|| {
            let socket = patiently(|| control::accept(listener.as_fd()).ok());
            receive(&socket).expect("a hello");
            send(&socket, answer, &descriptors);
            socket
        });
        let builder = Endpoint::builder().open_within(PATIENCE);
        let result = builder.connect(&scratch.address());
        drop(listening.join().expect("the listener's asserts hold"));
        result
    })
}

fn refused(answer: &[u8], descriptors: &[&OwnedFd]) -> OpenError {
    answered(answer, descriptors).err().expect("refused")
}

#[test]
fn a_listener_of_another_build_is_named_in_the_error() {
    let _alone = alone();
    for (theirs, what, words) in misfits() {
        let memory = sealed(segment_bytes());
        for error in [
            refused(&opening(WELCOME, theirs), &[&memory]),
            refused(&opening(REFUSAL, theirs), &[]),
        ] {
            assert!(matches!(error, OpenError::Mismatch(_)), "{what}: {error}");
            assert_says(&error, &[what, &words[0], &words[1]]);
        }
    }
}

#[test]
fn listeners_without_manners() {
    let _alone = alone();
    // The first endpoint of a process starts what all of them share, which stays.
    let error = refused(b"nothing like an answer", &[]);
    assert!(matches!(error, OpenError::NotTightbeam { .. }), "{error}");
    let before = settled_descriptors();
    {
        let (_formatted, good) = segment();
        let welcome = opening(WELCOME, identity());
        for garbage in [b"HTTP/1.1 400 Bad Request".as_slice(), &[0; 200]] {
            let error = refused(garbage, &[&good]);
            assert!(matches!(error, OpenError::NotTightbeam { .. }), "{error}");
            assert_says(&error, &["sock", "does not speak Tightbeam"]);
        }
        for (answer, descriptors, says) in [
            (&welcome, [].as_slice(), "without its segment"),
            (&welcome, &[&good, &good], "more descriptors than one"),
            (&welcome, &[&good; 20], "more descriptors than one"),
            (
                &opening(HELLO, identity()),
                &[&good],
                "instead of an answer",
            ),
            (&opening(READY, identity()), &[], "instead of an answer"),
            (
                &opening(REFUSAL, identity()),
                &[],
                "says that it is the same",
            ),
        ] {
            let error = refused(answer, descriptors);
            assert!(matches!(error, OpenError::Opening(_)), "{error}");
            assert_says(&error, &["broke the rules of the opening", says]);
        }
        let (pipe, _writer) = std::io::pipe().expect("a pipe");
        let (unsealed, short, pipe) = (unsealed(), sealed(4096), OwnedFd::from(pipe));
        for (descriptor, says) in [
            (&unsealed, ["lacks seals", "needed are 0x6"]),
            (&short, ["4096 bytes", "16384 are needed"]),
            (&pipe, ["no memfd", "Invalid argument"]),
        ] {
            let error = refused(&welcome, &[descriptor]);
            assert!(matches!(error, OpenError::PeerMemory(_)), "{error}");
            assert_says(&error, &says);
        }
        let error = refused(&welcome, &[&unsealed]);
        let seals = matches!(error, OpenError::PeerMemory(PeerMemoryError::Seals { .. }));
        assert!(seals, "{error}");
    }
    patiently(|| (open_descriptors() <= before).then_some(()));
}

/// A segment must say what its owner said.
#[test]
fn listeners_that_contradict_themselves() {
    let _alone = alone();
    let (_formatted, good) = segment();
    let other = Identity {
        incarnation: Incarnation([5, 6]),
        ..identity()
    };
    let error = refused(&opening(WELCOME, other), &[&good]);
    let contradiction = matches!(error, OpenError::Mismatch(Mismatch::Contradiction));
    assert!(contradiction, "{error}");
    let empty = sealed(segment_bytes());
    let error = refused(&opening(WELCOME, identity()), &[&empty]);
    let magic = matches!(error, OpenError::Mismatch(Mismatch::Magic { found: 0 }));
    assert!(magic, "{error}");
    assert_says(&error, &["not a Tightbeam segment"]);
}

/// Each reason of a refusal has an error that says what to do.
#[test]
fn refusals_give_their_reason() {
    let _alone = alone();
    for (reason, says) in [
        (1u32, ["does not admit user", "its policy decides"]),
        (2, ["no memory or descriptors", "the listener"]),
        (3, ["cannot use our segment", "broke the rules"]),
        (4, ["as many channels as it allows", "max_channels"]),
    ] {
        let mut refusal = opening(REFUSAL, identity());
        refusal[48..52].copy_from_slice(&reason.to_ne_bytes());
        assert_says(&refused(&refusal, &[]), &says);
    }
    let uid = control::own_uid();
    let mut refusal = opening(REFUSAL, identity());
    refusal[48..52].copy_from_slice(&1u32.to_ne_bytes());
    let error = refused(&refusal, &[]);
    let named = matches!(error, OpenError::NotAdmitted { uid: named } if named == uid);
    assert!(named, "{error}");
    // A reason that this version does not know.
    refusal[48..52].copy_from_slice(&99u32.to_ne_bytes());
    let error = refused(&refusal, &[]);
    assert!(matches!(error, OpenError::NotTightbeam { .. }), "{error}");
}

/// A listener that accepts nobody, one whose backlog is full, and one that hangs up.
#[test]
fn listeners_that_do_not_answer() {
    let _alone = alone();
    let scratch = Scratch::new("mute");
    let listener = control::listen(&scratch.path("sock")).expect("a free path");
    let connect = || {
        let builder = Endpoint::builder().open_within(Duration::from_millis(100));
        builder.connect(&scratch.address()).err().expect("refused")
    };
    let error = connect();
    assert!(matches!(error, OpenError::TimedOut { .. }), "{error}");
    assert_says(&error, &["sock", "100ms"]);
    let full: Vec<OwnedFd> = std::iter::from_fn(|| control::connect(&scratch.path("sock")).ok())
        .take(10_000)
        .collect();
    assert!(full.len() < 10_000, "a backlog has an end");
    let error = connect();
    assert!(matches!(error, OpenError::TimedOut { .. }), "{error}");
    assert_says(&error, &["sock", "100ms"]);
    drop(full);
    let client = std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            let builder = Endpoint::builder().open_within(PATIENCE);
            builder.connect(&scratch.address()).err().expect("refused")
        });
        patiently(|| {
            // Those who have gone are in the backlog too.
            let _ = control::accept(listener.as_fd());
            client.is_finished().then_some(())
        });
        client.join().expect("no panic")
    });
    assert!(matches!(client, OpenError::HungUp), "{client}");
    assert_says(&client, &["hung up"]);
}

/// A listener may forget its manners later as well.
#[test]
fn a_listener_that_talks_after_the_opening() {
    let _alone = alone();
    let scratch = Scratch::new("babble");
    let listener = control::listen(&scratch.path("sock")).expect("a free path");
    let (_formatted, memory) = segment();
    std::thread::scope(|scope| {
        let listening = scope.spawn(|| {
            let socket = patiently(|| control::accept(listener.as_fd()).ok());
            let seen = map_next(&socket);
            send(&socket, &opening(WELCOME, identity()), &[memory.as_fd()]);
            send(&socket, b"and another thing", &[]);
            (socket, seen)
        });
        let builder = Endpoint::builder().deadline(PATIENCE);
        let mut client = builder.connect(&scratch.address()).expect("a channel");
        assert_eq!(client.call(ECHO, b"nobody"), Err(CallError::Ended));
        assert_faulted(&next_event(&mut client), PeerFault::Control);
        drop(listening.join().expect("the listener's asserts hold"));
    });
}
