//! Frames: messages of any size by change of ownership, not by copying (fbufs: Druschel and Peterson, 1993).
//!
//! ```text
//!   owner                                                   receiver
//!     Pool -- frame(len) --> Frame -- try_lend --+
//!      ^                      (writable)         |  ring: header with F, 16 bytes a part
//!      |                                         +-----------------> parts --> Received (read in place)
//!      |   free ring, in the receiver's segment                                   |
//!      +--- collect <------------------------------------------ give_back <-- drop
//! ```
//!
//! A frame lies in memory of its owner, which the receiver has mapped once, read-only ([`Courier`]). The owner's private ledger
//! says where each frame is (D5): *free*, *out* with a [`Frame`], or *lent* over a channel; [`Pool::audit`] counts them (I7). What
//! travels is a [`Part`]: which memory, which frame of it, in which generation, and where in it the bytes are. The way back is
//! the free ring, which has a word for each frame that may be lent, so it cannot overflow.
//!
//! A receiver that dies gives everything back by dying: its channel's loans end with the port. An owner that dies leaves its
//! memory to who has it mapped.

mod audit;
mod classes;
mod error;
mod grants;
mod limits;
mod loans;
mod pool;
mod received;

pub use audit::{PoolAudit, StrayFrame};
pub use error::FrameError;
pub use grants::More;
pub(crate) use loans::Loans;
pub use pool::{Frame, FrameMemory, Frozen, MakeFrames, Pool};
pub(crate) use received::{Held, Returns};
pub use received::{Received, Trust};

use crate::lines::Backing;
use crate::{PeerFault, layout::MAX_SEGMENTS};
use alloc::boxed::Box;

/// Bytes of a part in a message.
pub(crate) const PART_BYTES: usize = 16;

/// A piece of a message: an allegation until it was looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    /// The memory, by the number under which it was granted.
    pub(crate) segment: u16,
    /// The frame of that memory.
    pub(crate) slot: u16,
    /// How often that frame has been handed out.
    pub(crate) generation: u32,
    /// Where in the frame the bytes begin, and how many there are.
    pub(crate) begin: u32,
    pub(crate) len: u32,
}

impl Part {
    pub(crate) fn to_bytes(self) -> [u8; PART_BYTES] {
        let name =
            u64::from(self.segment) | u64::from(self.slot) << 16 | u64::from(self.generation) << 32;
        let place = u64::from(self.begin) | u64::from(self.len) << 32;
        let mut bytes = [0; PART_BYTES];
        bytes[..8].copy_from_slice(&name.to_ne_bytes());
        bytes[8..].copy_from_slice(&place.to_ne_bytes());
        bytes
    }

    pub(crate) fn from_bytes(bytes: [u8; PART_BYTES]) -> Part {
        let (words, _) = bytes.as_chunks::<8>();
        let [name, place] = [words[0], words[1]].map(u64::from_ne_bytes);
        Part {
            segment: name as u16,
            slot: (name >> 16) as u16,
            generation: (name >> 32) as u32,
            begin: place as u32,
            len: (place >> 32) as u32,
        }
    }

    /// What is said in the free ring of the frame; the lap's tag goes into the low byte.
    pub(crate) fn return_word(self) -> u64 {
        (u64::from(self.segment) << 8)
            | u64::from(self.slot) << 24
            | (u64::from(self.generation) & GENERATIONS) << 40
    }
}

/// Generations as the free ring knows them.
pub(crate) const GENERATIONS: u64 = (1 << 24) - 1;

/// Memory of frames that the peer has passed: mapped read-only, with all its pages.
pub struct Granted {
    /// The memory.
    pub memory: Box<dyn Backing + Send + Sync>,
    /// Bytes from one frame to the next.
    pub stride: usize,
}

/// How memory for frames gets from its owner to the peer, beside the rings: descriptors over a connection.
pub trait Courier {
    /// Passes memory to the peer, as its segment of this number, which is one more than the last. The peer finds it before any
    /// message that is sent after this.
    fn grant(&self, memory: &dyn FrameMemory, number: u16, stride: usize)
    -> Result<(), FrameError>;

    /// Whether it carries memory of this process only: then frames of other memory are copied.
    fn copies(&self) -> bool {
        false
    }

    /// Takes one thing that has come: the memory that the peer has passed first of what was not taken yet, or what came before it.
    fn granted(&self) -> Result<Arrived, PeerFault>;
}

/// What a [`Courier`] has found.
pub enum Arrived {
    /// Memory.
    Memory(Granted),
    /// Memory that is being made ready.
    Later,
    /// Something else, behind which there may be memory.
    Other,
    /// Nothing.
    Nothing,
}

const _: () = assert!(MAX_SEGMENTS <= 1 << 16);

#[cfg(all(test, not(loom)))]
mod tests;
