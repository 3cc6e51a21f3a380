//! The endpoint: where segments, control and handlers meet.
//!
//! Start with [`Endpoint`] and [`Handlers`]; the architecture is in the façade crate's documentation.
//!
//! ```text
//!   send.rs  call.rs                       poll.rs
//!      |        |                             ^ handler.rs: Message, Reply
//!   +--v--------v-----------------------------+--+
//!   | channel.rs: a segment::Port for each peer  |   control/: opening, closing, death; its own thread
//!   +--------------------------------------------+
//! ```
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod address;
mod beside;
mod builder;
mod call;
mod channel;
mod connection;
mod control;
mod descriptor;
mod devices;
mod endpoint;
mod error;
mod event;
mod frames;
mod graves;
mod handler;
mod later;
mod load;
mod neighbours;
mod net;
mod path;
mod policy;
mod poll;
mod publish;
mod queue;
#[cfg(feature = "tokio")]
mod ready;
mod rest;
mod rounds;
mod send;
mod typed;
mod wait;
mod workers;

pub use address::Address;
pub use builder::{
    Builder, DEFAULT_DEADLINE, DEFAULT_DEPTH, DEFAULT_FRAME_LIMIT, DEFAULT_IDLE_LIMIT,
    DEFAULT_MAX_CHANNELS, DEFAULT_OPEN_WITHIN, DEFAULT_QUEUE_BYTES, DEFAULT_QUEUE_MESSAGES,
};
pub use channel::{ChannelId, PeerIdentity};
pub use control::{Openings, Stopper};
pub use descriptor::{ArmError, Sleeper};
pub use devices::{Carrier, Devices, Location, Purpose};
pub use endpoint::Endpoint;
pub use error::{AddressError, CallError, OpenError, RunError, SendError};
pub use event::{Event, MAX_EVENTS};
pub use frames::{Frames, Response};
pub use handler::{Handler, Handlers, Message, Reply};
pub use later::Later;
pub use load::Load;
pub use path::Stage;
pub use policy::{Offered, Policy};
pub use publish::Published;
pub use send::NotSent;
pub use typed::{Handle, TypedMessage, TypedReply};
pub use wait::Wait;
pub use workers::Workers;

pub use tightbeam_segment::{
    Audit, Batch, Capabilities, Counter, Counters, Device, DeviceError, DeviceStatus, Finding,
    Frame, FrameError, Frozen, HEADROOM, LayoutError, MAX_CALLS, MAX_DEPTH, MAX_GRANTED,
    MAX_INLINE, MAX_LOANS, MAX_MESSAGE, MAX_PARTS, MIN_DEPTH, Mismatch, PAYLOAD_BYTES, Packet,
    PeerFault, Place, PoolAudit, Received, Ring, Route, StrayFrame, Teller, Trust,
};
pub use tightbeam_sys::Errno;
pub use tightbeam_sys::control::Credentials;
pub use tightbeam_sys::memory::{MemoryError, MemoryReport, PeerMemoryError, Want};
