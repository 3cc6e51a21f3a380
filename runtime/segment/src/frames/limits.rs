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
        match self.lent() + parts > most {
            true => Err(FrameError::Lent),
            false => Err(FrameError::QuotaLent { quota }),
        }
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
