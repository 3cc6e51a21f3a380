//! The victim: serves all of them, and looks at what it is given and at how long it takes.

use crate::support::{Ledger, patiently};
use crate::{
    BOUND, ECHO, HANDLED, LONGEST, LOST, MAKING, NUMBERED, OVER, PACKETS, POLLS, READY, STOP,
    VICTIM, number_of,
};
use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;
use tightbeam::{ChannelId, Endpoint, Event, Handlers, Message, Reply};

/// What it has been given.
#[derive(Default)]
struct Seen {
    /// The third party's channel over the network, and the number of its last message.
    third: Option<ChannelId>,
    last: Option<u64>,
    /// Messages of anybody else over the network, and which numbers they had.
    hostile: u64,
    numbers: Vec<u64>,
}

impl Seen {
    /// Whether this number is there for the first time.
    fn is_first(&mut self, number: u64) -> bool {
        let (word, bit) = ((number / 64) as usize, 1 << (number % 64));
        if self.numbers.len() <= word {
            self.numbers.resize(word + 1, 0);
        }
        let first = self.numbers[word] & bit == 0;
        self.numbers[word] |= bit;
        first
    }
}

fn hear(seen: &mut Seen, message: Message<'_>, reply: Reply<'_>) {
    let number = number_of(message.bytes());
    if Some(reply.channel()) == seen.third {
        let number = number.expect("the third party has sent this");
        assert!(seen.last < Some(number), "{number} after {:?}", seen.last);
        seen.last = Some(number);
        return;
    }
    seen.hostile += 1;
    // A number that its sender gives to one message only.
    if let Some(number) = number {
        assert!(seen.is_first(number), "{number} was handled twice");
    }
}

fn own_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec as u32)
}

/// What takes memory, and its time: channels that were opened, and frames of those that there are.
fn made_by(endpoint: &Endpoint<Seen>) -> (u64, usize) {
    let frames = endpoint
        .channels()
        .filter_map(|channel| endpoint.frames(channel));
    let frames = frames.map(|pool| pool.frames).sum();
    (endpoint.openings().opened, frames)
}

pub(crate) fn run(board: &Ledger, address: &str) {
    let handlers = Handlers::new()
        .on(ECHO, |_: &mut Seen, message, reply| {
            reply.send(message.bytes())
        })
        .on(NUMBERED, hear);
    let builder = Endpoint::builder().state(Seen::default());
    let builder = builder.handlers(handlers).max_channels(8);
    let builder = builder.idle_limit(Duration::from_millis(50));
    let mut endpoint = builder.listen(address).expect("a free port");
    let local = std::env::var(crate::BOARD).expect("what the parent tells");
    endpoint.accept_at(&local).expect("a free path");
    board.write(READY, 1);
    let (mut polls, mut over, mut making) = (0, 0, 0);
    let mut longest = Duration::ZERO;
    while board.read(STOP) < VICTIM {
        let (made, before) = (made_by(&endpoint), own_time());
        endpoint.poll(64);
        let took = own_time() - before;
        polls += 1;
        longest = longest.max(took);
        if took > BOUND {
            match made_by(&endpoint) == made {
                true => over += 1,
                false => making += 1,
            }
        }
        board.write(MAKING, making);
        board.write(POLLS, polls);
        board.write(OVER, over);
        board.write(LONGEST, longest.as_nanos() as u64);
        board.write(HANDLED, endpoint.state().hostile);
        while let Some(event) = endpoint.next_event() {
            let third = endpoint.state().third;
            match event {
                // The first one over the network.
                Event::Opened { channel, peer } if third.is_none() && peer.host.is_some() => {
                    endpoint.state_mut().third = Some(channel);
                }
                // What is hostile loses its place, closes, or is said to be unknown.
                Event::Opened { .. } => {}
                other => assert_ne!(Some(other.channel()), third, "{other:?}"),
            }
        }
    }
    let third = endpoint.state().third.expect("it has come");
    // What is still in a ring or with the device is handled first.
    let packets = board.read(PACKETS) - 1;
    let lost = patiently(|| {
        endpoint.poll(64);
        let status = endpoint.device_status(third).expect("it is open");
        let count = |label| status.count(label).expect("it is counted");
        assert_eq!(count("channel_no_room"), 0, "{status:?}");
        assert_eq!(status.count("frames_missing").unwrap_or(0), 0, "{status:?}");
        (count("accepted") + count("lost") == packets).then_some(count("lost"))
    });
    board.write(LOST, lost);
    let channels: Vec<ChannelId> = endpoint.channels().collect();
    patiently(|| (endpoint.poll(64) == 0).then_some(()));
    for channel in channels {
        if let Some(frames) = endpoint.frames(channel) {
            let placed = frames.free + frames.lent == frames.frames;
            assert!(
                frames.astray.is_empty() && frames.out == 0 && placed,
                "{frames:?}"
            );
        }
        if let Some(audit) = endpoint.audit(channel)
            && endpoint
                .peer(channel)
                .is_some_and(|peer| peer.host.is_some())
        {
            assert!(audit.findings.is_empty(), "{audit}");
        }
    }
}
