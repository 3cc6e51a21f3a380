//! One frame for many receivers, between processes: who is slow, stopped or killed delays nobody, and no frame is lost.

mod support;

use rustix::process::{Signal, getpid, kill_process};
use std::time::Duration;
use support::{Ledger, PATIENCE, Peer, Scratch, opened, patiently, role};
use tightbeam::{
    ChannelId, Counter, Counters, Endpoint, Event, Frozen, Handlers, Message, Offered, Policy,
    Published, Received, Reply, SendError,
};

/// A frame that begins with its number.
const TICK: u16 = 1;

const LEN: usize = 20_000;
/// Where "kill" ends.
const DEADLY: u64 = 150;

/// What a subscriber says in its ledger: how many it got, the number of the last one, and how many were wrong.
const GOT: usize = 0;
const LAST: usize = 1;
const WRONG: usize = 2;

struct Subscriber {
    ledger: Ledger,
    deadly: u64,
    /// The last few frames are kept, as somebody would who looks at them later.
    kept: Vec<Received>,
}

fn content(number: u64) -> u8 {
    (number * 7) as u8
}

fn tick(subscriber: &mut Subscriber, message: Message<'_>, _: Reply<'_>) {
    let frame = message.frames().expect("a frame");
    let (mut first, mut last) = ([0; 8], [0]);
    frame.copy_to(0, &mut first);
    frame.copy_to(LEN - 1, &mut last);
    let number = u64::from_ne_bytes(first);
    if number >= subscriber.deadly {
        kill_process(getpid(), Signal::KILL).expect("this process");
    }
    let ledger = &subscriber.ledger;
    let in_order = ledger.read(GOT) == 0 || number > ledger.read(LAST);
    if !in_order || last[0] != content(number) || frame.len() != LEN {
        ledger.write(WRONG, ledger.read(WRONG) + 1);
    }
    ledger.write(LAST, number);
    ledger.write(GOT, ledger.read(GOT) + 1);
    if subscriber.kept.len() == 3 {
        subscriber.kept.remove(0);
    }
    subscriber.kept.push(frame);
}

fn subscribe(role: &str, address: &str) {
    let mut endpoint = patiently(|| {
        let subscriber = Subscriber {
            ledger: Ledger::of(&format!("{address}-{role}")),
            deadly: if role == "kill" { DEADLY } else { u64::MAX },
            kept: Vec::new(),
        };
        let builder = Endpoint::builder().state(subscriber);
        builder
            .handlers(Handlers::new().on(TICK, tick))
            .connect(address)
            .ok()
    });
    while endpoint.channels().next().is_some() {
        endpoint.poll_for(8, Duration::from_millis(10));
    }
}

/// Runs what a child is asked to be; in the test runner it does nothing.
#[test]
fn child_role() {
    if let Some((role, address)) = role() {
        subscribe(&role, &address);
    }
}

struct Market {
    publisher: Endpoint,
    subscribers: Vec<(ChannelId, Peer, Ledger)>,
}

impl Market {
    fn open(scratch: &Scratch, roles: &[(&str, Policy)]) -> Market {
        let builder = Endpoint::builder().depth(32).queue(64, 1 << 20);
        let builder = builder.frame_limit(16 << 20).shared_quota(1 << 20);
        let mut publisher = builder.listen(&scratch.address()).expect("a free path");
        let mut subscribers = Vec::new();
        for (role, policy) in roles {
            let child = Peer::start(role, &scratch.address());
            opened(&mut publisher);
            let known = |id: &ChannelId| subscribers.iter().any(|(known, _, _)| known == id);
            let channel = publisher.channels().find(|id| !known(id));
            let channel = channel.expect("a new channel");
            assert!(publisher.set_policy(channel, *policy));
            let ledger = Ledger::of(&format!("{}-{role}", scratch.address()));
            subscribers.push((channel, child, ledger));
        }
        Market {
            publisher,
            subscribers,
        }
    }

    fn channels(&self) -> Vec<ChannelId> {
        self.subscribers.iter().map(|(id, _, _)| *id).collect()
    }

    /// There is always one, whatever the others do.
    fn frame(&mut self, number: u64) -> Frozen {
        let mut frame = self.publisher.shared_frame(LEN).expect("a frame");
        frame.fill(content(number));
        frame[..8].copy_from_slice(&number.to_ne_bytes());
        frame.freeze()
    }

    fn counters(&self, subscriber: usize) -> &Counters {
        let channel = self.subscribers[subscriber].0;
        self.publisher.counters(channel).expect("a channel")
    }

    /// Whose channel has ended, and how.
    fn ends(&mut self) -> Vec<(&'static str, ChannelId, Counters)> {
        self.publisher.poll(64);
        let events = std::iter::from_fn(|| self.publisher.next_event());
        let ends = events.filter_map(|event| match event {
            Event::Dead { channel, counters } => Some(("dead", channel, counters)),
            Event::Evicted { channel, counters } => Some(("evicted", channel, counters)),
            Event::Degraded { .. } | Event::Recovered { .. } => None,
            other => panic!("{other:?}"),
        });
        ends.collect()
    }

    /// All frames are back, but those that subscribers keep.
    fn audit(&mut self, kept: usize) {
        patiently(|| {
            self.publisher.poll(64);
            // Looks for what has come back.
            drop(self.publisher.shared_frame(LEN));
            let audit = self.publisher.shared_frames();
            assert_eq!(audit.astray, [], "{audit:?}");
            let lent = self.publisher.channels();
            let lent: usize = lent.filter_map(|id| self.publisher.frames_lent(id)).sum();
            // Some of them are kept by several.
            let whole = audit.free + audit.lent == audit.frames && audit.lent <= kept;
            (whole && lent == kept).then_some(())
        });
    }
}

/// I8: whatever was offered is in exactly one place.
fn dropped(counters: &Counters) -> u64 {
    let drops = [
        Counter::DropNewest,
        Counter::DropOldest,
        Counter::DropEvict,
        Counter::DropQueued,
    ];
    drops.iter().map(|drop| counters.get(*drop)).sum()
}

#[test]
fn who_is_stopped_or_killed_delays_nobody_and_loses_no_frame() {
    const FRAMES: u64 = 600;
    let scratch = Scratch::new("fanout");
    let roles = [
        ("block", Policy::Block(PATIENCE)),
        ("newest", Policy::DropNewest),
        ("oldest", Policy::DropOldest),
        ("kill", Policy::DropOldest),
        ("evict", Policy::Evict(Duration::ZERO)),
    ];
    let mut market = Market::open(&scratch, &roles);
    let channels = market.channels();
    // Three of them stand still at first.
    for stopped in [1, 2, 4] {
        market.subscribers[stopped].1.stop();
    }
    let mut ends = Vec::new();
    let mut total = Published::default();
    for number in 0..FRAMES {
        let frame = market.frame(number);
        let published = market.publisher.publish(&channels, TICK, &frame);
        drop(frame);
        total.sent += published.sent;
        total.queued += published.queued;
        total.dropped += published.dropped;
        total.refused += published.refused;
        ends.extend(market.ends());
        if number == FRAMES / 2 {
            market.subscribers[1].1.signal(Signal::CONT);
            market.subscribers[2].1.signal(Signal::CONT);
        }
    }
    patiently(|| {
        ends.extend(market.ends());
        (ends.len() == 2).then_some(())
    });
    let all = total.sent + total.queued + total.dropped + total.refused;
    assert_eq!(all as u64, FRAMES * channels.len() as u64);
    // Those that live get all that was sent to them, in order, and the counts agree.
    for (subscriber, (role, _)) in roles.iter().enumerate().take(3) {
        let channel = channels[subscriber];
        patiently(|| {
            market.publisher.poll(64);
            let queued = market.publisher.load(channel).map(|load| load.queued);
            let got = market.subscribers[subscriber].2.read(GOT);
            let sent = market.counters(subscriber).get(Counter::Sent);
            (queued == Some(0) && got == sent).then_some(())
        });
        let counters = market.counters(subscriber);
        assert_eq!(counters.get(Counter::Offered), FRAMES, "{role}");
        let sent = counters.get(Counter::Sent);
        assert_eq!(sent + dropped(counters), FRAMES, "{role}: {counters:?}");
        let ledger = &market.subscribers[subscriber].2;
        assert_eq!(ledger.read(WRONG), 0, "{role}");
        match subscriber {
            0 => assert_eq!(sent, FRAMES, "nothing is dropped"),
            2 => assert_eq!(ledger.read(LAST), FRAMES - 1, "the newest is there"),
            _ => {}
        }
    }
    let names = |name| ends.iter().find(move |(end, _, _)| *end == name);
    let (_, evicted, counters) = names("evicted").expect("it stood still");
    assert_eq!(*evicted, channels[4]);
    assert_eq!(counters.get(Counter::DropEvict), 1);
    let (_, dead, counters) = names("dead").expect("it was killed");
    assert_eq!(*dead, channels[3]);
    let offered = counters.get(Counter::Offered);
    assert_eq!(counters.get(Counter::Sent) + dropped(counters), offered);
    // The evicted one still has what was in its ring: only when it goes on, it gives that back.
    market.subscribers[4].1.signal(Signal::CONT);
    market.audit(3 * 3);
    let (_, _, ledger) = &market.subscribers[4];
    assert_eq!((ledger.read(GOT), ledger.read(WRONG)), (32, 0));
    let refused = market.publisher.offer_to(channels[4], TICK, b"");
    assert_eq!(refused, Err(SendError::NoChannel));
    drop(market.publisher);
}

#[test]
fn to_all_that_there_are() {
    let scratch = Scratch::new("fanout-all");
    let roles = [
        ("first", Policy::Fail),
        ("second", Policy::DropNewest),
        ("third", Policy::Block(PATIENCE)),
    ];
    let mut market = Market::open(&scratch, &roles);
    let frame = market.frame(7);
    let published = market.publisher.publish_to_all(TICK, &frame);
    assert_eq!((published.sent, published.refused), (3, 0));
    for (_, _, ledger) in &market.subscribers {
        ledger.wait_for(LAST, 7);
    }
    // One has gone, one gives it back, one drops it, and the frame is whole.
    let (gone, _, _) = market.subscribers.pop().expect("three");
    market.publisher.close(gone);
    let mut channels = market.channels();
    channels.push(gone);
    for (channel, child, _) in &market.subscribers {
        child.stop();
        let mut offer = || {
            let offered = market
                .publisher
                .offer_frame_to(*channel, TICK, frame.clone());
            offered.map_err(|refused| refused.error)
        };
        while offer() == Ok(Offered::Sent) {}
    }
    let published = market.publisher.publish(&channels, TICK, &frame);
    assert_eq!((published.refused, published.dropped), (2, 1));
    assert_eq!((published.sent, published.queued), (0, 0));
    for (_, child, _) in &market.subscribers {
        child.signal(Signal::CONT);
    }
    drop(frame);
    // Each keeps it three times.
    market.audit(2 * 3);
}
