//! Everything that happens beside the data path: opening, noticing that a peer is gone, closing (D13).
//!
//! One thread a process sleeps in `epoll`; it accepts, answers the opening exchange and watches. What it finds it hands to
//! the endpoint that it concerns, whose data thread learns of it by one load a poll.

mod admit;
mod connect;
mod controller;
mod gate;
mod listener;
mod mailbox;
mod thread;
mod wire;

pub(crate) use connect::connect;
pub(crate) use controller::{Controller, Watch};
pub use gate::Openings;
pub(crate) use gate::{Gate, Outcome, Seat};
pub(crate) use listener::{Listener, bind};
pub use mailbox::Stopper;
pub(crate) use mailbox::{Door, Mailbox, Notice};
pub(crate) use wire::Refusal;

use crate::OpenError;
use crate::channel::PeerIdentity;
use crate::net::Hosts;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use tightbeam_segment::{
    Attached, Formatted, Identity, Incarnation, Layout, OwnLines, PeerLines, Port,
};
use tightbeam_sys::Errno;
use tightbeam_sys::apart::Apart;
use tightbeam_sys::control::{self, Credentials};
use tightbeam_sys::memory::{self, MemoryOptions, MemoryReport, OwnMemory, PeerMemory};

/// Decides by a peer's credentials whether it may have a channel.
pub(crate) type Admission = Arc<dyn Fn(&Credentials) -> bool + Send + Sync>;

/// What each channel of an endpoint is opened with.
#[derive(Clone)]
pub(crate) struct OpenOptions {
    pub(crate) layout: Layout,
    pub(crate) memory: MemoryOptions,
    pub(crate) gate: Arc<Gate>,
    pub(crate) within: Duration,
    /// Who on other hosts is admitted.
    pub(crate) hosts: Hosts,
    /// Bytes of frames of a channel.
    pub(crate) frame_limit: usize,
    /// How long a client on another host may be silent before its place is given to somebody else.
    pub(crate) idle_limit: Duration,
}

/// My half of a channel that is being opened: formatted, so that the peer can attach as soon as it has the descriptor.
pub(crate) struct Half {
    segment: Formatted,
    descriptor: OwnedFd,
    report: MemoryReport,
    identity: Identity,
}

impl Half {
    fn create(options: &OpenOptions) -> Result<Half, OpenError> {
        let page = memory::page_size();
        let incarnation = memory::random_words().map_err(|errno| OpenError::System {
            call: "draw random numbers",
            errno,
        })?;
        let memory = OwnMemory::create(options.layout.bytes(page), &options.memory)?;
        let identity = Identity::ours(options.layout, page as u32, Incarnation(incarnation));
        let descriptor = (memory.fd().try_clone_to_owned()).map_err(|error| OpenError::System {
            call: "duplicate a descriptor",
            errno: Errno::from_io_error(&error).unwrap_or(Errno::MFILE),
        })?;
        Ok(Half {
            report: memory.report(),
            segment: options.layout.format(OwnLines::new(memory), &identity),
            descriptor,
            identity,
        })
    }
}

/// Both halves and the connection: all that a channel is made of. It can be sent to the thread that will own it.
pub(crate) struct Opened {
    own: Formatted,
    theirs: Attached,
    /// My segment's.
    descriptor: OwnedFd,
    pub(crate) memory: MemoryReport,
    pub(crate) peer: PeerIdentity,
    pub(crate) socket: Apart<OwnedFd>,
    pub(crate) pidfd: OwnedFd,
    /// Of the channels that others may open, this is one.
    seat: Option<Seat>,
}

/// What a channel is made of once its two halves are joined.
pub(crate) struct Joined {
    pub(crate) port: Port,
    pub(crate) socket: Apart<OwnedFd>,
    pub(crate) pidfd: OwnedFd,
    pub(crate) seat: Option<Seat>,
}

impl Opened {
    /// Maps the segment that the peer has passed and joins it with mine.
    fn new(
        half: Half,
        peer_identity: Identity,
        segment: Apart<control::Passed>,
        socket: Apart<OwnedFd>,
    ) -> Result<Opened, OpenError> {
        let page = memory::page_size();
        let layout = peer_identity.check(page as u32)?;
        let memory = PeerMemory::map(segment, layout.bytes(page))?;
        let peer_read_only = memory.is_read_only();
        let theirs = Layout::attach(PeerLines::new(memory), &peer_identity, page as u32)?;
        let (peer, pidfd) = identify(&socket)?;
        Ok(Opened {
            own: half.segment,
            theirs,
            descriptor: half.descriptor,
            memory: MemoryReport {
                peer_read_only,
                ..half.report
            },
            peer,
            socket,
            pidfd,
            seat: None,
        })
    }

    /// With the seat that it was given.
    fn seated(self, seat: Seat) -> Opened {
        Opened {
            seat: Some(seat),
            ..self
        }
    }

    /// Whether the peer has done its part: nobody can change the shape of my segment, or map it writable, any more.
    fn is_settled(&self) -> Result<bool, Errno> {
        memory::is_settled(self.descriptor.as_fd())
    }

    /// Joins the two halves.
    pub(crate) fn join(self, label: u64) -> Joined {
        Joined {
            port: Port::new(self.own, self.theirs, label),
            socket: self.socket,
            pidfd: self.pidfd,
            seat: self.seat,
        }
    }
}

/// Who is on the other side, and a descriptor that tells when it ends.
fn identify(socket: &OwnedFd) -> Result<(PeerIdentity, OwnedFd), OpenError> {
    let failed = |call| move |errno| OpenError::System { call, errno };
    let credentials =
        control::credentials(socket.as_fd()).map_err(failed("read the peer's credentials"))?;
    let pidfd = control::peer_pidfd(socket.as_fd()).map_err(failed(
        "get a descriptor of the peer's process (SO_PEERPIDFD, Linux 6.5)",
    ))?;
    Ok((PeerIdentity::new(credentials), pidfd))
}
