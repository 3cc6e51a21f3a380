//! Who waits for what a peer keeps: it sleeps meanwhile, and is woken when it is given back.
//!
//! Both sides are endpoints of this thread, so that nothing happens between two lines of a test but what is in them.

mod support;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;
use std::os::fd::AsFd;
use std::time::Duration;
use support::{Scratch, patiently};
use tightbeam::{
    ChannelId, Counter, Endpoint, Frame, Handlers, MAX_LOANS, Message, Offered, Policy, Received,
    Reply, SendError, Wait,
};

/// Keeps the message.
const KEEP: u16 = 1;
const LEN: usize = 3000;

fn keep(kept: &mut Vec<Received>, message: Message<'_>, _: Reply<'_>) {
    kept.extend(message.frames());
}

/// Two endpoints with a channel: one that sends, and one that keeps what it gets.
struct Stage {
    sender: Endpoint,
    keeper: Endpoint<Vec<Received>>,
    channel: ChannelId,
    _scratch: Scratch,
}

impl Stage {
    fn new(name: &str, policy: Policy) -> Stage {
        Stage::with_quota(name, policy, LIMIT)
    }

    /// The keeper may have so many bytes of shared frames.
    fn with_quota(name: &str, policy: Policy, quota: usize) -> Stage {
        let scratch = Scratch::new(name);
        let handlers = Handlers::new().on(KEEP, keep);
        let keeper = Endpoint::builder().state(Vec::new()).handlers(handlers);
        let mut keeper = keeper.listen(&scratch.address()).expect("a free path");
        let sender = Endpoint::builder()
            .policy(policy)
            .frame_limit(LIMIT)
            .shared_quota(quota);
        let sender = sender.connect(&scratch.address()).expect("it listens");
        let channel = sender.channels().next().expect("a channel");
        patiently(|| {
            keeper.poll(1);
            keeper.next_event()
        });
        Stage {
            sender,
            keeper,
            channel,
            _scratch: scratch,
        }
    }

    fn send(&mut self, frame: Frame) {
        let sent = self.sender.try_send_frame_to(self.channel, KEEP, frame);
        sent.expect("room");
        let kept = self.keeper.state().len();
        patiently(|| {
            self.keeper.poll(1);
            (self.keeper.state().len() > kept).then_some(())
        });
    }

    /// The keeper has as many frames as it may have, and has told that it has seen their messages.
    fn lend_all(&mut self) {
        for _ in 0..MAX_LOANS {
            let frame = self.sender.frame(LEN).expect("a frame");
            self.send(frame);
        }
        assert_eq!(self.keeper.state().len(), MAX_LOANS);
    }

    fn sends_one_more(&mut self) -> Result<(), SendError> {
        let frame = self.sender.frame(LEN).expect("a frame");
        let sent = self.sender.try_send_frame_to(self.channel, KEEP, frame);
        sent.map_err(|refused| refused.error)
    }
}

/// Memory for frames of a channel, and for those that are shared.
const LIMIT: usize = 1 << 20;

/// Whether an endpoint that has just found no room would sleep now, and not be woken at once.
fn sleeps<S>(endpoint: &mut Endpoint<S>) -> bool {
    endpoint.poll(1);
    while endpoint.next_event().is_some() {}
    let sleeper = endpoint.arm().expect("descriptors");
    sleeper.is_some_and(|sleeper| !is_readable(&sleeper))
}

fn is_readable(sleeper: &impl AsFd) -> bool {
    let fd = sleeper.as_fd();
    let now = Timespec::default();
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&now)).expect("a descriptor") > 0
}

/// It tries, and gets ready to sleep, as often as there is something new: that ends.
fn comes_to_rest<S>(endpoint: &mut Endpoint<S>, mut attempt: impl FnMut(&mut Endpoint<S>)) -> bool {
    (0..8).any(|_| {
        attempt(endpoint);
        sleeps(endpoint)
    })
}

#[test]
fn who_may_lend_no_more_sleeps() {
    let mut stage = Stage::new("waiting-lent", Policy::Fail);
    stage.lend_all();
    let channel = stage.channel;
    assert!(comes_to_rest(&mut stage.sender, |sender| {
        let frame = sender.frame(LEN).expect("a frame");
        let refused = sender.try_send_frame_to(channel, KEEP, frame);
        assert_eq!(refused.unwrap_err().error, SendError::Full);
    }));
}

#[test]
fn who_has_lent_all_that_others_share_sleeps() {
    let mut stage = Stage::new("waiting-shared", Policy::Fail);
    let mut frames: Vec<Frame> = Vec::new();
    while let Ok(frame) = stage.sender.shared_frame(LIMIT / 8) {
        frames.push(frame);
    }
    assert!(!frames.is_empty());
    frames.into_iter().for_each(|frame| stage.send(frame));
    assert!(comes_to_rest(&mut stage.keeper, |_| {}));
    assert!(comes_to_rest(&mut stage.sender, |sender| {
        let refused = sender.shared_frame(LIMIT / 8);
        assert_eq!(refused.map(|frame| frame.len()), Err(SendError::Full));
    }));
    // And is woken by the first that comes back.
    let sleeper = stage.sender.arm().expect("descriptors").expect("no news");
    stage.keeper.state_mut().pop();
    assert!(stage.keeper.arm().expect("descriptors").is_some());
    assert!(is_readable(&sleeper), "nobody has woken the sender");
    drop(sleeper);
    stage.sender.shared_frame(LIMIT / 8).expect("a frame");
}

#[test]
fn who_may_lend_no_more_of_what_others_share_sleeps() {
    let mut stage = Stage::with_quota("waiting-quota", Policy::Fail, LIMIT / 2);
    let channel = stage.channel;
    let try_one = |sender: &mut Endpoint| {
        let frame = sender.shared_frame(LIMIT / 8).expect("a frame");
        sender.try_send_frame_to(channel, KEEP, frame)
    };
    while try_one(&mut stage.sender).is_ok() {
        stage.keeper.poll(1);
    }
    assert!(!stage.keeper.state().is_empty());
    assert!(comes_to_rest(&mut stage.sender, |sender| {
        assert_eq!(try_one(sender).unwrap_err().error, SendError::Full);
    }));
}

#[test]
fn a_queue_that_waits_for_frames_lets_its_owner_sleep() {
    let mut stage = Stage::new("waiting-queue", Policy::DropOldest);
    stage.lend_all();
    let frame = stage.sender.frame(LEN).expect("a frame");
    let offered = stage.sender.offer_frame_to(stage.channel, KEEP, frame);
    assert_eq!(offered.expect("the queue takes it"), Offered::Queued);
    assert!(comes_to_rest(&mut stage.sender, |_| {}));
    // So does the wait that is built in: it may be woken, but not by itself. How long it takes is not asked.
    stage.sender.poll_for(1, Duration::from_millis(50));
    stage.keeper.state_mut().clear();
    patiently(|| {
        stage.sender.poll(1);
        stage.keeper.poll(1);
        (stage.keeper.state().len() == 1).then_some(())
    });
    let counters = stage.sender.counters(stage.channel).expect("a channel");
    assert_eq!(counters.get(Counter::Sent), MAX_LOANS as u64 + 1);
}

#[test]
fn what_is_given_back_outside_of_a_drain_is_told_before_its_receiver_sleeps() {
    let mut stage = Stage::new("waiting-told", Policy::Fail);
    stage.lend_all();
    assert_eq!(stage.sends_one_more(), Err(SendError::Full));
    assert!(comes_to_rest(&mut stage.sender, |_| {}));
    // Both sleep; the keeper has nothing to poll for. It gives back what it has kept, and goes to sleep again.
    assert!(comes_to_rest(&mut stage.keeper, |_| {}));
    let sleeper = stage.sender.arm().expect("descriptors").expect("no news");
    stage.keeper.state_mut().clear();
    assert!(stage.keeper.arm().expect("descriptors").is_some());
    assert!(is_readable(&sleeper), "nobody has woken the sender");
    drop(sleeper);
    assert_eq!(stage.sends_one_more(), Ok(()));
}

/// The same where the keeper sleeps on words of its peers, of which a poll looks at some.
#[test]
fn it_is_told_to_all_before_a_bounded_sleep() {
    const SENDERS: usize = 31;
    let scratch = Scratch::new("waiting-bounded");
    let handlers = Handlers::new().on(KEEP, keep);
    let keeper = Endpoint::builder().state(Vec::new()).handlers(handlers);
    let keeper = keeper.wait(Wait::Park).listen(&scratch.address());
    let mut keeper = keeper.expect("a free path");
    let mut senders: Vec<Endpoint> = (0..SENDERS)
        .map(|_| {
            let mut sender = Endpoint::connect(&scratch.address()).expect("it listens");
            let frame = sender.frame(LEN).expect("a frame");
            sender.send_frame(KEEP, frame).expect("room");
            sender
        })
        .collect();
    // Until no channel has had anything for so long that none is looked at in each poll.
    patiently(|| {
        keeper.poll(SENDERS);
        (keeper.state().len() == SENDERS).then_some(())
    });
    (0..1_000).for_each(|_| assert_eq!(keeper.poll(1), 0));
    while keeper.next_event().is_some() {}
    for sender in &mut senders {
        assert!(comes_to_rest(sender, |_| {}));
    }
    let sleepers = senders.iter_mut().map(|sender| sender.arm());
    let sleepers: Vec<_> = sleepers
        .map(|armed| armed.expect("descriptors").expect("no news"))
        .collect();
    keeper.state_mut().clear();
    keeper.poll_for(1, Duration::from_millis(1));
    let woken = sleepers.iter().filter(|sleeper| is_readable(*sleeper));
    assert_eq!(woken.count(), SENDERS);
}

/// Room that somebody else has taken notice of meanwhile is news for who waits for it.
#[test]
fn what_was_taken_since_is_not_slept_over() {
    let mut stage = Stage::new("waiting-taken", Policy::Fail);
    stage.lend_all();
    assert_eq!(stage.sends_one_more(), Err(SendError::Full));
    assert!(comes_to_rest(&mut stage.sender, |_| {}));
    assert_eq!(stage.sends_one_more(), Err(SendError::Full));
    stage.keeper.state_mut().clear();
    // Looks at all that has come back, for another reason.
    let frame = stage.sender.frame(LEN).expect("a frame");
    assert_eq!(stage.sender.frames_lent(stage.channel), Some(0));
    drop(frame);
    let armed = stage.sender.arm().expect("descriptors");
    assert!(
        armed.is_none(),
        "it would sleep over the room that there is"
    );
}

/// Frames that come back while their receiver waits on its descriptor, because another endpoint of its thread drops them.
#[test]
fn what_is_given_back_during_a_sleep_ends_it() {
    let mut stage = Stage::new("waiting-during", Policy::Fail);
    stage.lend_all();
    assert_eq!(stage.sends_one_more(), Err(SendError::Full));
    assert!(comes_to_rest(&mut stage.sender, |_| {}));
    let elsewhere = std::mem::take(stage.keeper.state_mut());
    assert!(comes_to_rest(&mut stage.keeper, |_| {}));
    let sender = stage.sender.arm().expect("descriptors").expect("no news");
    let keeper = stage.keeper.arm().expect("descriptors").expect("no news");
    assert!(!is_readable(&sender) && !is_readable(&keeper));
    drop(elsewhere);
    assert!(is_readable(&keeper), "nobody tells the sender");
    drop(keeper);
    stage.keeper.poll(1);
    assert!(stage.keeper.arm().expect("descriptors").is_some());
    assert!(is_readable(&sender), "nobody has woken the sender");
}

/// What waits for frames and is dropped for newer messages does not keep these from being sent.
#[test]
fn a_queue_goes_on_when_what_found_no_room_was_dropped() {
    let mut stage = Stage::new("waiting-dropped", Policy::DropOldest);
    stage.lend_all();
    let frame = stage.sender.frame(LEN).expect("a frame");
    let offered = stage.sender.offer_frame_to(stage.channel, KEEP, frame);
    assert_eq!(offered.expect("the queue takes it"), Offered::Queued);
    assert!(comes_to_rest(&mut stage.sender, |_| {}));
    // Until the frame is the oldest that there is no place for.
    let dropped = |stage: &Stage| {
        let counters = stage.sender.counters(stage.channel).expect("a channel");
        counters.get(Counter::DropOldest)
    };
    while dropped(&stage) == 0 {
        let offered = stage.sender.offer_to(stage.channel, KEEP, b"a short one");
        assert_eq!(offered, Ok(Offered::Queued));
    }
    patiently(|| {
        stage.sender.poll(1);
        stage.keeper.poll(64);
        let load = stage.sender.load(stage.channel).expect("a channel");
        (load.queued == 0).then_some(())
    });
}

/// A queue is not forgotten when news of room was of no use to what is the oldest in it.
#[test]
fn a_queue_is_woken_for_after_news_that_did_not_help_it() {
    let mut stage = Stage::new("waiting-queued", Policy::DropOldest);
    stage.lend_all();
    let frame = stage.sender.frame(LEN).expect("a frame");
    let offered = stage.sender.offer_frame_to(stage.channel, KEEP, frame);
    assert_eq!(offered.expect("the queue takes it"), Offered::Queued);
    stage.sender.poll(1);
    // Slots, of which there are enough.
    let note = stage.sender.try_send_to(stage.channel, KEEP, b"a note");
    assert_eq!(note, Ok(()));
    assert_eq!(stage.keeper.poll(1), 1);
    stage.sender.poll(1);
    assert!(comes_to_rest(&mut stage.keeper, |_| {}));
    assert!(comes_to_rest(&mut stage.sender, |_| {}));
    // A frame, between the last look and the sleep.
    stage.sender.poll(1);
    stage.keeper.state_mut().pop();
    assert!(comes_to_rest(&mut stage.keeper, |_| {}));
    let armed = stage.sender.arm().expect("descriptors").is_some();
    assert!(!armed, "it would sleep over a queue that can go on");
    patiently(|| {
        stage.sender.poll(1);
        stage.keeper.poll(1);
        (stage.keeper.state().len() == MAX_LOANS).then_some(())
    });
}

/// A peer that says that it sleeps, and takes nothing that comes beside the ring.
#[test]
fn who_cannot_pass_memory_sleeps() {
    let mut stage = Stage::new("waiting-memory", Policy::Fail);
    let channel = stage.channel;
    let frame = stage.sender.frame(LEN).expect("a frame");
    stage.send(frame);
    assert!(comes_to_rest(&mut stage.keeper, |_| {}));
    // It never wakes up.
    std::mem::forget(stage.keeper.arm().expect("descriptors").expect("no news"));
    // Each is a wake-up that nobody takes, until there is no room for more.
    for _ in 0..900 {
        assert_eq!(stage.sender.try_send_to(channel, KEEP, b"awake?"), Ok(()));
    }
    assert_eq!(stage.keeper.poll(900), 900);
    assert!(comes_to_rest(&mut stage.sender, |sender| {
        // In memory that the peer does not have yet.
        let frame = sender.frame(50 * LEN).expect("a frame");
        let refused = sender.try_send_frame_to(channel, KEEP, frame);
        assert_eq!(refused.unwrap_err().error, SendError::Full);
    }));
}

/// That there is room is told to who found none, though it slept for something else meanwhile.
#[test]
fn room_that_a_wait_for_something_else_has_seen_is_told() {
    let mut stage = Stage::new("waiting-else", Policy::Fail);
    let others: Vec<Endpoint<Vec<Received>>> = (0..40)
        .map(|number| {
            let address = format!("{}.{number}", stage._scratch.address());
            let other = Endpoint::builder().state(Vec::new());
            let other = other.listen(&address).expect("a free path");
            stage.sender.open(&address).expect("it listens");
            other
        })
        .collect();
    stage.lend_all();
    assert_eq!(stage.sends_one_more(), Err(SendError::Full));
    assert!(comes_to_rest(&mut stage.sender, |_| {}));
    assert_eq!(stage.sends_one_more(), Err(SendError::Full));
    stage.keeper.state_mut().clear();
    assert!(comes_to_rest(&mut stage.keeper, |_| {}));
    // Sleeps on descriptors, because there are so many channels.
    stage.sender.poll_for(1, Duration::from_millis(5));
    let armed = stage.sender.arm().expect("descriptors");
    assert!(
        armed.is_none(),
        "it would sleep over the room that there is"
    );
    drop(others);
}
