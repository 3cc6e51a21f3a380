//! In which order the thread does what there is to do, and what it keeps.

use super::*;
use crate::control::listener::bind;
use crate::control::{Gate, Mailbox};
use std::sync::mpsc::channel;
use tightbeam_segment::Layout;
use tightbeam_sys::memory::MemoryOptions;

fn thread() -> Thread {
    // Nobody sends: what there is to obey is given to the thread directly.
    let (_, inbox) = channel();
    Thread::new(Arc::new(Alarm::new().unwrap()), inbox).unwrap()
}

fn options() -> OpenOptions {
    OpenOptions {
        layout: Layout::new(64).unwrap(),
        memory: MemoryOptions::default(),
        gate: Gate::new(Arc::new(|_| true), 64),
        within: Duration::from_secs(60),
        hosts: Arc::new(|_| false),
        frame_limit: 0,
        idle_limit: Duration::from_secs(60),
    }
}

/// Has a channel watched; what is returned is its other end.
fn watch(thread: &mut Thread, label: u64, door: &Door) -> OwnedFd {
    let (ours, theirs) = control::pair().unwrap();
    let pidfd = control::peer_pidfd(ours.as_fd()).unwrap();
    thread.obey(Command::Watch(Watch {
        label,
        socket: Arc::new(ours.into()),
        end_only: false,
        pidfd: Arc::new(pidfd),
        door: door.clone(),
    }));
    theirs
}

/// More than a watcher returns at once, and all of them before the end.
#[test]
fn an_end_comes_before_openings() {
    const CLIENTS: usize = Watcher::AT_ONCE + 8;
    let directory = std::env::temp_dir().join(format!("tb-thread-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.join("x.sock");
    let (_listener, socket) = bind(&path, 1).unwrap();
    let (mut thread, mut mailbox) = (thread(), Mailbox::new());
    let options = options();
    thread.obey(Command::Listen {
        id: 1,
        socket,
        options: options.clone(),
        door: mailbox.door(),
    });
    let connect = |_| control::connect(&path).unwrap();
    let clients: Vec<_> = (0..CLIENTS).map(connect).collect();
    while thread.items.len() < 1 + CLIENTS {
        thread.turn().unwrap();
    }
    for client in &clients {
        control::send(client.as_fd(), b"no hello", None).unwrap();
    }
    drop(watch(&mut thread, 7, &mailbox.door()));
    thread.turn().unwrap();
    assert!(matches!(mailbox.take(), Some(Notice::HungUp(7))));
    let heard = || options.gate.openings().broken_off;
    assert_eq!(heard(), STEPS as u64);
    // And none of them is forgotten.
    while heard() < CLIENTS as u64 {
        thread.turn().unwrap();
    }
    std::fs::remove_dir_all(&directory).unwrap();
}

/// Labels are an endpoint's own: another may have a channel of the same.
#[test]
fn a_channel_that_is_not_wanted_any_more_leaves_nothing() {
    let mut thread = thread();
    let mailboxes = [Mailbox::new(), Mailbox::new()];
    let [first, second] = mailboxes.each_ref().map(Mailbox::door);
    let ends = [(3, &first), (4, &first), (3, &second)];
    let ends = ends.map(|(label, door)| watch(&mut thread, label, door));
    let hung_up = |end: &OwnedFd| control::wait_readable(end.as_fd(), Duration::ZERO);
    for (label, door) in [(3, &first), (3, &first), (9, &second)] {
        let door = door.clone();
        thread.obey(Command::Unwatch { label, door });
        assert_eq!(ends.each_ref().map(hung_up), [true, false, false]);
        assert_eq!((thread.items.len(), thread.channels.len()), (4, 2));
    }
    // Nor one whose peer hung up before.
    drop(ends);
    thread.turn().unwrap();
    for (label, door) in [(4, first), (3, second)] {
        thread.obey(Command::Unwatch { label, door });
    }
    assert!(thread.items.is_empty() && thread.channels.is_empty());
}
