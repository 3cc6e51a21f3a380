//! Rows L1 to L6: what a peer can do with segments and descriptors.

use crate::liar::{
    DEPTH, Liar, MULTI, Opener, OwnSegment, RING_LINE, STARTS, Side, length, liars_address, path,
    report, target,
};
use crate::long;
use crate::support::opening::{
    HELLO, READY, REFUSAL, WELCOME, get_segment, identity, map_whole, opening, receive, send,
};
use crate::support::{Ledger, patiently};
use crate::victim::{ANSWERED, GO, NOTE, NUMBER, Stage};
use rustix::fs::{FallocateFlags, MemfdFlags, Mode, OFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::time::Instant;
use tightbeam::{Event, OpenError, PeerFault};
use tightbeam_sys::block::SharedBlock;
use tightbeam_sys::control;
use tightbeam_sys::memory::{MemoryOptions, OwnMemory, PeerMemoryError, Want};

/// What the liar does.
pub(crate) fn act(side: Side, act: &str, address: &str) -> bool {
    match act {
        "pass bad segments" => pass(side, address, bad_segments()),
        "pass too much" => pass(side, address, long_segments()),
        "pass holes" => pass(side, address, holed_segments()),
        "pass what is none" => pass(side, address, no_segments()),
        "truncate" => try_to_truncate(side, address),
        "punch holes" => punch_holes(side, address),
        "reopen" => reopen(address),
        "execute" => execute(side, address),
        "flood with descriptors" => flood_with_descriptors(address),
        "descriptors later" => descriptors_later(side, address),
        _ => return false,
    }
    true
}

/// Becomes somebody who owns nothing here.
pub(crate) fn become_nobody() {
    use rustix::process::{Gid, Uid};
    rustix::thread::set_thread_groups(&[]).expect("this test runs as root");
    let (nobody, nobodies) = (Uid::from_raw(65_534), Gid::from_raw(65_534));
    rustix::thread::set_thread_gid(nobodies).expect("this test runs as root");
    rustix::thread::set_thread_uid(nobody).expect("this test runs as root");
}

/// Whether a test needs leave that this process does not have.
pub(crate) fn not_root(test: &str) -> bool {
    let other = control::own_uid() != 0;
    if other {
        println!("skipped: {test}: not root, cannot become another user");
    }
    other
}

/// A memfd of which all pages are there.
fn memfd(bytes: usize, seals: SealFlags) -> OwnedFd {
    partly(bytes, bytes, 0, seals)
}

/// One of which so many bytes are there, and so many more behind its end.
fn partly(bytes: usize, there: usize, behind: u64, seals: SealFlags) -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memory = rustix::fs::memfd_create("liar", flags).expect("memory");
    rustix::fs::ftruncate(&memory, bytes as u64).expect("room");
    rustix::io::pwrite(&memory, &vec![0; there], 0).expect("written");
    if behind > 0 {
        let keep = FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&memory, keep, bytes as u64, behind).expect("room");
    }
    rustix::fs::fcntl_add_seals(&memory, seals).expect("sealed");
    memory
}

/// Bytes of a liar's segment.
fn whole() -> usize {
    let lines = RING_LINE + STARTS + 16;
    (lines * 64).next_multiple_of(tightbeam_sys::memory::page_size())
}

/// Too short, too few seals, or none.
fn bad_segments() -> Vec<(&'static str, OwnedFd)> {
    let (shrink, grow) = (SealFlags::SHRINK, SealFlags::GROW);
    let last = SealFlags::FUTURE_WRITE;
    vec![
        ("unsealed", memfd(whole(), SealFlags::empty())),
        ("may shrink", memfd(whole(), grow)),
        ("may grow", memfd(whole(), shrink)),
        ("may shrink, last seals", memfd(whole(), grow | last)),
        ("nothing but last seals", memfd(whole(), last)),
        ("sealed seals", memfd(whole(), shrink | SealFlags::SEAL)),
        ("a page short", memfd(whole() - 4096, shrink | grow)),
        ("a byte short", memfd(whole() - 1, shrink | grow)),
        ("one page", memfd(4096, shrink | grow | last)),
        ("empty", memfd(0, shrink | grow)),
        (
            "cannot be sealed",
            memfd(whole(), shrink | grow | SealFlags::SEAL),
        ),
        ("cannot be written", {
            let memory = memfd(whole(), shrink | grow);
            let again = format!("/proc/self/fd/{}", memory.as_raw_fd());
            std::fs::File::open(again).expect("ours").into()
        }),
    ]
}

const SIZE: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW);
const ALL: SealFlags = SIZE.union(SealFlags::FUTURE_WRITE.union(SealFlags::SEAL));

/// Of the right size, with the right seals, and not all there.
fn holed_segments() -> Vec<(&'static str, OwnedFd)> {
    let punched = OwnSegment::new().descriptor;
    assert_eq!(punch(&punched), Ok(()));
    let (less, behind) = (whole() - 4096, 4096);
    vec![
        ("nothing there", partly(whole(), 0, 0, SIZE)),
        ("nothing there, all seals", partly(whole(), 0, 0, ALL)),
        ("a page is not there", partly(whole(), less, 0, SIZE)),
        ("a page elsewhere", partly(whole(), less, behind, SIZE)),
        ("punched", punched),
    ]
}

/// All there, and more than that.
fn long_segments() -> Vec<(&'static str, OwnedFd)> {
    let (more, much) = (whole() + 4096, 64 << 20);
    vec![
        ("a page long", memfd(more, SIZE)),
        ("a page long, all seals", memfd(more, ALL)),
        ("long, and one hole", partly(much as usize, 0, 0, SIZE)),
        ("much behind its end", partly(whole(), whole(), much, SIZE)),
    ]
}

/// Eight kinds of descriptors, none of them a segment.
fn no_segments() -> Vec<(&'static str, OwnedFd)> {
    let temporary = |place: &str, name: &str| {
        let path = format!("{place}/tb-liar-{name}-{}", std::process::id());
        let file = std::fs::File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path);
        let file = file.expect("a new file");
        std::fs::remove_file(&path).expect("ours");
        file.set_len(whole() as u64).expect("room");
        OwnedFd::from(file)
    };
    let open = |path: &str, flags| rustix::fs::open(path, flags, Mode::empty()).expect("open");
    let (pipe, _) = std::io::pipe().expect("a pipe");
    let (socket, _) = control::pair().expect("sockets");
    let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::empty());
    vec![
        ("a file on disk", temporary("/var/tmp", "disk")),
        ("a file in memory", temporary("/dev/shm", "memory")),
        ("a pipe", pipe.into()),
        ("a device", open("/dev/zero", OFlags::RDWR)),
        ("a socket", socket),
        ("an eventfd", event.expect("an eventfd")),
        ("a directory", open("/", OFlags::RDONLY)),
        ("a mere path", open("/proc/self/exe", OFlags::PATH)),
    ]
}

/// Opens by the rules with each of these in place of its segment. What it is told as a client is noted.
fn pass(side: Side, address: &str, instead: Vec<(&'static str, OwnedFd)>) {
    let listener = (side == Side::Server)
        .then(|| control::listen(&path(&liars_address(address))).expect("a free path"));
    for (what, descriptor) in instead {
        if let Some(listener) = &listener {
            let socket = patiently(|| control::accept(listener.as_fd()).ok());
            // Its seals are in order.
            drop(map_whole(get_segment(&socket).1));
            send(
                &socket,
                &opening(WELCOME, identity()),
                &[descriptor.as_fd()],
            );
            assert_eq!(receive(&socket), None, "{what}: hung up on");
        } else {
            let socket = control::connect(&path(address)).expect("it listens");
            send(&socket, &opening(HELLO, identity()), &[descriptor.as_fd()]);
            let answer = receive(&socket).expect("a refusal");
            assert_eq!(answer[8..12], REFUSAL.to_ne_bytes(), "{what}");
            assert_eq!(
                answer[48..52],
                3u32.to_ne_bytes(),
                "{what}: for its segment"
            );
            assert_eq!(receive(&socket), None, "{what}: hung up on");
        }
        let ledger = Ledger::of(address);
        ledger.write(NUMBER, ledger.read(NUMBER) + 1);
    }
}

/// Each of these is refused, on either side, by name.
fn each_is_refused(name: &str, act: &str, kinds: usize, for_this: fn(&PeerMemoryError) -> bool) {
    for side in Side::BOTH {
        let mut stage = Stage::new(name);
        let liar = stage.liar(side, act);
        let address = liars_address(&stage.address());
        for _ in 0..kinds {
            if side == Side::Client {
                break;
            }
            let error = patiently(|| match stage.victim.open(&address) {
                Err(OpenError::NobodyListens { .. }) => None,
                other => Some(other.expect_err("that is no segment")),
            });
            println!("{error}");
            let named = matches!(&error, OpenError::PeerMemory(memory) if for_this(memory));
            assert!(named, "{error}");
            stage.goes_on();
        }
        let all = kinds as u64;
        stage.until(|stage| (stage.ledger.read(NUMBER) == all).then_some(()));
        assert!(liar.finish());
        assert_eq!(stage.victim.channels().count(), 1, "none was opened");
        if side == Side::Client {
            assert_eq!(stage.victim.openings().bad_segment, all);
        }
        stage.end();
    }
}

#[test]
fn l01_segments_that_are_short_or_not_sealed() {
    each_is_refused("l01", "pass bad segments", bad_segments().len(), |error| {
        use PeerMemoryError::*;
        matches!(error, Seals { .. } | Short { .. } | Map(Errno::ACCESS))
    });
}

/// Who drops the last descriptor of a file frees all of it: of what is opened, that is no more than is mapped.
#[test]
fn l01_segments_that_are_longer_than_said() {
    each_is_refused(
        "l01-long",
        "pass too much",
        long_segments().len(),
        |error| matches!(error, PeerMemoryError::Long { .. }),
    );
}

/// The memory that a segment takes is its owner's: nobody fills its holes.
#[test]
fn l02_holes_that_its_owner_has_left() {
    each_is_refused("l02-holes", "pass holes", holed_segments().len(), |error| {
        matches!(error, PeerMemoryError::Short { .. })
    });
}

#[test]
fn l05_descriptors_of_eight_kinds_that_are_no_segments() {
    assert_eq!(no_segments().len(), 8);
    each_is_refused("l05", "pass what is none", no_segments().len(), |error| {
        matches!(
            error,
            PeerMemoryError::NotMemfd(_) | PeerMemoryError::Seals { .. }
        )
    });
}

const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);

/// Asserts that the kernel lets nobody change the shape of a segment.
fn cannot_reshape(segment: &OwnedFd) {
    for bytes in [0, 4096, whole() as u64 - 1, 1 << 20, 4 << 20] {
        let refused = rustix::fs::ftruncate(segment, bytes).expect_err("it is sealed");
        // Of huge pages a part is refused before the seals are looked at.
        let part = refused == Errno::INVAL && !bytes.is_multiple_of(2 << 20);
        assert!(refused == Errno::PERM || part, "{refused}");
    }
}

/// Tries at each step to take the memory away.
fn try_to_truncate(side: Side, address: &str) {
    let liar = match side {
        Side::Client => Liar::connect_and(address, |_, segment| cannot_reshape(segment)),
        Side::Server => Opener::new(side, address).open(),
    };
    cannot_reshape(&liar.own_descriptor);
    cannot_reshape(&liar.seen_descriptor);
    liar.say(0..1000);
    report(address, 1);
    Ledger::of(address).wait_for(GO, 1);
    liar.leave();
}

#[test]
fn l01_segments_that_are_truncated_later() {
    for side in Side::BOTH {
        let mut stage = Stage::new("l01-truncate");
        let liar = stage.liar(side, "truncate");
        let channel = stage.meet(side);
        stage.until_noted(channel, 1000);
        leaves(&mut stage, channel);
        assert!(liar.finish());
        stage.end();
    }
}

/// The liar closes its channel, after all that it has tried.
fn leaves(stage: &mut Stage, channel: tightbeam::ChannelId) {
    stage.until_progress(1);
    stage.goes_on();
    stage.go(1);
    let end = stage.event();
    let closed = matches!(end, Event::Closed { channel: of, .. } if of == channel);
    assert!(closed, "{end:?}");
    stage.quarantined(channel);
}

/// Punches a hole over all of a segment but its first page, where it says what it is, if it can.
fn punch(segment: &OwnedFd) -> Result<(), Errno> {
    let bytes = rustix::fs::fstat(segment).expect("a memfd").st_size as u64;
    rustix::fs::fallocate(segment, PUNCH, 4096, bytes - 4096)
}

/// Punches holes as long as it can, then tries to.
fn punch_holes(side: Side, address: &str) {
    let liar = match side {
        // Its own segment has been sealed by its reader.
        Side::Client => Liar::connect_and(address, |own, seen| {
            assert_eq!((punch(own), punch(seen)), (Err(Errno::PERM), Ok(())));
        }),
        Side::Server => {
            let listener = control::listen(&path(&liars_address(address))).expect("a free path");
            // Its own would be refused with holes.
            Liar::accept_and(&listener, |_, seen| {
                assert_eq!(punch(seen), Ok(()));
            })
        }
    };
    for segment in [&liar.own_descriptor, &liar.seen_descriptor] {
        assert_eq!(punch(segment), Err(Errno::PERM));
    }
    for words in [&liar.own, &liar.seen] {
        let remove = words.remove();
        assert_eq!(remove, Err(Errno::PERM), "nor through a mapping");
    }
    liar.say(0..1000);
    report(address, 1);
    Ledger::of(address).wait_for(GO, 1);
    for segment in [&liar.own_descriptor, &liar.seen_descriptor] {
        let stat = rustix::fs::fstat(segment).expect("a memfd");
        assert_eq!(stat.st_blocks * 512, stat.st_size, "each page is there");
    }
    liar.leave();
}

/// What was punched into the victim's segment before its reader sealed it has been filled: the victim writes there and lives.
#[test]
fn l02_holes_of_small_pages() {
    for side in Side::BOTH {
        let mut stage = Stage::new("l02");
        let liar = stage.liar(side, "punch holes");
        let channel = stage.meet(side);
        stage.until_noted(channel, 1000);
        for _ in 0..2 {
            let (sent, _) = stage.fill(channel);
            assert!(sent <= DEPTH as u64);
        }
        leaves(&mut stage, channel);
        assert!(liar.finish());
        stage.end();
    }
}

/// In huge pages, where a hole would be fatal, a segment is sealed before it is passed.
#[test]
fn l02_holes_of_huge_pages() {
    let memory = OwnMemory::create(
        1,
        &MemoryOptions {
            lock: Want::No,
            huge_pages: Want::Require,
        },
    );
    if let Err(error) = memory {
        println!("skipped: {error}");
        return;
    }
    drop(memory);
    let settings = |builder: tightbeam::Builder<_>| builder.memory(Want::No, Want::Require);
    let mut stage = Stage::with("l02-huge", settings);
    let liar = stage.liar(Side::Client, "truncate");
    let channel = stage.meet(Side::Client);
    stage.until_noted(channel, 1000);
    leaves(&mut stage, channel);
    assert!(liar.finish());
    stage.end();
}

/// As nobody, tries to get at the victim's segment by other ways than the descriptor that it was given.
fn reopen(address: &str) {
    become_nobody();
    let liar = Liar::connect_and(address, |_, segment| {
        let again = format!("/proc/self/fd/{}", segment.as_raw_fd());
        for flags in [OFlags::RDWR, OFlags::WRONLY, OFlags::RDONLY] {
            let opened = rustix::fs::open(&again, flags, Mode::empty());
            assert_eq!(opened.err(), Some(Errno::ACCESS), "{flags:?}");
        }
        let mode = rustix::fs::fchmod(segment, Mode::RWXU);
        assert_eq!(mode, Err(Errno::PERM), "it is somebody else's");
    });
    let seen = &liar.seen_descriptor;
    assert_eq!(rustix::io::pwrite(seen, b"x", 0), Err(Errno::PERM));
    let writable = SharedBlock::open(seen.try_clone().expect("a descriptor"), 8);
    assert_eq!(writable.err(), Some(Errno::PERM), "no further mapping");
    report(address, 1);
    Ledger::of(address).wait_for(GO, 1);
    liar.leave();
}

#[test]
fn l03_a_segment_is_opened_again() {
    if not_root("l03") {
        return;
    }
    let mut stage = Stage::with("l03", |builder| builder.admit(|_| true));
    stage.open_doors();
    let liar = stage.liar(Side::Client, "reopen");
    let channel = stage.meet(Side::Client);
    assert_eq!(stage.victim.peer(channel).expect("open").uid, 65_534);
    leaves(&mut stage, channel);
    assert!(liar.finish());
    stage.end();
}

/// Tries to make the victim's segment a program, and passes one that may be a program itself.
fn execute(side: Side, address: &str) {
    let liar = Opener::new(side, address).open();
    let seen = &liar.seen_descriptor;
    let seals = rustix::fs::fcntl_get_seals(seen).expect("a memfd");
    assert!(seals.contains(SealFlags::EXEC), "{seals:?}");
    let mode = rustix::fs::fchmod(seen, Mode::RWXU);
    assert_eq!(mode, Err(Errno::PERM), "sealed");
    let program = format!("/proc/self/fd/{}", seen.as_raw_fd());
    let run = std::process::Command::new(program).status();
    let refused = run.expect_err("no program").kind();
    assert_eq!(refused, std::io::ErrorKind::PermissionDenied);
    // The liar's own mapping may be what it likes; there it can run what it likes anyway.
    let flags = MapFlags::SHARED;
    // SAFETY: bounds: a null hint lets the kernel choose a range that nothing else uses; it is never touched.
    let own =
        unsafe { rustix::mm::mmap(std::ptr::null_mut(), 4096, ProtFlags::EXEC, flags, seen, 0) };
    println!("{own:?}");
    liar.say(0..10);
    report(address, 1);
    Ledger::of(address).wait_for(GO, 1);
    liar.leave();
}

/// The victim has nothing of a segment mapped from which it could execute.
#[test]
fn l04_memory_that_might_be_executed() {
    for side in Side::BOTH {
        let mut stage = Stage::new("l04");
        let liar = stage.liar(side, "execute");
        let channel = stage.meet(side);
        stage.until_noted(channel, 10);
        let maps = std::fs::read_to_string("/proc/self/maps").expect("proc");
        let segments = maps.lines().filter(|line| line.contains("memfd:tightbeam"));
        let mut seen = 0;
        for line in segments {
            let rights = line.split_whitespace().nth(1).expect("rights");
            assert!(!rights.contains('x'), "{line}");
            seen += 1;
        }
        assert!(seen >= 4, "two of each channel: {maps}");
        leaves(&mut stage, channel);
        assert!(liar.finish());
        stage.end();
    }
}

/// Connections with too many descriptors.
fn floods() -> u64 {
    if long() { 60_000 } else { 300 }
}

/// Descriptors in a message, the last as many as the kernel takes.
const FLOODS: [usize; 5] = [2, 3, 4, 20, 253];

/// Sends descriptors with everything that it may say in an opening, again and again.
fn flood_with_descriptors(address: &str) {
    let own = OwnSegment::new();
    for n in 0..floods() {
        let socket = patiently(|| control::connect(&path(address)).ok());
        let many = vec![own.descriptor.as_fd(); FLOODS[(n / 3) as usize % FLOODS.len()]];
        let said = [HELLO, READY, 99][(n % 3) as usize];
        let sent = send_many(&socket, &opening(said, own.identity), &many);
        assert_eq!(sent, Ok(()), "{} descriptors", many.len());
        assert_eq!(receive(&socket), None, "hung up on without an answer");
    }
    report(address, 1);
}

/// As [`send`], with as many descriptors as the kernel takes.
fn send_many(
    socket: &OwnedFd,
    bytes: &[u8],
    descriptors: &[std::os::fd::BorrowedFd<'_>],
) -> Result<(), Errno> {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(descriptors)));
    let bytes = [std::io::IoSlice::new(bytes)];
    rustix::net::sendmsg(socket, &bytes, &mut ancillary, SendFlags::NOSIGNAL).map(|_| ())
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("proc").count()
}

/// None of them stays with the victim.
#[test]
fn l06_descriptors_until_the_table_is_full() {
    let mut stage = Stage::new("l06");
    let before = open_descriptors();
    let answered = stage.ledger.read(ANSWERED);
    let liar = stage.liar(Side::Client, "flood with descriptors");
    let (since, mut most) = (Instant::now(), 0);
    stage.until_long(|stage| {
        most = most.max(open_descriptors());
        (stage.ledger.read(crate::victim::PROGRESS) == 1).then_some(())
    });
    assert!(liar.finish());
    let openings = stage.victim.openings();
    assert_eq!(openings.broken_off, floods(), "{openings:?}");
    patiently(|| (open_descriptors() <= before).then_some(()));
    // One connection, what the kernel puts in for it, a look at this directory, and what came with the last messages, as long as it takes to
    // close that.
    assert!(
        most <= before + 8 + 4 * 253,
        "{before} before, {most} at most"
    );
    let calls = stage.ledger.read(ANSWERED) - answered;
    println!(
        "{} floods in {:?}, {calls} calls meanwhile",
        floods(),
        since.elapsed()
    );
    stage.end();
}

/// Sends descriptors over a connection that carries nothing any more.
fn descriptors_later(side: Side, address: &str) {
    let liar = Opener::new(side, address).open();
    liar.say(0..10);
    Ledger::of(address).wait_for(GO, 1);
    let many = [liar.own_descriptor.as_fd(); 253];
    // Until the victim has hung up, or takes no more.
    while send_many(&liar.socket, &opening(HELLO, identity()), &many).is_ok() {}
    // And on with the ring, as if nothing were.
    let long = 1 | MULTI | length(1080) | target(NOTE);
    liar.own.slot(10, long, &[0]);
    report(address, 1);
    liar.wait_for_hang_up();
}

#[test]
fn l06_descriptors_on_an_open_channel() {
    for side in Side::BOTH {
        let mut stage = Stage::new("l06-later");
        let before = open_descriptors();
        let liar = stage.liar(side, "descriptors later");
        let channel = stage.meet(side);
        stage.until_noted(channel, 10);
        stage.go(1);
        assert_eq!(stage.faulted(channel), PeerFault::Control);
        stage.quarantined(channel);
        assert!(liar.finish());
        patiently(|| (open_descriptors() <= before).then_some(()));
        stage.end();
    }
}

/// So that a hole would be seen: what is punched is gone.
#[test]
fn a_hole_is_a_hole() {
    let own = OwnSegment::new();
    let line = 4096 / 64;
    own.words.write(line, 1, 7);
    assert_eq!(punch(&own.descriptor), Ok(()));
    let word = own.words.word(line, 1);
    assert_eq!(word.load(Ordering::Relaxed), 0);
}
