//! What comes over the connection beside the rings once a channel is open: wake-ups, and memory for frames.
//!
//! ```text
//!   wake-up   1 byte                                      to a peer that sleeps on the connection
//!   grant     32 bytes (magic, number, stride, size) + fd  memory in which the sender's frames lie, before the first of them
//! ```
//!
//! Both may come at any time, so whoever looks for one keeps the other for whom it is meant for. Anything else is a fault.

use crate::rest::Rest;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tightbeam_segment::{
    Arrived, Courier, FrameError, FrameMemory, Granted, MAX_GRANTED, MAX_SEGMENTS, PeerFault,
};
use tightbeam_sys::Errno;
use tightbeam_sys::apart::{self, Apart};
use tightbeam_sys::control::{self, Received};
use tightbeam_sys::frames::{OwnFrames, PeerFrames};
use tightbeam_sys::memory::PeerMemoryError;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What is said to wake who sleeps.
const WAKE: [u8; 1] = [1];
/// "tb-mem" and two bytes that no text has.
const MAGIC: u64 = u64::from_le_bytes(*b"tb-mem\x9d\xff");

/// Bytes of a piece of memory that are mapped in a poll at most, which takes 10 to 40 us. How much a peer passes is its own choice: to look
/// whether all of a gigabyte is there, and to populate it, takes 90 ms, and it may be the same 16 MiB 64 times. Another thread does that.
const SMALL: usize = 256 << 10;

/// So many small pieces a thread maps in so much time, over all of its channels; further ones are left to the other thread, too.
const PIECES: u32 = 8;
const WINDOW: Duration = Duration::from_millis(1);

/// Whether this thread may map a small piece now.
fn takes_one_more() -> bool {
    thread_local! {
        static TAKEN: Cell<Option<(Instant, u32)>> = const { Cell::new(None) };
    }
    let now = Instant::now();
    let window = TAKEN
        .get()
        .filter(|(since, _)| now.duration_since(*since) < WINDOW);
    let (since, taken) = window.unwrap_or((now, 0));
    TAKEN.set(Some((since, taken + 1)));
    taken < PIECES
}

/// Memory that has come, once it is mapped; and bytes from one frame to the next.
struct Piece {
    ready: Arc<OnceLock<Result<PeerFrames, PeerMemoryError>>>,
    stride: usize,
}

/// What is said of memory that is passed.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy)]
#[repr(C)]
struct Grant {
    magic: u64,
    number: u64,
    stride: u64,
    bytes: u64,
}

const BYTES: usize = size_of::<Grant>();

/// Wakes the other side when it is dropped.
struct WakeCall {
    socket: Arc<Apart<OwnedFd>>,
    /// It has not been dropped yet.
    pending: Arc<AtomicBool>,
}

impl Drop for WakeCall {
    fn drop(&mut self) {
        // AcqRel: pairs with that of `wake`, who finds it set; what was sent before that is there for who is woken now.
        self.pending.swap(false, Ordering::AcqRel);
        // A connection that is full has woken it already; one that is over has nobody to wake.
        let _ = control::send(self.socket.as_fd(), &WAKE, None);
    }
}

/// A wake-up takes 1 to 3 us, and longer the more wait for it: 20,000 epoll descriptors of the peer's, as many as it may have, make it
/// milliseconds. After so many in a row that take so long another thread makes them.
const SLOW: Duration = Duration::from_micros(200);
const SLOW_WAKES: u32 = 2;
/// And after so many of those it is tried here again: who was merely interrupted twice is not to be woken late for ever.
const APART: u32 = 1024;
/// That thread does not come to it: it is stuck with something else.
const NEVER: Duration = Duration::from_millis(20);

/// The connection of an open channel, as the endpoint's thread uses it.
pub(crate) struct Connection {
    socket: Arc<Apart<OwnedFd>>,
    /// Memory that has come and was not taken yet.
    granted: RefCell<VecDeque<Piece>>,
    /// How many pieces have come.
    count: Cell<u64>,
    /// How many bytes of them.
    bytes: Cell<usize>,
    /// We have said that we may sleep on the connection: before that nobody has a reason to wake us over it.
    sleeps: Cell<bool>,
    /// A wake-up was taken by who looked for something else.
    woken: Cell<bool>,
    /// Wake-ups in a row that took long, and those that another thread has made since.
    slow_wakes: Cell<u32>,
    /// That thread has one to make, and when it was given.
    pending: Arc<AtomicBool>,
    given: Cell<Instant>,
    rest: Rc<Rest>,
}

impl Connection {
    pub(crate) fn new(socket: Arc<Apart<OwnedFd>>, rest: Rc<Rest>) -> Connection {
        Connection {
            socket,
            granted: RefCell::default(),
            count: Cell::new(0),
            bytes: Cell::new(0),
            sleeps: Cell::new(false),
            woken: Cell::new(false),
            slow_wakes: Cell::new(0),
            pending: Arc::default(),
            given: Cell::new(Instant::now()),
            rest,
        }
    }

    /// Wakes who sleeps on the other side.
    pub(crate) fn wake(&self) {
        let (slow, now) = (self.slow_wakes.get(), Instant::now());
        if (SLOW_WAKES..SLOW_WAKES + APART).contains(&slow) {
            // One at a time: who is about to be woken will see all that was sent until then. AcqRel: pairs with that of `WakeCall`.
            if !self.pending.swap(true, Ordering::AcqRel) {
                self.slow_wakes.set(slow + 1);
                self.given.set(now);
                return drop(Apart::from(self.wake_call()));
            }
            if now.duration_since(self.given.get()) < NEVER {
                return;
            }
        }
        drop(self.wake_call());
        match now.elapsed() > SLOW {
            true => self.slow_wakes.set(slow.min(SLOW_WAKES - 1) + 1),
            false => self.slow_wakes.set(0),
        }
    }

    fn wake_call(&self) -> WakeCall {
        WakeCall {
            socket: Arc::clone(&self.socket),
            pending: Arc::clone(&self.pending),
        }
    }

    pub(crate) fn expect_wakes(&self) {
        self.sleeps.set(true);
    }

    /// Whether a wake-up was taken that nobody has acted upon.
    pub(crate) fn was_woken(&self) -> bool {
        self.woken.take()
    }

    /// Takes one message, if there is any; whether there was.
    pub(crate) fn read(&self) -> Result<bool, PeerFault> {
        let mut buffer = [0; BYTES + 1];
        let received = match control::receive(self.as_fd(), &mut buffer) {
            Ok(received) if received.no_room => return Err(PeerFault::Exhausted),
            Ok(received) => received,
            // Nothing there, or the connection is over, which the control thread sees too.
            Err(_) => return Ok(false),
        };
        let said = &buffer[..received.bytes];
        match (said, received.descriptors.len()) {
            ([], 0) if !received.empty => return Ok(false),
            (wake, 0) if wake == WAKE && self.sleeps.get() => {
                self.woken.set(true);
                self.rest.disturb();
            }
            (grant, 1) if !received.too_many => {
                let grant = Grant::read_from_bytes(grant).map_err(|_| PeerFault::Control)?;
                let granted = self.map(grant, received)?;
                self.granted.borrow_mut().push_back(granted);
            }
            _ => return Err(PeerFault::Control),
        }
        Ok(true)
    }

    fn map(&self, grant: Grant, received: Received) -> Result<Piece, PeerFault> {
        let [number, stride, bytes] = [grant.number, grant.stride, grant.bytes];
        let expected = self.count.get();
        let sizes = [stride, bytes].map(|size| usize::try_from(size).unwrap_or(0));
        let Some(memory) = received.descriptors.into_iter().next() else {
            return Err(PeerFault::Control);
        };
        if grant.magic != MAGIC || number != expected || stride == 0 {
            return Err(PeerFault::Control);
        }
        self.count.set(expected + 1);
        let [stride, bytes] = sizes;
        let together = self.bytes.get().saturating_add(bytes);
        // Here, because who waits on descriptors maps what comes long before a message names it.
        if expected >= MAX_SEGMENTS as u64 || together > MAX_GRANTED {
            return Err(PeerFault::Control);
        }
        self.bytes.set(together);
        let ready = Arc::new(OnceLock::new());
        let made = Arc::clone(&ready);
        let map = move || {
            // The channel may be over.
            if Arc::strong_count(&made) > 1 {
                made.set(PeerFrames::map(memory, bytes)).unwrap_or(());
            }
        };
        match bytes <= SMALL && takes_one_more() {
            true => map(),
            false => apart::run(map),
        }
        Ok(Piece { ready, stride })
    }

    /// The piece that has come first of what was not taken yet, if any.
    fn first_granted(&self) -> Result<Option<Arrived>, PeerFault> {
        let mut granted = self.granted.borrow_mut();
        let Some(Piece { ready, stride }) = granted.pop_front() else {
            return Ok(None);
        };
        match Arc::try_unwrap(ready).map(OnceLock::into_inner) {
            Ok(Some(Ok(memory))) => Ok(Some(Arrived::Memory(Granted {
                memory: Box::new(memory),
                stride,
            }))),
            Ok(Some(Err(PeerMemoryError::Map(Errno::NOMEM)))) => Err(PeerFault::Exhausted),
            Ok(_) => Err(PeerFault::Control),
            // The thread that maps it has it, too.
            Err(ready) => {
                granted.push_front(Piece { ready, stride });
                Ok(Some(Arrived::Later))
            }
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Carries memory for frames over a connection.
pub(crate) struct Carrier(pub(crate) Rc<Connection>);

impl Courier for Carrier {
    fn grant(
        &self,
        memory: &dyn FrameMemory,
        number: u16,
        stride: usize,
    ) -> Result<(), FrameError> {
        let own = memory.as_any().downcast_ref::<OwnFrames>();
        let own = own.ok_or(FrameError::Foreign)?;
        let grant = Grant {
            magic: MAGIC,
            number: u64::from(number),
            stride: stride as u64,
            bytes: memory.bytes() as u64,
        };
        let sent = control::send(self.0.as_fd(), grant.as_bytes(), Some(own.fd()));
        sent.map_err(|errno| match errno {
            Errno::PIPE | Errno::CONNRESET => FrameError::HungUp,
            // It has not taken what was passed before.
            Errno::AGAIN => FrameError::InUse { len: stride },
            _ => FrameError::System {
                call: "pass",
                bytes: memory.bytes(),
                errno: errno.raw_os_error(),
            },
        })
    }

    fn granted(&self) -> Result<Arrived, PeerFault> {
        let first = match self.0.first_granted()? {
            Some(Arrived::Later) => Arrived::Later,
            Some(granted) => return Ok(granted),
            None => Arrived::Nothing,
        };
        // What stays in the connection would be told of again and again.
        match self.0.read()? {
            true => Ok(Arrived::Other),
            false => Ok(first),
        }
    }
}
