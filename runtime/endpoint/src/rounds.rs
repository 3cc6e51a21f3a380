//! Which channels a poll looks at: all of a few; of many, those that were active lately, and some of the others in turn.
//!
//! A look at a channel costs a few cache lines of our own and one of the peer's. With a thousand channels that is many times a
//! round trip, so what a poll costs has to follow the channels that are used, not those that are open. (U-Net and Active
//! Messages had one queue for all senders; here each sender has a ring, because no sender may harm another.)

use crate::Endpoint;
use crate::channel::Channel;

/// Up to so many channels are looked at in each poll.
const FEW: usize = 8;
/// Of more, so many that are not active are looked at in a poll, besides the active ones.
const OTHERS: usize = 4;
/// Looks in vain after which a channel is not active any more.
pub(crate) const PATIENCE: u16 = 256;
/// Of several channels each is left after so many messages, whatever the budget: those of the others wait no longer.
const QUANTUM: usize = 32;
/// And not before so many, if they are there, because it costs something to come and go.
const LEAST: usize = 16;

/// Whose turn it is.
#[derive(Debug, Default)]
pub(crate) struct Rounds {
    /// Slots of the channels that are active, each once: those with `looks` left.
    active: Vec<usize>,
    /// Place in `active` at which the next poll begins.
    turn: usize,
    /// Slot of the next one of the others.
    next: usize,
}

impl Rounds {
    /// Channels have come or gone. There is room for all of them afterwards, so that a poll does not allocate.
    pub(crate) fn follow(&mut self, channels: &[Option<Box<Channel>>]) {
        self.active.clear();
        self.active.reserve(channels.len());
        for (slot, channel) in channels.iter().enumerate() {
            if channel
                .as_ref()
                .is_some_and(|channel| channel.looks > 0 && !channel.is_over_device())
            {
                self.active.push(slot);
            }
        }
        (self.turn, self.next) = (0, 0);
    }
}

impl<S, D> Endpoint<S, D> {
    /// Looks at the channels until something is handled, at most `spins` times more.
    #[inline(never)]
    pub(crate) fn poll_many(&mut self, budget: usize, mut spins: u32) -> usize {
        loop {
            let handled = match self.live {
                0..=FEW => self.look_at_all(budget),
                _ => self.look_at_some(budget),
            };
            if handled > 0 || spins == 0 || self.due.ending() || self.mailbox.rang() {
                return handled;
            }
            spins -= 1;
            std::hint::spin_loop();
        }
    }

    fn look_at_all(&mut self, budget: usize) -> usize {
        let share = (budget / self.live).clamp(1, QUANTUM);
        let slots = 0..self.channels.len();
        slots.map(|slot| self.look_at_process(slot, share)).sum()
    }

    fn look_at_some(&mut self, budget: usize) -> usize {
        let active = self.rounds.active.len();
        let share = (budget / active.max(1)).clamp(LEAST, QUANTUM).min(budget);
        // The others first: who is active may use up the budget each time.
        let (mut handled, mut extra) = (0, 0);
        for _ in 0..OTHERS {
            handled += self.look_at_another(share);
        }
        for _ in 0..active {
            if handled + extra >= budget {
                break;
            }
            if self.rounds.turn >= self.rounds.active.len() {
                self.rounds.turn = 0;
            }
            let slot = self.rounds.active[self.rounds.turn];
            handled += self.look_at(slot, share);
            match &self.channels[slot] {
                Some(channel) if channel.looks > 0 => {
                    extra += channel.extra;
                    self.rounds.turn += 1;
                }
                _ => drop(self.rounds.active.swap_remove(self.rounds.turn)),
            }
        }
        handled
    }

    /// The next one in turn, if it is not active.
    fn look_at_another(&mut self, share: usize) -> usize {
        let slot = self.rounds.next;
        self.rounds.next = (slot + 1) % self.channels.len();
        match &self.channels[slot] {
            Some(channel) if channel.looks == 0 => {}
            _ => return 0,
        }
        let handled = self.look_at_process(slot, share);
        if handled > 0 {
            self.rounds.active.push(slot);
        }
        handled
    }

    /// Of a channel over a device it is known when there is something: it has no turn here.
    fn look_at_process(&mut self, slot: usize, share: usize) -> usize {
        match &self.channels[slot] {
            Some(channel) if !channel.is_over_device() => self.look_at(slot, share),
            _ => 0,
        }
    }

    pub(crate) fn look_at(&mut self, slot: usize, share: usize) -> usize {
        let Some(channel) = &mut self.channels[slot] else {
            return 0;
        };
        // The answer that a caller is about to take, which was found earlier in this poll: what is handled now would overwrite it.
        if channel.answer.is_some() {
            return 0;
        }
        let handled = channel.drain(&self.handlers, &mut self.state, share, 0);
        channel.looks = match handled {
            0 => channel.looks.saturating_sub(1),
            _ => {
                channel.disarm();
                PATIENCE
            }
        };
        self.due.note_ending(channel.is_at_fault());
        handled
    }

    /// From now on, and for a while, each poll looks at this channel.
    pub(crate) fn look_often(&mut self, slot: usize) {
        if let Some(Some(channel)) = self.channels.get_mut(slot) {
            if channel.is_over_device() {
                return self.note_arrived(slot);
            }
            if channel.looks == 0 {
                self.rounds.active.push(slot);
            }
            channel.looks = PATIENCE;
        }
    }
}
