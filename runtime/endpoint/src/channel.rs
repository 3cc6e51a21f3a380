//! One channel of an endpoint: a port, who is on the other side, and how it stands.

use crate::handler::{Handlers, Message, Reply};
use tightbeam_segment::{Answer, Arrival, Counter, PeerFault, Port};
use tightbeam_sys::control::Credentials;
use tightbeam_sys::memory::MemoryReport;

/// Names a channel of an endpoint; never used again for another one of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelId(pub(crate) u64);

impl ChannelId {
    const SLOT_BITS: u32 = 20;

    pub(crate) fn new(slot: usize, unique: u64) -> ChannelId {
        ChannelId(unique << Self::SLOT_BITS | slot as u64)
    }

    /// Where the endpoint keeps the channel.
    pub(crate) fn slot(self) -> usize {
        (self.0 & ((1 << Self::SLOT_BITS) - 1)) as usize
    }
}

/// Who is on the other side of a channel, as the kernel vouched when it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerIdentity {
    /// Process id, for logs only: ids are reused.
    pub pid: i32,
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
}

impl PeerIdentity {
    pub(crate) fn new(credentials: Credentials) -> Self {
        PeerIdentity {
            pid: credentials.pid,
            uid: credentials.uid,
            gid: credentials.gid,
        }
    }
}

/// What is known of a channel's end while it is still being drained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The peer hung up; whether it closed, died or only hung up is not known yet.
    HungUp,
    /// The peer's process has ended.
    Exited,
    /// The peer is at fault.
    Faulted(PeerFault),
}

pub(crate) struct Channel {
    pub(crate) id: ChannelId,
    pub(crate) port: Port,
    pub(crate) peer: PeerIdentity,
    pub(crate) memory: MemoryReport,
    pub(crate) ending: Option<Ending>,
    /// The call that somebody waits for now, and its answer once it has come.
    pub(crate) awaited: Option<u16>,
    pub(crate) answer: Option<Answer>,
}

impl Channel {
    /// Handles what has arrived, at most `budget` messages, and stops early at the awaited reply.
    #[inline(always)]
    pub(crate) fn drain<S>(
        &mut self,
        handlers: &Handlers<S>,
        state: &mut S,
        budget: usize,
    ) -> usize {
        let mut handled = 0;
        while handled < budget {
            match self.port.arrival() {
                Arrival::Message { handler } => {
                    let handle = handlers.get(handler);
                    let (incoming, port) = self.port.incoming();
                    handle(state, Message(incoming), Reply::new(port));
                    self.port.consume();
                }
                Arrival::Empty => break,
                Arrival::Reply { call, answer } => {
                    if self.reply(call, answer) {
                        handled += 1;
                        break;
                    }
                }
                Arrival::Fault(fault) => {
                    self.ending = Some(Ending::Faulted(fault));
                    break;
                }
            }
            handled += 1;
        }
        if handled > 0 {
            self.port.finish_drain();
        }
        handled
    }

    /// Keeps the awaited reply for its caller; drops one whose caller has given up.
    #[inline(always)]
    fn reply(&mut self, call: u16, answer: Answer) -> bool {
        if self.awaited != Some(call) {
            self.port.count(Counter::DropLateReply);
            self.port.consume();
            return false;
        }
        // Copied out here, because the caller reads it after the slot has been given back.
        let _ = self.port.incoming().0.bytes();
        self.port.consume();
        self.awaited = None;
        self.answer = Some(answer);
        true
    }
}
