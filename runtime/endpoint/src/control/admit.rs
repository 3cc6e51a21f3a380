//! The listener's half of the opening: who is let in, and what everybody else is told.

use super::gate::Outcome;
use super::wire::{Opening, Refusal};
use super::{Half, OpenOptions, Opened};
use crate::OpenError;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use tightbeam_segment::{Identity, Incarnation};
use tightbeam_sys::Errno;
use tightbeam_sys::apart::Apart;
use tightbeam_sys::control;
use tightbeam_sys::memory::PeerMemoryError;

/// What a listener says of itself to whom it refuses.
pub(super) fn ours(options: &OpenOptions) -> Identity {
    let page = tightbeam_sys::memory::page_size() as u32;
    Identity::ours(options.layout, page, Incarnation([0; 2]))
}

pub(super) fn is_admitted(client: &OwnedFd, options: &OpenOptions) -> bool {
    control::credentials(client.as_fd()).is_ok_and(|credentials| options.gate.admits(&credentials))
}

/// Tells a client that it gets no channel, and why; counts that.
pub(super) fn turn_away(
    client: BorrowedFd<'_>,
    options: &OpenOptions,
    ours: Identity,
    why: Refusal,
) {
    options.gate.count(Outcome::Refused(why));
    let refusal = Opening::Refusal(ours, why).to_bytes();
    // A client that has gone does not need the reason.
    let _ = control::send(client, &refusal, None);
}

/// The listener's side of the opening, once the hello of an admitted client is there: a welcome, or why not.
pub(super) fn admit(
    hello: Identity,
    segment: Apart<control::Passed>,
    client: &OwnedFd,
    options: &OpenOptions,
) -> Result<Opened, (Identity, Refusal)> {
    let exhausted = |_| (ours(options), Refusal::Exhausted);
    let Some(seat) = options.gate.seat() else {
        return Err((ours(options), Refusal::Full));
    };
    let half = Half::create(options).map_err(exhausted)?;
    let ours = half.identity;
    let memory = half
        .descriptor
        .try_clone()
        .map_err(|_| (ours, Refusal::Exhausted))?;
    let socket = client
        .try_clone()
        .map_err(|_| (ours, Refusal::Exhausted))?
        .into();
    let opened = Opened::new(half, hello, segment, socket).map_err(|error| match error {
        OpenError::Mismatch(_) => (ours, Refusal::Mismatch),
        // Its segment may be as good as any; here is no room for it.
        OpenError::PeerMemory(PeerMemoryError::Map(Errno::NOMEM)) => (ours, Refusal::Exhausted),
        OpenError::PeerMemory(_) => (ours, Refusal::Segment),
        _ => (ours, Refusal::Exhausted),
    })?;
    let welcome = Opening::Welcome(ours).to_bytes();
    // A client that has gone meanwhile is found hung up by who watches it.
    let _ = control::send(client.as_fd(), &welcome, Some(memory.as_fd()));
    Ok(opened.seated(seat))
}
