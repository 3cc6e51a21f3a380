//! The endpoint: channels, a handler table, the state that handlers work on.

use crate::beside::Beside;
use crate::channel::{Channel, ChannelId, PeerIdentity};
use crate::control::{self, Controller, Listener, Mailbox, Notice, OpenOptions};
use crate::graves::Grave;
use crate::neighbours::Neighbours;
use crate::net::{self, Line, News};
use crate::policy::Terms;
use crate::rest::Rest;
use crate::rounds::Rounds;
use crate::send::wake_if_asleep;
use crate::wait::{Gather, SpinBudget};
use crate::workers::Jobs;
use crate::{Address, Builder, Devices, Event, Handlers, OpenError, Openings, Stopper, Wait};
use std::collections::VecDeque;
use std::marker::PhantomData;
use std::rc::Rc;
use std::time::Duration;
use tightbeam_segment::{Audit, Counters, DeviceStatus, Pool};
use tightbeam_sys::control::Watcher;
use tightbeam_sys::memory::MemoryReport;

/// Sends and receives messages over any number of channels, on one thread.
///
/// Messages are handled inside [`poll`](Self::poll), [`run`](Self::run), and whatever else waits: [`call`](Self::call) and
/// [`send`](Self::send). Dropping the endpoint closes its channels; peers still receive what was sent before.
///
/// It belongs to the thread that opened it. A service uses one endpoint a thread. It belongs to its process, too: a fork may
/// make endpoints of its own, and drop those that it has inherited, but to use one of those ends it (SIGSEGV).
///
/// ```compile_fail,E0277
/// let handlers = tightbeam::Handlers::new();
/// let mut server = tightbeam::Endpoint::<()>::listen("shm:/tmp/x.sock", handlers).unwrap();
/// std::thread::spawn(move || server.run()); // an endpoint stays on its thread
/// ```
pub struct Endpoint<S, D> {
    pub(crate) handlers: Handlers<S>,
    pub(crate) state: S,
    pub(crate) channels: Vec<Option<Box<Channel>>>,
    /// How many of them are there.
    pub(crate) live: usize,
    /// Slot of the first one.
    pub(crate) first: usize,
    /// Whose turn it is.
    pub(crate) rounds: Rounds,
    /// What a poll has to do besides.
    pub(crate) due: Due,
    /// Channels that are degraded.
    pub(crate) strained: Vec<ChannelId>,
    /// Somebody wants `run` to return.
    pub(crate) stopping: bool,
    pub(crate) mailbox: Mailbox,
    pub(crate) listeners: Vec<Listener>,
    pub(crate) events: VecDeque<Event>,
    pub(crate) lost_events: u64,
    pub(crate) lost_answers: u64,
    /// Channels opened so far.
    pub(crate) unique: u64,
    pub(crate) options: OpenOptions,
    pub(crate) terms: Terms,
    /// Bytes of frames that each channel may have.
    pub(crate) frame_limit: usize,
    /// Frames for any channel.
    pub(crate) shared: Rc<Pool>,
    pub(crate) graves: Vec<Grave>,
    pub(crate) lines: Vec<Rc<Line>>,
    /// Some line lets others open channels.
    pub(crate) listens: bool,
    /// Channels to processes, and the slot of the last of them.
    pub(crate) processes: usize,
    pub(crate) process: usize,
    /// Slots of channels over lines in whose rings there may be something: nobody puts anything there while it is not looked.
    pub(crate) arrived: Vec<usize>,
    /// Kept to be filled again.
    pub(crate) news: Vec<News>,
    pub(crate) wait: Wait,
    pub(crate) spin_budget: SpinBudget,
    pub(crate) gather: Gather,
    pub(crate) neighbours: Neighbours,
    /// Set as soon as the endpoint waits on descriptors.
    pub(crate) watcher: Option<Rc<Watcher>>,
    pub(crate) rest: Rc<Rest>,
    /// The same, as the tokio runtime knows it.
    #[cfg(feature = "tokio")]
    pub(crate) registered: Option<tokio::io::unix::AsyncFd<std::os::fd::OwnedFd>>,
    pub(crate) deadline: Duration,
    /// Threads that handle some of the messages.
    pub(crate) jobs: Option<Rc<Jobs>>,
    pub(crate) controller: &'static Controller,
    /// Neither `Send` nor `Sync`; and where devices come from.
    pub(crate) one_thread: PhantomData<*const D>,
}

impl<D: Devices> Endpoint<(), D> {
    /// An endpoint with settings of your own.
    pub fn builder() -> Builder<(), D> {
        Builder::new()
    }

    /// Opens a channel to who listens at `address`, with default settings, no handlers and no state.
    pub fn connect(address: &str) -> Result<Endpoint<(), D>, OpenError> {
        Builder::new().connect(address)
    }
}

impl<S: Default, D: Devices> Endpoint<S, D> {
    /// Listens at `address`, with default settings and a default state.
    pub fn listen(address: &str, handlers: Handlers<S>) -> Result<Endpoint<S, D>, OpenError> {
        Builder::new()
            .state(S::default())
            .handlers(handlers)
            .listen(address)
    }
}

impl<S, D: Devices> Endpoint<S, D> {
    /// Opens another channel, to who listens at `address`.
    pub fn open(&mut self, address: &str) -> Result<ChannelId, OpenError> {
        if let Some(location) = net::location::<D>(address)? {
            return self.open_device(address, &location);
        }
        let Address::Shm(path) = Address::parse(address)?;
        let opened = control::connect(&path, &self.options)?;
        self.adopt(opened).ok_or(OpenError::HungUp)
    }

    /// Listens at another address too.
    pub fn accept_at(&mut self, address: &str) -> Result<(), OpenError> {
        if let Some(location) = net::location::<D>(address)? {
            return self.accept_at_device(address, &location);
        }
        let Address::Shm(path) = Address::parse(address)?;
        let (listener, socket) = control::bind(&path, self.listeners.len() as u64)?;
        let (id, door) = (listener.id, self.mailbox.door());
        self.controller
            .listen(id, socket, self.options.clone(), door);
        self.listeners.push(listener);
        Ok(())
    }
}

impl<S, D> Endpoint<S, D> {
    /// Closes a channel. The peer still receives what was sent, then learns that it was closed. Replies that have not come
    /// yet are lost, and so is what waits in a [queue](crate::Policy::DropOldest) and finds no room now. `false` if there is no such channel.
    pub fn close(&mut self, channel: ChannelId) -> bool {
        let closed = self.leave(channel).is_some();
        self.visit_graves();
        self.drop_unused_lines();
        closed
    }

    /// Closes a channel, and returns what it has counted.
    pub(crate) fn leave(&mut self, channel: ChannelId) -> Option<Counters> {
        self.channel(channel)?;
        let mut closing = self.channels[channel.slot()].take()?;
        closing.finish_queued();
        self.forget_connection(&closing);
        self.count_channels();
        hang_up(&closing, self.controller, &self.mailbox);
        let counters = closing.port.counters().clone();
        self.bury(*closing);
        Some(counters)
    }

    /// The channels there are.
    pub fn channels(&self) -> impl Iterator<Item = ChannelId> + '_ {
        self.channels.iter().flatten().map(|channel| channel.id)
    }

    /// What handlers work on.
    pub fn state(&self) -> &S {
        &self.state
    }

    /// What handlers work on.
    pub fn state_mut(&mut self) -> &mut S {
        &mut self.state
    }

    /// What a channel has counted so far.
    pub fn counters(&self, channel: ChannelId) -> Option<&Counters> {
        self.look_up(channel).map(|found| found.port.counters())
    }

    /// Where a channel's slots and credits are, as far as this side can tell; [`Audit::findings`] names each one that is in no
    /// place or in two. Changes nothing and makes no system call; allocates, and looks at each slot in flight once.
    ///
    /// It cannot see what the peer keeps in its private memory. While the peer runs, its words are of slightly different
    /// moments: a finding is certain when it stands still.
    pub fn audit(&self, channel: ChannelId) -> Option<Audit> {
        self.look_up(channel).map(|found| found.port.audit())
    }

    /// Who is on the other side of a channel.
    pub fn peer(&self, channel: ChannelId) -> Option<PeerIdentity> {
        self.look_up(channel).map(|found| found.peer)
    }

    /// How the device of a channel stands: what it is and how it does it, what it and the channel have counted, each loss by its cause.
    /// `None` if the peer is a process of this host, or there is no such channel. Makes system calls.
    pub fn device_status(&self, channel: ChannelId) -> Option<DeviceStatus> {
        match &self.look_up(channel)?.beside {
            Beside::Device { line, slot } => Some(line.status(*slot)),
            Beside::Process { .. } => None,
        }
    }

    /// What kind of memory a channel's own segment got; nothing of one over a device.
    pub fn memory(&self, channel: ChannelId) -> Option<MemoryReport> {
        self.look_up(channel).map(|found| found.memory)
    }

    /// What became of those who wanted to open a channel to this endpoint.
    pub fn openings(&self) -> Openings {
        self.options.gate.openings()
    }

    /// A handle with which another thread, or a signal handler's, ends [`run`](Self::run).
    pub fn stopper(&self) -> Stopper {
        Stopper::new(self.mailbox.door())
    }

    /// What calls and sends without a channel go over.
    #[inline(always)]
    pub(crate) fn first(&self) -> Option<ChannelId> {
        match self.channels.get(self.first) {
            Some(Some(channel)) => Some(channel.id),
            _ => None,
        }
    }

    /// The same, with all that it is.
    #[inline(always)]
    pub(crate) fn first_channel(&mut self) -> Option<&mut Channel> {
        match self.channels.get_mut(self.first) {
            Some(Some(channel)) => Some(channel),
            _ => None,
        }
    }

    /// To be called whenever a channel was added or removed.
    pub(crate) fn count_channels(&mut self) {
        self.live = self.channels.iter().flatten().count();
        self.first = self.channels.iter().position(Option::is_some).unwrap_or(0);
        self.rounds.follow(&self.channels);
        // Room for all of them, so that none is noted with an allocation.
        self.strained.reserve(self.channels.len());
        let channels = self.channels.iter().flatten();
        let mut processes = channels.filter(|channel| !channel.is_over_device());
        self.processes = processes.clone().count();
        self.process = processes.next_back().map_or(0, |channel| channel.id.slot());
        self.arrived.reserve(self.channels.len());
        self.rest.disturb();
        self.disarm();
    }

    #[inline(always)]
    pub(crate) fn channel(&mut self, id: ChannelId) -> Option<&mut Channel> {
        match self.channels.get_mut(id.slot()) {
            Some(Some(channel)) if channel.id == id => Some(channel),
            _ => None,
        }
    }

    #[inline(always)]
    pub(crate) fn look_up(&self, id: ChannelId) -> Option<&Channel> {
        match self.channels.get(id.slot()) {
            Some(Some(channel)) if channel.id == id => Some(channel),
            _ => None,
        }
    }
}

/// What a poll has to do besides looking at channels: most of the time nothing, and to know that takes one comparison.
#[derive(Debug, Default)]
pub(crate) struct Due(u8);

impl Due {
    /// Some channel may be at its end.
    const ENDING: u8 = 1;
    /// Some channel is degraded.
    const STRAINED: u8 = 2;

    #[inline(always)]
    pub(crate) fn any(&self) -> bool {
        self.0 != 0
    }

    #[inline(always)]
    pub(crate) fn ending(&self) -> bool {
        self.0 & Self::ENDING != 0
    }

    #[inline(always)]
    pub(crate) fn note_ending(&mut self, ending: bool) {
        self.0 |= u8::from(ending) * Self::ENDING;
    }

    pub(crate) fn clear_ending(&mut self) {
        self.0 &= !Self::ENDING;
    }

    pub(crate) fn set_strained(&mut self, strained: bool) {
        self.0 &= !Self::STRAINED;
        self.0 |= u8::from(strained) * Self::STRAINED;
    }
}

fn hang_up(channel: &Channel, controller: &Controller, mailbox: &Mailbox) {
    channel.port.close();
    match &channel.beside {
        Beside::Process { .. } => {
            wake_if_asleep(channel);
            controller.unwatch(channel.id.0, mailbox.door());
        }
        Beside::Device { line, slot } => line.close(*slot),
    }
}

impl<S, D> Drop for Endpoint<S, D> {
    fn drop(&mut self) {
        // A fork has a copy of an endpoint, but neither its segments nor its control thread, and the path is its parent's.
        if self.controller.is_of_a_parent() {
            self.listeners.drain(..).for_each(std::mem::forget);
            if let Some(jobs) = &self.jobs {
                jobs.leave_to_parent();
            }
            return;
        }
        if let Some(jobs) = &self.jobs {
            jobs.stop();
        }
        for listener in self.listeners.drain(..) {
            let id = listener.id;
            // The path goes first: as long as the socket answers, nobody else takes the path.
            drop(listener);
            self.controller.unlisten(id, self.mailbox.door());
        }
        // Clients that were admitted but not adopted yet.
        while let Some(notice) = self.mailbox.take() {
            if let Notice::Opened(opened) = notice {
                opened.join(0).port.close();
            }
        }
        for mut channel in self.channels.drain(..).flatten() {
            channel.finish_queued();
            hang_up(&channel, self.controller, &self.mailbox);
        }
        self.lines.iter().for_each(|line| line.close_all());
    }
}
