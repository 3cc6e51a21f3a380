//! Channels over devices: to other hosts, through a NIC or a UDP socket.
//!
//! ```text
//!   channel.rs: near port ==== rings in this process ==== far port (far.rs)
//!                                                            |  raw: headers, CRC, calls by their numbers
//!                                                         line.rs: one device, all its channels; desk.rs, open.rs: the opening
//!                                                            |  packets
//!                                                         Device: AF_XDP, UDP
//! ```
//!
//! To an endpoint a device is a peer like any other, whose side of the rings happens to be in the same process. It says that it always
//! sleeps, so what wakes a peer is what tells a line that there is something to send; a channel to a process is never asked whether it
//! is one.
//!
//! What nothing has to wait for goes past those rings, both ways (`hand.rs`): a message that has come to its handler, an answer to its caller, the
//! first message since the last turn into a packet. Going through them, and what an endpoint does between a slot's two sides, was a third of
//! the instructions between a packet and the call with which its answer leaves.

mod calls;
mod desk;
mod far;
mod hand;
mod left;
mod line;
mod news;
mod open;
mod outlet;
mod turn;

pub(crate) use desk::Hosts;
pub(crate) use line::Line;
pub(crate) use news::{News, Opened};
pub(crate) use open::location;
