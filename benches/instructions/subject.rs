//! The process whose instructions are counted: both ends of one channel on one thread, and a mark on either side of each
//! step that is to be counted.
//!
//! The mark at the beginning is a breakpoint, at which the parent takes over and steps until the mark at the end. What the
//! parent has to know is in registers at the breakpoint. Started by the parent only: without it a breakpoint is fatal.

use std::arch::asm;
use std::hint::black_box;
use std::time::Duration;
use tightbeam::{CallError, Endpoint, Event, Handlers, Message, Reply, Wait};

const SILENT: u16 = 1;
const TAKE: u16 = 2;
const ECHO: u16 = 3;

/// What is counted; goes to the parent as a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum Case {
    /// The marks themselves.
    Nothing,
    EmptyPoll,
    PollSilent,
    PollTake,
    PollEcho,
    SpinSilent,
    Send8,
    Send56,
}

impl Case {
    pub(crate) const ALL: [Case; 8] = [
        Case::Nothing,
        Case::EmptyPoll,
        Case::PollSilent,
        Case::PollTake,
        Case::PollEcho,
        Case::SpinSilent,
        Case::Send8,
        Case::Send56,
    ];

    /// Whether a handler runs in it.
    pub(crate) fn dispatches(self) -> bool {
        !matches!(
            self,
            Case::Nothing | Case::EmptyPoll | Case::Send8 | Case::Send56
        )
    }

    pub(crate) fn what(self) -> &'static str {
        match self {
            Case::Nothing => "the marks alone",
            Case::EmptyPoll => "poll, nothing there",
            Case::PollSilent => "poll, 8 B, handler that does nothing",
            Case::PollTake => "poll, 56 B, handler that reads them",
            Case::PollEcho => "poll, call of 8 B, handler that replies with them",
            Case::SpinSilent => "poll_for, 8 B, handler that does nothing",
            Case::Send8 => "try_send, 8 B",
            Case::Send56 => "try_send, 56 B",
        }
    }
}

/// Stops for the parent and tells it the case, the addresses of [`end`] and of the handler.
#[inline(never)]
extern "C" fn begin(case: u64, end: usize, handler: usize) {
    // SAFETY: a breakpoint changes neither memory nor registers; the parent is there and goes on behind it.
    unsafe { asm!("int3", in("rdi") case, in("rsi") end, in("rdx") handler) }
}

/// Where the parent stops counting.
#[inline(never)]
extern "C" fn end() {
    // SAFETY: does nothing at all; that it is there keeps this function from being merged with another or left out.
    unsafe { asm!("nop") }
}

/// The handlers' state: what they have seen, so that the parent's counts are of work that was done.
#[derive(Default)]
struct Seen {
    messages: u64,
    bytes: u64,
}

#[inline(never)]
fn silent(seen: &mut Seen, _: Message<'_>, _: Reply<'_>) {
    seen.messages += 1;
}

#[inline(never)]
fn take(seen: &mut Seen, message: Message<'_>, _: Reply<'_>) {
    seen.messages += 1;
    seen.bytes += black_box(message.bytes()).len() as u64;
}

#[inline(never)]
fn echo(seen: &mut Seen, message: Message<'_>, reply: Reply<'_>) {
    seen.messages += 1;
    reply.send(message.bytes());
}

/// Calls [`begin`] with what belongs to the case.
#[inline(always)]
fn mark(case: Case, handler: Handler) {
    begin(
        case as u64,
        end as extern "C" fn() as usize,
        handler as usize,
    );
}

type Handler = fn(&mut Seen, Message<'_>, Reply<'_>);

struct Subject {
    client: Endpoint,
    server: Endpoint<Seen>,
}

impl Subject {
    fn open(address: &str) -> Subject {
        let handlers = Handlers::<Seen>::new()
            .on(SILENT, silent)
            .on(TAKE, take)
            .on(ECHO, echo);
        let builder = Endpoint::builder()
            .state(Seen::default())
            .handlers(handlers);
        let mut server = builder
            .wait(Wait::Spin)
            .listen(address)
            .expect("a free path");
        let client = Endpoint::builder().wait(Wait::Spin).connect(address);
        let client = client.expect("it listens");
        loop {
            server.poll(1);
            match server.next_event() {
                Some(Event::Opened { .. }) => return Subject { client, server },
                Some(event) => panic!("{event:?}"),
                None => std::hint::spin_loop(),
            }
        }
    }

    fn round(&mut self, case: Case) {
        match case {
            Case::Nothing => {
                mark(case, silent);
                end();
            }
            Case::EmptyPoll => self.poll(case, silent, 0),
            Case::PollSilent => {
                self.client.try_send(SILENT, &[1; 8]).expect("room");
                self.poll(case, silent, 1);
            }
            Case::PollTake => {
                self.client.try_send(TAKE, &[1; 56]).expect("room");
                self.poll(case, take, 1);
            }
            Case::PollEcho => self.echo(),
            Case::SpinSilent => {
                self.client.try_send(SILENT, &[1; 8]).expect("room");
                self.spin();
            }
            // A length that the compiler does not know.
            Case::Send8 => self.send(case, black_box(&[1; 8])),
            Case::Send56 => self.send(case, black_box(&[1; 56])),
        }
    }

    /// Counts one poll, which must handle as many messages as expected.
    #[inline(never)]
    fn poll(&mut self, case: Case, handler: Handler, expected: u64) {
        let before = self.server.state().messages;
        mark(case, handler);
        let handled = self.server.poll(64);
        end();
        let seen = self.server.state().messages - before;
        assert_eq!((handled as u64, seen), (expected, expected), "{case:?}");
    }

    /// As [`poll`](Self::poll), but as those look who wait: in the loop that spins for the first message.
    #[inline(never)]
    fn spin(&mut self) {
        let before = self.server.state().messages;
        mark(Case::SpinSilent, silent);
        let handled = self.server.poll_for(64, Duration::MAX);
        end();
        let seen = self.server.state().messages - before;
        assert_eq!((handled, seen), (1, 1), "{:?}", Case::SpinSilent);
    }

    /// The client gives the call up at once: it shares this thread with the server. The late answer is then dropped.
    fn echo(&mut self) {
        let channel = self.client.channels().next().expect("an open channel");
        let unanswered = self
            .client
            .call_to(channel, ECHO, &[1; 8], Duration::ZERO)
            .map(<[u8]>::len);
        assert_eq!(unanswered, Err(CallError::DeadlineExceeded));
        self.poll(Case::PollEcho, echo, 1);
        assert_eq!(self.client.poll(64), 1, "the answer comes");
    }

    /// Counts one send, of what is then handled.
    #[inline(never)]
    fn send(&mut self, case: Case, payload: &[u8]) {
        let before = self.server.state().bytes;
        mark(case, take);
        let sent = self.client.try_send(TAKE, payload);
        end();
        assert_eq!(sent, Ok(()), "{case:?}");
        self.server.poll(64);
        let seen = self.server.state().bytes - before;
        assert_eq!(seen, payload.len() as u64, "{case:?}");
    }
}

/// Goes through all cases, each `rounds` times.
pub(crate) fn run(address: &str, rounds: u32) {
    let mut subject = Subject::open(address);
    for case in Case::ALL {
        for _ in 0..rounds {
            subject.round(case);
        }
    }
}
