//! Packets through a kernel UDP socket: the [`Device`](tightbeam_segment::Device) that every host has, and that needs no
//! privilege.
//!
//! ```text
//!   transmit -> outbox -- kick: sendmmsg -->        socket        -- recvmmsg, or a standing io_uring request --> receive
//!                  |                                   |
//!                  +--> counts: what was lost, by cause, here or (as reports from the network say) on the way
//! ```
//!
//! A listener's device talks to anyone; a connected one to one host only, which costs the kernel less and lets it say when nobody
//! listens there. Packets are never fragmented: what is longer than the way to a host allows is refused ([`transmit`]) or, if that
//! turns out later, lost and counted.
//!
//! Every packet that [`transmit`] has taken leaves the send ring as one that is `sent`; if it is known to be lost it is also counted by
//! cause (`lost_…`), on the side that knows. So over a link that loses nothing by itself, what one side has sent is what the other
//! has received and what both have counted as lost.
//!
//! [`transmit`]: tightbeam_segment::Device::transmit
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod address;
mod counts;
mod device;
mod inbox;
mod open;
mod outbox;

pub use address::{AddressError, Engine, Options, UdpAddress};
pub use device::UdpDevice;
