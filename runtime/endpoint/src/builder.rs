//! Settings of an endpoint, each with a named default.

use crate::control::{Admission, Controller, Gate, Mailbox, OpenOptions};
use crate::endpoint::Due;
use crate::neighbours::Neighbours;
use crate::net::Hosts;
use crate::policy::Terms;
use crate::queue::Bounds;
use crate::rest::Rest;
use crate::rounds::Rounds;
use crate::wait::{Gather, SpinBudget};
use crate::workers::{Plan, Workers};
use crate::{Credentials, Devices, Endpoint, Handlers, OpenError, Policy, Wait};
use std::collections::VecDeque;
use std::marker::PhantomData;
use std::net::SocketAddrV4;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tightbeam_segment::{Layout, MAX_GRANTED, Pool};
use tightbeam_sys::Errno;
use tightbeam_sys::control::own_uid;
use tightbeam_sys::frames::FrameMaker;
use tightbeam_sys::memory::{MemoryOptions, Want};

/// Ring depth in slots if nothing else is said.
pub const DEFAULT_DEPTH: usize = 1024;
/// How many channels others may open if nothing else is said. With the default depth they take 36 MiB on both sides together,
/// and 768 of the 1,024 descriptors that a process usually may have.
pub const DEFAULT_MAX_CHANNELS: usize = 256;
/// How long an opening may take if nothing else is said.
pub const DEFAULT_OPEN_WITHIN: Duration = Duration::from_secs(2);
/// How long a client on another host may be silent before others may have its place, if nothing else is said.
pub const DEFAULT_IDLE_LIMIT: Duration = Duration::from_secs(60);
/// How long a call or a send may wait if nothing else is said.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(1);

/// How many bytes of frames a channel may have if nothing else is said.
pub const DEFAULT_FRAME_LIMIT: usize = 256 << 20;
/// How many messages may wait in a channel's queue if nothing else is said.
pub const DEFAULT_QUEUE_MESSAGES: usize = 256;
/// How many bytes they may have together if nothing else is said.
pub const DEFAULT_QUEUE_BYTES: usize = 4 << 20;

/// Collects settings, then listens or connects.
///
/// ```no_run
/// use std::time::Duration;
/// use tightbeam::{Endpoint, Handlers, Wait};
///
/// let mut server = Endpoint::builder()
///     .handlers(Handlers::new().on(1, |_, message, reply| reply.send(message.bytes())))
///     .depth(256)
///     .wait(Wait::Spin)
///     .deadline(Duration::from_millis(100))
///     .listen("shm:/run/user/1000/echo.sock")?;
/// server.run().expect("it listens");
/// # Ok::<(), tightbeam_endpoint::OpenError>(())
/// ```
#[must_use]
pub struct Builder<S, D> {
    handlers: Handlers<S>,
    state: S,
    depth: usize,
    memory: MemoryOptions,
    hosts: Hosts,
    admit: Admission,
    channels: usize,
    within: Duration,
    idle_limit: Duration,
    gather: Duration,
    deadline: Duration,
    wait: Wait,
    frame_limit: usize,
    workers: Option<Plan>,
    devices: PhantomData<D>,
    terms: Terms,
}

impl<D> Builder<(), D> {
    pub(crate) fn new() -> Builder<(), D> {
        let me = own_uid();
        Builder {
            handlers: Handlers::new(),
            state: (),
            depth: DEFAULT_DEPTH,
            memory: MemoryOptions::default(),
            admit: Arc::new(move |peer: &Credentials| peer.uid == me),
            hosts: Arc::new(|_| true),
            channels: DEFAULT_MAX_CHANNELS,
            within: DEFAULT_OPEN_WITHIN,
            idle_limit: DEFAULT_IDLE_LIMIT,
            gather: Duration::ZERO,
            deadline: DEFAULT_DEADLINE,
            wait: Wait::default(),
            frame_limit: DEFAULT_FRAME_LIMIT,
            workers: None,
            devices: PhantomData,
            terms: Terms {
                policy: Policy::default(),
                queue: Bounds {
                    messages: DEFAULT_QUEUE_MESSAGES,
                    bytes: DEFAULT_QUEUE_BYTES,
                },
                quota: None,
            },
        }
    }
}

impl<S, D> Builder<S, D> {
    /// What handlers work on. Give it before the handlers: it decides their type.
    pub fn state<T>(self, state: T) -> Builder<T, D> {
        Builder {
            handlers: Handlers::new(),
            state,
            depth: self.depth,
            memory: self.memory,
            admit: self.admit,
            hosts: self.hosts,
            channels: self.channels,
            within: self.within,
            idle_limit: self.idle_limit,
            gather: self.gather,
            deadline: self.deadline,
            wait: self.wait,
            frame_limit: self.frame_limit,
            workers: self.workers,
            devices: PhantomData,
            terms: self.terms,
        }
    }

    /// The handler table; empty by default.
    pub fn handlers(mut self, handlers: Handlers<S>) -> Self {
        self.handlers = handlers;
        self
    }

    /// Threads that handle some of the messages, instead of the endpoint's own: those that take long. They start with the endpoint;
    /// dropping it waits for what they are at.
    pub fn workers<T: Send + Sync + 'static>(mut self, workers: Workers<T>) -> Self {
        self.workers = Some(workers.plan());
        self
    }

    /// Ring depth in slots of 56 bytes, a power of two from 2 to 65,536; [`DEFAULT_DEPTH`] by default. Each side chooses
    /// the depth of the ring that it sends through. Depth costs memory, not latency. From 128 slots on a
    /// ring itself carries messages up to 2,808 bytes, below up to [`MAX_INLINE`](crate::MAX_INLINE); longer ones lie in frames.
    pub fn depth(mut self, slots: usize) -> Self {
        self.depth = slots;
        self
    }

    /// Whether segments shall be locked into RAM, and be in huge pages: neither by default. What they got is in
    /// [`Endpoint::memory`].
    ///
    /// Huge pages make a small channel slower, not faster: the peer then maps them read-only, which on some processors
    /// delays what it reads (see `tightbeam_sys::memory`).
    pub fn memory(mut self, lock: Want, huge_pages: Want) -> Self {
        self.memory = MemoryOptions { lock, huge_pages };
        self
    }

    /// Who may have a channel, on either side; by default only processes of the same effective user.
    ///
    /// The function runs on the control thread, as soon as somebody connects, and decides by what the kernel says of the peer.
    pub fn admit(mut self, policy: impl Fn(&Credentials) -> bool + Send + Sync + 'static) -> Self {
        self.admit = Arc::new(policy);
        self
    }

    /// Which other hosts may have a channel over a device; by default all that can reach it, so choose the address to listen at with care.
    ///
    /// The address is what a host's packets say, and that packets to it arrive there. Who can read the packets of others on their
    /// way can pose as one of them.
    pub fn admit_hosts(
        mut self,
        policy: impl Fn(SocketAddrV4) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.hosts = Arc::new(policy);
        self
    }

    /// How many channels others may have open to this endpoint at a time; [`DEFAULT_MAX_CHANNELS`] by default. Who wants one
    /// more is refused, and counted in [`Endpoint::openings`]. Channels that this endpoint opens are not limited.
    pub fn max_channels(mut self, most: usize) -> Self {
        self.channels = most;
        self
    }

    /// How long nothing may come from a client on another host before its channel may be closed; [`DEFAULT_IDLE_LIMIT`] by default. Only
    /// when there is no place left ([`max_channels`](Self::max_channels)) and somebody else wants one, the most silent such channel is
    /// closed, with [`Event::Evicted`](crate::Event::Evicted): a host that has gone without a word is not told from one that is quiet.
    /// Of processes of this host it is known when they end.
    pub fn idle_limit(mut self, limit: Duration) -> Self {
        self.idle_limit = limit;
        self
    }

    /// How long an opening may take; [`DEFAULT_OPEN_WITHIN`] by default.
    pub fn open_within(mut self, limit: Duration) -> Self {
        self.within = limit;
        self
    }

    /// How long a call or a send waits at most; [`DEFAULT_DEADLINE`] by default.
    pub fn deadline(mut self, limit: Duration) -> Self {
        self.deadline = limit;
        self
    }

    /// How to wait; [`Wait::Adaptive`] by default.
    pub fn wait(mut self, wait: Wait) -> Self {
        self.wait = wait;
        self
    }

    /// Lets messages over devices gather for about so long before an endpoint that sleeps looks again, as long as some keep coming: 10 ms at
    /// most, and nothing by default. Fewer sleeps and wake-ups, on both sides, for messages that come later: for streams that nobody
    /// answers. [`poll_for`](Endpoint::poll_for) and [`run`](Endpoint::run) do so; calls do not, nor does an endpoint with channels to
    /// processes. The kernel may take some 50 us more.
    pub fn gather(mut self, pause: Duration) -> Self {
        self.gather = pause;
        self
    }

    /// How many bytes of memory the frames of a channel may take, on this side; [`DEFAULT_FRAME_LIMIT`] by default, at most
    /// [`MAX_GRANTED`](crate::MAX_GRANTED). [Shared frames](Endpoint::shared_frame) may take as much again, all together. Memory is
    /// made when it is needed, and given back when the channel ends.
    pub fn frame_limit(mut self, bytes: usize) -> Self {
        self.frame_limit = bytes.min(MAX_GRANTED);
        self
    }

    /// What becomes of messages that are [offered](Endpoint::offer_to) to a channel which has no room: [`Policy::Fail`] by default.
    /// [`Endpoint::set_policy`] chooses another one for a single channel.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.terms.policy = policy;
        self
    }

    /// How much may wait in the queue of each channel whose policy is [`Policy::DropOldest`]: so many messages, of which one of several
    /// frames counts as as many, and so many bytes together. [`DEFAULT_QUEUE_MESSAGES`], at least [`MAX_PARTS`](crate::MAX_PARTS), and
    /// [`DEFAULT_QUEUE_BYTES`] by default; a longer message than that is refused.
    ///
    /// The memory is taken when the policy is chosen: the bytes, at most [`MAX_INLINE`](crate::MAX_INLINE) for each message. Longer
    /// messages wait in frames, which are as many less meanwhile.
    pub fn queue(mut self, messages: usize, bytes: usize) -> Self {
        self.terms.queue = Bounds { messages, bytes };
        self
    }

    /// How many bytes of [shared frames](Endpoint::shared_frame) the peer of each channel may have at a time, so that one that keeps
    /// them leaves some for the others; half of the [limit](Self::frame_limit) by default. A frame counts with all the memory that it
    /// takes, its length rounded up to a size class. One that is too many finds no room, as if the ring were full.
    pub fn shared_quota(mut self, bytes: usize) -> Self {
        self.terms.quota = Some(bytes);
        self
    }

    /// Listens at `address`: `shm:PATH`, or that of a device, as the façade's `udp:IP:PORT` and `xdp:INTERFACE/IP:PORT`.
    ///
    /// A socket that a dead process left at the path is replaced; a live listener, or anything that is no socket, is not.
    pub fn listen(self, address: &str) -> Result<Endpoint<S, D>, OpenError>
    where
        D: Devices,
    {
        let mut endpoint = self.build()?;
        endpoint.accept_at(address)?;
        Ok(endpoint)
    }

    /// Opens a channel to who listens at `address`: `shm:PATH`, or that of a device, as the façade's `udp:IP:PORT` and
    /// `xdp:INTERFACE/IP:PORT`.
    pub fn connect(self, address: &str) -> Result<Endpoint<S, D>, OpenError>
    where
        D: Devices,
    {
        let mut endpoint = self.build()?;
        endpoint.open(address)?;
        Ok(endpoint)
    }

    fn build(self) -> Result<Endpoint<S, D>, OpenError> {
        let (mut handlers, mut jobs) = (self.handlers, None);
        if let Some(plan) = self.workers {
            handlers = plan.register(handlers);
            let started = plan.start().map_err(|error| OpenError::System {
                call: "start the workers' threads",
                errno: Errno::from_io_error(&error).unwrap_or(Errno::AGAIN),
            })?;
            jobs = Some(Rc::new(started));
        }
        let mailbox = Mailbox::new();
        Ok(Endpoint {
            handlers,
            state: self.state,
            channels: Vec::new(),
            live: 0,
            first: 0,
            rounds: Rounds::default(),
            watcher: None,
            rest: Rc::new(Rest::new(mailbox.door())),
            #[cfg(feature = "tokio")]
            registered: None,
            due: Due::default(),
            strained: Vec::new(),
            stopping: false,
            mailbox,
            listeners: Vec::new(),
            events: VecDeque::new(),
            lost_events: 0,
            lost_answers: 0,
            unique: 0,
            options: OpenOptions {
                layout: Layout::new(self.depth)?,
                memory: self.memory,
                gate: Gate::new(self.admit, self.channels),
                within: self.within,
                hosts: self.hosts,
                frame_limit: self.frame_limit,
                idle_limit: self.idle_limit,
            },
            frame_limit: self.frame_limit,
            terms: self.terms,
            shared: Pool::shared(FrameMaker, self.frame_limit),
            graves: Vec::new(),
            lines: Vec::new(),
            listens: false,
            processes: 0,
            process: 0,
            arrived: Vec::new(),
            news: Vec::new(),
            wait: self.wait,
            spin_budget: SpinBudget::new(),
            gather: Gather::new(self.gather),
            neighbours: Neighbours::default(),
            deadline: self.deadline,
            jobs,
            controller: Controller::get()?,
            one_thread: PhantomData,
        })
    }
}
