//! The client's side of the opening, in the thread that opens.

use super::wire::{BYTES, Opening, Refusal};
use super::{Half, OpenOptions, Opened};
use crate::OpenError;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::time::{Duration, Instant};
use tightbeam_sys::Errno;
use tightbeam_sys::apart::Apart;
use tightbeam_sys::control::{self, Received};
use tightbeam_sys::memory;

/// How often a listener whose backlog is full is asked again.
const RETRY: Duration = Duration::from_millis(1);

/// Opens a channel to who listens at `path`, within `options.within`.
pub(crate) fn connect(path: &Path, options: &OpenOptions) -> Result<Opened, OpenError> {
    let deadline = Instant::now() + options.within;
    let timed_out = || OpenError::TimedOut {
        path: path.to_path_buf(),
        after: options.within,
    };
    let socket: Apart<OwnedFd> = loop {
        match control::connect(path) {
            Ok(socket) => break Apart::from(socket),
            Err(Errno::AGAIN) if Instant::now() < deadline => std::thread::sleep(RETRY),
            Err(Errno::AGAIN) => return Err(timed_out()),
            Err(errno) => return Err(connect_error(path, errno)),
        }
    };
    let listener = control::credentials(socket.as_fd()).map_err(|errno| OpenError::System {
        call: "read the listener's credentials",
        errno,
    })?;
    if !options.gate.admits(&listener) {
        return Err(OpenError::Untrusted {
            path: path.to_path_buf(),
            uid: listener.uid,
        });
    }
    let half = Half::create(options)?;
    let ours = half.identity;
    let descriptor = half.descriptor.as_fd();
    match say(socket.as_fd(), Opening::Hello(ours), Some(descriptor)) {
        // Refused before it was asked: the answer is there, and says why.
        Ok(()) | Err(OpenError::HungUp) => {}
        Err(error) => return Err(error),
    }
    let (answer, segment) = receive(path, socket.as_fd(), deadline, timed_out)?;
    match (answer, segment) {
        (Opening::Welcome(identity), Some(segment)) => {
            let opened = Opened::new(half, identity, segment, socket)?;
            let settled = opened.is_settled().map_err(|errno| OpenError::System {
                call: "have all pages of our segment",
                errno,
            })?;
            if !settled {
                return Err(OpenError::Opening("it has not sealed our segment"));
            }
            say(opened.socket.as_fd(), Opening::Ready(ours), None)?;
            Ok(opened)
        }
        (Opening::Welcome(..), None) => Err(OpenError::Opening("a welcome without its segment")),
        (Opening::Refusal(theirs, why), _) => Err(refused(theirs, why)),
        (Opening::Hello(..) | Opening::Ready(..), _) => Err(OpenError::Opening(
            "a client's message instead of an answer",
        )),
    }
}

fn say(
    socket: BorrowedFd<'_>,
    opening: Opening,
    descriptor: Option<BorrowedFd<'_>>,
) -> Result<(), OpenError> {
    match control::send(socket, &opening.to_bytes(), descriptor) {
        Ok(()) => Ok(()),
        Err(Errno::PIPE | Errno::CONNRESET) => Err(OpenError::HungUp),
        Err(errno) => Err(OpenError::System {
            call: "send a message of the opening",
            errno,
        }),
    }
}

fn refused(theirs: tightbeam_segment::Identity, why: Refusal) -> OpenError {
    match why {
        Refusal::Mismatch => match theirs.check(memory::page_size() as u32) {
            Err(mismatch) => OpenError::Mismatch(mismatch),
            Ok(_) => OpenError::Opening("it refuses us as different, but says that it is the same"),
        },
        Refusal::NotAdmitted => OpenError::NotAdmitted {
            uid: control::own_uid(),
        },
        Refusal::Exhausted => OpenError::ListenerExhausted,
        Refusal::Full => OpenError::ListenerFull,
        Refusal::Segment => OpenError::Opening("it cannot use our segment"),
    }
}

/// Waits for the answer, and refuses whatever is not one message with at most one descriptor.
fn receive(
    path: &Path,
    socket: BorrowedFd<'_>,
    deadline: Instant,
    timed_out: impl Fn() -> OpenError,
) -> Result<(Opening, Option<Apart<control::Passed>>), OpenError> {
    let mut buffer = [0; BYTES + 1];
    let mut reset = false;
    let received = loop {
        match control::receive(socket, &mut buffer) {
            Ok(received) => break received,
            // Said once, before what was sent: a listener that refuses hangs up without reading.
            Err(Errno::CONNRESET) if !reset => reset = true,
            Err(Errno::AGAIN) => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(timed_out());
                }
                control::wait_readable(socket, left);
            }
            Err(Errno::CONNRESET) => return Err(OpenError::HungUp),
            Err(errno) => {
                return Err(OpenError::System {
                    call: "receive the answer",
                    errno,
                });
            }
        }
    };
    let Received {
        bytes,
        mut descriptors,
        truncated,
        too_many,
        no_room,
        ..
    } = received;
    if bytes == 0 {
        return Err(OpenError::HungUp);
    }
    if no_room {
        return Err(OpenError::System {
            call: "take the listener's segment",
            errno: Errno::MFILE,
        });
    }
    if too_many || descriptors.len() > 1 {
        return Err(OpenError::Opening("more descriptors than one"));
    }
    match Opening::parse(&buffer[..bytes]) {
        Some(opening) if !truncated => Ok((opening, descriptors.pop())),
        _ => Err(OpenError::NotTightbeam {
            path: path.to_path_buf(),
        }),
    }
}

fn connect_error(path: &Path, errno: Errno) -> OpenError {
    let path = path.to_path_buf();
    match errno {
        Errno::ACCESS | Errno::PERM => OpenError::NoPermission { path, errno },
        Errno::NOENT => match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() && !parent.exists() => {
                OpenError::NoDirectory { path }
            }
            _ => OpenError::NobodyListens { path },
        },
        Errno::CONNREFUSED => match std::fs::symlink_metadata(&path) {
            Ok(meta) if !meta.file_type().is_socket() && !meta.is_symlink() => {
                OpenError::NotASocket { path }
            }
            _ => OpenError::NobodyListens { path },
        },
        // A stream or datagram socket.
        Errno::PROTOTYPE => OpenError::NotTightbeam { path },
        errno => OpenError::System {
            call: "connect",
            errno,
        },
    }
}
