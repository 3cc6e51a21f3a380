//! Memory that two processes touch at once: the rings of a Tightbeam channel.
//!
//! ```text
//!        my segment (I write, the peer reads)                      the peer's segment
//!   +----------------------------------------------+      +---------------------------------+
//!   | identity | credit cursor | state | send ring --------> read by the peer's Port         |
//!   |          |               |       |           |      |                                 |
//!   |  my Port <-------------------------------------------- send ring | cursor | identity   |
//!   +----------------------------------------------+      +---------------------------------+
//! ```
//!
//! A channel is two segments, one for each side. **Every word has one writer, the owner of the segment it lies in** (I3), and
//! one reader, the peer. The owner never reads it back ([`OwnLines`] has no load), so a peer that writes there too, which
//! page tables need not prevent, changes only what it will itself read. Descends from U-Net's communication segments
//! (von Eicken et al., 1995); the in-slot header that the receiver polls is what UCX's and FastForward's queues do.
//!
//! # What a peer can do
//!
//! Lie in its own words, at any time. Each of them is read once, checked, then used (I4); what fails a check is a
//! [`PeerFault`] that closes that channel and no other. Indices that we rely on live in private memory.
//!
//! # What this crate never does
//!
//! It makes no system call, allocates nothing after a [`Port`] exists, waits for nobody, and forms no reference to memory
//! that a peer can write except to atomics (I2). It knows no handlers: that is `tightbeam-endpoint`.
//!
//! # Example
//!
//! ```
//! use tightbeam_segment::{testing, Arrival, Layout, Outgoing};
//!
//! let (mut left, mut right) = testing::pair(Layout::new(16)?);
//! left.try_send(Outgoing::message(7), b"hello")?;
//! match right.arrival() {
//!     Arrival::Message { handler } => {
//!         assert_eq!(handler, 7);
//!         let (incoming, _port) = right.incoming();
//!         assert_eq!(incoming.bytes(), b"hello");
//!         right.consume();
//!     }
//!     other => panic!("{other:?}"),
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![no_std]
#![deny(missing_docs)]

extern crate alloc;
#[cfg(any(test, loom))]
extern crate std;

mod arrival;
mod audit;
mod batch;
mod copy;
mod counters;
mod descriptor;
mod device;
mod fault;
mod frames;
mod handed;
mod identity;
mod joined;
mod lap;
mod layout;
mod lines;
mod port;
mod receive;
mod scratch;
mod send;
pub mod sync;
pub mod testing;
mod words;

pub use arrival::{Answer, Arrival};
pub use audit::{Audit, Finding, Place, Ring, Teller, audit_pair};
pub use batch::Batch;
pub use counters::{Counter, Counters};
pub use descriptor::{Kind, Outgoing};
pub use device::{Capabilities, Device, DeviceError, DeviceStatus, Packet, Route};
pub use fault::PeerFault;
pub use frames::{
    Arrived, Courier, Frame, FrameError, FrameMemory, Frozen, Granted, MakeFrames, More, Pool,
    PoolAudit, Received, StrayFrame, Trust,
};
pub use identity::{Attached, Formatted, Identity, Incarnation, Mismatch};
pub use joined::joined;
pub use layout::{
    HEADROOM, LAYOUT_HASH, Layout, LayoutError, MAX_CALLS, MAX_DEPTH, MAX_GRANTED, MAX_INLINE,
    MAX_LOANS, MAX_MESSAGE, MAX_PARTS, MAX_SEGMENTS, MAX_SLOTS, MIN_DEPTH, PAYLOAD_BYTES,
    SLOT_BYTES, VERSION,
};
pub use lines::{Backing, LineCount, OwnLines, PeerLines, WordAddress, WritableBacking};
pub use port::{Asleep, Ended, Port};
pub use receive::{Incoming, Lookout};
pub use send::TrySendError;
