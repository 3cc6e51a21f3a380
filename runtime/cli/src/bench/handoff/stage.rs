//! A stage of `bench handoff`: takes what comes, and hands it on to the next stage or, as the last one, tells the first process.

use super::super::fault::BenchError;
use super::super::peer;
use super::super::second::{PATIENCE, address, busy, descriptor_of, other};
use super::Way;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tightbeam::{ChannelId, Endpoint, Handlers, MAX_INLINE, Message, Received, Reply, Stage, Wait};
use tightbeam_sys::block::map_and_unmap;

/// A frame that begins with its ticket.
pub(super) const FRAME: u16 = 1;
/// "It is your turn with these tickets"; from the last stage: "they have come through".
pub(super) const TURN: u16 = 2;
/// "I am stage n."
pub(super) const JOIN: u16 = 3;
/// What is done next; answered with the CPU time of the stage in nanoseconds.
pub(super) const ORDER: u16 = 4;

/// Bytes of a ticket, and the most tickets of a message.
const TICKET: usize = 8;
const TICKETS: usize = MAX_INLINE / TICKET;

/// What a stage is started with.
#[derive(Debug, clap::Args)]
pub(crate) struct PeerArgs {
    #[arg(long)]
    parent: i32,
    #[arg(long)]
    directory: PathBuf,
    #[arg(long)]
    cpu: usize,
    /// Which stage it is, from 1, and how many there are.
    #[arg(long)]
    number: usize,
    #[arg(long)]
    stages: usize,
    /// Descriptor of the first process' memory that is mapped for each message.
    #[arg(long)]
    block: u64,
}

/// What a batch is about.
#[derive(Debug, Clone, Copy)]
pub(super) struct Order {
    pub(super) way: Way,
    pub(super) bytes: usize,
    pub(super) stages: usize,
}

impl Order {
    pub(super) fn to_bytes(self) -> [u8; 24] {
        let mut bytes = [0; 24];
        let words = [self.way as u64, self.bytes as u64, self.stages as u64];
        bytes.copy_from_slice(words.map(u64::to_ne_bytes).as_flattened());
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Order> {
        let mut words = words(bytes);
        let number = words.next()?;
        Some(Order {
            way: Way::ALL.into_iter().find(|way| *way as u64 == number)?,
            bytes: words.next()? as usize,
            stages: words.next()? as usize,
        })
    }
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u64> {
    bytes
        .as_chunks()
        .0
        .iter()
        .map(|word| u64::from_ne_bytes(*word))
}

/// How many tickets a message is about.
pub(super) fn tickets(message: &Message<'_>) -> u64 {
    (message.len() / TICKET) as u64
}

/// Runs on this CPU from now on, together with the others.
pub(super) fn share(cpu: usize) -> io::Result<()> {
    tightbeam_sys::cpu::pin(cpu)?;
    // Whoever is woken would take the CPU after each message otherwise, and all that is counted would be waking.
    Ok(tightbeam_sys::cpu::take_turns()?)
}

/// A stage.
pub(crate) fn serve(args: &PeerArgs) -> Result<(), BenchError> {
    serve_until_quit(args).map_err(BenchError::setup("hand messages on"))
}

struct Worker {
    first: bool,
    order: Option<Order>,
    stage: Stage,
    /// Tickets whose turn it is, with the frames of those that have any.
    due: Vec<(u64, Option<Received>)>,
}

impl Worker {
    fn way(&self) -> Option<Way> {
        self.order.map(|order| order.way)
    }
}

fn take_frame(worker: &mut Worker, message: Message<'_>, _: Reply<'_>) {
    let Some(frame) = message.frames() else {
        return;
    };
    let mut ticket = [0; TICKET];
    frame.copy_to(0, &mut ticket);
    let ticket = u64::from_ne_bytes(ticket);
    if worker.way() == Some(Way::Copied) {
        worker.due.push((ticket, Some(frame)));
        return;
    }
    let ready = match (worker.stage.arrived(ticket, frame), worker.first) {
        (None, true) => worker.stage.called(ticket, ()),
        (ready, _) => ready,
    };
    worker
        .due
        .extend(ready.map(|(frame, ())| (ticket, Some(frame))));
}

fn take_turn(worker: &mut Worker, message: Message<'_>, _: Reply<'_>) {
    let framed = worker.way().is_some_and(Way::framed);
    for ticket in words(message.bytes()) {
        match framed {
            false => worker.due.push((ticket, None)),
            true => {
                let ready = worker.stage.called(ticket, ());
                worker
                    .due
                    .extend(ready.map(|(frame, ())| (ticket, Some(frame))));
            }
        }
    }
}

fn take_order(worker: &mut Worker, message: Message<'_>, reply: Reply<'_>) {
    worker.order = Order::from_bytes(message.bytes());
    reply.send(&busy().to_ne_bytes());
}

/// A stage with all that it needs to hand on.
struct Here {
    endpoint: Endpoint<Worker>,
    number: usize,
    owner: ChannelId,
    next: ChannelId,
    block: OwnedFd,
    /// Kept, so that nothing is allocated in a batch.
    due: Vec<(u64, Option<Received>)>,
    said: Vec<u8>,
}

fn place(args: &PeerArgs, number: usize) -> String {
    address(&args.directory, &format!("stage-{number}"))
}

impl Here {
    fn join(args: &PeerArgs) -> io::Result<Here> {
        let worker = Worker {
            first: args.number == 1,
            order: None,
            stage: Stage::new(super::WINDOW as usize),
            due: Vec::new(),
        };
        let handlers = Handlers::new()
            .on(FRAME, take_frame)
            .on(TURN, take_turn)
            .on(ORDER, take_order);
        let builder = Endpoint::builder().state(worker).handlers(handlers);
        let builder = builder.wait(Wait::Park).deadline(PATIENCE);
        let mut endpoint = builder.connect(&place(args, 0)).map_err(other)?;
        let owner = endpoint
            .channels()
            .next()
            .ok_or_else(|| other("no channel"))?;
        endpoint
            .accept_at(&place(args, args.number))
            .map_err(other)?;
        let end = Instant::now() + PATIENCE;
        // The next stage listens soon; behind the last one comes the first process.
        let next = loop {
            if args.number == args.stages {
                break owner;
            }
            match endpoint.open(&place(args, args.number + 1)) {
                Ok(channel) => break channel,
                Err(error) if Instant::now() > end => return Err(other(error)),
                Err(_) => drop(endpoint.poll_for(64, Duration::from_millis(1))),
            }
        };
        Ok(Here {
            endpoint,
            number: args.number,
            owner,
            next,
            block: descriptor_of(args.parent.unsigned_abs().into(), args.block)?,
            due: Vec::new(),
            said: Vec::new(),
        })
    }

    /// Hands on all that is due.
    fn hand_on(&mut self) -> io::Result<()> {
        let worker = self.endpoint.state_mut();
        std::mem::swap(&mut worker.due, &mut self.due);
        let Some(order) = worker.order else {
            return Ok(());
        };
        let last = self.number == order.stages;
        let mut due = std::mem::take(&mut self.due);
        for (ticket, frame) in due.drain(..) {
            match (order.way, frame) {
                (Way::Copied, Some(frame)) if !last => {
                    self.copy_on(&frame)?;
                    continue;
                }
                (way @ (Way::Mapped | Way::Populated), _) => {
                    map_and_unmap(self.block.as_fd(), order.bytes, way == Way::Populated)?;
                }
                // Nobody touches more of it; here it goes back.
                (_, frame) => drop(frame),
            }
            self.said.extend_from_slice(&ticket.to_ne_bytes());
        }
        self.due = due;
        let to = if last { self.owner } else { self.next };
        for tickets in self.said.chunks(TICKETS * TICKET) {
            let sent = self.endpoint.send_to(to, TURN, tickets, PATIENCE);
            sent.map_err(other)?;
        }
        self.said.clear();
        Ok(())
    }

    /// Into memory that the next stage can read.
    fn copy_on(&mut self, frame: &Received) -> io::Result<()> {
        let endpoint = &mut self.endpoint;
        let copy = endpoint.frame_for(self.next, frame.len(), PATIENCE);
        let mut copy = copy.map_err(other)?;
        frame.copy_to(0, &mut copy);
        let sent = endpoint.send_frame_to(self.next, FRAME, copy, PATIENCE);
        sent.map_err(|unsent| other(unsent.error))
    }
}

fn serve_until_quit(args: &PeerArgs) -> io::Result<()> {
    peer::die_with_parent(args.parent)?;
    let mut here = Here::join(args)?;
    share(args.cpu)?;
    let joined = (args.number as u64).to_ne_bytes();
    let sent = here.endpoint.send_to(here.owner, JOIN, &joined, PATIENCE);
    sent.map_err(other)?;
    let owner = here.owner;
    while here.endpoint.channels().any(|channel| channel == owner) {
        here.endpoint.poll_for(64, PATIENCE);
        while here.endpoint.next_event().is_some() {}
        here.hand_on()?;
    }
    Ok(())
}
