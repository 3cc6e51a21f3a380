//! The victim: an endpoint of the test's own process, which listens, connects to liars, and all the while answers a third
//! party that has done nothing wrong.

use crate::liar::{Side, liars_address};
use crate::long;
use crate::support::{Ledger, PATIENCE, Peer, Scratch, patiently};
use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tightbeam::{
    Builder, CallError, ChannelId, Counters, Endpoint, Event, Handlers, Message, PeerFault, Reply,
    SendError,
};

/// Answers with what came.
pub(crate) const ECHO: u16 = 1;
/// Is noted, by its channel.
pub(crate) const NOTE: u16 = 2;

/// Is noted, and then its handler panics.
pub(crate) const PANIC: u16 = 3;

/// Is handled when the one after the next has been sent.
pub(crate) const FEED: u16 = 4;

/// Words of the ledger: calls of the third party that were answered, and wrongly; that it shall leave; how far the liar is, how
/// far it may go, a number of its own, and for how many microseconds the third party rests between two calls.
pub(crate) const ANSWERED: usize = 0;
pub(crate) const WRONG: usize = 1;
pub(crate) const LEAVE: usize = 2;
pub(crate) const PROGRESS: usize = 3;
pub(crate) const GO: usize = 4;
pub(crate) const NUMBER: usize = 5;
pub(crate) const REST: usize = 6;

/// Messages handled at a look; a batch may hold this many more.
pub(crate) const BUDGET: usize = 64;
const BATCH: usize = 135;
/// So many further calls of the third party say that it goes on.
const GOES_ON: u64 = 20;

/// What came over one channel for [`NOTE`].
#[derive(Default, Clone)]
pub(crate) struct Log {
    pub(crate) messages: u64,
    /// Length of each, in order.
    pub(crate) lengths: Vec<usize>,
    pub(crate) last: Vec<u8>,
    /// Payloads that changed while they were looked at.
    pub(crate) unstable: u64,
}

/// What came, and where the ledger is.
pub(crate) struct Seen(HashMap<ChannelId, Log>, String);

fn feed(seen: &mut Seen, message: Message<'_>, _: Reply<'_>) {
    let number = message.bytes().try_into().map_or(0, u64::from_ne_bytes);
    Ledger::of(&seen.1).wait_for(NUMBER, number + 2);
}

fn note(seen: &mut Seen, message: Message<'_>, reply: Reply<'_>) {
    let log = seen.0.entry(reply.channel()).or_default();
    let alleged = message.len();
    let bytes = message.bytes();
    let before = sum(bytes);
    (0..200).for_each(|_| std::hint::spin_loop());
    log.unstable += u64::from(before != sum(bytes) || alleged != bytes.len());
    log.messages += 1;
    log.lengths.push(bytes.len());
    log.last = bytes.to_vec();
}

/// FNV-1a (Fowler, Noll, Vo).
fn sum(bytes: &[u8]) -> u64 {
    let step = |sum: u64, byte: &u8| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    std::hint::black_box(bytes).iter().fold(0xcbf2_9ce4, step)
}

/// The child that calls all the time, and counts.
pub(crate) fn third_party(address: &str) {
    let ledger = Ledger::of(address);
    let builder = Endpoint::builder().depth(64).deadline(PATIENCE);
    let mut client = builder.connect(address).expect("the victim listens");
    let mut number = 0u64;
    while ledger.read(LEAVE) == 0 {
        number += 1;
        let said = number.to_ne_bytes();
        let word = match client.call(ECHO, &said).is_ok_and(|answer| answer == said) {
            true => ANSWERED,
            false => WRONG,
        };
        ledger.write(word, ledger.read(word) + 1);
        std::thread::sleep(Duration::from_micros(ledger.read(REST)));
    }
    assert!(client.next_event().is_none());
}

pub(crate) struct Stage {
    pub(crate) victim: Endpoint<Seen>,
    third: Option<Peer>,
    third_channel: ChannelId,
    pub(crate) ledger: Ledger,
    scratch: Scratch,
    /// There are more processes than CPUs as it is, and some tests count the descriptors of this one.
    _alone: MutexGuard<'static, ()>,
}

impl Stage {
    pub(crate) fn new(name: &str) -> Stage {
        Stage::with(name, |builder| builder)
    }

    /// With settings of its own.
    pub(crate) fn with(name: &str, settings: impl FnOnce(Builder<Seen>) -> Builder<Seen>) -> Stage {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let scratch = Scratch::new(&format!("hostile-{name}"));
        let handlers = Handlers::new()
            .on(ECHO, |_, message, reply| reply.send(message.bytes()))
            .on(NOTE, note)
            .on(FEED, feed)
            .on(PANIC, |seen, message, reply| {
                note(seen, message, reply);
                // Without a word on the terminal.
                std::panic::resume_unwind(Box::new("on purpose"));
            });
        let builder = Endpoint::builder().state(Seen(HashMap::new(), scratch.address()));
        let builder = builder.handlers(handlers).depth(64).deadline(PATIENCE);
        let builder = settings(builder.open_within(PATIENCE));
        let mut victim = builder.listen(&scratch.address()).expect("a free path");
        let third = Peer::start("third party", &scratch.address());
        let third_channel = patiently(|| {
            victim.poll(BUDGET);
            victim.next_event()
        });
        let mut stage = Stage {
            victim,
            third: Some(third),
            third_channel: third_channel.channel(),
            ledger: Ledger::of(&scratch.address()),
            scratch,
            _alone: alone,
        };
        stage.goes_on();
        stage
    }

    pub(crate) fn third_channel(&self) -> ChannelId {
        self.third_channel
    }

    pub(crate) fn address(&self) -> String {
        self.scratch.address()
    }

    pub(crate) fn path(&self, name: &str) -> std::path::PathBuf {
        self.scratch.path(name)
    }

    /// Lets processes of other users in.
    pub(crate) fn open_doors(&self) {
        for entry in ["", "sock", "sock.ledger"] {
            let all = std::fs::Permissions::from_mode(0o777);
            std::fs::set_permissions(self.path(entry), all).expect("ours");
        }
    }

    /// Starts the liar.
    pub(crate) fn liar(&self, side: Side, act: &str) -> Peer {
        Peer::start(&format!("{side:?} {act}"), &self.address())
    }

    /// The liar's next channel.
    pub(crate) fn meet(&mut self, side: Side) -> ChannelId {
        match side {
            Side::Client => match self.event() {
                Event::Opened { channel, .. } => channel,
                other => panic!("{other:?}"),
            },
            Side::Server => {
                let address = liars_address(&self.address());
                patiently(|| self.victim.open(&address).ok())
            }
        }
    }

    /// One bounded look at everything.
    pub(crate) fn poll(&mut self) -> usize {
        let handled = self.victim.poll(BUDGET);
        let most = BUDGET + BATCH * self.victim.channels().count().max(1);
        assert!(handled <= most, "{handled} of {BUDGET}");
        handled
    }

    /// Polls until there is a result.
    pub(crate) fn until<T>(&mut self, mut attempt: impl FnMut(&mut Stage) -> Option<T>) -> T {
        patiently(|| {
            self.poll();
            attempt(self)
        })
    }

    /// The same for what may take its time in the long run.
    pub(crate) fn until_long<T>(&mut self, mut attempt: impl FnMut(&mut Stage) -> Option<T>) -> T {
        let limit = Instant::now() + if long() { 60 * PATIENCE } else { 2 * PATIENCE };
        loop {
            self.poll();
            if let Some(done) = attempt(self) {
                return done;
            }
            assert!(Instant::now() < limit, "nothing happens");
            std::thread::yield_now();
        }
    }

    /// Polls until the liar is that far.
    pub(crate) fn until_progress(&mut self, value: u64) {
        self.until(|stage| (stage.ledger.read(PROGRESS) >= value).then_some(()));
    }

    /// Lets the liar go on.
    pub(crate) fn go(&self, step: u64) {
        self.ledger.write(GO, step);
    }

    /// Lets it take a step, and polls until it has.
    pub(crate) fn step(&mut self, step: u64) {
        self.go(step);
        self.until_progress(step);
    }

    pub(crate) fn event(&mut self) -> Event {
        self.until(|stage| stage.victim.next_event())
    }

    /// What was noted of a channel.
    pub(crate) fn log(&self, channel: ChannelId) -> Log {
        let log = self.victim.state().0.get(&channel);
        log.cloned().unwrap_or_default()
    }

    /// Polls until so many messages have been noted.
    pub(crate) fn until_noted(&mut self, channel: ChannelId, messages: u64) {
        self.until_long(|stage| (stage.log(channel).messages >= messages).then_some(()));
    }

    /// The third party's calls are still answered, rightly.
    pub(crate) fn goes_on(&mut self) {
        let wanted = self.ledger.read(ANSWERED) + GOES_ON;
        self.until(|stage| (stage.ledger.read(ANSWERED) >= wanted).then_some(()));
        assert_eq!(self.ledger.read(WRONG), 0);
    }

    /// The channel ends, with what its peer did wrong, and nobody else's does.
    pub(crate) fn faulted(&mut self, of: ChannelId) -> PeerFault {
        self.faulted_with(of).0
    }

    /// The same, with the channel's last counters.
    pub(crate) fn faulted_with(&mut self, of: ChannelId) -> (PeerFault, Counters) {
        match self.event() {
            Event::Faulted {
                channel,
                fault,
                counters,
            } if channel == of => (fault, counters),
            other => panic!("{other:?}"),
        }
    }

    /// Nothing goes to a channel any more, and nothing comes from it.
    pub(crate) fn quarantined(&mut self, channel: ChannelId) {
        let refused = self.victim.try_send_to(channel, NOTE, b"nobody");
        assert_eq!(refused, Err(SendError::NoChannel));
        let refused = self.victim.call_to(channel, ECHO, b"nobody", PATIENCE);
        let wanted = CallError::NotSent(SendError::NoChannel);
        assert_eq!(refused.err(), Some(wanted));
        assert!(self.victim.counters(channel).is_none());
        let before = self.log(channel).messages;
        for _ in 0..20 {
            self.poll();
        }
        assert_eq!(self.log(channel).messages, before);
        assert_eq!(self.log(channel).unstable, 0);
        assert!(self.victim.channels().any(|c| c == self.third_channel));
    }

    /// Sends until that is refused: how often it was not, and why it is.
    pub(crate) fn fill(&mut self, channel: ChannelId) -> (u64, SendError) {
        let mut sent = 0;
        loop {
            match self.victim.try_send_to(channel, NOTE, b"a note") {
                Ok(()) => sent += 1,
                Err(error) => return (sent, error),
            }
        }
    }

    /// The third party has been served to the end, and leaves as it should.
    pub(crate) fn end(mut self) {
        self.goes_on();
        self.ledger.write(LEAVE, 1);
        let end = self.event();
        let closed = matches!(end, Event::Closed { channel, .. } if channel == self.third_channel);
        assert!(closed, "{end:?}");
        assert_eq!(self.ledger.read(WRONG), 0);
        let third = self.third.take().expect("it has left but now");
        assert!(third.finish(), "the third party has seen nothing wrong");
        assert!(self.victim.next_event().is_none());
    }
}
