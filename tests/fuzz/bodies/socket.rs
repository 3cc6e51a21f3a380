//! A listener, and clients that say anything over real sockets, with real descriptors, and write into what it has mapped.
//!
//! Whatever they do: the listener does not panic, a poll costs no more than its budget, somebody with manners is served, and
//! afterwards no channel and no descriptor is left.

#[path = "../../support/mod.rs"]
mod support;

use super::input::Input;
use super::reference::{FRAMED, Header};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use std::cell::Cell;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Once;
use std::sync::atomic::Ordering;
use std::time::Duration;
use support::opening::{
    GRANT, HELLO, READY, REFUSAL, WELCOME, identity, map_whole, opening, sealed, segment, try_send,
    unsealed,
};
use support::{PATIENCE, Scratch, patiently};
use tightbeam::{Endpoint, Event, Handlers, MAX_INLINE, Wait};
use tightbeam_segment::Formatted;
use tightbeam_sys::control;
use tightbeam_sys::memory::{PeerMemory, SharedWords};

const COUNT: u16 = 1;
const ECHO: u16 = 2;
const CLIENTS: usize = 3;
const MOST_STEPS: usize = 40;
const BUDGET: usize = 16;
/// An answer that comes at all is there by then, or is met later.
const SOON: Duration = Duration::from_millis(2);
/// [`SharedWords`] has the first word of every second line: the cursor, the state, and each second header.
const WORDS: usize = 90;
/// Who babbles is at fault at once; who hangs up is given a quarter of a second to end.
const BABBLE: &[u8] = b"babble";
/// Bytes of a hello that mean something in it.
const SAID: usize = 48;
/// Of memory for frames: bytes of a frame, and of all.
const STRIDE: usize = 8192;
const FRAMES: usize = 4 * STRIDE;
const CURSOR: usize = 1;
const STATE: usize = 2;
const RING: usize = 12;

pub(crate) fn socket(input: &[u8]) {
    let mut input = Input::new(input);
    let scratch = Scratch::new("fuzz");
    // The control thread's own descriptors stay.
    static CONTROL: Once = Once::new();
    CONTROL.call_once(|| drop(listen(&scratch)));
    let before = open_descriptors();
    let mut server = listen(&scratch);
    let mut clients: [Option<Client>; CLIENTS] = [const { None }; CLIENTS];
    // Clients that hung up after they had been welcomed.
    let mut left = 0;
    for _ in 0..MOST_STEPS {
        if input.is_over() {
            break;
        }
        let who = input.below(CLIENTS);
        match &mut clients[who] {
            Some(client) if !input.one_in(16) => client.step(&mut input),
            client => {
                if let Some(before) = std::mem::replace(client, Client::connect(&scratch)) {
                    left += usize::from(before.theirs.is_some());
                    if !input.one_in(32) {
                        before.say(BABBLE, &[]);
                    }
                }
            }
        }
        poll(&mut server);
        let welcomed = clients
            .iter()
            .flatten()
            .filter(|client| client.theirs.is_some());
        let open = server.channels().count();
        assert!(open <= welcomed.count() + left, "nobody opens by half");
    }
    for client in clients.iter().flatten() {
        client.say(BABBLE, &[]);
    }
    be_polite(&scratch, &mut server);
    patiently(|| {
        poll(&mut server);
        server.channels().next().is_none().then_some(())
    });
    drop((clients, server, scratch));
    patiently(|| (open_descriptors() <= before).then_some(()));
}

fn listen(scratch: &Scratch) -> Endpoint<u64> {
    let handlers = Handlers::new()
        .on(COUNT, |count: &mut u64, _, _| *count += 1)
        .on(ECHO, |_, message, reply| reply.send(message.bytes()));
    let builder = Endpoint::builder().state(0).handlers(handlers).depth(64);
    let builder = builder.open_within(PATIENCE).wait(Wait::Spin);
    builder.listen(&scratch.address()).expect("a free path")
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("proc").count()
}

fn poll(server: &mut Endpoint<u64>) {
    let handled = server.poll(BUDGET);
    // The last message of the budget may be a batch.
    assert!(
        handled <= (BUDGET + MAX_INLINE / 8) * (CLIENTS + 1),
        "{handled} in one poll"
    );
    while let Some(event) = server.next_event() {
        assert!(
            !matches!(event, Event::Dead { .. }),
            "this process lives: {event:?}"
        );
    }
}

/// Somebody with manners is served, whatever the others do.
fn be_polite(scratch: &Scratch, server: &mut Endpoint<u64>) {
    let builder = Endpoint::builder().open_within(PATIENCE);
    let mut client = builder
        .connect(&scratch.address())
        .expect("the listener answers");
    let before = *server.state();
    client
        .try_send(COUNT, b"hello")
        .expect("room in a new ring");
    patiently(|| {
        poll(server);
        (*server.state() > before).then_some(())
    });
}

struct Client {
    socket: OwnedFd,
    /// Whether it began as the rules say; `None` if it has said nothing yet.
    proper: Cell<Option<bool>>,
    /// Of the segment that the listener maps: its descriptor, and a mapping from before the last seals.
    segment: (Formatted, OwnedFd),
    words: SharedWords,
    /// The listener's segment, once it came.
    theirs: Option<PeerMemory>,
    /// Lap tag for the next lie.
    tag: u8,
    /// Pieces of memory that it has passed, more or less as it should.
    granted: u64,
}

impl Client {
    fn connect(scratch: &Scratch) -> Option<Client> {
        let socket = control::connect(&scratch.path("sock")).ok()?;
        let segment = segment();
        let descriptor = segment.1.try_clone().expect("a descriptor");
        let words = SharedWords::open(descriptor, WORDS).expect("a mapping");
        Some(Client {
            socket,
            proper: Cell::new(None),
            segment,
            words,
            theirs: None,
            tag: 1,
            granted: 0,
        })
    }

    fn step(&mut self, input: &mut Input<'_>) {
        if self.proper.get().is_none() {
            match input.below(4) {
                0 | 1 => self.say(&opening(HELLO, identity()), &[self.segment.1.as_fd()]),
                2 => self.lie_in_words(input),
                _ => self.lie_with_descriptors(input),
            }
            return self.listen();
        }
        match input.below(14) {
            0 => self.say(&opening(HELLO, identity()), &[self.segment.1.as_fd()]),
            1..=3 => self.listen(),
            4 if input.one_in(32) => control::shut(self.socket.as_fd()),
            5 => self.say(&opening(READY, identity()), &[]),
            6 => self.lie_in_words(input),
            7 => self.lie_with_descriptors(input),
            8 => self.say(input.take(70), &[]),
            9 | 10 => self.grant(input),
            _ => self.scribble(input),
        }
    }

    /// Says something to a listener that may have hung up, or takes no more for now.
    fn say(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
        if self.proper.get().is_none() {
            let own = self.segment.1.as_raw_fd();
            let hello = opening(HELLO, identity());
            let is_hello = bytes.len() == hello.len() && bytes[..SAID] == hello[..SAID];
            let is_own = matches!(descriptors, [one] if one.as_raw_fd() == own);
            self.proper.set(Some(is_hello && is_own));
        }
        let _ = try_send(&self.socket, bytes, descriptors);
    }

    /// Maps what comes with a welcome, and is ready.
    fn listen(&mut self) {
        let mut buffer = [0; 64];
        control::wait_readable(self.socket.as_fd(), SOON);
        let Ok(mut received) = control::receive(self.socket.as_fd(), &mut buffer) else {
            return;
        };
        let kind = u32::from_ne_bytes([buffer[8], buffer[9], buffer[10], buffer[11]]);
        if received.bytes == 1 && self.theirs.is_some() {
            // It has said that it sleeps, and how it is to be woken.
            return assert_eq!((buffer[0], received.descriptors.len()), (1, 0));
        }
        if received.bytes > 0 {
            assert!(
                kind == REFUSAL || self.proper.get() == Some(true),
                "welcomed"
            );
            assert!(kind == WELCOME || kind == REFUSAL, "a listener says {kind}");
            assert_eq!(received.descriptors.len(), usize::from(kind == WELCOME));
        }
        if let Some(segment) = received.descriptors.pop() {
            let segment = segment.duplicate().expect("a descriptor");
            self.theirs = Some(map_whole(segment));
            self.say(&opening(READY, identity()), &[]);
        }
    }

    fn lie_in_words(&self, input: &mut Input<'_>) {
        let mut bytes = opening(1 + input.below(5) as u32, identity());
        let at = input.below(bytes.len());
        let over = input.take(1 + at % 8);
        let end = (at + over.len()).min(bytes.len());
        bytes[at..end].copy_from_slice(&over[..end - at]);
        bytes.truncate(input.one_of(&[56, 56, 56, 55, 57, 8]));
        self.say(&bytes, &[self.segment.1.as_fd()]);
    }

    fn lie_with_descriptors(&self, input: &mut Input<'_>) {
        let (unsealed, short, long) = (unsealed(), sealed(4096), sealed(1 << 17));
        let forged = forged(&self.segment.1);
        let null = std::fs::File::open("/dev/null").expect("it is there");
        let menu = [
            self.segment.1.as_fd(),
            unsealed.as_fd(),
            short.as_fd(),
            long.as_fd(),
            null.as_fd(),
            forged.as_fd(),
            self.socket.as_fd(),
        ];
        let mut chosen: Vec<_> = (0..input.below(4)).map(|_| input.one_of(&menu)).collect();
        if input.one_in(2) {
            chosen.insert(0, menu[0]);
        }
        let kind = input.one_of(&[HELLO, HELLO, HELLO, READY, WELCOME]);
        self.say(&opening(kind, identity()), &chosen);
    }

    /// Memory for frames, in words near the truth.
    fn grant(&mut self, input: &mut Input<'_>) {
        let mut said = [GRANT, self.granted, STRIDE as u64, FRAMES as u64];
        if input.one_in(4) {
            let word = 1 + input.below(3);
            said[word] = match input.below(4) {
                0 => input.word(),
                1 => 0,
                2 => said[word] + 1,
                _ => said[word] / 2,
            };
        }
        let [whole, unsealed, short] = [frames(FRAMES), unsealed(), frames(STRIDE)];
        let menu = [whole.as_fd(), unsealed.as_fd(), short.as_fd()];
        let with = match input.below(12) {
            0 => &menu[..0],
            1 => &menu[..2],
            2 => &menu[1..2],
            3 => &menu[2..],
            _ => &menu[..1],
        };
        let bytes: Vec<u8> = said.iter().flat_map(|word| word.to_ne_bytes()).collect();
        self.say(&bytes, with);
        self.granted += 1;
    }

    /// Headers near the truth, and words that are not.
    fn scribble(&mut self, input: &mut Input<'_>) {
        let at = match input.below(8) {
            0 => CURSOR,
            1 => STATE,
            2 => input.below(WORDS),
            3 => RING + input.below(8),
            _ => RING,
        };
        let len = input.one_of(&[0, 8, 16, 16, 56, 57, 200, 1080]);
        let header = Header {
            tag: self.tag,
            kind: input.one_of(&[0, 0, 0, 4, 4, 5, 1]),
            multi: len > 56,
            restart: !input.one_in(8),
            reserved: input.one_of(&[0, 0, 0, FRAMED]),
            len,
            credit: input.below(4) as u64,
            wanted: input.one_in(2),
            target: input.below(4) as u16,
        };
        let word = match input.below(8) {
            0 => input.word(),
            _ if at < RING => input.below(3) as u64,
            _ => header.encode(),
        };
        if at == RING && header.restart {
            self.tag = self.tag % 255 + 1;
        }
        self.words.word(at).store(word, Ordering::Release);
    }
}

/// Memory for frames, as it should be.
fn frames(bytes: usize) -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memory = memfd_create("frames", flags).expect("a memfd");
    rustix::io::pwrite(&memory, &vec![7; bytes], 0).expect("written");
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL;
    fcntl_add_seals(&memory, seals).expect("sealed");
    memory
}

/// A memfd that says what the segment says, but may still shrink.
fn forged(segment: &OwnedFd) -> OwnedFd {
    let mut line = [0; 64];
    rustix::io::pread(segment, &mut line, 0).expect("its first line");
    let forged = memfd_create("forged", MemfdFlags::ALLOW_SEALING).expect("a memfd");
    ftruncate(&forged, 1 << 16).expect("its size");
    rustix::io::pwrite(&forged, &line, 0).expect("it may be written");
    forged
}
