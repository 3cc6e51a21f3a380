//! What can go wrong while measuring, as one error type.
//!
//! Every module of this crate returns it; `harness` turns it into a `skipped`
//! row or, for a mistake in the command line, into the exit status. It never
//! carries a backtrace and is never raised for a figure that merely looks odd.

use std::fmt::Display;
use std::time::Duration;

/// Why a path could not be opened or a batch could not be finished.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// Nothing arrived for longer than any pause of a scheduler explains.
    #[error("the other side has been silent for {0:?}")]
    Silent(Duration),

    /// A message arrived whose bytes are not those that were written.
    #[error("message {number} of {size} bytes is not what was sent")]
    Damaged { number: u64, size: usize },

    /// The library under measurement, or the system below it, refused.
    #[error("{doing}: {why}")]
    Refused { doing: &'static str, why: String },

    /// A payload size for which no code was generated.
    #[error("no code was built for messages of {size} bytes; the built sizes are {built}")]
    Size { size: usize, built: String },

    /// The far side stopped with an error.
    #[error("the far side stopped: {0}")]
    Far(String),
}

impl Fault {
    /// An adapter for `map_err`: names the step that was being done.
    pub(crate) fn doing<E: Display>(doing: &'static str) -> impl FnOnce(E) -> Self {
        move |why| Self::Refused {
            doing,
            why: why.to_string(),
        }
    }
}
