//! The victim: polls, sends and calls at full rate, serves the third party, and watches itself.

use crate::board::{Board, REST, Word, pin};
use crate::support::patiently;
use crate::times::{Group, Times};
use std::hint::black_box;
use std::time::{Duration, Instant};
use tightbeam::{
    Batch, ChannelId, Endpoint, Event, Handlers, MAX_INLINE, MAX_MESSAGE, Message, PeerFault,
    Reply, SendError, Wait,
};

/// Handlers: answers with [`transformed`] bytes; reads; reads and answers; sends to who sent.
pub(crate) const ECHO: u16 = 1;
pub(crate) const NOTE: u16 = 2;
pub(crate) const ASK: u16 = 3;
pub(crate) const STORM: u16 = 4;

/// Ring depth of the victim: small, so that the scribbler meets full rings and laps often.
const DEPTH: usize = 64;
/// Messages that a poll may handle.
const BUDGET: usize = 256;
/// How long the victim waits for an answer of the scribbler.
const CALL_WITHIN: Duration = Duration::from_micros(30);
/// How channels end, in the order of [`Word::Ends`].
pub(crate) const ENDS: [&str; 15] = [
    "Length",
    "Kind",
    "Slot",
    "Batch",
    "CreditAhead",
    "CreditBackwards",
    "TooManyCalls",
    "UnknownCall",
    "HungUp",
    "Control",
    "Frame",
    "Return",
    "other fault",
    "closed",
    "dead",
];

fn end_index(event: &Event) -> usize {
    let fault = match event {
        Event::Closed { .. } => return 13,
        Event::Faulted { fault, .. } => fault,
        _ => return 14,
    };
    match fault {
        PeerFault::Length { .. } => 0,
        PeerFault::Kind { .. } => 1,
        PeerFault::Slot { .. } => 2,
        PeerFault::Batch { .. } => 3,
        PeerFault::CreditAhead { .. } => 4,
        PeerFault::CreditBackwards { .. } => 5,
        PeerFault::TooManyCalls => 6,
        PeerFault::UnknownCall { .. } => 7,
        PeerFault::HungUp => 8,
        PeerFault::Control => 9,
        PeerFault::Frame { .. } => 10,
        PeerFault::Return { .. } => 11,
        _ => 12,
    }
}

/// The right answer to a call of [`ECHO`].
pub(crate) fn transformed(payload: &[u8]) -> impl Iterator<Item = u8> + '_ {
    payload.iter().map(|byte| byte ^ 0x5a)
}

/// What handlers remember.
struct Seen {
    torn: u64,
    answer: Vec<u8>,
}

/// Reads a payload twice and checks that it stays what it was.
fn look<'a>(seen: &mut Seen, message: Message<'a>) -> &'a [u8] {
    let len = message.len();
    let bytes = message.bytes();
    let before = digest(bytes);
    for _ in 0..8 {
        std::hint::spin_loop();
    }
    let same = digest(black_box(bytes)) == before;
    seen.torn += u64::from(!same || bytes.len() != len || len > MAX_MESSAGE);
    bytes
}

fn digest(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let mix = |sum: u64, word: u64| (sum ^ word).wrapping_mul(0x0100_0000_01b3);
    let words = words.iter().map(|word| u64::from_ne_bytes(*word));
    rest.iter()
        .map(|byte| u64::from(*byte))
        .chain(words)
        .fold(0, mix)
}

fn echo(seen: &mut Seen, message: Message<'_>, reply: Reply<'_>) {
    let bytes = look(seen, message);
    seen.answer.clear();
    seen.answer.extend(transformed(bytes));
    reply.send(&seen.answer);
}

fn note(seen: &mut Seen, message: Message<'_>, _reply: Reply<'_>) {
    look(seen, message);
}

fn ask(seen: &mut Seen, message: Message<'_>, reply: Reply<'_>) {
    let bytes = look(seen, message);
    reply.send(bytes);
}

/// Sends while the message has not been read yet, and looks at it then.
fn storm(seen: &mut Seen, message: Message<'_>, reply: Reply<'_>) {
    let _ = reply.try_send(NOTE, &[7; 40]);
    let bytes = look(seen, message);
    let _ = reply.try_send(NOTE, bytes);
}

struct Victim<'a> {
    board: &'a Board,
    endpoint: Endpoint<Seen>,
    sleeps: bool,
    client: Option<ChannelId>,
    scribbler: Option<ChannelId>,
    batch: Batch,
    round: u64,
}

pub(crate) fn run(board: &Board, address: &str) {
    pin(0);
    let sleeps = board.get(Word::Sleeps) != 0;
    let handlers = Handlers::new().on(ECHO, echo).on(NOTE, note);
    let handlers = handlers.on(ASK, ask).on(STORM, storm);
    let seen = Seen {
        torn: 0,
        answer: Vec::with_capacity(MAX_INLINE),
    };
    let builder = Endpoint::builder().state(seen).handlers(handlers);
    let builder = builder.depth(DEPTH).deadline(CALL_WITHIN);
    let wait = if sleeps { Wait::Park } else { Wait::Spin };
    let endpoint = builder.wait(wait).listen(address).expect("a free path");
    board.set(Word::Ready, 1);
    let mut victim = Victim {
        board,
        endpoint,
        sleeps,
        client: None,
        scribbler: None,
        batch: Batch::new(),
        round: 0,
    };
    victim.serve();
}

impl Victim<'_> {
    fn serve(&mut self) {
        let (mut rest, mut scribbled) = (Times::new(), Times::new());
        let mut group = Group::new(self.sleeps);
        let mut mode = REST;
        while self.board.get(Word::StopVictim) == 0 {
            self.round += 1;
            let before = group.tick();
            let handled = self.endpoint.poll(BUDGET);
            let after = group.tick();
            self.board.add(Word::Handled, handled as u64);
            let events = self.attend();
            group.note(before, handled, events, after);
            if group.is_over() {
                group.close(match mode {
                    REST => &mut rest,
                    _ => &mut scribbled,
                });
                mode = match self.board.get(Word::Resting) {
                    0 => crate::board::SCRIBBLE,
                    _ => REST,
                };
                self.measure_if_asked();
                if self.sleeps {
                    self.endpoint.poll_for(BUDGET, Duration::from_micros(200));
                }
                group.begin();
            }
            if let Some(scribbler) = self.scribbler {
                self.bother(scribbler);
            }
        }
        let board = self.board;
        let rest_words = [
            Word::RestPolls,
            Word::RestMax,
            Word::RestP9999,
            Word::RestOver,
            Word::RestStolen,
        ];
        let words = [
            Word::Polls,
            Word::PollMax,
            Word::PollP9999,
            Word::PollOver,
            Word::PollStolen,
        ];
        for (times, words) in [(&rest, rest_words), (&scribbled, words)] {
            let p9999 = times.quantile(0.9999);
            let values = [times.polls, times.max, p9999, times.over, times.stolen];
            for (word, value) in words.into_iter().zip(values) {
                board.set(word, value);
            }
        }
        board.set(Word::Torn, self.endpoint.state().torn);
    }

    /// Notes whose channels begin and end, and how many did.
    fn attend(&mut self) -> usize {
        let mut events = 0;
        while let Some(event) = self.endpoint.next_event() {
            events += 1;
            let Event::Opened { channel, peer } = &event else {
                self.note_end(&event);
                continue;
            };
            if u64::from(peer.pid.unsigned_abs()) == self.board.get(Word::ClientPid) {
                self.client = Some(*channel);
                continue;
            }
            self.scribbler = Some(*channel);
            self.board.add(Word::Opened, 1);
            let number = self.board.get(Word::Opened);
            self.board.set(Word::Current, number);
        }
        events
    }

    fn note_end(&mut self, event: &Event) {
        let channel = Some(event.channel());
        if channel == self.client {
            // Only the test ends it, and stops the victim right after.
            let stopping = self.board.get(Word::StopClient);
            self.board.add(Word::Strangers, 1 - stopping.min(1));
            return;
        }
        self.board.add_at(Word::Ends, end_index(event), 1);
        if channel == self.scribbler {
            self.scribbler = None;
            self.board.set(Word::Current, 0);
        }
    }

    /// Sends, sends several at once, and calls.
    fn bother(&mut self, scribbler: ChannelId) {
        let sent = match self.round % 16 {
            4 | 12 => {
                let len = [8, 56, 57, 1080, 300, 2000][self.round as usize / 16 % 6];
                self.endpoint
                    .try_send_to(scribbler, NOTE, &[1; 2000][..len])
            }
            8 => {
                while self.batch.len() < 5 && self.batch.push(NOTE, &[2; 20]) {}
                self.endpoint.try_send_batch_to(scribbler, &mut self.batch)
            }
            15 if self.round % 1024 == 1023 => {
                let answer = self.endpoint.call_to(scribbler, ASK, &[3; 30], CALL_WITHIN);
                self.board.add(Word::Calls, 1);
                self.board
                    .add(Word::CallsAnswered, u64::from(answer.is_ok()));
                return;
            }
            _ => return,
        };
        match sent {
            Ok(()) => self.board.add(Word::Sends, 1),
            Err(SendError::Full | SendError::Fault(_) | SendError::NoChannel) => {}
            Err(error) => panic!("{error}"),
        }
    }

    /// Counts what the process holds once all channels but the client's are over and cleaned up.
    fn measure_if_asked(&mut self) {
        let asked = self.board.get(Word::Measure);
        if asked == self.board.get(Word::Measured) {
            return;
        }
        let (descriptors, mappings) = patiently(|| {
            const QUIET: Duration = Duration::from_millis(30);
            let counts = (descriptors(), mappings());
            let since = Instant::now();
            while since.elapsed() < QUIET {
                self.endpoint.poll(BUDGET);
                self.attend();
            }
            let alone = self.endpoint.channels().count() <= 1;
            (alone && (descriptors(), mappings()) == counts).then_some(counts)
        });
        self.board.set(Word::Descriptors, descriptors);
        self.board.set(Word::Mappings, mappings);
        self.board.set(Word::Kibibytes, kibibytes());
        self.board.set(Word::Measured, asked);
    }
}

fn descriptors() -> u64 {
    std::fs::read_dir("/proc/self/fd").expect("proc").count() as u64
}

/// Of shared memory: how many ranges of heaps and stacks there are is the allocator's affair.
fn mappings() -> u64 {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("proc");
    maps.lines().filter(|line| line.contains("memfd:")).count() as u64
}

fn kibibytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("proc");
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let words = line.expect("there is such a line").split_whitespace();
    words
        .filter_map(|word| word.parse().ok())
        .next()
        .expect("a number")
}
