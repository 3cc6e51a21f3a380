#![doc = include_str!("ARCHITECTURE.md")]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub use tightbeam_endpoint::*;
