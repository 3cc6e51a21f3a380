//! Packets through AF_XDP: four rings that a socket shares with the kernel, and a program that steers packets to it.
//!
//! A NIC spreads what it receives over its queues, and a socket has one queue. So a device has a socket for each, all over one memory, and looks at
//! them in turn; it sends through the first one. With `queue=N` it has that one alone. Looking at four queues costs a round trip nothing that
//! `--bench floor` can tell from noise: 1.05 to 1.08 of the bare loop, with one queue 1.04 to 1.10, and 1.06 to 1.09 before there could be several.
//!
//! ```text
//!      transmit ---> [ TX ] --- kick: sendto ---> kernel, NIC ---> wire
//!          ^                                        |
//!          | free frames                            v
//!          +-------- reclaim <--- [ COMPLETION ] ---+
//!
//!      wire ---> NIC, kernel: the steering program --- not ours ---> the kernel's own stack
//!                                       | ours
//!                                       v
//!      provide -> [ FILL ] -> kernel writes into a frame -> [ RX ] -> receive -> the packet's bytes, in place
//!         ^                                                              |
//!         +-------------------- the same frame, free again --------------+
//! ```
//!
//! A frame is held by exactly one: by us (a token in one of our lists: free to send, free to receive at a queue), by FILL and RX, or by TX and
//! COMPLETION. What was received at a queue goes back to that one, so none runs out of frames by what others receive.
//! `tightbeam_sys::xdp` makes sure of it, so there is no `unsafe` here.
//!
//! What is ours is decided by the [`program`]: UDP over plain IPv4 to one port. All else goes on to the kernel, with which the NIC stays shared;
//! and the port is reserved by a bound kernel socket, so nobody else gets it.
//!
//! | file | what |
//! |---|---|
//! | `address.rs` | `xdp:IFACE/IP:PORT?options` |
//! | `mode.rs` | native or generic, copy or zero-copy: what is tried, in which order |
//! | `asm.rs`, `program.rs` | the steering program, assembled instruction by instruction |
//! | `steering.rs` | map, program and link of an interface; how they end |
//! | `socket.rs` | opening sockets over one memory: rings, bind, busy polling |
//! | `open.rs`, `device.rs`, `envelopes.rs` | the [`Device`](tightbeam_segment::Device) |
//! | `stats.rs`, `status.rs` | what is counted, and what is said about how it stands |
//! | `interface.rs` | what an interface offers, before anything is opened |
//! | `fix.rs` | errors, with the command or capability that mends each |
//! | `handover.rs` | a device for a program without privilege |
//! | `floor.rs` | the bare loop over the same rings, to compare with |
//!
//! Opening needs `CAP_BPF`, `CAP_NET_ADMIN` and `CAP_NET_RAW`; what comes after needs nothing.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod address;
mod asm;
mod device;
mod envelopes;
mod fix;
mod floor;
mod handover;
mod interface;
mod mode;
mod open;
pub mod program;
mod socket;
mod stats;
mod status;
mod steering;

pub use address::{AddressError, CopyChoice, ModeChoice, Options, XdpAddress};
pub use device::XdpDevice;
pub use floor::Floor;
pub use handover::{HandOver, VARIABLE};
pub use interface::Interface;
pub use tightbeam_sys::handover::{SYSTEM_CALLS, User};
