//! UDP over the loopback interface through `io_uring`, set up as in [`tightbeam_sys::uring`]: a send and the wait for what comes
//! next share one system call; spinning looks at the ring and enters the kernel only when it says that there is work.

use super::datagram::{BATCH, Burst, Credit, SILENCE, Window, acknowledge, silent};
use super::udp::Over;
use super::{Answering, Initiator, Lane, Offer, Path, Pour, Responder, Station, take};
use crate::bench::fault::Broken;
use crate::bench::payload::Sequence;
use crate::bench::spec::{Job, Pause, Spec, Wait};
use crate::bench::watch::{Release, called_off, spin};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path as FilePath;
use tightbeam_sys::uring::{UringDatagrams, UringWait};

/// Buffers that wait for arrivals in an exchange.
const FEW: u16 = 8;
/// Bytes of an acknowledgement.
const ACK: usize = 4;

pub(crate) struct UdpUring {
    pub(super) over: Over,
}

/// One half of an exchange.
struct Half {
    ring: UringDatagrams,
    size: usize,
    spinning: Option<Pause>,
    outgoing: Sequence,
    incoming: Sequence,
}

impl Half {
    fn new(socket: OwnedFd, spec: &Spec) -> Result<Half, Broken> {
        Ok(Half {
            ring: open(socket, spec.size, FEW, 1)?,
            size: spec.size,
            spinning: (spec.wait == Wait::Spin).then_some(spec.pause()),
            outgoing: Sequence::new(),
            incoming: Sequence::new(),
        })
    }

    #[inline(always)]
    fn queue(&mut self) -> Result<(), Broken> {
        Ok(self
            .ring
            .queue(self.size, |message| self.outgoing.write(message))?)
    }

    /// Sends what is queued and waits for one message.
    #[inline(always)]
    fn recv(&mut self) -> Result<(), Broken> {
        let (ring, incoming) = (&mut self.ring, &mut self.incoming);
        let mut checked = Ok(());
        match self.spinning {
            Some(pause) => spin(pause, || {
                let count =
                    ring.receive(UringWait::Look, |message| checked = incoming.check(message))?;
                Ok((count > 0).then_some(()))
            })?,
            None => {
                while ring.receive(UringWait::Block, |message| {
                    checked = incoming.check(message)
                })? == 0
                {
                    if called_off() {
                        return Err(Broken::CalledOff);
                    }
                }
            }
        }
        checked
    }
}

impl Initiator for Half {
    #[inline(always)]
    fn round_trip(&mut self) -> Result<(), Broken> {
        self.queue()?;
        self.recv()
    }
}

impl Responder for Half {
    #[inline(always)]
    fn answer(&mut self) -> Result<(), Broken> {
        self.recv()?;
        self.queue()?;
        // Spinning, nothing is gained by holding the answer back; sleeping, it leaves with the next wait.
        match self.spinning {
            Some(_) => Ok(self.ring.flush()?),
            None => Ok(()),
        }
    }

    fn flush(&mut self) -> Result<(), Broken> {
        Ok(self.ring.flush()?)
    }
}

/// Sends messages in batches.
struct Source {
    ring: UringDatagrams,
    size: usize,
    spinning: Option<Pause>,
    window: Window,
}

impl Source {
    /// Sends what is queued; takes acknowledgements until there are any, or there was silence.
    fn acknowledgements(&mut self, credit: &mut Credit, wait: bool) -> Result<bool, Broken> {
        let how = match (wait, self.spinning) {
            (true, None) => UringWait::AtMost(SILENCE),
            _ => UringWait::Look,
        };
        let mut since = None;
        loop {
            let count = self.ring.receive(how, |ack| credit.acknowledged(ack))?;
            match self.spinning {
                _ if count > 0 => return Ok(true),
                Some(pause) if wait && !silent(&mut since) => pause.once(),
                _ => return Ok(false),
            }
            if called_off() {
                return Err(Broken::CalledOff);
            }
        }
    }
}

impl Pour for Source {
    fn run(&mut self, count: u32) -> Result<(), Broken> {
        let mut sequence = Sequence::new();
        let mut credit = Credit::new(self.window);
        // Acknowledgements of the end of the last burst.
        while self.acknowledgements(&mut credit, false)? {}
        let mut left = count;
        while left > 0 {
            let messages = left.min(BATCH as u32).min(self.window.messages());
            while credit.room() < messages {
                if !self.acknowledgements(&mut credit, true)? {
                    credit.give_up();
                }
            }
            credit.sent(messages);
            for _ in 0..messages {
                self.ring
                    .queue(self.size, |message| sequence.write(message))?;
            }
            self.ring.flush()?;
            left -= messages;
        }
        Ok(())
    }
}

/// Receives messages as they complete, looks at each, and acknowledges.
struct Sink {
    ring: UringDatagrams,
    spinning: Option<Pause>,
    window: Window,
}

impl Station for Sink {
    fn serve(&mut self, count: u32) -> Result<u32, Broken> {
        let mut burst = Burst::new(count, Some(self.window));
        let mut since = None;
        let how = if self.spinning.is_some() {
            UringWait::Look
        } else {
            UringWait::AtMost(SILENCE)
        };
        while !burst.complete() {
            let came = self.ring.receive(how, |message| burst.take(message))?;
            if came > 0 {
                since = None;
                if let Some(ack) = burst.acknowledgement() {
                    acknowledge(self.ring.socket(), ack)?;
                }
            } else if self.spinning.is_none() || silent(&mut since) {
                break;
            }
            if let (0, Some(pause)) = (came, self.spinning) {
                pause.once();
            }
        }
        burst.end()
    }
}

fn open(
    socket: OwnedFd,
    size: usize,
    inbound: u16,
    outbound: u16,
) -> Result<UringDatagrams, Broken> {
    UringDatagrams::new(socket, size, inbound, outbound).map_err(|error| {
        let hint = "io_uring with deferred task work, multishot receive and provided buffers (Linux 6.1) is not to be had";
        Broken::Io(io::Error::other(format!("{hint}: {error}")))
    })
}

/// Buffers for all that can be under way.
fn inbound(window: Window) -> u16 {
    window.messages().next_power_of_two() as u16
}

impl Path for UdpUring {
    fn name(&self) -> &'static str {
        match self.over {
            Over::Loopback => "udp-io_uring",
            Over::Cable => "udp-veth-io_uring",
        }
    }

    fn does(&self, job: Job, _wait: Wait) -> bool {
        job != Job::Load
    }

    fn offer(&self, spec: &Spec) -> Result<Offer, Broken> {
        let (near, far) = self.over.pair()?;
        let spec = spec.clone();
        Ok(Offer::new([far], move || {
            let lane = match spec.job {
                Job::Rate => {
                    let window = Window::open(near.as_fd(), spec.size)?;
                    let spinning = (spec.wait == Wait::Spin).then_some(spec.pause());
                    let ring = open(near, spec.size.max(ACK), FEW * 2, BATCH as u16)?;
                    let release = Release::Write(ring.waker().try_clone_to_owned()?);
                    let size = spec.size;
                    let source = Source {
                        ring,
                        size,
                        spinning,
                        window,
                    };
                    (Lane::Pour(Box::new(source)), release)
                }
                _ => {
                    let half = Half::new(near, &spec)?;
                    let release = Release::Write(half.ring.waker().try_clone_to_owned()?);
                    (Lane::Exchange(Box::new(half)), release)
                }
            };
            Ok(lane)
        }))
    }

    fn join(
        &self,
        spec: &Spec,
        mut fds: Vec<OwnedFd>,
        _: Option<&FilePath>,
    ) -> Result<Box<dyn Station>, Broken> {
        let socket = take(&mut fds)?;
        Ok(match spec.job {
            Job::Rate => {
                let window = Window::open(socket.as_fd(), spec.size)?;
                let spinning = (spec.wait == Wait::Spin).then_some(spec.pause());
                let ring = open(socket, spec.size, inbound(window), 1)?;
                Box::new(Sink {
                    ring,
                    spinning,
                    window,
                })
            }
            _ => Box::new(Answering(Half::new(socket, spec)?)),
        })
    }
}
