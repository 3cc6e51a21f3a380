//! The process that is stepped: brings itself to the mark, does one operation, and if it may go on, checks that nothing is
//! amiss and closes.

use crate::operation::{
    ASK, ATTEMPTED, DELIVERED, DEPTH, DONE, ECHO, HANDLED, LONG, NUMBERED, Operation, PREPARED,
    PUBLISHED, SHORT, STAGE, TOLD, VERIFIED, WRONG, is_payload, payload,
};
use crate::support::{Ledger, PATIENCE, opened, patiently};
use rustix::process::Signal;
use tightbeam::{Batch, Builder, Counter, Endpoint, Handlers, Message, Reply, SendError, Wait};

/// How many messages the batch has, and their length.
const BATCH: u64 = 10;
const BATCHED: usize = 24;

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

fn builder(address: &str) -> Builder<Spoken> {
    let spoken = Spoken {
        ledger: Ledger::of(address),
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
    builder.open_within(PATIENCE)
}

/// Where a victim listens.
pub(crate) fn own_address(address: &str) -> String {
    format!("{address}.victim")
}

/// Stops for the tracer.
fn mark() {
    // SAFETY: bounds: touches no memory of ours; the signal stops this thread until its tracer has it go on.
    unsafe { libc::raise(libc::SIGSTOP) };
}

fn say(endpoint: &mut Endpoint<Spoken>, message: &[u8]) {
    endpoint
        .state()
        .ledger
        .write(ATTEMPTED, endpoint.state().said + 1);
    assert_eq!(endpoint.try_send(NUMBERED, message), Ok(()));
    let spoken = endpoint.state_mut();
    spoken.said += 1;
    spoken.ledger.write(PUBLISHED, spoken.said);
}

/// As the process that is stepped.
pub(crate) fn run(operation: Operation, address: &str) {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).expect("a signal");
    let ledger = Ledger::of(address);
    let builder = builder(address);
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
        Operation::CallAsleep => builder.wait(Wait::Park).connect(address).expect("open"),
        _ => builder.connect(address).expect("it listens"),
    };
    prepare(operation, &mut endpoint, &ledger);
    perform(operation, endpoint, &ledger);
}

/// Exchanges what comes before the operation.
fn prepare(operation: Operation, endpoint: &mut Endpoint<Spoken>, ledger: &Ledger) {
    let (handled, not_handled) = operation.said_before();
    for number in 0..handled {
        say(endpoint, &payload(number, SHORT));
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
    ledger.wait_for(PREPARED, 1);
}

fn perform(operation: Operation, mut endpoint: Endpoint<Spoken>, ledger: &Ledger) {
    let number = endpoint.state().said;
    let (short, long) = (payload(number, SHORT), payload(number, LONG));
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
        Operation::Receive | Operation::ReceiveLong | Operation::Credit | Operation::Reply => {
            assert!(endpoint.poll(64) > 0);
        }
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
    part(endpoint, ledger);
}

fn restarts(endpoint: &Endpoint<Spoken>) -> u64 {
    let channel = endpoint.channels().next().expect("it is open");
    let counters = endpoint.counters(channel).expect("it is open");
    counters.get(Counter::Restarts)
}

/// Goes on as if nothing had happened: some last messages either way, and a clean end.
fn part(mut endpoint: Endpoint<Spoken>, ledger: &Ledger) {
    let number = endpoint.state().said;
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
    assert!(endpoint.next_event().is_none(), "nothing has ended");
    assert_eq!(ledger.read(WRONG), 0);
    ledger.write(STAGE, VERIFIED);
}

/// The third party: calls are answered until the survivor is gone.
pub(crate) fn echo(address: &str) {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).expect("a signal");
    let echo: Handlers<()> =
        Handlers::new().on(ECHO, |_, message, reply| reply.send(message.bytes()));
    let builder = Endpoint::builder().handlers(echo).wait(Wait::Park);
    let mut endpoint = builder.connect(address).expect("it listens");
    endpoint.run().expect("it is open");
}
