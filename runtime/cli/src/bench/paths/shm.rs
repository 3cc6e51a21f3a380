//! Tightbeam's own path, through its public API: listening, connecting, handler tables, `send`, `call` and `poll`, nothing below.
//!
//! A round trip is a call of a handler that checks the payload and replies with one of its own, which the caller checks. A
//! null call has no payload. A rate is batches of small messages, or `send` of large ones, and `poll` on the other side.

use super::{Class, Initiator, Lane, Offer, Path, Pour, Station};
use crate::bench::fault::Broken;
use crate::bench::payload::Sequence;
use crate::bench::spec::{Job, Spec, Wait};
use crate::bench::watch::{Release, called_off};
use crate::cleanup::PrivateDir;
use std::fmt::Display;
use std::os::fd::OwnedFd;
use std::path::Path as FilePath;
use std::time::Duration;
use tightbeam::{Batch, Endpoint, Event, Handlers, MAX_INLINE, Message, Reply, SendError};

pub(crate) struct Shm;

/// Handlers of the second process.
pub(super) const PING: u16 = 1;
pub(super) const POURED: u16 = 2;
const NULL: u16 = 3;
/// Messages of one poll where several can have arrived.
pub(super) const BUDGET: usize = 256;
/// Between two looks at whether the measurement was called off.
pub(super) const LOOK: Duration = Duration::from_millis(100);

/// What the handlers work on.
pub(super) struct State {
    pub(super) incoming: Sequence,
    outgoing: Sequence,
    /// The answer is written here before it is sent.
    answer: Box<[u8]>,
    broken: Option<Broken>,
}

impl State {
    fn new(size: usize) -> State {
        State {
            incoming: Sequence::new(),
            outgoing: Sequence::new(),
            answer: vec![0; size].into_boxed_slice(),
            broken: None,
        }
    }

    #[inline(always)]
    fn check(&mut self, message: Message<'_>) {
        if let Err(broken) = self.incoming.check(message.bytes()) {
            self.broken.get_or_insert(broken);
        }
    }
}

pub(super) fn ping(state: &mut State, message: Message<'_>, reply: Reply<'_>) {
    state.check(message);
    state.outgoing.write(&mut state.answer);
    reply.send(&state.answer);
}

fn take_message(state: &mut State, message: Message<'_>, _reply: Reply<'_>) {
    state.check(message);
}

pub(super) fn null(state: &mut State, message: Message<'_>, reply: Reply<'_>) {
    state.check(message);
    reply.send(&state.answer);
}

/// The side that handles messages.
pub(super) struct Side {
    pub(super) endpoint: Endpoint<State>,
}

impl Side {
    /// Handles messages until there have been `count` in all of this side's life.
    #[inline(always)]
    pub(super) fn poll_until(&mut self, count: u64, budget: usize) -> Result<(), Broken> {
        while self.endpoint.state().incoming.count() < count {
            if self.endpoint.poll_for(budget, LOOK) == 0 {
                self.nothing()?;
            }
        }
        Ok(())
    }

    /// Nothing has come: why?
    #[cold]
    pub(super) fn nothing(&mut self) -> Result<(), Broken> {
        while let Some(event) = self.endpoint.next_event() {
            match event {
                Event::Opened { .. } => {}
                Event::Faulted { fault, .. } => return Err(endpoint(fault)),
                _ => return Err(Broken::Closed),
            }
        }
        if called_off() {
            Err(Broken::CalledOff)
        } else {
            Ok(())
        }
    }

    #[inline(always)]
    pub(super) fn state(&mut self) -> Result<&mut State, Broken> {
        let state = self.endpoint.state_mut();
        match state.broken.take() {
            None => Ok(state),
            Some(broken) => Err(broken),
        }
    }
}

/// Round trips by calls.
pub(super) struct Caller {
    endpoint: Endpoint<State>,
    handler: u16,
    outgoing: Sequence,
    incoming: Sequence,
    message: Box<[u8]>,
}

pub(super) fn caller(endpoint: Endpoint<State>, handler: u16, size: usize) -> Caller {
    Caller {
        endpoint,
        handler,
        outgoing: Sequence::new(),
        incoming: Sequence::new(),
        message: vec![0; size].into_boxed_slice(),
    }
}

impl Initiator for Caller {
    #[inline(always)]
    fn round_trip(&mut self) -> Result<(), Broken> {
        self.outgoing.write(&mut self.message);
        let answer = self
            .endpoint
            .call(self.handler, &self.message)
            .map_err(endpoint)?;
        self.incoming.check(answer)
    }
}

struct Source {
    side: Side,
    /// Both processes on one CPU, spinning: waiting for room must let the other one run.
    yields: bool,
    sequence: Sequence,
    message: Box<[u8]>,
    batch: Batch,
}

/// Messages of which at least so many fit into a batch are sent in batches.
const WORTH_A_BATCH: usize = 4;

fn source(endpoint: Endpoint<State>, spec: &Spec) -> Source {
    Source {
        yields: spec.shared_cpu && spec.wait == Wait::Spin,
        side: Side { endpoint },
        sequence: Sequence::new(),
        message: vec![0; spec.size].into_boxed_slice(),
        batch: Batch::new(),
    }
}

impl Source {
    /// Sends what was batched.
    #[inline(never)]
    fn flush(&mut self) -> Result<(), Broken> {
        let Source { side, batch, .. } = self;
        let endpoint_of = &mut side.endpoint;
        if !self.yields {
            return endpoint_of.send_batch(batch).map_err(endpoint);
        }
        yielding(|| endpoint_of.try_send_batch(batch))
    }

    #[inline(always)]
    fn send(&mut self) -> Result<(), Broken> {
        let Source { side, message, .. } = self;
        let endpoint_of = &mut side.endpoint;
        if !self.yields {
            return endpoint_of.send(POURED, message).map_err(endpoint);
        }
        yielding(|| endpoint_of.try_send(POURED, message))
    }
}

/// Lets the other process run until there is room.
fn yielding(mut attempt: impl FnMut() -> Result<(), SendError>) -> Result<(), Broken> {
    while let Err(error) = attempt() {
        match error {
            SendError::Full if !called_off() => rustix::thread::sched_yield(),
            error => return Err(endpoint(error)),
        }
    }
    Ok(())
}

impl Pour for Source {
    fn run(&mut self, count: u32) -> Result<(), Broken> {
        let batched = self.message.len() <= MAX_INLINE / WORTH_A_BATCH;
        for _ in 0..count {
            self.sequence.write(&mut self.message);
            if !batched {
                self.send()?;
            } else if !self.batch.push(POURED, &self.message) {
                self.flush()?;
                // There is room in an empty one.
                let _ = self.batch.push(POURED, &self.message);
            }
        }
        self.flush()
    }
}

/// The second process's half of everything: it polls, its handlers do the rest.
struct Server {
    side: Side,
    budget: usize,
}

impl Station for Server {
    fn serve(&mut self, count: u32) -> Result<u32, Broken> {
        let until = self.side.endpoint.state().incoming.count() + u64::from(count);
        self.side.poll_until(until, self.budget)?;
        self.side.state().map(|_| count)
    }
}

pub(super) fn endpoint(error: impl Display) -> Broken {
    Broken::Endpoint(error.to_string())
}

/// Settings that both sides have.
pub(super) fn builder(spec: &Spec) -> tightbeam::Builder<State> {
    let wait = match (spec.wait, spec.shared_cpu) {
        (Wait::Block, _) => tightbeam::Wait::Park,
        (Wait::Spin, false) => tightbeam::Wait::Spin,
        // Nothing would ever arrive while one side spins on the only CPU.
        (Wait::Spin, true) => tightbeam::Wait::Adaptive,
    };
    let builder = Endpoint::builder().state(State::new(spec.size)).wait(wait);
    match spec.depth {
        Some(depth) => builder.depth(depth),
        None => builder,
    }
}

fn address(path: &FilePath) -> Result<String, Broken> {
    let path = path
        .to_str()
        .ok_or_else(|| endpoint("the temporary directory's name is no UTF-8"))?;
    Ok(format!("shm:{path}"))
}

impl Path for Shm {
    fn name(&self) -> &'static str {
        "shm"
    }

    fn class(&self) -> Class {
        Class::Other
    }

    fn does(&self, _job: Job, _wait: Wait) -> bool {
        true
    }

    fn call_size(&self) -> usize {
        0
    }

    fn offer(&self, spec: &Spec) -> Result<Offer, Broken> {
        if spec.size > MAX_INLINE {
            return Err(endpoint(SendError::TooLarge {
                len: spec.size,
                max: MAX_INLINE,
            }));
        }
        let directory = PrivateDir::create()?;
        let path = directory.path().join("shm");
        let (place, spec) = (path.clone(), spec.clone());
        let mut offer = Offer::new([], move || {
            // The directory goes as soon as the channel is open: a channel needs no name.
            let directory = directory;
            let client = builder(&spec);
            let client = client.connect(&address(&place)?).map_err(endpoint)?;
            drop(directory);
            let lane = match spec.job {
                Job::Call => Lane::Exchange(Box::new(caller(client, NULL, spec.size))),
                Job::Rate => Lane::Pour(Box::new(source(client, &spec))),
                _ => Lane::Exchange(Box::new(caller(client, PING, spec.size))),
            };
            // Its waits are bounded, and it notices the death of its peer by itself.
            Ok((lane, Release::ByItself))
        });
        offer.address = Some(path);
        Ok(offer)
    }

    fn join(
        &self,
        spec: &Spec,
        _fds: Vec<OwnedFd>,
        place: Option<&FilePath>,
    ) -> Result<Box<dyn Station>, Broken> {
        let place = place.ok_or(Broken::Closed)?;
        let handlers = Handlers::new()
            .on(PING, ping)
            .on(POURED, take_message)
            .on(NULL, null);
        let server = builder(spec)
            .handlers(handlers)
            .listen(&address(place)?)
            .map_err(endpoint)?;
        let budget = if spec.job == Job::Rate { BUDGET } else { 1 };
        Ok(Box::new(Server {
            side: Side { endpoint: server },
            budget,
        }))
    }
}
