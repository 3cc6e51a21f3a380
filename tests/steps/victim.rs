//! The process that is stepped: brings itself to the mark, does one operation, and if it may go on, checks that nothing is
//! amiss and closes.

use crate::numbered::{is_payload, payload};
use crate::operation::{
    ASK, ASKED, ATTEMPTED, DELIVERED, DEPTH, DONE, ECHO, FRAMED, HANDLED, LATER, LONG, NUMBERED,
    ON_PATH, Operation, PREPARED, PUBLISHED, QUEUE, QUEUED, SCRAP, SHORT, STAGE, TICKET, TOLD,
    TURN, VERIFIED, WRONG,
};
use crate::support::{Ledger, Looks, PATIENCE, opened, patiently};
use rustix::event::{PollFd, PollFlags};
use rustix::process::Signal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tightbeam::{
    Batch, Builder, ChannelId, Counter, Endpoint, Event, Frame, Handlers, Later, Message, Offered,
    Policy, PoolAudit, Reply, Response, SendError, Wait, Workers,
};

/// How many messages the batch has, and their length.
const BATCH: u64 = 10;
const BATCHED: usize = 24;

/// What the victim has said and heard.
struct Spoken {
    place: String,
    ledger: Ledger,
    said: u64,
    heard: u64,
    /// Who else gets what is said, in shared frames.
    other: Option<ChannelId>,
    path: tightbeam::Stage<()>,
    desk: Arc<Desk>,
}

/// What the victim's worker waits for, and has done.
#[derive(Default)]
struct Desk {
    open: AtomicBool,
    answered: AtomicU64,
}

/// In a worker: answers as soon as it may.
fn work(desk: &Arc<Desk>, message: &[u8], later: Later) {
    assert!(is_payload(message, ASKED), "another question");
    let mut looks = Looks::new();
    while !desk.open.load(Ordering::Acquire) {
        looks.another();
    }
    later.send(message);
    desk.answered.fetch_add(1, Ordering::Release);
}

impl Spoken {
    fn hear(&mut self, bytes: &[u8]) {
        if !is_payload(bytes, self.heard) {
            self.ledger.write(WRONG, self.heard + 1);
        }
        self.heard += 1;
        self.ledger.write(HANDLED, self.heard);
    }
}

/// Gives the slot of its message back before it reads it.
fn ask(spoken: &mut Spoken, message: Message<'_>, reply: Reply<'_>) {
    let note = payload(spoken.said, SHORT);
    spoken.ledger.write(ATTEMPTED, spoken.said + 1);
    assert_eq!(reply.try_send(NUMBERED, &note), Ok(()));
    spoken.said += 1;
    spoken.ledger.write(PUBLISHED, spoken.said);
    let bytes = message.bytes();
    spoken.hear(bytes);
    reply.send(bytes);
}

/// Keeps a frame until its turn comes.
fn on_path(spoken: &mut Spoken, message: Message<'_>, _: Reply<'_>) {
    let frame = message.frames().expect("it is in a frame");
    spoken.hear(&frame.to_vec());
    let early = spoken.path.arrived(TICKET, frame);
    assert!(early.is_none(), "nobody has said so");
}

/// Reads the frame whose turn it is, and gives it back.
fn turn(spoken: &mut Spoken, message: Message<'_>, _: Reply<'_>) {
    let (frame, ()) = spoken.path.called(TICKET, ()).expect("it has come");
    if !is_payload(&frame.to_vec(), spoken.heard - 1) {
        spoken.ledger.write(WRONG, spoken.heard);
    }
    spoken.hear(message.bytes());
}

fn builder(operation: Operation, address: &str) -> Builder<Spoken> {
    let desk = Arc::new(Desk::default());
    let spoken = Spoken {
        place: address.to_owned(),
        ledger: Ledger::of(address),
        said: 0,
        heard: 0,
        other: None,
        path: tightbeam::Stage::new(1),
        desk: Arc::clone(&desk),
    };
    let handlers: Handlers<Spoken> = Handlers::new()
        .on(NUMBERED, |spoken: &mut Spoken, message, _| {
            spoken.hear(message.bytes());
        })
        .on(ASK, ask)
        .on(ON_PATH, on_path)
        .on(TURN, turn);
    let builder = Endpoint::builder().state(spoken).handlers(handlers);
    let builder = builder.depth(DEPTH).deadline(PATIENCE);
    let builder = builder.open_within(PATIENCE).queue(QUEUE, QUEUE * FRAMED);
    match operation {
        Operation::HandOver | Operation::Answer => {
            builder.workers(Workers::new(desk).threads(1).on(LATER, work))
        }
        Operation::Block => builder.policy(Policy::Block(PATIENCE)).wait(Wait::Park),
        Operation::CallAsleep => builder.wait(Wait::Park),
        _ if operation.queues() => builder.policy(Policy::DropOldest),
        _ => builder,
    }
}

/// Where a victim listens.
pub(crate) fn own_address(address: &str) -> String {
    format!("{address}.victim")
}

/// Where the third party listens.
pub(crate) fn third_address(address: &str) -> String {
    format!("{address}.third")
}

/// Stops for the tracer.
fn mark() {
    // SAFETY: bounds: touches no memory of ours; the signal stops this thread until its tracer has it go on.
    unsafe { libc::raise(libc::SIGSTOP) };
}

/// Writes down that a message goes out, sends it, and writes down that it has gone.
fn saying<T>(endpoint: &mut Endpoint<Spoken>, send: impl FnOnce(&mut Endpoint<Spoken>) -> T) -> T {
    let spoken = endpoint.state();
    spoken.ledger.write(ATTEMPTED, spoken.said + 1);
    let sent = send(endpoint);
    let spoken = endpoint.state_mut();
    spoken.said += 1;
    spoken.ledger.write(PUBLISHED, spoken.said);
    sent
}

fn say(endpoint: &mut Endpoint<Spoken>, message: &[u8]) {
    match endpoint.state().other {
        None => saying(endpoint, |e| {
            assert_eq!(e.try_send(NUMBERED, message), Ok(()));
        }),
        Some(other) => publish(endpoint, other, message),
    }
}

fn survivor_of(endpoint: &Endpoint<Spoken>) -> ChannelId {
    endpoint.channels().next().expect("it is open")
}

/// To the other one first, so that what the survivor has got has gone to both.
fn publish(endpoint: &mut Endpoint<Spoken>, other: ChannelId, message: &[u8]) {
    let survivor = survivor_of(endpoint);
    saying(endpoint, |endpoint| {
        let mut frame = endpoint.shared_frame(message.len()).expect("a frame");
        frame.copy_from_slice(message);
        let frame = frame.freeze();
        for to in [other, survivor] {
            assert_eq!(endpoint.try_publish_to(to, NUMBERED, &frame), Ok(()));
        }
    });
}

fn say_frame(endpoint: &mut Endpoint<Spoken>, frame: Frame) {
    let survivor = survivor_of(endpoint);
    saying(endpoint, |endpoint| {
        let sent = endpoint.try_send_frame_to(survivor, NUMBERED, frame);
        assert!(sent.is_ok(), "{sent:?}");
    });
}

fn frame_of(endpoint: &mut Endpoint<Spoken>, message: &[u8]) -> Frame {
    let mut frame = endpoint.frame(message.len()).expect("a frame");
    frame.copy_from_slice(message);
    frame
}

/// Until a message has come.
fn sleep(endpoint: &mut Endpoint<Spoken>) {
    let before = endpoint.state().heard;
    while endpoint.state().heard == before {
        if let Some(sleeper) = endpoint.arm().expect("it can be waited for") {
            let mut news = [PollFd::new(&sleeper, PollFlags::IN)];
            rustix::event::poll(&mut news, None).expect("somebody wakes it");
        }
        endpoint.poll(64);
    }
}

/// All frames of this side are back where they belong.
fn frames_are_back(endpoint: &mut Endpoint<Spoken>) {
    let channels: Vec<ChannelId> = endpoint.channels().collect();
    let back = |audit: PoolAudit| audit.free == audit.frames && audit.astray.is_empty();
    patiently(|| {
        endpoint.poll(64);
        let own = |&channel: &ChannelId| endpoint.frames(channel).is_some_and(back);
        (channels.iter().all(own) && back(endpoint.shared_frames())).then_some(())
    });
}

/// As the process that is stepped.
pub(crate) fn run(operation: Operation, address: &str) {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).expect("a signal");
    let ledger = Ledger::of(address);
    let builder = builder(operation, address);
    let mut endpoint = match operation {
        Operation::Connect => {
            mark();
            let endpoint = builder.connect(address).expect("it listens");
            ledger.write(STAGE, DONE);
            return part(endpoint, &ledger);
        }
        Operation::Accept => {
            let mut endpoint = builder.listen(&own_address(address)).expect("free");
            mark();
            opened(&mut endpoint);
            return part(endpoint, &ledger);
        }
        Operation::Adopt => {
            let mut endpoint = builder.listen(&own_address(address)).expect("free");
            ledger.wait_for(PREPARED, 1);
            mark();
            while endpoint.next_event().is_none() {
                endpoint.poll(1);
            }
            ledger.write(STAGE, DONE);
            return part(endpoint, &ledger);
        }
        Operation::CloseListener => {
            let mut endpoint = builder.listen(&own_address(address)).expect("free");
            opened(&mut endpoint);
            endpoint
        }
        _ => builder.connect(address).expect("it listens"),
    };
    prepare(operation, &mut endpoint, &ledger);
    perform(operation, endpoint, &ledger);
}

/// Exchanges what comes before the operation.
fn prepare(operation: Operation, endpoint: &mut Endpoint<Spoken>, ledger: &Ledger) {
    if operation == Operation::Publish {
        let third = third_address(&endpoint.state().place);
        let other = patiently(|| endpoint.open(&third).ok());
        endpoint.state_mut().other = Some(other);
    }
    let (handled, not_handled) = operation.said_before();
    for number in 0..handled {
        say(endpoint, &payload(number, operation.len_before()));
    }
    ledger.wait_for(DELIVERED, handled);
    for number in handled..handled + not_handled {
        say(endpoint, &payload(number, SHORT));
    }
    let (told, _) = operation.told_before();
    while endpoint.state().heard < told {
        // What comes after these is for the operation.
        endpoint.poll(1);
        std::thread::yield_now();
    }
    match operation {
        Operation::Queue | Operation::PublishQueued | Operation::Unqueue => {
            (0..QUEUED).for_each(|_| assert_eq!(offer_next(endpoint), Offered::Queued));
        }
        Operation::DropOldest => {
            let scrap = payload(SCRAP, SHORT);
            assert_eq!(endpoint.offer(NUMBERED, &scrap), Ok(Offered::Queued));
            (1..QUEUE).for_each(|_| assert_eq!(offer_next(endpoint), Offered::Queued));
        }
        _ => {}
    }
    if operation == Operation::PublishQueued {
        let third = third_address(&endpoint.state().place);
        let other = patiently(|| endpoint.open(&third).ok());
        endpoint.state_mut().other = Some(other);
    }
    ledger.wait_for(PREPARED, 1);
    if operation == Operation::Answer {
        // The call is handed over before the worker may answer it, and no poll has come by since it has.
        patiently(|| (endpoint.poll(1) > 0).then_some(()));
        let desk = Arc::clone(&endpoint.state().desk);
        desk.open.store(true, Ordering::Release);
        patiently(|| (desk.answered.load(Ordering::Acquire) > 0).then_some(()));
    }
}

/// Offers the next message, for which there is no room unless the survivor has polled while this process was stopped. It has not been
/// sent before a poll sends it.
fn offer_next(endpoint: &mut Endpoint<Spoken>) -> Offered {
    let number = endpoint.state().said;
    let message = payload(number, SHORT);
    let offered = endpoint.offer(NUMBERED, &message).expect("a queue");
    assert_ne!(offered, Offered::Dropped);
    let spoken = endpoint.state_mut();
    spoken.said += 1;
    spoken.ledger.write(ATTEMPTED, number + 1);
    offered
}

/// What waits is sent, and then written down as such.
fn queue_is_sent(endpoint: &mut Endpoint<Spoken>) {
    let survivor = survivor_of(endpoint);
    patiently(|| {
        endpoint.poll(64);
        let load = endpoint.load(survivor).expect("it is open");
        (load.queued == 0).then_some(())
    });
    let spoken = endpoint.state();
    spoken.ledger.write(PUBLISHED, spoken.said);
}

/// A frame for both, of which one has it and for the other it waits, unless that has polled.
fn publish_next(endpoint: &mut Endpoint<Spoken>) {
    let (number, survivor) = (endpoint.state().said, survivor_of(endpoint));
    let other = endpoint.state().other.expect("opened before");
    let message = payload(number, FRAMED);
    let mut frame = endpoint.shared_frame(message.len()).expect("a frame");
    frame.copy_from_slice(&message);
    let published = endpoint.publish(&[other, survivor], NUMBERED, &frame.freeze());
    let (sent, queued) = (published.sent, published.queued);
    assert!(sent >= 1 && sent + queued == 2, "{published:?}");
    let spoken = endpoint.state_mut();
    spoken.said += 1;
    spoken.ledger.write(ATTEMPTED, number + 1);
}

fn perform(operation: Operation, mut endpoint: Endpoint<Spoken>, ledger: &Ledger) {
    let number = endpoint.state().said;
    let [short, long, framed] = [SHORT, LONG, FRAMED].map(|len| payload(number, len));
    let ready = match operation {
        Operation::SendFrame | Operation::CallFrame => Some(frame_of(&mut endpoint, &framed)),
        _ => None,
    };
    let restarts = restarts(&endpoint);
    let mut batch = Batch::new();
    for n in number..number + BATCH {
        assert!(batch.push(NUMBERED, &payload(n, BATCHED)));
    }
    mark();
    match operation {
        Operation::SendLong => say(&mut endpoint, &long),
        Operation::Batch => {
            ledger.write(ATTEMPTED, number + BATCH);
            assert_eq!(endpoint.try_send_batch(&mut batch), Ok(()));
            ledger.write(PUBLISHED, number + BATCH);
            endpoint.state_mut().said += BATCH;
        }
        Operation::Receive
        | Operation::ReceiveLong
        | Operation::Credit
        | Operation::Reply
        | Operation::ReceiveFrame
        | Operation::ReceiveGrant
        | Operation::ReceivePublished
        | Operation::TakeTurn
        | Operation::HandOver => assert!(endpoint.poll(64) > 0),
        Operation::Queue | Operation::DropOldest => {
            offer_next(&mut endpoint);
        }
        Operation::PublishQueued => publish_next(&mut endpoint),
        Operation::Block => saying(&mut endpoint, |endpoint| {
            assert_eq!(endpoint.offer(NUMBERED, &short), Ok(Offered::Sent));
        }),
        // Sends what there is to send.
        Operation::Unqueue | Operation::Answer => {
            endpoint.poll(64);
        }
        Operation::SendFrame => say_frame(&mut endpoint, ready.expect("made before")),
        Operation::Grow => {
            let frame = frame_of(&mut endpoint, &framed);
            say_frame(&mut endpoint, frame);
        }
        Operation::Publish => say(&mut endpoint, &framed),
        Operation::CallFrame => saying(&mut endpoint, |endpoint| {
            let frame = ready.expect("made before");
            match endpoint.call_frame_in_place(ECHO, frame) {
                Ok(Response::Frames(answer)) => assert!(answer.to_vec() == framed),
                other => panic!("{other:?}"),
            }
        }),
        Operation::Sleep => sleep(&mut endpoint),
        Operation::Call | Operation::CallAsleep => {
            ledger.write(ATTEMPTED, number + 1);
            assert_eq!(endpoint.call(ECHO, &short), Ok(short.as_slice()));
            ledger.write(PUBLISHED, number + 1);
            endpoint.state_mut().said += 1;
        }
        Operation::Close | Operation::CloseListener => {
            drop(endpoint);
            return ledger.write(STAGE, DONE);
        }
        _ => say(&mut endpoint, &short),
    }
    ledger.write(STAGE, DONE);
    if operation == Operation::SendWrap {
        assert_eq!(self::restarts(&endpoint), restarts + 1, "it starts over");
    }
    finish(operation, &mut endpoint);
    part(endpoint, ledger);
}

/// What an operation has left to later polls; and that it did what it is named after.
fn finish(operation: Operation, endpoint: &mut Endpoint<Spoken>) {
    let survivor = survivor_of(endpoint);
    let count = |endpoint: &Endpoint<Spoken>, counter| {
        let counters = endpoint.counters(survivor).expect("it is open");
        counters.get(counter)
    };
    if operation == Operation::Unqueue {
        let load = endpoint.load(survivor).expect("it is open");
        assert_eq!(load.queued, 0, "there was room for all of it");
    }
    if operation.queues() {
        queue_is_sent(endpoint);
        // Of the queue that was full one had to go, unless there was room by then.
        let counts = [Counter::DropOldest, Counter::Sent, Counter::Offered];
        let [dropped, sent, offered] = counts.map(|counter| count(endpoint, counter));
        let scraps = u64::from(operation == Operation::DropOldest);
        let unoffered = endpoint.state().said + scraps - offered;
        assert!(dropped <= scraps && sent + dropped == unoffered + offered);
    }
    if operation.works() {
        let answered = |endpoint: &Endpoint<Spoken>| {
            let answers = count(endpoint, Counter::Sent) - endpoint.state().said;
            (answers == 1).then_some(())
        };
        if operation == Operation::Answer {
            answered(endpoint).expect("one poll sends it");
        }
        let desk = Arc::clone(&endpoint.state().desk);
        desk.open.store(true, Ordering::Release);
        patiently(|| {
            endpoint.poll(64);
            answered(endpoint)
        });
    }
}

fn restarts(endpoint: &Endpoint<Spoken>) -> u64 {
    let counters = endpoint.counters(survivor_of(endpoint));
    let counters = counters.expect("it is open");
    counters.get(Counter::Restarts)
}

/// Goes on as if nothing had happened: some last messages either way, and a clean end.
fn part(mut endpoint: Endpoint<Spoken>, ledger: &Ledger) {
    let (number, survivor) = (endpoint.state().said, survivor_of(&endpoint));
    // Until the ring has wrapped, with a long one in it.
    for n in number..number + 2 * DEPTH as u64 {
        let len = if n % 20 == 0 { LONG } else { SHORT };
        let message = payload(n, len);
        let spoken = endpoint.state_mut();
        spoken.ledger.write(ATTEMPTED, n + 1);
        spoken.said += 1;
        let sent: Result<(), SendError> = endpoint.send(NUMBERED, &message);
        assert_eq!(sent, Ok(()));
        ledger.write(PUBLISHED, n + 1);
    }
    patiently(|| {
        endpoint.poll(64);
        let told = ledger.read(TOLD);
        (told > 0 && endpoint.state().heard == told - 1).then_some(())
    });
    frames_are_back(&mut endpoint);
    // Whoever reads the last of these may not have said so yet.
    patiently(|| {
        endpoint.poll(64);
        let audit = endpoint.audit(survivor)?;
        audit.findings.is_empty().then_some(())
    });
    while let Some(event) = endpoint.next_event() {
        let passes = matches!(event, Event::Degraded { .. } | Event::Recovered { .. });
        assert!(passes, "nothing has ended: {event:?}");
    }
    assert_eq!(ledger.read(WRONG), 0);
    ledger.write(STAGE, VERIFIED);
}

/// The third party: calls are answered and frames read until the survivor is gone, which ends it.
pub(crate) fn echo(address: &str) {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).expect("a signal");
    let echo: Handlers<()> = Handlers::new()
        .on(ECHO, |_, message, reply| reply.send(message.bytes()))
        .on(NUMBERED, |_, message, _| {
            assert_eq!(message.bytes().len(), FRAMED);
        })
        .on(ON_PATH, |_, message, _| {
            assert_eq!(message.bytes().len(), FRAMED);
        });
    let builder = Endpoint::builder().handlers(echo).wait(Wait::Park);
    let mut endpoint = builder.connect(address).expect("it listens");
    let free = endpoint.accept_at(&third_address(address));
    free.expect("a free path");
    endpoint.run().expect("it is open");
}
