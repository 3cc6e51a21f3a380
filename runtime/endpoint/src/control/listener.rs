//! A listening path: taking it, and giving it back.

use crate::OpenError;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tightbeam_sys::Errno;
use tightbeam_sys::apart::Apart;
use tightbeam_sys::control;

/// A path that this process listens at. The socket itself is with the control thread.
pub(crate) struct Listener {
    pub(crate) id: u64,
    path: PathBuf,
    inode: (u64, u64),
}

/// Listens at `path`. A socket that a dead process left there is replaced; anything else is left alone.
pub(crate) fn bind(path: &Path, id: u64) -> Result<(Listener, Apart<OwnedFd>), OpenError> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    // Two processes that both find a dead socket must not each remove the other's new one.
    let _lock = lock(directory, path)?;
    let socket = match control::listen(path) {
        Err(Errno::ADDRINUSE) => {
            remove_dead(path)?;
            control::listen(path)
        }
        other => other,
    };
    let socket = socket.map_err(|errno| match errno {
        Errno::ADDRINUSE => OpenError::InUse { path: path.into() },
        Errno::ACCESS | Errno::PERM | Errno::ROFS => OpenError::NoPermission {
            path: path.into(),
            errno,
        },
        errno => OpenError::System {
            call: "listen",
            errno,
        },
    })?;
    let meta = std::fs::symlink_metadata(path).map_err(|error| OpenError::System {
        call: "look at the new socket",
        errno: Errno::from_io_error(&error).unwrap_or(Errno::IO),
    })?;
    let listener = Listener {
        id,
        path: path.into(),
        inode: (meta.dev(), meta.ino()),
    };
    Ok((listener, socket.into()))
}

/// How long another listener's opening in the same directory is waited for.
const LOCK_TRIES: u32 = 1000;
const LOCK_PAUSE: Duration = Duration::from_millis(1);

fn lock(directory: &Path, path: &Path) -> Result<Option<OwnedFd>, OpenError> {
    for _ in 0..LOCK_TRIES {
        match control::lock_directory(directory) {
            Ok(lock) => return Ok(Some(lock)),
            Err(Errno::AGAIN) => std::thread::sleep(LOCK_PAUSE),
            Err(Errno::NOENT | Errno::NOTDIR) => {
                return Err(OpenError::NoDirectory { path: path.into() });
            }
            // A directory that may be written but not read cannot be locked.
            Err(Errno::ACCESS) => return Ok(None),
            Err(errno) => {
                return Err(OpenError::System {
                    call: "lock the directory",
                    errno,
                });
            }
        }
    }
    Err(OpenError::System {
        call: "lock the directory, which another process holds locked",
        errno: Errno::AGAIN,
    })
}

fn remove_dead(path: &Path) -> Result<(), OpenError> {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
    if !is_socket {
        return Err(OpenError::NotASocket { path: path.into() });
    }
    match control::connect(path) {
        Err(Errno::CONNREFUSED | Errno::NOENT) => {}
        Err(errno @ (Errno::ACCESS | Errno::PERM)) => {
            return Err(OpenError::NoPermission {
                path: path.into(),
                errno,
            });
        }
        // Connected, backlog full, or a socket of another type: somebody is there.
        _ => return Err(OpenError::InUse { path: path.into() }),
    }
    match std::fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(OpenError::NoPermission {
            path: path.into(),
            errno: Errno::from_io_error(&error).unwrap_or(Errno::PERM),
        }),
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Only if it is still ours: a later listener may have replaced it.
        let ours = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|meta| (meta.dev(), meta.ino()) == self.inode);
        if ours {
            // Somebody else may have removed it in between; then it is gone, as wanted.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_is_taken_and_given_back() {
        let directory = std::env::temp_dir().join(format!("tb-listener-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join("x.sock");
        let (listener, socket) = bind(&path, 1).unwrap();
        assert!(matches!(bind(&path, 2), Err(OpenError::InUse { .. })));
        drop(socket);
        // Dead, as after a kill: replaced.
        std::mem::forget(listener);
        let (listener, _socket) = bind(&path, 3).unwrap();
        drop(listener);
        assert!(!path.exists());
        std::fs::write(&path, "a file").unwrap();
        assert!(matches!(bind(&path, 4), Err(OpenError::NotASocket { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"a file");
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
