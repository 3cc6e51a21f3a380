//! x
pub use tightbeam_endpoint::*;
