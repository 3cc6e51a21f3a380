//! What can go wrong: with a path while it runs, and with the bench as a whole.

use rustix::io::Errno;
use std::io;

/// Why a half of a path cannot go on. Ends that path's row, not the bench.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    /// A system call failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The other half is gone.
    #[error("the other side has closed the path")]
    Closed,
    /// A message was not what had been sent.
    #[error("message {message} of {size} bytes is not what was sent")]
    Payload { message: u64, size: usize },
    /// The watch has called the measurement off.
    #[error("called off")]
    CalledOff,
    /// Tightbeam's own path gave an error.
    #[error("{0}")]
    Endpoint(String),
}

impl From<Errno> for Broken {
    fn from(errno: Errno) -> Broken {
        Broken::Io(errno.into())
    }
}

/// Why the bench ends without a result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BenchError {
    /// Something it needs before it can measure anything.
    #[error("cannot {what}: {error}")]
    Setup {
        what: &'static str,
        error: io::Error,
    },
    /// The second process ended unasked.
    #[error("the second process ended unexpectedly ({how}) while {doing}")]
    PeerDied { how: String, doing: String },
    /// The result cannot be written.
    #[error("cannot write the result: {0}")]
    Output(io::Error),
}

impl BenchError {
    /// For `map_err`.
    pub(crate) fn setup<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> BenchError {
        move |error| BenchError::Setup {
            what,
            error: error.into(),
        }
    }
}
