//! Answers that come later than their handler returns, from any thread.
//!
//! [`Reply::later`](crate::Reply::later) turns the right to answer into one that may travel. What is answered goes back to the endpoint's
//! thread through its mailbox, and from there to the peer: rings have one writer.

use crate::Endpoint;
use crate::channel::ChannelId;
use crate::control::{Door, Notice};
use crate::send::wake_if_asleep;
use crate::workers::Jobs;
use std::cell::Cell;
use std::rc::Rc;
use tightbeam_segment::{Answer, Counter, Port, TrySendError};

/// What a handler finds of its endpoint, through the port.
pub(crate) struct Desk {
    pub(crate) door: Door,
    /// Where queued messages go, if there is a pool of threads.
    pub(crate) jobs: Option<Rc<Jobs>>,
    /// Messages of this channel that a pool has, and bytes of them.
    pub(crate) queued: Cell<usize>,
    pub(crate) queued_bytes: Cell<usize>,
}

impl Desk {
    /// The desk of a channel of ours.
    pub(crate) fn of(port: &Port) -> Option<&Desk> {
        port.companion()
    }
}

/// The right to answer a message after its handler has returned, once, from any thread.
///
/// Dropped without an answer, as a panic does, it tells a waiting caller that there will be none. So does an endpoint that ends first.
pub struct Later {
    door: Door,
    channel: u64,
    call: u16,
    wanted: bool,
    /// It counts among those that a pool has, with so many bytes.
    pub(crate) queued: Option<usize>,
}

impl Later {
    pub(crate) fn new(desk: &Desk, port: &Port) -> Later {
        Later {
            door: desk.door.clone(),
            channel: port.label(),
            call: port.handling(),
            wanted: port.handling_wants_reply(),
            queued: None,
        }
    }

    /// Whether the sender waits for an answer: it called, it did not merely send.
    pub fn wanted(&self) -> bool {
        self.wanted
    }

    /// The channel that the message came over.
    pub fn channel(&self) -> ChannelId {
        ChannelId(self.channel)
    }

    /// Answers: the endpoint's thread sends it when it polls next, and is woken for that if it sleeps. Never waits.
    ///
    /// Nothing tells whether the caller is still there: an answer for a channel that has ended is dropped, and
    /// [counted](crate::Endpoint::lost_answers). One that nobody wants is dropped and counted as `reply_unwanted`.
    pub fn send(mut self, payload: impl Into<Vec<u8>>) {
        self.give(Some(payload.into()));
    }

    fn give(&mut self, payload: Option<Vec<u8>>) {
        self.door.put(Notice::Answered(Answered {
            channel: self.channel,
            call: self.wanted.then_some(self.call),
            payload,
            queued: self.queued,
        }));
        self.void();
    }

    /// Makes it worth nothing: dropping it says nothing any more.
    pub(crate) fn void(&mut self) {
        (self.wanted, self.queued) = (false, None);
    }
}

impl std::fmt::Debug for Later {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut later = f.debug_struct("Later");
        later
            .field("channel", &self.channel())
            .field("wanted", &self.wanted);
        later.finish_non_exhaustive()
    }
}

impl Drop for Later {
    fn drop(&mut self) {
        if self.wanted || self.queued.is_some() {
            self.give(None);
        }
    }
}

/// What has become of a message that was to be answered later.
pub(crate) struct Answered {
    channel: u64,
    /// The call's number, if it was one.
    call: Option<u16>,
    payload: Option<Vec<u8>>,
    queued: Option<usize>,
}

impl<S, D> Endpoint<S, D> {
    /// How many answers that came [later](crate::Reply::later) than their channel ended were dropped.
    pub fn lost_answers(&self) -> u64 {
        self.lost_answers
    }

    /// How often [workers](crate::Workers) have panicked.
    pub fn worker_panics(&self) -> u64 {
        self.jobs.as_ref().map_or(0, |jobs| jobs.panics())
    }

    pub(crate) fn send_answer(&mut self, answered: Answered) {
        // Also if the channel has ended: the pool is the others' too.
        if let (Some(bytes), Some(jobs)) = (answered.queued, &self.jobs) {
            jobs.done_with(bytes);
        }
        let Some(channel) = self.look_up(ChannelId(answered.channel)) else {
            self.lost_answers += u64::from(answered.payload.is_some());
            return;
        };
        let port = &channel.port;
        if let (Some(bytes), Some(desk)) = (answered.queued, Desk::of(port)) {
            desk.queued.set(desk.queued.get().saturating_sub(1));
            let left = desk.queued_bytes.get().saturating_sub(bytes);
            desk.queued_bytes.set(left);
        }
        match (answered.call, answered.payload) {
            (Some(call), payload) => answer(port, call, payload.as_deref()),
            (None, Some(_)) => port.count(Counter::ReplyUnwanted),
            (None, None) => {}
        }
        wake_if_asleep(channel);
    }
}

fn answer(port: &Port, call: u16, payload: Option<&[u8]>) {
    use TrySendError::{Frame, TooLarge};
    let sent = payload.map(|payload| port.try_answer(call, Answer::Reply, payload));
    if let None | Some(Err(TooLarge { .. } | Frame(_))) = sent {
        port.count(Counter::CallUnanswered);
        // It has room, or the channel is over.
        let _ = port.try_answer(call, Answer::NoReply, &[]);
    }
}
