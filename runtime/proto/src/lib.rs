//! Tightbeam between hosts, as functions of bytes and time: what stands in a packet, and what follows from it.
//!
//! ```text
//!   endpoint            | handler, bytes                       ^ handler, bytes
//!   +-------------------v--------------------------------------+-----------------+
//!   | raw      Sender: the next header is ready         Receiver: is it ours, whole, new? |
//!   | opening  Client, Server: HELLO, RETRY, HELLO_ACK, CLOSE, UNKNOWN                    |
//!   | wire     each header as a view (`Packet`) and as a value (`Repr`)                   |
//!   +-------------------+--------------------------------------^-----------------+
//!                       v packets                              | packets
//!   device: AF_XDP, a UDP socket, or a test
//! ```
//!
//! Everything here is a function of the packets that arrive, the time that the caller says it is, its calls, and the random
//! numbers that it hands in (I6): there is no clock, no socket and no thread, so a test can play any order of events, twice.
//!
//! # What a peer can do
//!
//! Send any bytes. Every parser is total: bytes are a packet, or a value that says why not. Nothing in a packet is used as an
//! index or a length before it is checked, and who does not know the 48 random bits of a channel's cookie is not heard on it.
//!
//! # What this crate never does
//!
//! It performs no input or output, keeps nothing of a stranger who has not shown that packets to its address arrive there, and
//! answers no packet with more bytes than that packet had. It allocates only where a side accepts a channel.
//!
//! The crate itself is `no_std`; of what it uses, `crc32c` needs the standard library, to find out what the processor can do.
#![no_std]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

extern crate alloc;

mod counters;
pub mod opening;
pub mod raw;
pub mod wire;

pub(crate) use counters::counters;
