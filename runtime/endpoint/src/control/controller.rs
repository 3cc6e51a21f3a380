//! The way to the control thread: what it can be told, by any thread of the process.

use super::OpenOptions;
use super::mailbox::Door;
use super::thread::Thread;
use crate::OpenError;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use tightbeam_sys::Errno;
use tightbeam_sys::apart::{self, Apart};
use tightbeam_sys::control::{self, Alarm};
use tightbeam_sys::wake;

/// A channel's connection, to be watched until it ends.
pub(crate) struct Watch {
    pub(crate) label: u64,
    pub(crate) socket: Arc<Apart<OwnedFd>>,
    /// The endpoint itself looks at what comes over the connection; only the end of it is watched for.
    pub(crate) end_only: bool,
    pub(crate) pidfd: Arc<OwnedFd>,
    pub(crate) door: Door,
}

pub(super) enum Command {
    Listen {
        id: u64,
        socket: Apart<OwnedFd>,
        options: OpenOptions,
        door: Door,
    },
    Unlisten {
        id: u64,
        door: Door,
        done: Sender<()>,
    },
    Watch(Watch),
    Unwatch {
        label: u64,
        door: Door,
    },
    /// What has come over a connection has been looked at.
    WatchInput {
        label: u64,
        door: Door,
    },
    /// From now on the endpoint itself looks at what comes over its connections.
    LeaveInput {
        door: Door,
        done: Sender<()>,
    },
}

/// The way to the control thread of this process.
pub(crate) struct Controller {
    commands: Sender<Command>,
    alarm: Arc<Alarm>,
    /// A fork of this process has no such thread.
    process: u32,
}

impl Controller {
    /// The process's control thread, started when it is first asked for.
    pub(crate) fn get() -> Result<&'static Controller, OpenError> {
        static CURRENT: Mutex<Option<&'static Controller>> = Mutex::new(None);
        let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
        match *current {
            Some(running) if !running.is_of_a_parent() => Ok(running),
            // One that could not be started is tried again next time.
            _ => {
                let started = Controller::start().map_err(|errno| OpenError::System {
                    call: "start the control thread",
                    errno,
                })?;
                Ok(current.insert(Box::leak(Box::new(started))))
            }
        }
    }

    /// Whether this process is a fork of the one whose thread it is.
    pub(crate) fn is_of_a_parent(&self) -> bool {
        self.process != control::own_pid()
    }

    fn start() -> Result<Controller, Errno> {
        wake::register_barrier()?;
        apart::start()?;
        let alarm = Arc::new(Alarm::new()?);
        let (commands, inbox) = channel();
        let thread = Thread::new(Arc::clone(&alarm), inbox)?;
        apart::spawn("tightbeam-control", move || thread.run())
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::AGAIN))?;
        Ok(Controller {
            commands,
            alarm,
            process: control::own_pid(),
        })
    }

    fn tell(&self, command: Command) {
        // The thread ends with the process only, so there is always somebody who listens.
        let _ = self.commands.send(command);
        self.alarm.raise();
    }

    pub(crate) fn listen(&self, id: u64, socket: Apart<OwnedFd>, options: OpenOptions, door: Door) {
        self.tell(Command::Listen {
            id,
            socket,
            options,
            door,
        });
    }

    /// Stops a listener; when this returns nobody is accepted any more.
    pub(crate) fn unlisten(&self, id: u64, door: Door) {
        let (done, finished) = channel();
        self.tell(Command::Unlisten { id, door, done });
        // An error means that the thread is gone, and the listener with it.
        let _ = finished.recv();
    }

    pub(crate) fn watch(&self, watch: Watch) {
        self.tell(Command::Watch(watch));
    }

    /// Goes on watching what comes over a connection, after the endpoint has looked at what had come.
    pub(crate) fn watch_input(&self, label: u64, door: Door) {
        self.tell(Command::WatchInput { label, door });
    }

    /// Leaves it to an endpoint to look at what comes over the connections that it has; when this returns, nobody else does.
    pub(crate) fn leave_input(&self, door: Door) {
        let (done, finished) = channel();
        self.tell(Command::LeaveInput { door, done });
        // An error means that the thread is gone, and nobody looks.
        let _ = finished.recv();
    }

    /// Hangs up.
    pub(crate) fn unwatch(&self, label: u64, door: Door) {
        self.tell(Command::Unwatch { label, door });
    }
}
