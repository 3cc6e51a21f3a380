//! A turn of an endpoint that has devices: takes in what has come, polls, sends what is to be sent.

use super::hand::Doorstep;
use super::line::Line;
use super::news::News;
use crate::channel::{ChannelId, Ending};
use crate::{Endpoint, Event};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;

/// So often the ring of the only process is looked at between two looks at the devices: some 400 ns, of which a round trip over a device
/// takes ten or more, and one to a process no more than one.
const SPINS_A_TURN: u32 = 16;
/// Messages of a channel before the next one's turn.
const QUANTUM: usize = 32;

impl<S, D> Endpoint<S, D> {
    /// As [`poll_spinning`](Self::poll_spinning), of which it is the rest.
    #[inline(never)]
    pub(crate) fn poll_with_lines(&mut self, budget: usize, spins: u32) -> usize {
        let mut spins = self
            .lines
            .iter()
            .fold(spins, |spins, line| line.spins(spins));
        loop {
            let (mut came, busy) = (0, self.processes > 0 || budget == 0);
            let behind = !self.arrived.is_empty();
            let (channels, handlers) = (&mut self.channels, &self.handlers);
            // Processes, and channels in whose rings something is, are looked at when the devices have had their share.
            let rings = u32::from(self.processes > 0) + u32::from(!self.arrived.is_empty());
            let share = (budget >> rings).div_ceil(self.lines.len().max(1));
            let mut doorstep = Doorstep::new(channels, handlers, &mut self.state);
            for line in &self.lines {
                doorstep.budget = doorstep.handled + share;
                came += line.begin_turn((busy, behind), &mut |label, far, what, bytes| {
                    doorstep.take(label, far, what, bytes)
                });
            }
            let mut handled = doorstep.handled;
            self.due.note_ending(doorstep.faulted);
            if let Some(unwound) = doorstep.unwound {
                self.unwind(unwound);
            }
            if came > 0 && self.lines.iter().any(|line| line.has_any()) {
                self.take_news();
            }
            if rings > 0 || !self.arrived.is_empty() {
                let spins = if handled > 0 { 0 } else { spins };
                let left = budget.saturating_sub(handled);
                let polled = catch_unwind(AssertUnwindSafe(|| self.poll_rings(left, spins)));
                handled += polled.unwrap_or_else(|unwound| self.unwind(unwound));
            }
            for line in &self.lines {
                line.end_turn();
            }
            if self.due.any() {
                self.do_what_is_due();
            }
            if handled > 0 || came > 0 || spins == 0 || self.mailbox.rang() {
                return handled;
            }
            // The other side may run on the same core.
            std::hint::spin_loop();
            spins -= 1;
        }
    }

    /// A handler has unwound: the turn ends as every turn does, before that goes on.
    #[cold]
    fn unwind(&self, unwound: Box<dyn Any + Send>) -> ! {
        self.lines.iter().for_each(|line| line.end_turn());
        resume_unwind(unwound)
    }

    /// Processes, and channels in whose rings there may be something.
    fn poll_rings(&mut self, budget: usize, spins: u32) -> usize {
        let share = match self.arrived.is_empty() {
            true => budget,
            false => budget - budget / 2,
        };
        let handled = match self.processes {
            0 => 0,
            1 => self.poll_process(share, spins),
            _ => self.poll_many(share, 0),
        };
        handled + self.poll_arrived(budget.saturating_sub(handled))
    }

    /// The only process.
    #[inline(always)]
    fn poll_process(&mut self, budget: usize, spins: u32) -> usize {
        let Some(Some(channel)) = self.channels.get_mut(self.process) else {
            return 0;
        };
        let spins = spins.min(1) * SPINS_A_TURN;
        let handled = channel.drain(&self.handlers, &mut self.state, budget, spins);
        self.due.note_ending(channel.is_at_fault());
        handled
    }

    /// The channels over which something has come; those that have more than their share keep their place.
    #[inline(always)]
    fn poll_arrived(&mut self, budget: usize) -> usize {
        if self.arrived.is_empty() {
            return 0;
        }
        let share = (budget / self.arrived.len()).clamp(1, QUANTUM);
        let (mut handled, mut n) = (0, 0);
        while n < self.arrived.len() && handled <= budget {
            handled += self.look_at(self.arrived[n], share);
            if let Some(Some(channel)) = self.channels.get_mut(self.arrived[n]) {
                channel.arrived = channel.port.has_arrival();
                if channel.arrived {
                    n += 1;
                    continue;
                }
            }
            self.arrived.swap_remove(n);
        }
        if n < self.arrived.len() {
            // Next time the others come first.
            self.arrived.rotate_left(n);
        }
        handled
    }

    /// There may be something in the ring of a channel over a line.
    pub(crate) fn note_arrived(&mut self, slot: usize) {
        if let Some(Some(channel)) = self.channels.get_mut(slot)
            && !std::mem::replace(&mut channel.arrived, true)
        {
            self.arrived.push(slot);
        }
    }

    #[cold]
    #[inline(never)]
    fn take_opened(&mut self, line: &Rc<Line>, opened: super::Opened) {
        let (channel, peer) = self.adopt_device(line, opened);
        self.note(Event::Opened { channel, peer });
    }

    pub(crate) fn take_news(&mut self) {
        for n in 0..self.lines.len() {
            let mut news = std::mem::take(&mut self.news);
            self.lines[n].drain_news(&mut news);
            for new in news.drain(..) {
                match new {
                    News::Arrived(slot) => {
                        let label = self.lines[n].label(slot);
                        self.look_often(ChannelId(label).slot());
                    }
                    News::Closed(slot) => {
                        let label = self.lines[n].hang_up(slot);
                        self.note_ending(label, Ending::HungUp);
                    }
                    News::Unknown(slot) => {
                        let label = self.lines[n].label(slot);
                        self.note_ending(label, Ending::Exited);
                    }
                    News::Silent(slot) => {
                        let label = self.lines[n].label(slot);
                        self.evict(ChannelId(label));
                    }
                    News::Opened(opened) => {
                        let line = Rc::clone(&self.lines[n]);
                        self.take_opened(&line, *opened);
                    }
                }
            }
            self.news = news;
        }
    }
}
