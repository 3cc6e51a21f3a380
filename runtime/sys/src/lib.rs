//! The system calls that Tightbeam makes: one safe function each, no policy.
//!
//! | module | what |
//! |---|---|
//! | [`memory`] | memfd segments: create, populate, seal, map; check seals and size of a peer's |
//! | [`frames`] | memfds for frames, that only their owner writes |
//! | [`control`] | Unix sockets that carry small messages and descriptors; who is on the other side |
//! | [`wake`] | futex on a shared word, `membarrier` |
//! | [`cpu`] | affinity, the length of a time slice |
//! | [`process`] | ending at once; whether another one is dying |
//! | [`clock`] | the CPU's counter as a clock |
//! | [`xdp`], [`bpf`] | AF_XDP sockets with their rings and frames; maps, programs and links |
//! | [`handover`] | descriptors for a program that has no privilege |
//! | [`link`], [`route`], [`netns`] | network interfaces; the way to a host; networks of one's own |
//! | [`mmsg`], [`multishot`], [`udp`] | datagrams in batches, or received by the kernel on its own; what the kernel knows of a UDP socket |
//! | [`uring`], [`block`] | the strongest standard paths, for comparison: `io_uring`, bare shared words |
//!
//! `rustix` makes the calls wherever it can; `libc` is named here only, for what `rustix` lacks. Nothing here decides
//! anything, spins, or knows what a message is: that is `tightbeam-segment` and `tightbeam-endpoint`.
#![deny(missing_docs)]

pub mod apart;
pub mod block;
pub mod bpf;
pub mod clock;
pub mod control;
pub mod cpu;
pub mod frames;
pub mod handover;
pub mod link;
mod mapping;
pub mod memory;
pub mod mmsg;
pub mod multishot;
mod netlink;
pub mod netns;
mod network;
pub mod process;
mod provided;
pub mod route;
pub mod turns;
pub mod udp;
pub mod uring;
pub mod wake;
pub mod xdp;

pub use network::Network;
pub use rustix::io::Errno;

/// Why the last call of `libc` failed.
fn last_errno() -> Errno {
    let error = std::io::Error::last_os_error();
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}
