//! Polling: a bounded look at every channel, and the loop around it.

use crate::beside::Beside;
use crate::channel::{Channel, ChannelId, Ending, PeerIdentity};
use crate::connection::{Carrier, Connection};
use crate::control::{Notice, Watch};
use crate::event::MAX_EVENTS;
use crate::later::Desk;
use crate::net::{Line, Opened};
use crate::policy::Flow;
use crate::wait::Waiting;
use crate::{Endpoint, Event, RunError};
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tightbeam_segment::{Ended, PeerFault, Pool};
use tightbeam_sys::frames::FrameMaker;
use tightbeam_sys::memory::MemoryReport;

/// Notices that a poll takes. A channel that was opened counts for eight, it takes some 20 us; so does memory for frames, which takes 100.
const NOTICES: usize = 32;
/// Channels that a poll takes out: each takes 25 us, and 200 if its rings are as deep as they may be.
const ENDS: usize = 4;

impl<S, D> Endpoint<S, D> {
    /// Handles what has arrived, at most about `budget` messages shared fairly among the channels, and returns how many.
    ///
    /// Where there are several channels, at most 32 messages of each are handled before the next one's turn (a batch is handled as a
    /// whole); what comes over a device is handled in the order in which it came, each device's up to its share of the budget. Of
    /// more than 8 channels it looks at those over which something came lately, and at 4 of the others in turn: what a poll costs
    /// follows the channels that are used.
    ///
    /// With a budget of 0 it sends what waits, and where nothing has come lately it looks at devices only at every 16th call.
    ///
    /// Never blocks. Makes no system call and allocates nothing, but when a channel begins or ends (I5).
    #[inline(always)]
    pub fn poll(&mut self, budget: usize) -> usize {
        self.poll_spinning(budget, 0)
    }

    /// As [`poll`](Self::poll); spins for the first message.
    #[inline(always)]
    pub(crate) fn poll_spinning(&mut self, budget: usize, spins: u32) -> usize {
        if self.mailbox.rang() {
            self.attend();
        }
        if !self.lines.is_empty() {
            return self.poll_with_lines(budget, spins);
        }
        let handled = match self.live {
            0 | 1 => self.poll_only(budget, spins),
            _ => self.poll_many(budget, spins),
        };
        if self.due.any() {
            self.do_what_is_due();
        }
        handled
    }

    #[inline(always)]
    pub(crate) fn poll_only(&mut self, budget: usize, spins: u32) -> usize {
        match self.channels.get_mut(self.first) {
            Some(Some(channel)) => {
                let handled = channel.drain(&self.handlers, &mut self.state, budget, spins);
                self.due.note_ending(channel.is_at_fault());
                handled
            }
            _ => 0,
        }
    }

    /// As [`poll`](Self::poll), but waits for the first message, at most as long as `within`. Returns 0 if none came, or as
    /// soon as a channel began or ended.
    #[inline]
    pub fn poll_for(&mut self, budget: usize, within: Duration) -> usize {
        let mut waiting = Waiting::for_anything(within);
        loop {
            let handled = self.poll_spinning(budget, self.spins());
            self.gather.note(handled);
            if handled > 0 || !self.events.is_empty() || self.stopping {
                self.waited(&waiting);
                return handled;
            }
            if !self.wait_once(&mut waiting) {
                return 0;
            }
        }
    }

    /// Polls until somebody calls [`Stopper::stop`](crate::Stopper::stop), or until the endpoint has no listener and its last
    /// channel has ended. Waits between polls as the builder's [`wait`](crate::Builder::wait) says.
    pub fn run(&mut self) -> Result<(), RunError> {
        const BUDGET: usize = 256;
        if self.live == 0 && !self.is_listening() && self.unique == 0 {
            return Err(RunError::NothingToDo);
        }
        let mut waiting = Waiting::for_anything(Duration::MAX);
        loop {
            let handled = self.poll_spinning(BUDGET, self.spins());
            if self.stopping {
                self.stopping = false;
                return Ok(());
            }
            if handled > 0 {
                self.waited(&waiting);
                self.gather.note(handled);
                waiting = Waiting::for_anything(Duration::MAX);
                continue;
            }
            if self.live == 0 && !self.is_listening() && !self.mailbox.rang() {
                return Ok(());
            }
            self.wait_once(&mut waiting);
        }
    }

    /// Whether somebody may open a channel to this endpoint.
    fn is_listening(&self) -> bool {
        self.listens || !self.listeners.is_empty()
    }

    /// The next event, oldest first. Events are noticed by [`poll`](Self::poll) and what polls inside, and kept until taken;
    /// of more than [`MAX_EVENTS`](crate::MAX_EVENTS) the oldest are lost, and [counted](Self::lost_events).
    pub fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// How many events were lost because nobody took them.
    pub fn lost_events(&self) -> u64 {
        self.lost_events
    }

    /// Keeps an event. Peers that come and go must not fill the memory of who never asks for events.
    pub(crate) fn note(&mut self, event: Event) {
        if self.events.len() >= MAX_EVENTS {
            self.events.pop_front();
            self.lost_events += 1;
        }
        self.events.push_back(event);
    }

    /// Looks at what the control thread has put into the mailbox.
    #[cold]
    fn attend(&mut self) {
        self.mailbox.answer();
        self.visit_graves();
        if self.mailbox.stopped() {
            self.mailbox.clear_stop();
            self.stopping = true;
        }
        let mut taken = 0;
        while let Some(notice) = self.mailbox.take() {
            taken += match notice {
                Notice::Opened(_) | Notice::Input(_) => 8,
                _ => 1,
            };
            match notice {
                Notice::Opened(opened) => {
                    let peer = opened.peer;
                    if let Some(channel) = self.adopt(*opened) {
                        self.note(Event::Opened { channel, peer });
                    }
                }
                Notice::HungUp(label) => self.note_ending(label, Ending::HungUp),
                Notice::Exited(label) => self.note_ending(label, Ending::Exited),
                Notice::Lingering(label) => {
                    self.note_ending(label, Ending::Faulted(PeerFault::HungUp));
                }
                Notice::Input(label) => {
                    let found = self.look_up(ChannelId(label));
                    match found.map(|channel| channel.port.take_grants()) {
                        Some(Err(fault)) => self.note_ending(label, Ending::Faulted(fault)),
                        Some(Ok(_)) => self.watch_input(label),
                        None => {}
                    }
                }
                Notice::Answered(answered) => self.send_answer(answered),
            }
            if taken >= NOTICES {
                // The next poll goes on.
                self.mailbox.look_again();
                break;
            }
        }
    }

    /// Who waits on descriptors looks at what comes over the connections itself.
    fn watch_input(&self, label: u64) {
        if self.watcher.is_none() {
            self.controller.watch_input(label, self.mailbox.door());
        }
    }

    pub(crate) fn note_ending(&mut self, label: u64, ending: Ending) {
        if let Some(channel) = self.channel(ChannelId(label)) {
            channel.note_ending(ending);
            self.due.note_ending(true);
            self.look_often(ChannelId(label).slot());
        }
    }

    /// Makes a channel of what was opened and has the control thread watch it.
    pub(crate) fn adopt(&mut self, opened: crate::control::Opened) -> Option<ChannelId> {
        let id = self.next_id();
        let (peer, memory) = (opened.peer, opened.memory);
        let mut joined = opened.join(id.0);
        let (socket, pidfd) = (Arc::new(joined.socket), Arc::new(joined.pidfd));
        let rest = Rc::clone(&self.rest);
        let connection = Rc::new(Connection::new(Arc::clone(&socket), Rc::clone(&rest)));
        let pool = Pool::new(FrameMaker, self.frame_limit);
        joined.port.equip(pool, Carrier(Rc::clone(&connection)));
        let beside = Beside::Process {
            connection,
            pidfd: Arc::clone(&pidfd),
        };
        let mut channel = Channel::new(id, joined.port, beside, rest, peer, memory);
        channel.seat = joined.seat;
        self.seat(channel);
        self.controller.watch(Watch {
            label: id.0,
            socket,
            end_only: self.watcher.is_some(),
            pidfd,
            door: self.mailbox.door(),
        });
        Some(id)
    }

    /// Makes a channel of what was opened over a line.
    pub(crate) fn adopt_device(
        &mut self,
        line: &Rc<Line>,
        opened: Opened,
    ) -> (ChannelId, PeerIdentity) {
        let (id, slot, peer) = (self.next_id(), opened.slot, PeerIdentity::at(opened.host));
        line.name_channel(slot, id.0);
        let beside = Beside::Device {
            line: Rc::clone(line),
            slot,
        };
        let (port, rest) = (opened.port.labelled(id.0), Rc::clone(&self.rest));
        let mut channel = Channel::new(id, port, beside, rest, peer, MemoryReport::default());
        channel.seat = opened.seat;
        self.seat(channel);
        (id, peer)
    }

    /// Names the next channel, by the first place that is free.
    fn next_id(&mut self) -> ChannelId {
        let free = self.channels.iter().position(Option::is_none);
        self.unique += 1;
        ChannelId::new(free.unwrap_or(self.channels.len()), self.unique)
    }

    /// Gives a channel its place.
    fn seat(&mut self, mut channel: Channel) {
        channel.flow = Flow::new(&self.terms);
        let quota = self.terms.quota.unwrap_or(self.frame_limit / 2);
        channel.port.set_quota(quota);
        channel.port.accompany(Desk {
            door: self.mailbox.door(),
            jobs: self.jobs.clone(),
            queued: Cell::new(0),
            queued_bytes: Cell::new(0),
        });
        let slot = channel.id.slot();
        let channel = Some(Box::new(channel));
        match self.channels.get_mut(slot) {
            Some(free) => *free = channel,
            None => self.channels.push(channel),
        }
        self.count_channels();
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn do_what_is_due(&mut self) {
        if self.due.ending() {
            self.reap();
        }
        if !self.strained.is_empty() {
            self.relieve_all();
        }
    }

    /// Takes out channels that have ended and are drained.
    fn reap(&mut self) {
        self.due.clear_ending();
        let live = self.live;
        for slot in 0..self.channels.len() {
            if live - self.live >= ENDS {
                // The next poll goes on, and nobody sleeps before it.
                self.due.note_ending(true);
                self.mailbox.look_again();
                break;
            }
            let Some(channel) = &mut self.channels[slot] else {
                continue;
            };
            let Some(ending) = channel.ending else {
                continue;
            };
            match verdict(channel, ending) {
                Verdict::Over(end) => self.remove(slot, end),
                Verdict::Drains => self.due.note_ending(true),
                Verdict::Waits => {}
            }
        }
        if self.live < live {
            self.visit_graves();
        }
        self.drop_unused_lines();
    }

    fn remove(&mut self, slot: usize, end: End) {
        let Some(mut ended) = self.channels[slot].take() else {
            return;
        };
        ended.drop_queued();
        if matches!(end, End::Faulted(PeerFault::Exhausted)) {
            // Of that the peer has done nothing wrong: it is told that this is the end.
            ended.port.close();
        }
        self.forget_connection(&ended);
        self.count_channels();
        match &ended.beside {
            Beside::Process { .. } => self.controller.unwatch(ended.id.0, self.mailbox.door()),
            Beside::Device { line, slot } => line.forget(*slot),
        }
        let (channel, counters, pid) = (ended.id, ended.port.counters().clone(), ended.peer.pid);
        if !matches!(end, End::Dead) {
            self.bury(*ended);
        }
        self.note(match end {
            End::Closed => Event::Closed { channel, counters },
            End::Dead => Event::Dead { channel, counters },
            End::Faulted(fault) => {
                if fault != PeerFault::Exhausted {
                    self.options.gate.suspend(pid);
                }
                Event::Faulted {
                    channel,
                    fault,
                    counters,
                }
            }
        });
    }
}

enum Verdict {
    Over(End),
    /// Something is still to be handled first.
    Drains,
    /// The control thread will say what the hang-up means.
    Waits,
}

enum End {
    Closed,
    Dead,
    Faulted(PeerFault),
}

/// How a channel ended, once everything that was published before has been handled.
fn verdict(channel: &mut Channel, ending: Ending) -> Verdict {
    if let Ending::Faulted(fault) = ending
        && fault != PeerFault::HungUp
    {
        return Verdict::Over(End::Faulted(fault));
    }
    // A caller is about to take it; until then the channel stays, and nothing else is looked at.
    if channel.answer.is_some() {
        return Verdict::Drains;
    }
    channel.settle();
    // Asked before the ring is found empty: what was sent before closing is then not missed.
    let closed = channel.port.peer_ended();
    if channel.has_rest() {
        return Verdict::Drains;
    }
    match (closed, ending) {
        (Ended::Closed, _) => Verdict::Over(End::Closed),
        (Ended::No, Ending::Exited) => Verdict::Over(End::Dead),
        (Ended::No, Ending::Faulted(fault)) => Verdict::Over(End::Faulted(fault)),
        (Ended::No, Ending::HungUp) => Verdict::Waits,
    }
}
