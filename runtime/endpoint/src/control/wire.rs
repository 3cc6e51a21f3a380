//! The messages of the opening exchange, as bytes on the control socket.
//!
//! ```text
//!   client                                         listener
//!     | -- Hello   (identity, descriptor) ----------> |  checks credentials, version, layout, page size; maps
//!     | <-- Welcome (identity, descriptor) ---------- |
//!     |  or Refusal (identity of the listener, why)   |
//!     |  maps                                         |
//!     | -- Ready   (identity) ----------------------> |  the channel is open
//! ```
//!
//! Who maps a segment puts the last seals on it; each side looks for those on its own before it calls the channel open.
//!
//! After that the socket carries nothing; that it stays connected says that the other side holds the channel.
//! The first three fields are the same in every version, so that two versions can refuse each other by name.

use tightbeam_segment::{Identity, Incarnation};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// "tb-open" and a byte that no text has.
const MAGIC: u64 = u64::from_le_bytes(*b"tb-open\x9d");

/// Bytes of each message.
pub(super) const BYTES: usize = size_of::<Raw>();

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy)]
#[repr(C)]
struct Raw {
    magic: u64,
    kind: u32,
    version: u32,
    layout_hash: u64,
    page_size: u32,
    depth: u32,
    incarnation: [u64; 2],
    reason: u32,
    flags: u32,
}

const _: () = assert!(BYTES == 56);

/// What a message of the opening says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opening {
    /// The client's segment comes with it.
    Hello(Identity),
    /// The listener's segment comes with it.
    Welcome(Identity),
    /// The client has mapped the listener's segment.
    Ready(Identity),
    /// No channel, and why.
    Refusal(Identity, Refusal),
}

/// Why a listener refuses a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Version, layout, page size or depth: the identities say which.
    Mismatch,
    /// The policy does not admit the client's user.
    NotAdmitted,
    /// No memory or descriptors.
    Exhausted,
    /// The client's segment is not acceptable.
    Segment,
    /// As many channels as there may be.
    Full,
}

const HELLO: u32 = 1;
const WELCOME: u32 = 2;
const REFUSAL: u32 = 3;
const READY: u32 = 4;

impl Refusal {
    pub(super) const ALL: [Refusal; 5] = [
        Refusal::Mismatch,
        Refusal::NotAdmitted,
        Refusal::Exhausted,
        Refusal::Segment,
        Refusal::Full,
    ];
}

impl Opening {
    pub(super) fn to_bytes(self) -> [u8; BYTES] {
        let (kind, identity, reason) = match self {
            Opening::Hello(identity) => (HELLO, identity, 0),
            Opening::Welcome(identity) => (WELCOME, identity, 0),
            Opening::Refusal(identity, why) => (REFUSAL, identity, why as u32),
            Opening::Ready(identity) => (READY, identity, 0),
        };
        let raw = Raw {
            magic: MAGIC,
            kind,
            version: identity.version,
            layout_hash: identity.layout_hash,
            page_size: identity.page_size,
            depth: identity.depth,
            incarnation: identity.incarnation.0,
            reason,
            flags: 0,
        };
        zerocopy::transmute!(raw)
    }

    /// `None` for what is no message of any version.
    pub(super) fn parse(bytes: &[u8]) -> Option<Opening> {
        let raw = Raw::read_from_bytes(bytes).ok()?;
        if raw.magic != MAGIC {
            return None;
        }
        let identity = Identity {
            version: raw.version,
            layout_hash: raw.layout_hash,
            page_size: raw.page_size,
            depth: raw.depth,
            incarnation: Incarnation(raw.incarnation),
        };
        match raw.kind {
            HELLO => Some(Opening::Hello(identity)),
            WELCOME => Some(Opening::Welcome(identity)),
            READY => Some(Opening::Ready(identity)),
            REFUSAL => {
                let why = Refusal::ALL.into_iter().find(|&r| r as u32 == raw.reason)?;
                Some(Opening::Refusal(identity, why))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tightbeam_segment::Layout;

    fn identity() -> Identity {
        let layout = Layout::new(64).unwrap();
        Identity::ours(layout, 4096, Incarnation([7, 9]))
    }

    #[test]
    fn each_message_comes_back() {
        let refusals = Refusal::ALL.map(|why| Opening::Refusal(identity(), why));
        let others = [Opening::Hello, Opening::Welcome, Opening::Ready].map(|say| say(identity()));
        for opening in refusals.into_iter().chain(others) {
            assert_eq!(Opening::parse(&opening.to_bytes()), Some(opening));
        }
    }

    #[test]
    fn garbage_is_no_message() {
        let good = Opening::Hello(identity()).to_bytes();
        assert_eq!(Opening::parse(&good[..BYTES - 1]), None);
        for (at, value) in [(0, 0), (8, 9)] {
            let mut bad = good;
            bad[at] = value;
            assert_eq!(Opening::parse(&bad), None);
        }
        assert_eq!(Opening::parse(b"GET / HTTP/1.1\r\n"), None);
    }
}
