//! Waiting on a descriptor: for the event loops of others, and for many channels.
//!
//! The same protocol as in `wait.rs`, but the sleeper says that it is to be woken over the connection beside the rings. Each
//! connection is watched by one `epoll` descriptor, which is readable as soon as any peer, or the control thread, wakes us.
//! A channel that was armed stays so until something comes over it, so that of many channels a sleep costs what is new.

use crate::Endpoint;
use crate::channel::{Armed, Channel, ChannelId, Ending};
use crate::wait::{FEW, Room};
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::time::Duration;
use tightbeam_segment::Asleep;
use tightbeam_sys::Errno;
use tightbeam_sys::control::{Alarm, Ready, Watcher};
use tightbeam_sys::wake;

/// Names the control thread's bell among the channels, which begin with 1.
const BELL: u64 = 0;
/// Names the first device; channels have smaller names.
const LINES: u64 = 1 << 63;
/// Wake-ups of one channel that are taken at a time.
const WAKES: usize = 16;

/// An endpoint cannot wait on a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cannot {call}: {errno}")]
pub struct ArmError {
    /// What failed.
    pub call: &'static str,
    /// Why. `MFILE`: raise the limit of open files (`ulimit -n`). `NOSPC`: raise `fs.epoll.max_user_watches`.
    pub errno: Errno,
}

/// An endpoint that may go to sleep: its [`AsFd`] descriptor is readable as soon as there is something to poll.
///
/// Dropping it ends that: nobody has to wake the endpoint any more.
pub struct Sleeper<'a, S, D> {
    endpoint: &'a mut Endpoint<S, D>,
    watcher: Rc<Watcher>,
}

impl<S, D> AsFd for Sleeper<'_, S, D> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.watcher.as_fd()
    }
}

impl<S, D> Drop for Sleeper<'_, S, D> {
    fn drop(&mut self) {
        let watcher = Rc::clone(&self.watcher);
        self.endpoint.rest.set_armed(false);
        self.endpoint.take_wakes(&watcher, Duration::ZERO);
        self.endpoint.disarm();
    }
}

impl Channel {
    /// Says that we sleep, where that is not said yet; whether there may be something that nobody will wake us for.
    fn arm(&mut self, watcher: &Watcher) -> Result<bool, ArmError> {
        let Some(connection) = self.beside.connection() else {
            // What comes over a device is announced by the device's own descriptor.
            return Ok(self.waits_for_room());
        };
        if !self.watched {
            let watched = watcher.add(connection.as_fd(), self.id.0);
            watched.map_err(|errno| ArmError {
                call: "watch a connection",
                errno,
            })?;
            self.watched = true;
        }
        connection.expect_wakes();
        if connection.was_woken() && self.armed == Armed::Yes {
            self.armed = Armed::Fresh;
        }
        if self.armed == Armed::No {
            self.port.set_asleep(Asleep::Connection);
            self.armed = Armed::Fresh;
        }
        Ok(self.armed == Armed::Fresh || self.waits_for_room())
    }

    pub(crate) fn disarm(&mut self) {
        if self.armed != Armed::No {
            self.port.set_asleep(Asleep::No);
            self.armed = Armed::No;
            self.rest.disturb();
        }
    }

    /// Notes that somebody found no room to send, and may wait until there is.
    pub(crate) fn want_room(&self) {
        // Who has found none before is told of what was taken since, too.
        let wished = self.wants_room.get();
        let taken = wished.unwrap_or_else(|| self.port.taken());
        self.wants_room.set(Some(taken));
        self.rest.disturb();
    }

    /// Whether somebody does, or a queue.
    fn waits_for_room(&self) -> bool {
        self.wants_room.get().is_some() || self.flow.queued() > 0
    }

    /// Whether there is something for which nobody will wake us, because it was there before we said that we sleep.
    fn has_news(&mut self) -> bool {
        // What comes over a channel that was armed before has been announced, or will be.
        let arrived = self.armed == Armed::Fresh && self.port.has_arrival();
        if self.armed == Armed::Fresh {
            self.armed = Armed::Yes;
        }
        let has_come = |taken| taken != self.port.taken() || self.port.has_credit();
        let room = self.wants_room.get().is_some_and(has_come);
        if room {
            self.wants_room.set(None);
            self.rest.grant_room();
        }
        arrived || room || self.has_room_for_queued()
    }

    /// Takes the wake-ups that have come over the connection, and keeps what else has come.
    fn take_wakes(&mut self) {
        let Some(connection) = self.beside.connection() else {
            return;
        };
        for _ in 0..WAKES {
            match connection.read() {
                Ok(true) => {}
                Ok(false) => return,
                Err(fault) => return self.note_ending(Ending::Faulted(fault)),
            }
        }
    }
}

impl<S, D> Endpoint<S, D> {
    /// Gets ready to wait on a descriptor, in an event loop of your own: `None` if there is something to [`poll`](Self::poll), an
    /// [event](Self::next_event), or room in a send ring that was full. Otherwise wait until the descriptor of the [`Sleeper`]
    /// is readable, drop it, and poll. It may be readable for no reason.
    ///
    /// ```
    /// # use std::os::fd::AsFd;
    /// # let address = format!("shm:{}/tightbeam-arm-{}.sock", std::env::temp_dir().display(), std::process::id());
    /// # let mut endpoint = tightbeam::Endpoint::<()>::listen(&address, tightbeam_endpoint::Handlers::new())?;
    /// # let wait = |_: std::os::fd::BorrowedFd<'_>| {};
    /// if let Some(sleeper) = endpoint.arm()? {
    ///     wait(sleeper.as_fd()); // epoll, poll, io_uring: until it is readable
    /// }
    /// endpoint.poll(64);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// Costs a few system calls, and each peer that sends meanwhile one to wake this endpoint; while nobody waits, nothing.
    /// Unlike the waits of this library such a one has no bound: a peer that wakes nobody makes its own messages late, and so does one that
    /// does not take the memory of frames that it was passed: that there is room for more is said nowhere.
    pub fn arm(&mut self) -> Result<Option<Sleeper<'_, S, D>>, ArmError> {
        self.arm_for(true)
    }

    /// As [`arm`](Self::arm); only if `events` is set those that nobody has taken keep it awake.
    pub(crate) fn arm_for(&mut self, events: bool) -> Result<Option<Sleeper<'_, S, D>>, ArmError> {
        self.tell_returns();
        let watcher = self.watch_connections()?;
        let idle = self.arm_channels(&watcher);
        let idle = idle.map(|idle| idle && !self.lines.iter().any(|line| line.has_news()));
        if self.rest.was_granted() || idle != Ok(true) || (events && !self.events.is_empty()) {
            self.disarm();
            return idle.map(|_| None);
        }
        self.rest.set_armed(true);
        Ok(Some(Sleeper {
            endpoint: self,
            watcher,
        }))
    }

    /// As `park` in `wait.rs`, for more channels than that can wait for.
    pub(crate) fn park_on_descriptor(&mut self, bound: Duration, room: Option<Room>) {
        if self.may_have_room(room) {
            return;
        }
        self.tell_returns();
        if let Some(channel) = room.and_then(|room| self.look_up(room.channel)) {
            channel.want_room();
        }
        let armed = self.watch_connections().and_then(|watcher| {
            let idle = self.arm_channels(&watcher)?;
            Ok(idle.then_some(watcher))
        });
        match armed {
            Ok(Some(watcher)) => self.take_wakes(&watcher, bound),
            Ok(None) => {}
            // Out of descriptors: later, but not never.
            Err(_) => std::thread::sleep(bound / 10),
        }
        self.disarm();
    }

    /// Before a sleep: tells peers of frames that were given back since their last drain.
    pub(crate) fn tell_returns(&self) {
        if self.rest.had_returns() {
            let channels = self.channels.iter().flatten();
            channels.for_each(|channel| channel.tell_returns());
        }
    }

    /// What watches the connections, from now on instead of the control thread.
    pub(crate) fn watch_connections(&mut self) -> Result<Rc<Watcher>, ArmError> {
        let watcher = match &self.watcher {
            Some(watcher) => Rc::clone(watcher),
            None => {
                let failed = |call| move |errno| ArmError { call, errno };
                let watcher = Watcher::new().map_err(failed("make an epoll descriptor"))?;
                let alarm = Alarm::new().map_err(failed("make an eventfd"))?;
                let bell = self.mailbox.alarm(alarm).fd();
                let watched = watcher.add(bell, BELL);
                watched.map_err(failed("watch an eventfd"))?;
                self.controller.leave_input(self.mailbox.door());
                Rc::clone(self.watcher.insert(Rc::new(watcher)))
            }
        };
        for line in &self.lines {
            line.watch(&watcher, LINES + line.number)
                .map_err(|errno| ArmError {
                    call: "watch a device",
                    errno,
                })?;
        }
        Ok(watcher)
    }

    /// Says on all channels that we sleep; `false` if there is something to be looked at first.
    fn arm_channels(&mut self, watcher: &Watcher) -> Result<bool, ArmError> {
        // Nobody says when a device has room again.
        let mut all_sent = true;
        for line in &self.lines {
            all_sent &= line.flush();
        }
        if !all_sent || !self.arrived.is_empty() {
            return Ok(false);
        }
        if self.rest.is_undisturbed() {
            return Ok(!self.mailbox.rang());
        }
        let mut fresh = false;
        for channel in self.channels.iter_mut().flatten() {
            fresh |= channel.arm(watcher)?;
        }
        if !fresh {
            self.rest.settle(true);
            return Ok(!self.mailbox.rang());
        }
        self.lines.iter().for_each(|line| line.note_wait());
        wake::barrier().map_err(|errno| ArmError {
            call: "order memory with other processes (membarrier)",
            errno,
        })?;
        let mut news = false;
        for slot in 0..self.channels.len() {
            let Some(channel) = &mut self.channels[slot] else {
                continue;
            };
            if channel.has_news() {
                channel.disarm();
                self.look_often(slot);
                news = true;
            }
        }
        let mut channels = self.channels.iter().flatten();
        let any_waits = channels.any(|channel| channel.waits_for_room());
        self.rest.settle(!news && !any_waits);
        Ok(!news && !self.mailbox.rang())
    }

    /// Waits until somebody wakes us, at most for `bound`, and takes the wake-ups: at least one of each channel, so that all
    /// of them are looked at before the next sleep.
    fn take_wakes(&mut self, watcher: &Watcher, mut bound: Duration) {
        for _ in 0..=self.live {
            // Only a broken epoll descriptor fails; then a poll finds what there is.
            let found = watcher.wait(Some(bound)).unwrap_or_default();
            self.lines.iter().for_each(|line| line.note_wait());
            for ready in &found {
                match ready.token {
                    BELL => self.mailbox.silence(),
                    token @ LINES.. => self.look_soon(token),
                    _ => self.take_wake(watcher, ready),
                }
            }
            if found.len() < Watcher::AT_ONCE {
                return;
            }
            bound = Duration::ZERO;
        }
    }

    /// The next poll looks at the device of this name.
    fn look_soon(&self, token: u64) {
        let mut lines = self.lines.iter();
        let line = lines.find(|line| line.number == token - LINES);
        line.inspect(|line| line.look_soon());
    }

    fn take_wake(&mut self, watcher: &Watcher, ready: &Ready) {
        let id = ChannelId(ready.token);
        let Some(channel) = self.channel(id) else {
            return;
        };
        if ready.readable {
            channel.take_wakes();
        }
        if ready.hung_up
            && let Some(descriptor) = channel.beside.descriptor()
        {
            // The control thread will say what that means.
            watcher.remove(descriptor);
        }
        // Whatever woke us is looked for in the ring before the next sleep.
        channel.disarm();
        let ending = channel.is_at_fault();
        self.due.note_ending(ending);
        self.look_often(id.slot());
    }

    /// A channel is over.
    pub(crate) fn forget_connection(&self, channel: &Channel) {
        let descriptor = channel.beside.descriptor();
        if let (Some(watcher), Some(descriptor), true) =
            (&self.watcher, descriptor, channel.watched)
        {
            watcher.remove(descriptor);
        }
    }

    /// Says on all channels that we are awake; of very many only on those over which something comes, when it does.
    pub(crate) fn disarm(&mut self) {
        if self.live <= FEW {
            let channels = self.channels.iter_mut().flatten();
            channels.for_each(|channel| channel.disarm());
        }
    }
}
