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
//! | [`mmsg`], [`uring`], [`block`] | the strongest standard paths, for comparison: batched datagrams, `io_uring`, bare shared words |
//!
//! `rustix` makes the calls wherever it can; `libc` is named here only, for what `rustix` lacks. Nothing here decides
//! anything, spins, or knows what a message is: that is `tightbeam-segment` and `tightbeam-endpoint`.
#![deny(missing_docs)]

pub mod block;
pub mod clock;
pub mod control;
pub mod cpu;
pub mod frames;
mod mapping;
pub mod memory;
pub mod mmsg;
pub mod process;
pub mod turns;
pub mod uring;
pub mod wake;

pub use rustix::io::Errno;
