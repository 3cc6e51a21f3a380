//! How many frames a peer may have at a time: of all of them so many, of those that others share so many bytes. And how much of a turn a
//! message in frames takes.

use crate::descriptor::Outgoing;
use crate::frames::{Frame, FrameError};
use crate::layout::{MAX_LOANS, MAX_PARTS, RETURNS};
use crate::port::Port;
use crate::{Counter, TrySendError};
use alloc::rc::Rc;

impl Port {
    /// Whether these frames are a message that can be sent over this channel, now or later.
    pub fn check_frames(&self, frames: &[impl AsRef<Frame>]) -> Result<(), TrySendError> {
        is_a_message(frames, self.max_message())?;
        let pool = self.frames.equipment.as_ref().map(|has| &has.pool);
        let pool = pool.ok_or(FrameError::None)?;
        let mut all = frames.iter().map(AsRef::as_ref);
        if !all.all(|frame| frame.pool().is_shared() || Rc::ptr_eq(frame.pool(), pool)) {
            return Err(FrameError::Foreign.into());
        }
        let bytes = frames
            .iter()
            .map(|frame| shared_bytes(frame.as_ref()))
            .sum();
        let quota = self.frames.quota.get();
        match bytes > quota {
            true => Err(FrameError::Quota { bytes, quota }.into()),
            false => Ok(()),
        }
    }

    /// Whether the peer may have these frames besides those that it has.
    #[inline(always)]
    pub(super) fn may_lend(
        &self,
        out: Outgoing,
        frames: &[impl AsRef<Frame>],
    ) -> Result<(), FrameError> {
        let shared = frames
            .iter()
            .map(|frame| shared_bytes(frame.as_ref()))
            .sum();
        // What is kept for answers is theirs alone.
        let most = if out.is_answer() { RETURNS } else { MAX_LOANS };
        match self.is_within(most, frames.len(), shared) {
            true => Ok(()),
            false => self.may_lend_now(most, frames.len(), shared),
        }
    }

    fn is_within(&self, most: usize, parts: usize, shared: usize) -> bool {
        let quota = self.frames.quota.get();
        self.lent() + parts <= most && shared <= quota.saturating_sub(self.frames.shared.get())
    }

    /// The same after a look at what has come back.
    #[cold]
    #[inline(never)]
    fn may_lend_now(&self, most: usize, parts: usize, shared: usize) -> Result<(), FrameError> {
        let quota = self.frames.quota.get();
        if shared > quota {
            let bytes = shared;
            return Err(FrameError::Quota { bytes, quota });
        }
        self.collect();
        if self.is_within(most, parts, shared) {
            return Ok(());
        }
        self.counters.add(Counter::Full);
        self.take_credit();
        match self.lent() + parts > most {
            true => Err(FrameError::Lent),
            false => Err(FrameError::QuotaLent { quota }),
        }
    }

    /// For who waits for frames, not for slots: so that [`has_credit`](Self::has_credit) tells of what comes from now on. Frames that have
    /// come back stay where they are; what is wrong about the credit the next look at the ring tells.
    pub fn take_credit(&self) {
        let _ = self.take_credit_from_cursor();
    }

    /// How many bytes of shared frames the peer may have at a time; any number unless this was called. What it has already it keeps.
    pub fn set_quota(&self, bytes: usize) {
        self.frames.quota.set(bytes);
    }

    /// Whether the peer has so much of what a channel may have under way that it does not seem to keep up: more than half of the slots,
    /// or so many that the longest message has no room besides; or more than three quarters of the frames, or of its quota, of what
    /// was [collected](Self::collect). Takes a line from it, changes nothing.
    pub fn is_strained(&self) -> bool {
        let above = |part: usize, whole: usize| part > whole - whole / 4;
        let (slots, depth) = (self.slots_in_flight(), self.layout().depth());
        // The longest message has room in what is left.
        let most = (depth / 2).min(depth.saturating_sub(self.layout().max_slots()));
        slots > most
            || above(self.lent(), MAX_LOANS)
            || above(self.frames.shared.get(), self.frames.quota.get())
    }

    /// As how many short messages more the message that was handled counts, because it took as long: one for each further part, and for each
    /// 16 KiB that were copied. What is read where it lies, or not at all, costs no more than its handler takes. (With its length counted in any
    /// case a frame of 1 MiB that was handed on from process to process took 1,550 instead of 800 ns of each: a drain for each.)
    pub fn extra_cost(&self) -> usize {
        match self.header.get().framed() {
            true => self.frames.cost.get(),
            false => 0,
        }
    }
}

/// Of so many bytes that were copied: see [`Port::extra_cost`].
pub(super) fn cost_of_copy(len: usize) -> usize {
    /// As many are copied in the time that a short message takes at most.
    const COSTLY: usize = 16 << 10;
    len / COSTLY
}

/// Whether so many frames, and of these lengths, can be a message.
#[inline(always)]
pub(super) fn is_a_message(frames: &[impl AsRef<Frame>], max: usize) -> Result<(), TrySendError> {
    let parts = frames.len();
    if parts == 0 || parts > MAX_PARTS {
        return Err(FrameError::Parts { parts }.into());
    }
    let len = frames.iter().map(|frame| frame.as_ref().len()).sum();
    match len > max {
        true => Err(TrySendError::TooLarge { len, max }),
        false => Ok(()),
    }
}

/// Bytes of a frame that count against a quota: all of its memory, if it is shared.
#[inline(always)]
pub(super) fn shared_bytes(frame: &Frame) -> usize {
    match frame.pool().is_shared() {
        true => frame.stride(),
        false => 0,
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use crate::frames::Frozen;
    use crate::testing::{self, HeapMaker};
    use crate::{
        Arrival, Layout, MAX_LOANS, Outgoing, PeerFault, Pool, Port, Received, TrySendError,
    };
    use alloc::vec::Vec;

    const LEN: usize = 3000;

    fn pair() -> (Port, Port) {
        let (mut left, mut right) = testing::pair(Layout::new(256).unwrap());
        testing::equip(&mut left, &mut right, 8 << 20);
        (left, right)
    }

    fn send(left: &Port) -> Result<(), TrySendError> {
        let frame = left.frame(LEN).unwrap();
        left.try_lend(Outgoing::message(1), &[frame])
    }

    fn keep(right: &mut Port) -> Received {
        assert_eq!(right.arrival(), Arrival::Message { handler: 1 });
        let kept = right.incoming().0.frames().unwrap();
        right.consume();
        right.finish_drain();
        kept
    }

    #[test]
    fn that_frames_are_missing_is_no_news() {
        let (left, mut right) = pair();
        let mut kept: Vec<Received> = (0..MAX_LOANS)
            .map(|_| {
                send(&left).unwrap();
                keep(&mut right)
            })
            .collect();
        assert!(left.has_credit(), "the slots that were consumed");
        assert!(send(&left).is_err() && !left.has_credit());
        kept.pop();
        assert!(left.has_credit());
        send(&left).unwrap();
    }

    #[test]
    fn that_a_quota_is_used_up_is_no_news() {
        let (left, mut right) = pair();
        let pool = Pool::shared(HeapMaker, 1 << 20);
        let publish = |left: &Port| {
            let frame = pool.frame(LEN).unwrap().freeze();
            left.try_publish(Outgoing::message(1), &frame)
        };
        left.set_quota(4096 + LEN);
        publish(&left).unwrap();
        let kept = keep(&mut right);
        assert!(publish(&left).is_err() && !left.has_credit());
        drop(kept);
        assert!(left.has_credit());
        publish(&left).unwrap();
    }

    #[test]
    fn what_is_given_back_after_a_fault_comes_back() {
        let (left, mut right) = pair();
        send(&left).unwrap();
        let kept = keep(&mut right);
        left.fail(PeerFault::Exhausted);
        left.collect();
        assert_eq!(left.lent(), 1);
        drop(kept);
        left.collect();
        assert_eq!((left.lent(), left.audit_frames().lent), (0, 0));
    }

    #[test]
    fn who_gave_back_what_it_did_not_have_is_not_believed() {
        let (left, mut right) = pair();
        send(&left).unwrap();
        let kept = keep(&mut right);
        // Whatever else it did before.
        left.fail(PeerFault::Exhausted);
        right.frames.returns.give_back(0x7777_0000);
        left.collect();
        drop(kept);
        left.collect();
        assert_eq!(left.lent(), 1);
    }

    /// More channels than a listener allows unless it is told to, each with as many loans as one may have.
    #[test]
    fn a_frame_may_be_lent_to_any_number() {
        const LOANS: usize = 1 << 17;
        let pool = Pool::shared(HeapMaker, 1 << 20);
        let frame: Frozen = pool.frame(LEN).unwrap().freeze();
        let name = frame.as_ref().name();
        (0..LOANS).for_each(|_| pool.lend(name));
        drop(frame);
        for _ in 0..LOANS {
            let audit = pool.audit();
            assert_eq!((audit.lent, audit.astray.len()), (1, 0), "{audit:?}");
            pool.take_back(name);
        }
        let audit = pool.audit();
        assert_eq!((audit.lent, audit.free), (0, audit.frames));
    }
}
