//! What becomes of messages for which there is no room, between processes: each is received, waits, or is counted by its cause.

mod support;

use rustix::process::Signal;
use std::time::Duration;
use support::{Ledger, PATIENCE, Peer, Scratch, assert_says, opened, patiently, role};
use tightbeam::{
    ChannelId, Counter, Counters, Endpoint, Event, Handlers, Load, MAX_INLINE, Message, Offered,
    Policy, Received, Reply, SendError,
};

/// A message that begins with its number.
const TICK: u16 = 1;
/// The same, and it is kept.
const KEEP: u16 = 2;

const DEPTH: usize = 64;

/// What a subscriber says in its ledger: how many it got, the number of the last one, and how many came out of order.
const GOT: usize = 0;
const LAST: usize = 1;
const DISORDER: usize = 2;
/// It gives back what it has kept when this is 1.
const LET_GO: usize = 3;

struct Subscriber {
    ledger: Ledger,
    kept: Vec<Received>,
}

fn number(bytes: &[u8]) -> u64 {
    bytes
        .first_chunk()
        .map_or(u64::MAX, |word| u64::from_ne_bytes(*word))
}

impl Subscriber {
    fn note(&self, number: u64) {
        let ledger = &self.ledger;
        let got = ledger.read(GOT);
        if got > 0 && number <= ledger.read(LAST) {
            ledger.write(DISORDER, ledger.read(DISORDER) + 1);
        }
        ledger.write(LAST, number);
        ledger.write(GOT, got + 1);
    }
}

fn tick(subscriber: &mut Subscriber, message: Message<'_>, _: Reply<'_>) {
    subscriber.note(number(message.bytes()));
}

fn keep(subscriber: &mut Subscriber, message: Message<'_>, _: Reply<'_>) {
    let mut first = [0; 8];
    let frames = message.frames().expect("in frames");
    frames.copy_to(0, &mut first);
    subscriber.note(u64::from_ne_bytes(first));
    subscriber.kept.push(frames);
}

fn subscribe(address: &str, ledger: &str) {
    let mut endpoint = patiently(|| {
        let subscriber = Subscriber {
            ledger: Ledger::of(ledger),
            kept: Vec::new(),
        };
        let handlers = Handlers::new().on(TICK, tick).on(KEEP, keep);
        let builder = Endpoint::builder().state(subscriber).handlers(handlers);
        builder.connect(address).ok()
    });
    while endpoint.channels().next().is_some() {
        endpoint.poll_for(64, Duration::from_millis(5));
        if endpoint.state().ledger.read(LET_GO) == 1 {
            endpoint.state_mut().kept.clear();
        }
    }
}

/// Runs what a child is asked to be; in the test runner it does nothing.
#[test]
fn child_role() {
    if let Some((role, address)) = role() {
        subscribe(&address, &format!("{address}-{role}"));
    }
}

struct Stage {
    publisher: Endpoint,
    channel: ChannelId,
    child: Peer,
    ledger: Ledger,
}

fn publisher(scratch: &Scratch, policy: Policy) -> Endpoint {
    let builder = Endpoint::builder().depth(DEPTH).policy(policy);
    let builder = builder.queue(100, 50_000).frame_limit(2 << 20);
    builder.listen(&scratch.address()).expect("a free path")
}

fn join(publisher: &mut Endpoint, scratch: &Scratch, name: &str) -> (ChannelId, Peer, Ledger) {
    let before: Vec<ChannelId> = publisher.channels().collect();
    let child = Peer::start(name, &scratch.address());
    opened(publisher);
    let channel = publisher.channels().find(|id| !before.contains(id));
    let ledger = Ledger::of(&format!("{}-{name}", scratch.address()));
    (channel.expect("a new channel"), child, ledger)
}

/// A publisher, and a subscriber that is stopped.
fn stage(scratch: &Scratch, policy: Policy) -> Stage {
    let mut publisher = publisher(scratch, policy);
    let (channel, child, ledger) = join(&mut publisher, scratch, "one");
    child.stop();
    Stage {
        publisher,
        channel,
        child,
        ledger,
    }
}

impl Stage {
    fn offer(&mut self, number: u64) -> Result<Offered, SendError> {
        let payload = number.to_ne_bytes();
        self.publisher.offer_to(self.channel, TICK, &payload)
    }

    fn load(&self) -> Load {
        self.publisher.load(self.channel).expect("a channel")
    }

    fn count(&self, counter: Counter) -> u64 {
        let counters = self.publisher.counters(self.channel);
        counters.expect("a channel").get(counter)
    }

    /// The subscriber goes on, and gets all that was sent or waits.
    fn catch_up(&mut self) {
        self.child.signal(Signal::CONT);
        patiently(|| {
            self.publisher.poll(64);
            let sent = self.count(Counter::Sent);
            (self.load().queued == 0 && self.ledger.read(GOT) == sent).then_some(())
        });
        let counters = self.publisher.counters(self.channel).expect("a channel");
        conserved(counters, 0);
        assert_eq!(self.ledger.read(DISORDER), 0);
    }

    fn events(&mut self) -> Vec<&'static str> {
        events(&mut self.publisher)
    }
}

fn events(publisher: &mut Endpoint) -> Vec<&'static str> {
    let mut names = Vec::new();
    publisher.poll(64);
    while let Some(event) = publisher.next_event() {
        names.push(match event {
            Event::Degraded { .. } => "degraded",
            Event::Recovered { .. } => "recovered",
            Event::Evicted { .. } => "evicted",
            Event::Dead { .. } => "dead",
            _ => "another",
        });
    }
    names
}

/// I8: whatever was offered is in exactly one place.
fn conserved(counters: &Counters, queued: usize) {
    let places = [
        Counter::Sent,
        Counter::DropNewest,
        Counter::DropOldest,
        Counter::DropEvict,
        Counter::DropQueued,
    ];
    let places: u64 = places.iter().map(|place| counters.get(*place)).sum();
    assert_eq!(
        counters.get(Counter::Offered),
        places + queued as u64,
        "{counters:?}"
    );
}

#[test]
fn fail_and_block_give_the_message_back() {
    let scratch = Scratch::new("policies-fail");
    let mut stage = stage(&scratch, Policy::Fail);
    for number in 0..DEPTH as u64 {
        assert_eq!(stage.offer(number), Ok(Offered::Sent));
    }
    assert_eq!(stage.load().degraded, None);
    assert_eq!(stage.offer(99), Err(SendError::Full));
    let load = stage.load();
    assert_eq!((load.in_flight, load.depth, load.queued), (DEPTH, DEPTH, 0));
    assert!(load.degraded.is_some() && load.blocked == Duration::ZERO);
    let limit = Duration::from_millis(30);
    assert!(
        stage
            .publisher
            .set_policy(stage.channel, Policy::Block(limit))
    );
    assert_eq!(stage.offer(99), Err(SendError::DeadlineExceeded));
    assert!(stage.load().blocked >= limit, "{:?}", stage.load());
    let counted = Duration::from_nanos(stage.count(Counter::BlockedNs));
    assert_eq!(counted, stage.load().blocked);
    let patient = Policy::Block(PATIENCE);
    assert!(stage.publisher.set_policy(stage.channel, patient));
    stage.child.signal(Signal::CONT);
    assert_eq!(stage.offer(DEPTH as u64), Ok(Offered::Sent));
    stage.catch_up();
    assert_eq!(stage.events(), ["degraded", "recovered"]);
    assert_eq!(stage.count(Counter::Offered), DEPTH as u64 + 1);
    assert_eq!(stage.load().degraded, None);
    // Without a policy, as ever; but the time is counted.
    stage.child.stop();
    while stage.publisher.try_send(TICK, b"").is_ok() {}
    let before = stage.load().blocked;
    let sent = stage.publisher.send_to(stage.channel, TICK, b"", limit);
    assert_eq!(sent, Err(SendError::DeadlineExceeded));
    assert!(stage.load().blocked >= before + limit);
}

#[test]
fn drop_newest_keeps_what_came_first() {
    let scratch = Scratch::new("policies-newest");
    let mut stage = stage(&scratch, Policy::DropNewest);
    for number in 0..1000 {
        let expected = match number < DEPTH as u64 {
            true => Offered::Sent,
            false => Offered::Dropped,
        };
        assert_eq!(stage.offer(number), Ok(expected), "{number}");
    }
    assert_eq!(stage.count(Counter::DropNewest), 1000 - DEPTH as u64);
    stage.catch_up();
    assert_eq!(stage.ledger.read(LAST), DEPTH as u64 - 1);
    assert_eq!(stage.events(), ["degraded", "recovered"]);
    assert_eq!(stage.offer(1000), Ok(Offered::Sent));
    stage.catch_up();
    assert_eq!(stage.ledger.read(LAST), 1000);
}

#[test]
fn drop_oldest_keeps_what_came_last() {
    let scratch = Scratch::new("policies-oldest");
    let mut stage = stage(&scratch, Policy::DropOldest);
    for number in 0..1000 {
        let expected = match number < DEPTH as u64 {
            true => Offered::Sent,
            false => Offered::Queued,
        };
        assert_eq!(stage.offer(number), Ok(expected), "{number}");
    }
    let load = stage.load();
    assert_eq!((load.queued, load.queued_bytes), (100, 800));
    assert_eq!(stage.count(Counter::DropOldest), 1000 - 100 - DEPTH as u64);
    conserved(stage.publisher.counters(stage.channel).unwrap(), 100);
    stage.catch_up();
    assert_eq!(stage.ledger.read(GOT), 100 + DEPTH as u64);
    assert_eq!(stage.ledger.read(LAST), 999);
    assert_eq!(stage.events(), ["degraded", "recovered"]);
    // By their bytes: of 1,000 each there is room for 50.
    stage.child.stop();
    let mut payload = vec![0; 1000];
    for number in 1000..2000u64 {
        payload[..8].copy_from_slice(&number.to_ne_bytes());
        let offered = stage.publisher.offer_to(stage.channel, TICK, &payload);
        assert!(offered.is_ok(), "{offered:?}");
    }
    let load = stage.load();
    assert_eq!((load.queued, load.queued_bytes), (50, 50_000));
    let refused = stage
        .publisher
        .offer_to(stage.channel, TICK, &vec![0; 50_001]);
    let (len, max) = (50_001, 50_000);
    assert_eq!(refused, Err(SendError::TooLarge { len, max }));
    stage.catch_up();
    assert_eq!(stage.ledger.read(LAST), 1999);
    // What waits when the policy changes is dropped and counted.
    stage.child.stop();
    let mut waiting = 0;
    for number in 2000..2100 {
        waiting += u64::from(stage.offer(number) == Ok(Offered::Queued));
    }
    assert!(waiting > 0);
    assert!(stage.publisher.set_policy(stage.channel, Policy::Fail));
    assert_eq!(stage.count(Counter::DropQueued), waiting);
    stage.catch_up();
}

/// Long messages, in frames of the channel's own, and such as were handed over.
#[test]
fn drop_oldest_keeps_frames() {
    let scratch = Scratch::new("policies-frames");
    let mut stage = stage(&scratch, Policy::DropOldest);
    let mut payload = vec![0; MAX_INLINE + 1000];
    for number in 0..200u64 {
        payload[..8].copy_from_slice(&number.to_ne_bytes());
        let offered = match number % 2 {
            0 => stage.publisher.offer_to(stage.channel, TICK, &payload),
            _ => {
                let frame = stage.publisher.try_frame_for(stage.channel, 3000);
                let mut frame = frame.expect("there are more than can wait");
                frame[..8].copy_from_slice(&number.to_ne_bytes());
                let halves = [frame, stage.publisher.shared_frame(10).expect("a frame")];
                let channel = stage.channel;
                let offered = stage.publisher.offer_frame_to(channel, TICK, halves);
                offered.map_err(|refused| refused.error)
            }
        };
        assert!(offered.is_ok(), "{offered:?}");
    }
    let load = stage.load();
    assert!(load.queued > 10 && load.queued_bytes <= 50_000, "{load:?}");
    // What can never be sent is given back, not kept.
    let none = stage
        .publisher
        .offer_frame_to(stage.channel, TICK, [])
        .unwrap_err();
    assert_says(&none.error, &["0 frames"]);
    stage.catch_up();
    assert_eq!(stage.ledger.read(LAST), 199);
    patiently(|| {
        stage.publisher.poll(64);
        (stage.load().frames_lent == 0).then_some(())
    });
    let own = stage.publisher.frames(stage.channel).expect("a channel");
    let shared = stage.publisher.shared_frames();
    for audit in [own, shared] {
        assert_eq!(
            (audit.free, audit.astray.len()),
            (audit.frames, 0),
            "{audit:?}"
        );
    }
}

#[test]
fn frames_that_wait_for_the_dead_come_back() {
    let scratch = Scratch::new("policies-dead");
    let mut stage = stage(&scratch, Policy::DropOldest);
    for number in 0..150u64 {
        let mut frame = stage.publisher.shared_frame(300).expect("a frame");
        frame[..8].copy_from_slice(&number.to_ne_bytes());
        let offered = stage.publisher.offer_frame_to(stage.channel, TICK, frame);
        assert!(offered.is_ok(), "{offered:?}");
    }
    let queued = stage.load().queued;
    assert_eq!(queued, 150 - DEPTH);
    let audit = stage.publisher.shared_frames();
    assert_eq!(
        (audit.lent, audit.out, audit.astray.len()),
        (DEPTH, queued, 0)
    );
    stage.child.signal(Signal::KILL);
    let dead = patiently(|| {
        stage.publisher.poll(64);
        let event = stage.publisher.next_event()?;
        matches!(event, Event::Dead { .. }).then_some(event)
    });
    let Event::Dead { counters, .. } = dead else {
        panic!("{dead:?}");
    };
    assert_eq!(counters.get(Counter::DropQueued), queued as u64);
    conserved(&counters, 0);
    let audit = stage.publisher.shared_frames();
    assert_eq!(
        (audit.free, audit.astray.len()),
        (audit.frames, 0),
        "{audit:?}"
    );
}

#[test]
fn who_stays_degraded_is_evicted() {
    let scratch = Scratch::new("policies-evict");
    for limit in [Duration::ZERO, Duration::from_millis(50)] {
        let mut stage = stage(&scratch, Policy::Evict(limit));
        for number in 0..DEPTH as u64 {
            assert_eq!(stage.offer(number), Ok(Offered::Sent));
        }
        assert_eq!(stage.offer(77), Ok(Offered::Dropped));
        // Nobody needs to offer anything any more.
        let evicted = patiently(|| {
            stage.publisher.poll(64);
            let event = stage.publisher.next_event()?;
            matches!(event, Event::Evicted { .. }).then_some(event)
        });
        let Event::Evicted { counters, channel } = evicted else {
            panic!("{evicted:?}");
        };
        assert_eq!(channel, stage.channel);
        assert_eq!(counters.get(Counter::DropEvict), 1);
        conserved(&counters, 0);
        assert_eq!(stage.offer(78), Err(SendError::NoChannel));
        assert_eq!(stage.publisher.load(stage.channel), None);
        // It gets what was sent, and the news.
        stage.child.signal(Signal::CONT);
        assert!(stage.child.finish());
        assert_eq!(stage.ledger.read(LAST), DEPTH as u64 - 1);
        stage.ledger.write(GOT, 0);
    }
}

#[test]
fn who_recovers_in_time_is_not_evicted() {
    let scratch = Scratch::new("policies-spared");
    let mut stage = stage(&scratch, Policy::Evict(PATIENCE));
    for number in 0..DEPTH as u64 + 10 {
        stage.offer(number).expect("it is dropped or sent");
    }
    stage.catch_up();
    assert_eq!(stage.count(Counter::DropEvict), 10);
    assert_eq!(stage.events(), ["degraded", "recovered"]);
    assert_eq!(stage.offer(1000), Ok(Offered::Sent));
}

#[test]
fn a_quota_of_shared_frames_leaves_some_for_the_others() {
    let scratch = Scratch::new("policies-quota");
    let builder = || Endpoint::builder().policy(Policy::DropNewest);
    let builder = builder().frame_limit(1 << 20).shared_quota(300_000);
    let mut publisher = builder.listen(&scratch.address()).expect("a free path");
    let (keeps, _kept, keeper) = join(&mut publisher, &scratch, "keeper");
    let (takes, _taken, taker) = join(&mut publisher, &scratch, "taker");
    // Two of 132 KiB each are within the quota.
    for number in 0..100u64 {
        let mut frame = patiently(|| {
            publisher.poll(64);
            publisher.shared_frame(100_000).ok()
        });
        frame[..8].copy_from_slice(&number.to_ne_bytes());
        let frame = frame.freeze();
        let kept = publisher.offer_frame_to(keeps, KEEP, frame.clone());
        let expected = match number < 2 {
            true => Offered::Sent,
            false => Offered::Dropped,
        };
        assert_eq!(kept.expect("a policy"), expected);
        let taken = publisher.offer_frame_to(takes, TICK, frame);
        assert_eq!(taken.expect("a policy"), Offered::Sent);
        taker.wait_for(GOT, number + 1);
        patiently(|| {
            publisher.poll(64);
            (publisher.frames_lent(takes) == Some(0)).then_some(())
        });
    }
    keeper.wait_for(GOT, 2);
    let load = patiently(|| publisher.load(keeps).filter(|load| load.in_flight == 0));
    assert_eq!(load.frames_lent, 2);
    // What is larger than the quota will never be sent.
    let frames = [0; 3].map(|_| publisher.shared_frame(100_000).expect("a frame"));
    let refused = publisher.offer_frame_to(takes, TICK, frames).unwrap_err();
    assert_says(&refused.error, &["300000", "Builder::shared_quota"]);
    drop(refused);
    keeper.write(LET_GO, 1);
    patiently(|| {
        publisher.poll(64);
        (publisher.frames_lent(keeps) == Some(0)).then_some(())
    });
    let audit = publisher.shared_frames();
    assert_eq!(
        (audit.free, audit.astray.len()),
        (audit.frames, 0),
        "{audit:?}"
    );
    assert_eq!(events(&mut publisher), ["degraded", "recovered"]);
}
