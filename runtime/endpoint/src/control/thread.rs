//! The control thread: accepts, answers, watches. It never touches a ring.
//!
//! ```text
//!   listener ready --> accept --> Opening (deadline) --> hello --> welcome --> ready --> Notice::Opened
//!   channel's socket hung up --> Notice::HungUp --> (still alive after GRACE) Notice::Lingering
//!   pidfd readable --> Notice::Exited
//! ```
//!
//! A client that connects and says nothing holds one descriptor until its deadline and delays nobody.

use super::mailbox::{Door, Notice};
use super::wire::{BYTES, Opening, Refusal};
use super::{Half, OpenOptions, Opened};
use crate::OpenError;
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tightbeam_sys::Errno;
use tightbeam_sys::control::{self, Alarm, Ready, Watcher};
use tightbeam_sys::wake;

/// A peer whose socket hung up but whose process lives is given this long to end: a dying process closes its descriptors
/// before its pidfd says so (up to 1.7 ms measured).
const GRACE: Duration = Duration::from_millis(250);
/// A listener that ran out of descriptors rests this long.
const REST: Duration = Duration::from_millis(100);
/// Openings under way at a time, for all listeners; further clients wait in the backlog.
const MAX_OPENINGS: usize = 64;

/// A channel's connection, to be watched until it ends.
pub(crate) struct Watch {
    pub(crate) label: u64,
    pub(crate) socket: OwnedFd,
    pub(crate) pidfd: OwnedFd,
    pub(crate) door: Door,
}

enum Command {
    Listen {
        id: u64,
        socket: OwnedFd,
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
}

/// The way to the control thread of this process.
pub(crate) struct Controller {
    commands: Sender<Command>,
    alarm: Arc<Alarm>,
}

impl Controller {
    /// The process's control thread, started when it is first asked for.
    pub(crate) fn get() -> Result<&'static Controller, OpenError> {
        static CONTROLLER: OnceLock<Result<Controller, Errno>> = OnceLock::new();
        CONTROLLER
            .get_or_init(Controller::start)
            .as_ref()
            .map_err(|&errno| OpenError::System {
                call: "start the control thread",
                errno,
            })
    }

    fn start() -> Result<Controller, Errno> {
        wake::register_barrier()?;
        let watcher = Watcher::new()?;
        let alarm = Arc::new(Alarm::new()?);
        watcher.add(alarm.fd(), ALARM)?;
        let (commands, inbox) = channel();
        let thread = Thread {
            watcher,
            alarm: Arc::clone(&alarm),
            inbox,
            items: HashMap::new(),
            next_token: ALARM + 1,
        };
        std::thread::Builder::new()
            .name("tightbeam-control".into())
            .spawn(move || thread.run())
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::AGAIN))?;
        Ok(Controller { commands, alarm })
    }

    fn tell(&self, command: Command) {
        // The thread ends with the process only, so there is always somebody who listens.
        let _ = self.commands.send(command);
        self.alarm.raise();
    }

    pub(crate) fn listen(&self, id: u64, socket: OwnedFd, options: OpenOptions, door: Door) {
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

    /// Hangs up.
    pub(crate) fn unwatch(&self, label: u64, door: Door) {
        self.tell(Command::Unwatch { label, door });
    }
}

const ALARM: u64 = 0;

struct Thread {
    watcher: Watcher,
    alarm: Arc<Alarm>,
    inbox: Receiver<Command>,
    items: HashMap<u64, Item>,
    next_token: u64,
}

enum Item {
    Listener {
        id: u64,
        socket: OwnedFd,
        options: OpenOptions,
        door: Door,
        resting_until: Option<Instant>,
    },
    /// Somebody who has connected, and may have said hello.
    Opening {
        listener: u64,
        options: OpenOptions,
        door: Door,
        deadline: Instant,
        client: Client,
    },
    Channel {
        label: u64,
        socket: OwnedFd,
        door: Door,
        hung_up: Option<Instant>,
        ended: bool,
    },
    Process {
        channel: u64,
        pidfd: OwnedFd,
    },
}

/// How far an opening has come.
enum Client {
    Connected(OwnedFd),
    /// It has been welcomed, and has not said yet that it is ready.
    Welcomed(Box<Opened>),
}

impl Client {
    fn socket(&self) -> BorrowedFd<'_> {
        match self {
            Client::Connected(socket) => socket.as_fd(),
            Client::Welcomed(opened) => opened.socket.as_fd(),
        }
    }
}

impl Item {
    fn descriptor(&self) -> BorrowedFd<'_> {
        match self {
            Item::Listener { socket, .. } | Item::Channel { socket, .. } => socket.as_fd(),
            Item::Opening { client, .. } => client.socket(),
            Item::Process { pidfd, .. } => pidfd.as_fd(),
        }
    }
}

impl Thread {
    fn run(mut self) {
        loop {
            let bound = self
                .next_deadline()
                .map(|at| at.saturating_duration_since(Instant::now()));
            let ready = match self.watcher.wait(bound) {
                Ok(ready) => ready,
                // Only a broken epoll descriptor fails; without it nothing can be watched.
                Err(_) => return,
            };
            for event in ready {
                self.handle(event);
            }
            while let Ok(command) = self.inbox.try_recv() {
                self.obey(command);
            }
            self.expire(Instant::now());
        }
    }

    fn insert(&mut self, item: Item) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        // Fails only for want of kernel memory; then a hang-up shows late: at the deadline, or by the pidfd.
        let _ = self.watcher.add(item.descriptor(), token);
        self.items.insert(token, item);
        token
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Listen {
                id,
                socket,
                options,
                door,
            } => {
                self.insert(Item::Listener {
                    id,
                    socket,
                    options,
                    door,
                    resting_until: None,
                });
            }
            Command::Unlisten { id, door: of, done } => {
                self.drop_items(|item| match item {
                    Item::Listener {
                        id: other, door, ..
                    } => *other == id && door.same(&of),
                    Item::Opening { listener, door, .. } => *listener == id && door.same(&of),
                    _ => false,
                });
                // The endpoint may have been dropped meanwhile.
                let _ = done.send(());
            }
            Command::Watch(watch) => {
                let Watch {
                    label,
                    socket,
                    pidfd,
                    door,
                } = watch;
                let channel = self.insert(Item::Channel {
                    label,
                    socket,
                    door,
                    hung_up: None,
                    ended: false,
                });
                self.insert(Item::Process { channel, pidfd });
            }
            Command::Unwatch { label, door } => self.hang_up(label, &door),
        }
    }

    fn hang_up(&mut self, wanted: u64, of: &Door) {
        let found = self.items.iter().find_map(|(&token, item)| match item {
            Item::Channel { label, door, .. } if *label == wanted && door.same(of) => Some(token),
            _ => None,
        });
        let Some(token) = found else { return };
        if let Some(Item::Channel { socket, .. }) = self.items.remove(&token) {
            self.watcher.remove(socket.as_fd());
            control::shut(socket.as_fd());
        }
        self.drop_items(|item| matches!(item, Item::Process { channel, .. } if *channel == token));
    }

    fn handle(&mut self, event: Ready) {
        if event.token == ALARM {
            self.alarm.clear();
            return;
        }
        match self.items.get_mut(&event.token) {
            Some(Item::Listener { .. }) => self.accept(event.token),
            Some(Item::Opening { .. }) => self.answer(event.token),
            Some(Item::Channel {
                label,
                socket,
                door,
                hung_up,
                ..
            }) => {
                self.watcher.remove(socket.as_fd());
                if event.hung_up {
                    *hung_up = Some(Instant::now());
                    door.put(Notice::HungUp(*label));
                } else {
                    door.put(Notice::Babbled(*label));
                }
            }
            Some(Item::Process { .. }) => self.exited(event.token),
            // Removed by an event before this one.
            None => {}
        }
    }

    fn exited(&mut self, token: u64) {
        let Some(Item::Process { channel, pidfd }) = self.items.remove(&token) else {
            return;
        };
        self.watcher.remove(pidfd.as_fd());
        if let Some(Item::Channel {
            label, door, ended, ..
        }) = self.items.get_mut(&channel)
        {
            *ended = true;
            door.put(Notice::Exited(*label));
        }
    }

    fn accept(&mut self, token: u64) {
        let openings = self
            .items
            .values()
            .filter(|i| matches!(i, Item::Opening { .. }))
            .count();
        let Some(Item::Listener {
            id,
            socket,
            options,
            door,
            resting_until,
        }) = self.items.get_mut(&token)
        else {
            return;
        };
        if openings < MAX_OPENINGS {
            match control::accept(socket.as_fd()) {
                Ok(client) => {
                    let opening = Item::Opening {
                        listener: *id,
                        client: Client::Connected(client),
                        options: options.clone(),
                        door: door.clone(),
                        deadline: Instant::now() + options.within,
                    };
                    self.insert(opening);
                    return;
                }
                Err(Errno::AGAIN | Errno::CONNABORTED | Errno::INTR) => return,
                Err(_) => {}
            }
        }
        // Out of descriptors, or too many openings: the client stays in the backlog.
        self.watcher.remove(socket.as_fd());
        *resting_until = Some(Instant::now() + REST);
    }

    /// A client has said something, or has hung up. Whoever breaks the rules is dropped, its socket with it.
    fn answer(&mut self, token: u64) {
        let Some(Item::Opening {
            listener,
            options,
            door,
            deadline,
            client,
        }) = self.items.remove(&token)
        else {
            return;
        };
        self.watcher.remove(client.socket());
        let mut buffer = [0; BYTES + 1];
        let Ok(received) = control::receive(client.socket(), &mut buffer) else {
            return;
        };
        if received.too_many || received.truncated {
            return;
        }
        let said = Opening::parse(&buffer[..received.bytes]);
        let mut descriptors = received.descriptors.into_iter();
        match (client, said, descriptors.next(), descriptors.next()) {
            (Client::Connected(socket), Some(Opening::Hello(hello)), Some(segment), None) => {
                let Some(opened) = admit(hello, segment, socket, &options) else {
                    return;
                };
                self.insert(Item::Opening {
                    listener,
                    options,
                    door,
                    deadline,
                    client: Client::Welcomed(Box::new(opened)),
                });
            }
            (Client::Welcomed(opened), Some(Opening::Ready(_)), None, None)
                if opened.is_settled() =>
            {
                door.put(Notice::Opened(opened));
            }
            _ => {}
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let deadline = |item: &Item| match item {
            Item::Listener { resting_until, .. } => *resting_until,
            Item::Opening { deadline, .. } => Some(*deadline),
            Item::Channel {
                hung_up,
                ended: false,
                ..
            } => hung_up.map(|at| at + GRACE),
            _ => None,
        };
        self.items.values().filter_map(deadline).min()
    }

    /// Drops what matches. Each is taken from the watcher first: closing alone does not do that while a fork of this process
    /// holds a duplicate, and what is ready for ever would keep this thread awake.
    fn drop_items(&mut self, matches: impl Fn(&Item) -> bool) {
        let watcher = &self.watcher;
        self.items.retain(|_, item| {
            let dropped = matches(item);
            if dropped {
                watcher.remove(item.descriptor());
            }
            !dropped
        });
    }

    fn expire(&mut self, now: Instant) {
        self.drop_items(|item| matches!(item, Item::Opening { deadline, .. } if *deadline <= now));
        let watcher = &self.watcher;
        self.items.retain(|&token, item| match item {
            Item::Listener {
                socket,
                resting_until,
                ..
            } => {
                if resting_until.is_some_and(|until| until <= now) {
                    *resting_until = match watcher.add(socket.as_fd(), token) {
                        Ok(()) => None,
                        Err(_) => Some(now + REST),
                    };
                }
                true
            }
            Item::Channel {
                label,
                door,
                hung_up,
                ended: false,
                ..
            } => {
                if hung_up.is_some_and(|at| at + GRACE <= now) {
                    *hung_up = None;
                    door.put(Notice::Lingering(*label));
                }
                true
            }
            _ => true,
        });
    }
}

/// The listener's side of the opening, once the hello is there.
fn admit(
    hello: tightbeam_segment::Identity,
    segment: OwnedFd,
    socket: OwnedFd,
    options: &OpenOptions,
) -> Option<Opened> {
    let page = tightbeam_sys::memory::page_size() as u32;
    let nobody = tightbeam_segment::Incarnation([0; 2]);
    let ours = tightbeam_segment::Identity::ours(options.layout, page, nobody);
    // Before anything is spent on it.
    let admitted =
        control::credentials(socket.as_fd()).is_ok_and(|credentials| (options.admit)(&credentials));
    if !admitted {
        refuse(&socket, Opening::Refusal(ours, Refusal::NotAdmitted));
        return None;
    }
    let Ok(half) = Half::create(options) else {
        refuse(&socket, Opening::Refusal(ours, Refusal::Exhausted));
        return None;
    };
    let ours = half.identity;
    let (Ok(memory), Ok(client)) = (half.descriptor.try_clone(), socket.try_clone()) else {
        refuse(&socket, Opening::Refusal(ours, Refusal::Exhausted));
        return None;
    };
    let opened = match Opened::new(half, hello, segment, socket) {
        Ok(opened) => opened,
        Err(OpenError::Mismatch(_)) => {
            refuse(&client, Opening::Refusal(ours, Refusal::Mismatch));
            return None;
        }
        Err(OpenError::PeerMemory(_)) => {
            refuse(&client, Opening::Refusal(ours, Refusal::Segment));
            return None;
        }
        Err(_) => {
            refuse(&client, Opening::Refusal(ours, Refusal::Exhausted));
            return None;
        }
    };
    let welcome = Opening::Welcome(ours).to_bytes();
    // A client that has gone meanwhile: its channel never was.
    control::send(client.as_fd(), &welcome, Some(memory.as_fd())).ok()?;
    Some(opened)
}

fn refuse(socket: &OwnedFd, refusal: Opening) {
    // A client that has gone does not need the reason.
    let _ = control::send(socket.as_fd(), &refusal.to_bytes(), None);
}
