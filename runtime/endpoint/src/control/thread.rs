//! The control thread: accepts, answers, watches. It never touches a ring.
//!
//! ```text
//!   listener ready --> accept --> Opening (deadline) --> hello --> welcome --> ready --> Notice::Opened
//!   channel's socket hung up --> Notice::HungUp --> (still alive after GRACE) Notice::Lingering
//!   pidfd readable --> Notice::Exited
//! ```
//!
//! A client that connects and says nothing holds one descriptor until its deadline and delays nobody. Nor do many that say hello at
//! once: ends go first.

use super::admit::{admit, is_admitted, ours, turn_away};
use super::controller::{Command, Watch};
use super::gate::Outcome;
use super::mailbox::{Door, Notice};
use super::wire::{BYTES, Opening, Refusal};
use super::{OpenOptions, Opened};
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};
use tightbeam_sys::Errno;
use tightbeam_sys::apart::{self, Apart};
use tightbeam_sys::control::{self, Alarm, Ready, Watcher};
use tightbeam_sys::{cpu, process};

/// A peer whose socket hung up but whose process lives is given this long to end: a dying process closes its descriptors
/// before its pidfd says so (up to 1.7 ms measured).
const GRACE: Duration = Duration::from_millis(250);
/// One that is seen to be dying is given this long: on a machine with too much to do it may have to wait for a CPU.
const DYING: Duration = Duration::from_secs(10);
/// A listener that ran out of descriptors rests this long; so does what the kernel had no memory to watch.
const REST: Duration = Duration::from_millis(100);
/// The shortest that the scheduler knows, so that whoever spins does not keep this thread from running when it has something to do.
const SLICE: Duration = Duration::from_micros(100);
/// Openings under way at a time, for each listener; further clients wait in its backlog.
const MAX_OPENINGS: usize = 64;

/// Steps of openings in a turn. One may take a millisecond, for a deep segment that is made and another one that is mapped; an
/// end waits for no more than these.
const STEPS: usize = 2;

const ALARM: u64 = 0;
/// Somebody has something to say at the doors.
const DOORS: u64 = 1;

pub(super) struct Thread {
    watchers: Watchers,
    alarm: Arc<Alarm>,
    inbox: Receiver<Command>,
    items: HashMap<u64, Item>,
    /// Where the channel with this label is that an endpoint (`Door::key`) has.
    channels: HashMap<(usize, u64), Tokens>,
    /// What is not watched, and since it is to be, when to try again.
    resting: HashMap<u64, Instant>,
    next_token: u64,
}

/// What is watched. Listeners and openings are so by themselves: however many of them are ready, for the thread they are one
/// descriptor, in front of which nothing else has to wait.
struct Watchers {
    /// Channels, processes, the alarm, and the doors.
    all: Watcher,
    /// Listeners and openings.
    doors: Watcher,
}

impl Watchers {
    fn of(&self, item: &Item) -> &Watcher {
        match item {
            Item::Listener { .. } | Item::Opening { .. } => &self.doors,
            Item::Channel { .. } | Item::Process { .. } => &self.all,
        }
    }

    fn remove(&self, item: &Item) {
        self.of(item).remove(item.descriptor());
    }
}

enum Item {
    Listener {
        id: u64,
        socket: Apart<OwnedFd>,
        options: OpenOptions,
        door: Door,
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
        socket: Arc<Apart<OwnedFd>>,
        end_only: bool,
        door: Door,
        /// Since when, and until when it may take to end.
        hung_up: Option<(Instant, Instant)>,
        ended: bool,
    },
    Process {
        channel: u64,
        pidfd: Arc<OwnedFd>,
    },
}

/// Of a channel that is watched.
struct Tokens {
    channel: u64,
    process: u64,
}

/// How far an opening has come.
enum Client {
    Connected(Apart<OwnedFd>),
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
            Item::Listener { socket, .. } => socket.as_fd(),
            Item::Channel { socket, .. } => socket.as_fd(),
            Item::Opening { client, .. } => client.socket(),
            Item::Process { pidfd, .. } => pidfd.as_fd(),
        }
    }

    fn watch(&self, watchers: &Watchers, token: u64) -> Result<(), Errno> {
        let watcher = watchers.of(self);
        match self {
            Item::Channel { end_only: true, .. } => watcher.add_end(self.descriptor(), token),
            _ => watcher.add(self.descriptor(), token),
        }
    }
}

/// Whether the process at the other end is. It has not been reaped, or its pidfd would have said so: the id is still its own.
fn is_dying(socket: &OwnedFd) -> bool {
    control::credentials(socket.as_fd()).is_ok_and(|peer| process::is_dying(peer.pid))
}

impl Thread {
    pub(super) fn new(alarm: Arc<Alarm>, inbox: Receiver<Command>) -> Result<Thread, Errno> {
        let watchers = Watchers {
            all: Watcher::new()?,
            doors: Watcher::new()?,
        };
        watchers.all.add(alarm.fd(), ALARM)?;
        watchers.all.add(watchers.doors.as_fd(), DOORS)?;
        Ok(Thread {
            watchers,
            alarm,
            inbox,
            items: HashMap::new(),
            channels: HashMap::new(),
            resting: HashMap::new(),
            next_token: DOORS + 1,
        })
    }

    pub(super) fn run(mut self) {
        // Without it this hears of a death 1 to 2 ms later on a machine whose CPUs are all busy (p99 10.0 for 11.8 ms).
        let _ = cpu::request_slice(SLICE);
        // Only a broken epoll descriptor fails; without it nothing can be watched.
        while self.turn().is_ok() {}
    }

    /// Sleeps until there is something to do, and does it: what concerns channels that are open, then a little of what is at the doors.
    fn turn(&mut self) -> Result<(), Errno> {
        let bound = self
            .next_deadline()
            .map(|at| at.saturating_duration_since(Instant::now()));
        let mut at_the_doors = false;
        for event in self.watchers.all.wait(bound)? {
            match event.token {
                ALARM => self.alarm.clear(),
                DOORS => at_the_doors = true,
                _ => self.handle(event),
            }
        }
        while let Ok(command) = self.inbox.try_recv() {
            self.obey(command);
        }
        if at_the_doors {
            // Who is left out is still ready, and so are the doors: the next turn does not sleep.
            for event in self.watchers.doors.ready(STEPS)? {
                self.handle(event);
            }
        }
        self.expire(Instant::now());
        Ok(())
    }

    fn insert(&mut self, item: Item) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        // Fails only for want of kernel memory, or of leave to watch so much (`fs.epoll.max_user_watches`).
        if item.watch(&self.watchers, token).is_err() {
            self.resting.insert(token, Instant::now() + REST);
        }
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
                    end_only,
                    pidfd,
                    door,
                } = watch;
                let key = (door.key(), label);
                let channel = self.insert(Item::Channel {
                    label,
                    socket,
                    end_only,
                    door,
                    hung_up: None,
                    ended: false,
                });
                let process = self.insert(Item::Process { channel, pidfd });
                self.channels.insert(key, Tokens { channel, process });
            }
            Command::Unwatch { label, door } => self.hang_up(label, &door),
            Command::WatchInput { label, door } => self.watch_input(label, &door),
            Command::LeaveInput { door, done } => {
                self.leave_input(&door);
                // The endpoint may have been dropped meanwhile.
                let _ = done.send(());
            }
        }
    }

    fn leave_input(&mut self, of: &Door) {
        for (token, item) in &mut self.items {
            let Item::Channel {
                socket,
                end_only,
                door,
                hung_up: None,
                ..
            } = item
            else {
                continue;
            };
            if door.same(of) {
                *end_only = true;
                // One that is not watched now (it rests, or it has said something) has nothing to be changed.
                let _ = self.watchers.all.keep_end(socket.as_fd(), *token);
            }
        }
    }

    fn watch_input(&mut self, label: u64, of: &Door) {
        let Some(&Tokens { channel, .. }) = self.channels.get(&(of.key(), label)) else {
            return;
        };
        if let Some(Item::Channel {
            socket,
            end_only,
            hung_up: None,
            ..
        }) = self.items.get_mut(&channel)
        {
            *end_only = false;
            // One that is not watched now, because it rests, is watched for this too when that is over.
            let _ = self.watchers.all.keep_all(socket.as_fd(), channel);
        }
    }

    /// Found without a search: when many channels end at once, this is done for each of them.
    fn hang_up(&mut self, label: u64, of: &Door) {
        let Some(tokens) = self.channels.remove(&(of.key(), label)) else {
            return;
        };
        if let Some(channel) = self.items.remove(&tokens.channel) {
            self.watchers.remove(&channel);
            control::shut(channel.descriptor());
        }
        // It may have ended, and is not watched any more then.
        if let Some(process) = self.items.remove(&tokens.process) {
            self.watchers.remove(&process);
        }
    }

    fn handle(&mut self, event: Ready) {
        match self.items.get_mut(&event.token) {
            Some(Item::Listener { .. }) => self.accept(event.token),
            Some(Item::Opening { .. }) => self.answer(event.token),
            Some(Item::Channel {
                label,
                socket,
                door,
                hung_up,
                end_only,
                ..
            }) => {
                if event.hung_up {
                    self.watchers.all.remove(socket.as_fd());
                    let now = Instant::now();
                    *hung_up = Some((now, now + GRACE));
                    door.put(Notice::HungUp(*label));
                } else {
                    // Most likely memory for frames. The endpoint reads it, now and when a frame is in memory that it does not know.
                    *end_only = true;
                    let _ = self.watchers.all.keep_end(socket.as_fd(), event.token);
                    door.put(Notice::Input(*label));
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
        self.watchers.all.remove(pidfd.as_fd());
        if let Some(Item::Channel {
            label, door, ended, ..
        }) = self.items.get_mut(&channel)
        {
            *ended = true;
            door.put(Notice::Exited(*label));
        }
    }

    fn accept(&mut self, token: u64) {
        let Some(Item::Listener {
            id,
            socket,
            options,
            door,
        }) = self.items.get(&token)
        else {
            return;
        };
        let of_this = |item: &&Item| matches!(item, Item::Opening { listener, door: of, .. } if listener == id && of.same(door));
        let openings = self.items.values().filter(of_this).count();
        if openings < MAX_OPENINGS {
            match control::accept(socket.as_fd()) {
                Ok(client) => {
                    let client = Apart::from(client);
                    // Before it is waited for, and before anything is spent on it. While nothing can be closed any more nobody is to pass
                    // more of it.
                    let refusal = match is_admitted(&client, options) {
                        false => Some(Refusal::NotAdmitted),
                        true => apart::is_stuck().then_some(Refusal::Exhausted),
                    };
                    if let Some(why) = refusal {
                        return turn_away(client.as_fd(), options, ours(options), why);
                    }
                    let pid = control::credentials(client.as_fd()).map_or(0, |peer| peer.pid);
                    let until = options.gate.suspended(pid);
                    let opening = Item::Opening {
                        listener: *id,
                        client: Client::Connected(client),
                        options: options.clone(),
                        door: door.clone(),
                        deadline: until.unwrap_or_else(Instant::now) + options.within,
                    };
                    let token = self.insert(opening);
                    if let (Some(until), Some(item)) = (until, self.items.get(&token)) {
                        // What it says is not looked at before.
                        self.watchers.remove(item);
                        self.resting.insert(token, until);
                    }
                    return;
                }
                Err(Errno::AGAIN | Errno::CONNABORTED | Errno::INTR) => return,
                Err(_) => {}
            }
        }
        // Out of descriptors, or too many openings: the client stays in the backlog.
        self.watchers.doors.remove(socket.as_fd());
        self.resting.insert(token, Instant::now() + REST);
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
        self.watchers.doors.remove(client.socket());
        let gate = Arc::clone(&options.gate);
        let mut buffer = [0; BYTES + 1];
        let received = match control::receive(client.socket(), &mut buffer) {
            Ok(received) if received.no_room => {
                let why = Refusal::Exhausted;
                return turn_away(client.socket(), &options, ours(&options), why);
            }
            Ok(received) if !received.too_many && !received.truncated => received,
            _ => return gate.count(Outcome::BrokenOff),
        };
        let said = Opening::parse(&buffer[..received.bytes]);
        let mut descriptors = received.descriptors.into_iter();
        match (client, said, descriptors.next(), descriptors.next()) {
            (Client::Connected(socket), Some(Opening::Hello(hello)), Some(segment), None) => {
                let opened = match admit(hello, segment, &socket, &options) {
                    Ok(opened) => opened,
                    Err((ours, why)) => {
                        if why == Refusal::Full {
                            // Channels that are over may have kept places which nobody needs any more.
                            door.ring();
                        }
                        return turn_away(socket.as_fd(), &options, ours, why);
                    }
                };
                self.insert(Item::Opening {
                    listener,
                    options,
                    door,
                    deadline,
                    client: Client::Welcomed(Box::new(opened)),
                });
            }
            (Client::Welcomed(opened), Some(Opening::Ready(_)), None, None) => {
                gate.count(match opened.is_settled() {
                    Ok(true) => {
                        door.put(Notice::Opened(opened));
                        Outcome::Opened
                    }
                    Ok(false) => Outcome::BrokenOff,
                    // It takes its channel for open. Nothing can be stored to tell it more than that we hang up.
                    Err(_) => Outcome::Refused(Refusal::Exhausted),
                });
            }
            _ => gate.count(Outcome::BrokenOff),
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let deadline = |item: &Item| match item {
            Item::Opening { deadline, .. } => Some(*deadline),
            Item::Channel {
                hung_up,
                ended: false,
                ..
            } => hung_up.map(|(_, until)| until),
            _ => None,
        };
        let ends = self.items.values().filter_map(deadline);
        ends.chain(self.resting.values().copied()).min()
    }

    /// Drops what matches. Each is taken from the watcher first: closing alone does not do that while a fork of this process
    /// holds a duplicate, and what is ready for ever would keep this thread awake.
    fn drop_items(&mut self, matches: impl Fn(&Item) -> bool) {
        let found = self.items.iter().filter(|(_, item)| matches(item));
        let tokens: Vec<u64> = found.map(|(&token, _)| token).collect();
        for item in tokens.iter().filter_map(|token| self.items.remove(token)) {
            self.watchers.remove(&item);
            // A client that is ready, but has not been heard, takes its channel for open: it is told that it was closed.
            if let Item::Opening {
                client: Client::Welcomed(opened),
                ..
            } = item
            {
                // First, so that who is not ready by now cannot say any more that it is.
                control::shut(opened.socket.as_fd());
                if opened.is_settled() == Ok(true) {
                    opened.join(0).port.close();
                }
            }
        }
    }

    fn expire(&mut self, now: Instant) {
        self.drop_items(|item| match item {
            Item::Opening {
                deadline, options, ..
            } if *deadline <= now => {
                options.gate.count(Outcome::BrokenOff);
                true
            }
            _ => false,
        });
        let (watchers, items) = (&self.watchers, &self.items);
        self.resting.retain(|token, until| {
            let Some(item) = items.get(token) else {
                return false;
            };
            if *until > now {
                return true;
            }
            *until = now + REST;
            item.watch(watchers, *token).is_err()
        });
        for item in self.items.values_mut() {
            if let Item::Channel {
                label,
                socket,
                door,
                hung_up,
                ended: false,
                ..
            } = item
                && let Some((since, until)) = *hung_up
                && until <= now
            {
                if now - since < DYING && is_dying(socket) {
                    *hung_up = Some((since, now + GRACE));
                    continue;
                }
                *hung_up = None;
                door.put(Notice::Lingering(*label));
            }
        }
    }
}

#[cfg(test)]
mod tests;
