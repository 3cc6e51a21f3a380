//! A turn of an endpoint that has devices: takes in what has come, polls, sends what is to be sent.

use super::line::{Line, News};
use crate::channel::{ChannelId, Ending};
use crate::{Endpoint, Event};
use std::rc::Rc;

/// A look at a device takes as long as so many at a ring.
const SPINS_A_LOOK: u32 = 8;

impl<S, D> Endpoint<S, D> {
    /// As [`poll_spinning`](Self::poll_spinning), of which it is the rest.
    #[inline(never)]
    pub(crate) fn poll_with_lines(&mut self, budget: usize, spins: u32) -> usize {
        let mut spins = spins.div_ceil(SPINS_A_LOOK);
        loop {
            let mut came = 0;
            for line in &self.lines {
                came += line.begin_turn(self.shared_turns);
            }
            if came > 0 {
                self.take_news();
            }
            let handled = match self.live {
                0 | 1 => self.poll_only(budget, 0),
                _ => self.poll_many(budget, 0),
            };
            for line in &self.lines {
                line.end_turn();
            }
            if self.due.any() {
                self.do_what_is_due();
            }
            if handled > 0 || came > 0 || spins == 0 || self.mailbox.rang() {
                return handled;
            }
            spins -= 1;
        }
    }

    #[cold]
    #[inline(never)]
    fn take_opened(&mut self, line: &Rc<Line>, opened: super::Opened) {
        let (channel, peer) = self.adopt_device(line, opened);
        self.note(Event::Opened { channel, peer });
    }

    fn take_news(&mut self) {
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
