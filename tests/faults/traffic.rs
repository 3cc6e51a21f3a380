//! What the processes of a test say to each other: numbered messages and calls both ways, all of them checked.

use crate::board::{Board, Random, Word, fill, read, room};
use crate::support::PATIENCE;
use std::time::Duration;
use tightbeam::{
    CallError, ChannelId, Endpoint, Event, Handlers, Message, PoolAudit, Reply, SendError,
};

/// A numbered message.
pub(crate) const NUMBERED: u16 = 1;
/// A numbered message of which the answer is a copy.
pub(crate) const CALLED: u16 = 2;
/// A call that says nothing about who calls.
pub(crate) const ECHO: u16 = 3;
/// A call that nobody answers.
pub(crate) const MUTE: u16 = 4;
/// A message in a frame that several get.
pub(crate) const SHARED: u16 = 5;
/// The number under which such messages are sent.
pub(crate) const EVERYBODY: u64 = 1 << 21;

/// One message in so many of a child is a call.
pub(crate) const CALLS: u64 = 8;

/// Where a child listens, by its number.
pub(crate) fn listens_at(address: &str, number: u64) -> String {
    format!("{address}.{}", number % crate::kills::SLOTS)
}

/// The number under which the test's own endpoint sends to the channel of a child.
pub(crate) const fn answers_to(child: u64) -> u64 {
    child | 1 << 20
}

/// What came from one sender.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Arrived {
    pub(crate) sender: u64,
    /// The last number.
    pub(crate) last: u64,
}

/// What came from all of them.
#[derive(Default)]
pub(crate) struct Books {
    from: Vec<Arrived>,
    /// Messages that were changed, out of order, or from nobody who may send.
    pub(crate) wrong: u64,
    /// What the first of those was.
    pub(crate) first_wrong: Option<String>,
}

/// A message that is not what was expected: whose it says it is, and from where on it is not what that sender sends.
fn describe(bytes: &[u8]) -> String {
    let word = |at| bytes.get(at..).and_then(|rest| rest.first_chunk());
    let (Some(sender), Some(number)) = (word(0), word(8)) else {
        return format!("{} bytes", bytes.len());
    };
    let (sender, number) = (u64::from_ne_bytes(*sender), u64::from_ne_bytes(*number));
    let mut room = room();
    let right = fill(&mut room, sender, number);
    let same = right.iter().zip(bytes).take_while(|(a, b)| a == b).count();
    let zeros = bytes.iter().skip(same).take_while(|b| **b == 0).count();
    let (len, wanted) = (bytes.len(), right.len());
    format!(
        "message {number} of {sender}, {len} bytes of {wanted}, right up to {same}, then {zeros} zeros"
    )
}

impl Books {
    /// What came from this sender is taken from now on.
    pub(crate) fn expect(&mut self, sender: u64) {
        self.from.push(Arrived { sender, last: 0 });
    }

    /// How many have come from a sender.
    pub(crate) fn count(&self, sender: u64) -> u64 {
        let found = self.from.iter().find(|from| from.sender == sender);
        found.map_or(0, |from| from.last)
    }

    /// How many have come, and that no more may come.
    pub(crate) fn close(&mut self, sender: u64) -> u64 {
        let count = self.count(sender);
        self.from.retain(|from| from.sender != sender);
        count
    }

    fn take(&mut self, bytes: &[u8]) {
        let from = read(bytes).and_then(|(sender, number)| {
            let from = self.from.iter_mut().find(|from| from.sender == sender)?;
            (number == from.last + 1).then_some(from)
        });
        match from {
            Some(from) => from.last += 1,
            None => {
                if self.wrong == 0 {
                    self.first_wrong = Some(describe(bytes));
                }
                self.wrong += 1;
            }
        }
    }
}

pub(crate) fn handlers() -> Handlers<Books> {
    Handlers::new()
        .on(NUMBERED, |books: &mut Books, message: Message<'_>, _| {
            books.take(message.bytes());
        })
        .on(
            CALLED,
            |books: &mut Books, message: Message<'_>, reply: Reply<'_>| {
                let bytes = message.bytes();
                books.take(bytes);
                reply.send(bytes);
            },
        )
        .on(ECHO, |_, message: Message<'_>, reply: Reply<'_>| {
            reply.send(message.bytes());
        })
        .on(MUTE, |_, _, _| {})
        .on(SHARED, |books: &mut Books, message: Message<'_>, _| {
            let frame = message.frames().expect("it comes in a frame");
            let right = read(&frame.to_vec()).is_some_and(|(sender, _)| sender == EVERYBODY);
            books.wrong += u64::from(!right);
        })
}

/// Each frame is in one place, and nobody has kept one that was not sent.
pub(crate) fn assert_conserved(frames: PoolAudit) {
    let PoolAudit { free, lent, .. } = frames;
    assert_eq!((frames.astray.len(), frames.out), (0, 0), "{frames:?}");
    assert_eq!(free + lent, frames.frames, "{frames:?}");
}

pub(crate) fn builder() -> tightbeam::Builder<Books> {
    let builder = Endpoint::builder().state(Books::default());
    builder.handlers(handlers()).deadline(PATIENCE)
}

/// Sends and calls without a pause over one channel, and writes down each step before and after it.
pub(crate) struct Talker<'a> {
    pub(crate) board: &'a Board,
    pub(crate) number: u64,
    pub(crate) sent: u64,
}

impl Talker<'_> {
    /// One message or call; an error if the channel is no more.
    pub(crate) fn step(
        &mut self,
        endpoint: &mut Endpoint<Books>,
        channel: ChannelId,
    ) -> Result<(), SendError> {
        let mut room = room();
        let next = self.sent + 1;
        let payload = fill(&mut room, self.number, next);
        self.board.set(self.number, Word::Attempted, next);
        if next.is_multiple_of(CALLS) {
            match endpoint.call_to(channel, CALLED, payload, PATIENCE) {
                Ok(answer) if answer == payload => self.board.add(self.number, Word::Answered, 1),
                Ok(_) => self.board.add(self.number, Word::Wrong, 1),
                Err(CallError::NotSent(error)) => return Err(error),
                Err(CallError::Ended) => return Err(SendError::NoChannel),
                Err(_) => self.board.add(self.number, Word::Failed, 1),
            }
        } else {
            endpoint.send_to(channel, NUMBERED, payload, PATIENCE)?;
        }
        self.sent = next;
        self.board.set(self.number, Word::Published, next);
        Ok(())
    }

    /// Until the channel ends or the test wishes so.
    pub(crate) fn talk(&mut self, endpoint: &mut Endpoint<Books>, channel: ChannelId) {
        while self.board.get(self.number, Word::Wish) == 0 {
            if self.step(endpoint, channel).is_err() {
                self.board.add(self.number, Word::Ends, 1);
                break;
            }
            endpoint.poll(16);
            self.tell(endpoint);
        }
    }

    /// Writes down what has come.
    pub(crate) fn tell(&self, endpoint: &Endpoint<Books>) {
        let books = endpoint.state();
        let (number, came) = (self.number, books.count(answers_to(self.number)));
        self.board.set(number, Word::Received, came);
        if books.wrong > 0 {
            self.board.set(number, Word::Wrong, books.wrong);
        }
    }
}

/// A child that connects to the test's endpoint and talks.
pub(crate) fn connecting(board: &Board, number: u64, address: &str) {
    let mut client = crate::support::patiently(|| builder().connect(address).ok());
    let channel = client.channels().next().expect("a channel");
    client.state_mut().expect(answers_to(number));
    let mut talker = Talker {
        board,
        number,
        sent: 0,
    };
    talker.talk(&mut client, channel);
}

/// A child that listens at an address of its own and talks with the first who comes.
pub(crate) fn listening(board: &Board, number: u64, address: &str) {
    let mut server = builder()
        .listen(&listens_at(address, number))
        .expect("a free path");
    server.state_mut().expect(answers_to(number));
    let Event::Opened { channel, .. } = crate::support::next_event(&mut server) else {
        board.add(number, Word::Failed, 1);
        return;
    };
    let mut talker = Talker {
        board,
        number,
        sent: 0,
    };
    talker.talk(&mut server, channel);
}

/// An honest client that calls without a pause; its answers must go on, whatever happens to others.
/// What a third party is asked: to end, or to leave the CPUs to the others.
pub(crate) const END: u64 = 1;
pub(crate) const SELDOM: u64 = 2;

pub(crate) fn third_party(board: &Board, number: u64, address: &str) {
    let mut client = crate::support::patiently(|| builder().connect(address).ok());
    let mut random = Random::new(number);
    let mut room = room();
    loop {
        match board.get(number, Word::Wish) {
            END => return,
            SELDOM => std::thread::sleep(Duration::from_millis(1)),
            _ => {}
        }
        let payload = fill(&mut room, number, random.below(1 << 30));
        match client.call(ECHO, payload) {
            Ok(answer) if answer == payload => board.add(number, Word::Answered, 1),
            Ok(_) => board.add(number, Word::Wrong, 1),
            Err(error) => {
                eprintln!("third party: {error}, {} bytes", payload.len());
                board.add(number, Word::Failed, 1);
            }
        }
        // Of frames that others get too.
        let wrong = std::mem::take(&mut client.state_mut().wrong);
        if wrong > 0 {
            board.add(number, Word::Wrong, wrong);
        }
        if client.next_event().is_some() {
            board.add(number, Word::Ends, 1);
            return;
        }
    }
}

/// Now, on the clock that all processes of one time namespace share.
pub(crate) fn now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}
