//! Tightbeam between two hosts, through its public API: the same calls and handlers as between processes, over AF_XDP or a UDP socket.
//!
//! Packets of a Raw channel that find no room are lost, so a rate has a window: the receiver says how far it is, in messages of its own.

use super::datagram::{SILENCE, silent};
use super::device::{FLOOR_GENERIC, FLOOR_NATIVE};
use super::shm::{self, LOOK, Side, caller};
use super::{Calls, Lane, Offer, Pace, Path, Pour, Station, take};
use crate::bench::fault::Broken;
use crate::bench::net::cable;
use crate::bench::payload::Sequence;
use crate::bench::spec::{Job, Spec, Wait};
use crate::bench::watch::{Release, called_off};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path as FilePath, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};
use tightbeam::{Batch, Endpoint, Handlers, Message, Reply};
use tightbeam_sys::netns;

/// How the packets go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    /// Through a kernel UDP socket, read by system calls or by a ring of `io_uring`.
    Udp,
    UdpUring,
    /// Through AF_XDP, behind the driver or in it.
    XdpGeneric,
    XdpNative,
}

/// An endpoint over that.
pub(crate) struct Ours {
    pub(super) by: By,
    /// Who waits lets messages gather.
    pub(super) gather: bool,
}

/// A handler of both processes: the other side has received so many messages.
const ACK: u16 = 4;
/// Messages under way at most, and after how many the receiver says how far it is.
const WINDOW: u64 = 1024;
const STRIDE: u64 = 256;
/// Slots of a ring that all of them fit into.
const DEPTH: usize = 4096;
/// For how long messages gather: of 50,000 a second there are five then, or ten with what the kernel takes longer.
pub(super) const GATHER: Duration = Duration::from_micros(100);
/// How long an opening may take.
const OPENING: Duration = Duration::from_secs(3);
/// Each channel has a port of its own.
static PORT: AtomicU16 = AtomicU16::new(7100);

impl Ours {
    /// Where the second host listens, and how the first one gets there.
    fn addresses(&self) -> Result<(String, String), Broken> {
        let port = PORT.fetch_add(1, Ordering::Relaxed);
        let udp = |options| {
            let far = cable::shared(|cable| cable.address(1)).map_err(shm::endpoint)?;
            Ok(format!("udp:{far}:{port}{options}"))
        };
        let address = match self.by {
            By::Udp => udp(""),
            By::UdpUring => udp("?engine=io_uring"),
            By::XdpGeneric => place_strand("generic"),
            By::XdpNative => place_strand("native"),
        }?;
        Ok((address.clone(), address))
    }
}

/// The address of the second host on a cable for one channel alone: an interface has one program.
pub(super) fn place_strand(mode: &str) -> Result<String, Broken> {
    let port = PORT.fetch_add(1, Ordering::Relaxed);
    let strand = cable::shared(|cable| cable.another()).flatten();
    let strand = strand.map_err(shm::endpoint)?;
    let (name, far) = (strand.interface, strand.far);
    Ok(format!("xdp:{name}/{far}:{port}?mode={mode}&strict"))
}

/// Sends messages in batches, as many as the window allows.
struct Source {
    endpoint: Endpoint<u64>,
    sequence: Sequence,
    message: Box<[u8]>,
    batch: Batch,
    /// Messages sent in all, and those of which nothing is to be expected any more.
    sent: u64,
    given_up: u64,
}

impl Source {
    fn flush(&mut self) -> Result<(), Broken> {
        self.endpoint
            .send_batch(&mut self.batch)
            .map_err(shm::endpoint)
    }

    fn under_way(&self) -> u64 {
        self.sent - (*self.endpoint.state()).max(self.given_up)
    }

    /// Waits until so few are under way; what is not heard of for a while is lost.
    fn wait_for(&mut self, most: u64) -> Result<(), Broken> {
        let mut since = None;
        while self.under_way() > most {
            let handled = self.endpoint.poll_for(64, LOOK.min(SILENCE));
            match handled {
                0 if called_off() => return Err(Broken::CalledOff),
                0 if silent(&mut since) => self.given_up = self.sent,
                0 => {}
                _ => since = None,
            }
        }
        Ok(())
    }
}

impl Pour for Source {
    fn run(&mut self, count: u32) -> Result<(), Broken> {
        self.sequence = Sequence::new();
        for _ in 0..count {
            self.sequence.write(&mut self.message);
            if !self.batch.push(shm::POURED, &self.message) {
                self.flush()?;
                self.wait_for(WINDOW)?;
                // There is room in an empty one.
                let _ = self.batch.push(shm::POURED, &self.message);
            }
            self.sent += 1;
        }
        self.flush()?;
        // What was sent since the last turn leaves with this one.
        self.endpoint.poll(0);
        Ok(())
    }

    fn calls(&self) -> Option<Calls> {
        calls(&self.endpoint, self.sent)
    }
}

impl Pace for Source {
    fn begin(&mut self) {
        self.sequence = Sequence::new();
    }

    /// Two messages between two polls would share a packet, the second one's moment or not.
    #[inline(always)]
    fn send(&mut self) -> Result<(), Broken> {
        self.sequence.write(&mut self.message);
        let sent = self.endpoint.try_send(shm::POURED, &self.message);
        self.endpoint.poll(0);
        sent.map_err(shm::endpoint)
    }
}

/// System calls that a device has made for its endpoint, and those in which the endpoint has waited for it or let messages gather.
fn calls<S>(endpoint: &Endpoint<S>, messages: u64) -> Option<Calls> {
    let status = endpoint.device_status(endpoint.channels().next()?)?;
    let count = |name| status.count(name);
    let names = ["send_calls", "receive_calls", "wait_calls", "gather_calls"];
    let calls = names.map(count).into_iter().sum::<Option<u64>>()?;
    Some(Calls { calls, messages })
}

/// Between hosts it is the endpoint itself that answers an opening, while it polls. If none comes the first process says why.
fn settle<S>(endpoint: &mut Endpoint<S>) {
    let deadline = Instant::now() + OPENING;
    while endpoint.next_event().is_none() && Instant::now() < deadline {
        endpoint.poll_for(1, LOOK / 10);
    }
}

/// What the receiver of a rate has taken.
#[derive(Default)]
struct Taken {
    /// Of this burst, as it was written.
    sequence: Option<Sequence>,
    received: u64,
    /// The first message that was not the one expected: damage, or what follows a loss.
    odd: Option<Broken>,
}

fn take_message(taken: &mut Taken, message: Message<'_>, _: Reply<'_>) {
    taken.received += 1;
    let sequence = taken.sequence.get_or_insert_with(Sequence::new);
    if let Err(broken) = sequence.check(message.bytes()) {
        taken.odd.get_or_insert(broken);
    }
}

/// Takes messages and says how far it is.
struct Sink {
    endpoint: Endpoint<Taken>,
    said: u64,
    /// After how many messages.
    stride: u64,
}

impl Sink {
    /// Takes messages until there have been so many in all, or none for a while.
    fn take_until(&mut self, count: u64) -> Result<(), Broken> {
        let mut since = None;
        while self.endpoint.state().received < count {
            match self.endpoint.poll_for(shm::BUDGET, LOOK.min(SILENCE)) {
                0 if called_off() => return Err(Broken::CalledOff),
                0 if silent(&mut since) => break,
                0 => {}
                _ => since = None,
            }
        }
        Ok(())
    }
}

impl Station for Sink {
    fn serve(&mut self, count: u32) -> Result<u32, Broken> {
        let state = self.endpoint.state_mut();
        (state.sequence, state.odd) = (None, None);
        let (start, mut came) = (state.received, state.received);
        let until = start + u64::from(count);
        while came < until {
            let next = self.said.saturating_add(self.stride).min(until);
            self.take_until(next)?;
            came = self.endpoint.state().received;
            self.said = came;
            if self.stride < u64::MAX {
                // One that does not go is made up for by the next.
                let _ = self.endpoint.try_send(ACK, &came.to_le_bytes());
            }
            if came < next {
                break;
            }
        }
        self.endpoint.poll(0);
        // After a loss the rest cannot be what was expected; without one it must be.
        match self.endpoint.state_mut().odd.take() {
            Some(broken) if came == until => Err(broken),
            _ => Ok((came - start) as u32),
        }
    }

    fn settle(&mut self) {
        settle(&mut self.endpoint);
    }

    fn calls(&self) -> Option<Calls> {
        calls(&self.endpoint, self.endpoint.state().received)
    }
}

/// The second process's half of exchanges.
struct Server {
    side: Side,
}

impl Station for Server {
    fn serve(&mut self, count: u32) -> Result<u32, Broken> {
        let until = self.side.endpoint.state().incoming.count() + u64::from(count);
        self.side.poll_until(until, 1)?;
        self.side.state().map(|_| count)
    }

    fn settle(&mut self) {
        settle(&mut self.side.endpoint);
    }
}

fn source(spec: &Spec, address: &str) -> Result<Source, Broken> {
    let acknowledged = |far: &mut u64, message: Message<'_>, _: Reply<'_>| {
        if let Ok(bytes) = message.bytes().try_into() {
            *far = u64::from_le_bytes(bytes).max(*far);
        }
    };
    let builder = Endpoint::builder().state(0);
    let builder = builder.handlers(Handlers::new().on(ACK, acknowledged));
    Ok(Source {
        endpoint: builder
            .wait(wait(spec))
            .depth(DEPTH)
            .connect(address)
            .map_err(shm::endpoint)?,
        sequence: Sequence::new(),
        message: vec![0; spec.size].into_boxed_slice(),
        batch: Batch::new(),
        sent: 0,
        given_up: 0,
    })
}

fn wait(spec: &Spec) -> tightbeam::Wait {
    match spec.wait {
        Wait::Spin => tightbeam::Wait::Spin,
        Wait::Block => tightbeam::Wait::Park,
    }
}

impl Path for Ours {
    fn name(&self) -> &'static str {
        match (self.by, self.gather) {
            (By::Udp, false) => "tightbeam-udp",
            (By::Udp, true) => "tightbeam-udp-gather",
            (By::UdpUring, _) => "tightbeam-udp-io_uring",
            (By::XdpGeneric, false) => "xdp-generic",
            (By::XdpGeneric, true) => "xdp-generic-gather",
            (By::XdpNative, false) => "xdp-native",
            (By::XdpNative, true) => "xdp-native-gather",
        }
    }

    fn class(&self) -> super::Class {
        super::Class::Other
    }

    fn floor(&self) -> Option<&'static str> {
        match self.by {
            By::Udp | By::UdpUring => None,
            By::XdpGeneric => Some(FLOOR_GENERIC),
            By::XdpNative => Some(FLOOR_NATIVE),
        }
    }

    fn does(&self, job: Job, wait: Wait) -> bool {
        !self.gather || matches!((job, wait), (Job::Rate | Job::Load, Wait::Block))
    }

    fn offer(&self, spec: &Spec) -> Result<Offer, Broken> {
        let (listen, connect) = self.addresses()?;
        let there = cable::shared(|cable| cable.host(1).try_clone_to_owned());
        let there = there.map_err(shm::endpoint)??;
        let spec = spec.clone();
        let mut offer = Offer::new([there], move || {
            let lane = match spec.job {
                Job::Rate => Lane::Pour(Box::new(source(&spec, &connect)?)),
                Job::Load => Lane::Pace(Box::new(source(&spec, &connect)?)),
                Job::PingPong | Job::Call => {
                    let client = shm::builder(&spec).connect(&connect);
                    let client = client.map_err(shm::endpoint)?;
                    Lane::Exchange(Box::new(caller(client, shm::PING, spec.size)))
                }
            };
            // Its waits are bounded.
            Ok((lane, Release::ByItself))
        });
        offer.address = Some(PathBuf::from(listen));
        Ok(offer)
    }

    fn join(
        &self,
        spec: &Spec,
        mut fds: Vec<OwnedFd>,
        place: Option<&FilePath>,
    ) -> Result<Box<dyn Station>, Broken> {
        netns::enter(take(&mut fds)?.as_fd())?;
        let address = place.and_then(FilePath::to_str).ok_or(Broken::Closed)?;
        Ok(match spec.job {
            Job::Rate | Job::Load => {
                let builder = Endpoint::builder().state(Taken::default());
                let builder = builder.handlers(Handlers::new().on(shm::POURED, take_message));
                let builder = builder.wait(wait(spec)).depth(DEPTH);
                let pause = if self.gather { GATHER } else { Duration::ZERO };
                let endpoint = builder.gather(pause).listen(address);
                Box::new(Sink {
                    endpoint: endpoint.map_err(shm::endpoint)?,
                    said: 0,
                    // At a rate that it can bear nobody waits for it.
                    stride: if spec.job == Job::Rate {
                        STRIDE
                    } else {
                        u64::MAX
                    },
                })
            }
            Job::PingPong | Job::Call => {
                let handlers = Handlers::new().on(shm::PING, shm::ping);
                let endpoint = shm::builder(spec).handlers(handlers).listen(address);
                let endpoint = endpoint.map_err(shm::endpoint)?;
                Box::new(Server {
                    side: Side { endpoint },
                })
            }
        })
    }
}
