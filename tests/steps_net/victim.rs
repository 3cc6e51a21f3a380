//! The process that is stepped: brings itself to the mark, does one operation, and if it may go on, checks that nothing is amiss and closes.

use crate::ground;
use crate::numbered::{is_payload, payload};
use crate::operation::{
    ASK, ATTEMPTED, BEFORE, DELIVERED, DEPTH, DONE, ECHO, FRAMED, HANDLED, NUMBERED, Operation,
    PACKETS, PREPARED, PUBLISHED, SHORT, STAGE, TOLD, TOLD_BEFORE, TOLD_PACKETS, VERIFIED, WRONG,
};
use crate::support::{Ledger, PATIENCE, patiently};
use rustix::process::Signal;
use std::time::Duration;
use tightbeam::{
    Batch, Builder, ChannelId, DeviceStatus, Endpoint, Event, Handlers, Message, PoolAudit, Reply,
    SendError, Wait,
};

/// How many messages the batch has, and their length; and how many wait for each other.
const BATCH: u64 = 10;
const BATCHED: usize = 24;
const PACK: u64 = 5;

/// What the victim has said and heard.
struct Spoken {
    ledger: Ledger,
    said: u64,
    heard: u64,
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

fn ask(spoken: &mut Spoken, message: Message<'_>, reply: Reply<'_>) {
    let bytes = message.bytes();
    spoken.hear(bytes);
    reply.send(bytes);
}

fn builder(operation: Operation, place: &str) -> Builder<Spoken> {
    let spoken = Spoken {
        ledger: Ledger::of(place),
        said: 0,
        heard: 0,
    };
    let handlers: Handlers<Spoken> = Handlers::new()
        .on(NUMBERED, |spoken: &mut Spoken, message, _| {
            spoken.hear(message.bytes());
        })
        .on(ASK, ask);
    let builder = Endpoint::builder().state(spoken).handlers(handlers);
    let builder = builder.depth(DEPTH).deadline(PATIENCE);
    let wait = match operation.sleeps() {
        true => Wait::Park,
        false => Wait::Spin,
    };
    builder.wait(wait).open_within(PATIENCE)
}

/// Stops for the tracer.
fn mark() {
    // SAFETY: bounds: touches no memory of ours; the signal stops this thread until its tracer has it go on.
    unsafe { libc::raise(libc::SIGSTOP) };
}

fn survivor_of(endpoint: &Endpoint<Spoken>) -> ChannelId {
    endpoint.channels().next().expect("it is open")
}

/// Writes down that messages go out, sends them, and writes down that they have gone.
fn saying<T>(
    endpoint: &mut Endpoint<Spoken>,
    messages: u64,
    send: impl FnOnce(&mut Endpoint<Spoken>) -> T,
) -> T {
    let spoken = endpoint.state_mut();
    spoken.said += messages;
    spoken.ledger.write(ATTEMPTED, spoken.said);
    let sent = send(endpoint);
    let spoken = endpoint.state();
    spoken.ledger.write(PUBLISHED, spoken.said);
    sent
}

fn say(endpoint: &mut Endpoint<Spoken>, message: &[u8]) {
    saying(endpoint, 1, |endpoint| {
        assert_eq!(endpoint.try_send(NUMBERED, message), Ok(()));
    });
}

/// As the process that is stepped.
pub(crate) fn run(operation: Operation, place: &str) {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).expect("a signal");
    ground::enter();
    let ledger = Ledger::of(place);
    let builder = || builder(operation, place);
    match operation {
        Operation::Open => {
            let (builder, there) = (builder(), ground::there());
            mark();
            let endpoint = builder.connect(&there).expect("it listens");
            ledger.write(STAGE, DONE);
            part(endpoint, &ledger);
        }
        Operation::Accept => {
            // The device of the one before may not be gone yet.
            let mut endpoint = patiently(|| builder().listen(&ground::own()).ok());
            mark();
            while !matches!(endpoint.next_event(), Some(Event::Opened { .. })) {
                endpoint.poll_for(1, Duration::from_secs(1));
            }
            ledger.write(STAGE, DONE);
            part(endpoint, &ledger);
        }
        _ => {
            // And there may be no place yet.
            let mut endpoint = patiently(|| builder().connect(&ground::there()).ok());
            for number in 0..BEFORE {
                say(&mut endpoint, &payload(number, operation.len_before()));
                endpoint.poll(0);
            }
            ledger.wait_for(DELIVERED, BEFORE);
            patiently(|| {
                endpoint.poll(64);
                (endpoint.state().heard == TOLD_BEFORE).then_some(())
            });
            ledger.wait_for(PREPARED, 1);
            perform(operation, endpoint, &ledger);
        }
    }
}

fn perform(operation: Operation, mut endpoint: Endpoint<Spoken>, ledger: &Ledger) {
    let (number, heard) = (endpoint.state().said, endpoint.state().heard);
    let [short, framed] = [SHORT, FRAMED].map(|len| payload(number, len));
    let several: Vec<Vec<u8>> = (0..PACK).map(|n| payload(number + n, SHORT)).collect();
    let mut batch = Batch::new();
    for n in number..number + BATCH {
        assert!(batch.push(NUMBERED, &payload(n, BATCHED)));
    }
    mark();
    match operation {
        Operation::Send => say(&mut endpoint, &short),
        Operation::SendFramed => say(&mut endpoint, &framed),
        Operation::Batch => saying(&mut endpoint, BATCH, |endpoint| {
            assert_eq!(endpoint.try_send_batch(&mut batch), Ok(()));
        }),
        Operation::Pack => saying(&mut endpoint, PACK, |endpoint| {
            for message in &several {
                assert_eq!(endpoint.try_send(NUMBERED, message), Ok(()));
            }
            endpoint.poll(0);
        }),
        Operation::Receive | Operation::ReceiveFramed | Operation::Reply => {
            while endpoint.state().heard == heard {
                endpoint.poll(64);
            }
        }
        Operation::Call | Operation::CallAsleep => saying(&mut endpoint, 1, |endpoint| {
            assert_eq!(endpoint.call(ECHO, &short), Ok(short.as_slice()));
        }),
        Operation::Close => {
            drop(endpoint);
            return ledger.write(STAGE, DONE);
        }
        Operation::Open | Operation::Accept => unreachable!("they begin without a channel"),
    }
    ledger.write(STAGE, DONE);
    part(endpoint, ledger);
}

/// Goes on as if nothing had happened: some last messages either way, books that agree, and a clean end.
fn part(mut endpoint: Endpoint<Spoken>, ledger: &Ledger) {
    let number = endpoint.state().said;
    for n in number..number + 2 * DEPTH as u64 {
        let len = if n % 20 == 0 { FRAMED } else { SHORT };
        let message = payload(n, len);
        saying(&mut endpoint, 1, |endpoint| {
            let sent: Result<(), SendError> = endpoint.send(NUMBERED, &message);
            assert_eq!(sent, Ok(()));
        });
    }
    patiently(|| {
        endpoint.poll(64);
        let told = ledger.read(TOLD);
        (told > 0 && endpoint.state().heard == told - 1).then_some(())
    });
    let channel = survivor_of(&endpoint);
    ledger.write(PACKETS, sent_packets(&status(&endpoint, channel)) + 1);
    patiently(|| {
        endpoint.poll(64);
        (ledger.read(TOLD_PACKETS) > 0).then_some(())
    });
    let status = status(&endpoint, channel);
    assert_eq!(
        ledger.read(TOLD_PACKETS) - 1,
        accounted_packets(&status),
        "{status:?}"
    );
    frames_are_back(&mut endpoint, channel);
    assert!(endpoint.next_event().is_none(), "nothing has ended");
    assert_eq!(ledger.read(WRONG), 0);
    ledger.write(STAGE, VERIFIED);
}

fn status<S>(endpoint: &Endpoint<S>, channel: ChannelId) -> DeviceStatus {
    endpoint.device_status(channel).expect("it is open")
}

/// Packets that this side has sent over a channel.
pub(crate) fn sent_packets(status: &DeviceStatus) -> u64 {
    status.count("channel_packets_sent").expect("it is counted")
}

/// Packets that have come over a channel, or are known to be lost; that none was refused.
pub(crate) fn accounted_packets(status: &DeviceStatus) -> u64 {
    let count = |label| status.count(label).expect("it is counted");
    let refused = status
        .counts
        .iter()
        .filter(|(label, _)| label.starts_with("drop_"));
    let refused: u64 = refused.map(|(_, count)| count).sum();
    let unread = count("channel_no_room") + count("channel_too_long");
    assert_eq!(refused + unread, 0, "{status:?}");
    count("accepted") + count("lost")
}

/// All frames of this side are back where they belong.
fn frames_are_back(endpoint: &mut Endpoint<Spoken>, channel: ChannelId) {
    let back = |audit: PoolAudit| audit.free == audit.frames && audit.astray.is_empty();
    patiently(|| {
        endpoint.poll(64);
        endpoint.frames(channel).is_some_and(back).then_some(())
    });
}

/// The third party: calls are answered until the survivor is gone, which ends it.
pub(crate) fn echo(address: &str) {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).expect("a signal");
    ground::enter();
    let builder = || {
        let echo: Handlers<()> =
            Handlers::new().on(ECHO, |_, message, reply| reply.send(message.bytes()));
        Endpoint::builder().handlers(echo).wait(Wait::Park)
    };
    let mut endpoint = patiently(|| builder().connect(address).ok());
    endpoint.run().expect("it is open");
}
