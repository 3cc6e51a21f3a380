//! Paths: a frame goes on from process to process without being copied (the data paths of fbufs: Druschel and Peterson, 1993).
//!
//! ```text
//!   owner --- the frame, with its ticket ---> stage 1, stage 2, stage 3      each over its own channel, at once
//!             stage 1 -- ticket --> stage 2 -- ticket --> stage 3            any small message between them
//! ```
//!
//! Every stage has the owner's memory mapped once, read-only, from its own channel with the owner. The owner lends the frame to all
//! of them beforehand ([`Endpoint::try_send_along`]) and its ledger alone says who has it: a stage that dies, or is done with it,
//! gives it back to the owner, and to nobody else. So what goes from stage to stage is no right to anything, only word that it is the
//! next one's turn: a stage that lies about tickets makes others work out of turn on what they were given anyway. [`Stage`] keeps
//! the frames whose turn has not come.

use crate::channel::ChannelId;
use crate::send::{not_sent, wake_if_asleep};
use crate::{Endpoint, SendError};
use std::collections::HashMap;
use tightbeam_segment::{Frozen, Outgoing, Received};

impl<S, D> Endpoint<S, D> {
    /// Lends a complete frame to all stages of a path, without waiting and without copying: to all of them, or if one of the
    /// channels has no room, to none. `path` names the first stage first; the last stage gets it first, so that each has it before it
    /// can be its turn.
    ///
    /// The frame must be a [shared](Self::shared_frame) one, and begin with what its stages know it by: [`Frame::push`] a ticket before
    /// it is frozen. [`SendError::Full`] if one of the channels has no room; with [`SendError::NoChannel`], [`SendError::Fault`] and
    /// [`SendError::Frame`] a stage is missing, and the path cannot be used any more.
    ///
    /// [`Frame::push`]: crate::Frame::push
    pub fn try_send_along(
        &mut self,
        path: &[ChannelId],
        handler: u16,
        frame: &Frozen,
    ) -> Result<(), SendError> {
        let out = Outgoing::message(handler);
        for id in path {
            let channel = self.look_up(*id).ok_or(SendError::NoChannel)?;
            let room = channel.port.can_publish(out, frame);
            room.map_err(|error| not_sent(channel, error))?;
        }
        for id in path.iter().rev() {
            let channel = self.look_up(*id).ok_or(SendError::NoChannel)?;
            let sent = channel.port.try_publish(out, frame);
            sent.map_err(|error| not_sent(channel, error))?;
            wake_if_asleep(channel);
        }
        Ok(())
    }
}

/// What a stage of a path keeps: frames whose turn has not come, and turns whose frame has not come, with what was said of them.
/// Whichever comes last hands both out, once. The first stage says to itself that it is its turn.
///
/// Put one into the endpoint's state for each path. It keeps at most as many of both as it was told.
#[derive(Debug)]
pub struct Stage<T = ()> {
    waiting: HashMap<u64, Received>,
    called: HashMap<u64, T>,
    limit: usize,
    refused: u64,
}

impl<T> Stage<T> {
    /// Keeps at most `limit` frames, and as many turns.
    pub fn new(limit: usize) -> Stage<T> {
        Stage {
            waiting: HashMap::new(),
            called: HashMap::new(),
            limit,
            refused: 0,
        }
    }

    /// A frame has come from the owner, with this ticket; handed out if it is its turn already. One with a ticket that another
    /// has, or one too many, is given back at once and counted.
    pub fn arrived(&mut self, ticket: u64, frame: Received) -> Option<(Received, T)> {
        if let Some(word) = self.called.remove(&ticket) {
            return Some((frame, word));
        }
        match self.waiting.contains_key(&ticket) || self.waiting.len() >= self.limit {
            true => self.refused += 1,
            false => drop(self.waiting.insert(ticket, frame)),
        }
        None
    }

    /// The stage before says that it is this one's turn, and something about it; the frame, if it has come. A turn with a ticket
    /// that another has, or one too many, is dropped and counted.
    pub fn called(&mut self, ticket: u64, word: T) -> Option<(Received, T)> {
        if let Some(frame) = self.waiting.remove(&ticket) {
            return Some((frame, word));
        }
        match self.called.contains_key(&ticket) || self.called.len() >= self.limit {
            true => self.refused += 1,
            false => drop(self.called.insert(ticket, word)),
        }
        None
    }

    /// Gives everything back, and forgets all turns: the stage before has ended, so nobody will say whose turn it is.
    pub fn clear(&mut self) {
        self.waiting.clear();
        self.called.clear();
    }

    /// Frames whose turn has not come.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Frames and turns that were one too many, or bore another's ticket.
    pub fn refused(&self) -> u64 {
        self.refused
    }
}
