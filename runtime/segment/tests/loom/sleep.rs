//! Arm, look once more, sleep, wake: no wake-up is lost. A lost one is a deadlock here, because these sleeps have no bound.
//!
//! `membarrier` is a SeqCst fence on both sides, and the kernel's futex is a lock and a condition variable: it compares the word
//! and falls asleep under the lock under which others are woken. The steps are those of `Endpoint::park` and `wake_if_asleep`.
//!
//! Not seen: whether `membarrier` and the futex do that, and other processes (`tests/processes.rs` sleeps for real); a waiter that
//! a peer moves elsewhere (`waking.rs` of `tests/hostile`, row R7); a peer that is killed before it wakes (`tests/steps`, "send to a
//! sleeper"); and the control thread's bell, which has its own word and no ring (`tests/faults`: each end is told; `tests/hostile`,
//! row R6: so it is while its doors are flooded).

use crate::model;
use loom::sync::atomic::{Ordering, fence};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;
use tightbeam_segment::{Arrival, Asleep, Layout, Outgoing, Port, TrySendError, testing};

#[derive(Clone, Default)]
struct Futex(Arc<(Mutex<()>, Condvar)>);

impl Futex {
    /// Sleeps unless one of the words is no longer what it was.
    fn wait(&self, watched: &[(&Port, u64)]) {
        let (lock, sleepers) = &*self.0;
        let held = lock.lock().unwrap();
        if watched
            .iter()
            .all(|(port, value)| port.peer_wake_value() == *value)
        {
            drop(sleepers.wait(held).unwrap());
        }
    }

    fn wake(&self) {
        let (lock, sleepers) = &*self.0;
        let _held = lock.lock().unwrap();
        sleepers.notify_all();
    }
}

/// What wakes a sleeper: a message, or also room to send.
#[derive(PartialEq)]
enum For {
    Message,
    Room,
}

fn park(futex: &Futex, what: For, ports: &[&Port]) {
    arm_and_sleep(futex, what, ports);
    ports.iter().for_each(|port| port.set_asleep(Asleep::No));
}

/// The same, and stays armed.
fn arm_and_sleep(futex: &Futex, what: For, ports: &[&Port]) {
    let watched: Vec<_> = ports
        .iter()
        .map(|port| (*port, port.peer_wake_value()))
        .collect();
    ports.iter().for_each(|port| port.set_asleep(Asleep::Word));
    fence(Ordering::SeqCst);
    let woken = |port: &&Port| port.has_arrival() || what == For::Room && port.has_credit();
    if !ports.iter().any(woken) {
        futex.wait(&watched);
    }
}

fn wake_if_asleep(port: &Port, futex: &Futex) {
    if port.peer_asleep() {
        port.bump_wake_word();
        futex.wake();
    }
}

/// Takes what is there; `false` if that is nothing.
fn take(port: &mut Port) -> bool {
    match port.arrival() {
        Arrival::Empty => false,
        Arrival::Message { handler: 1 } => {
            port.consume();
            true
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_message_wakes_a_sleeper() {
    model(|| {
        let futex = Futex::default();
        let (left, mut right) = testing::pair(Layout::new(2).unwrap());
        let waker = futex.clone();
        let sender = thread::spawn(move || {
            for _ in 0..2 {
                left.try_send(Outgoing::message(1), b"").unwrap();
                wake_if_asleep(&left, &waker);
            }
            left
        });
        for _ in 0..2 {
            while !take(&mut right) {
                park(&futex, For::Message, &[&right]);
            }
        }
        sender.join().unwrap();
    });
}

#[test]
fn room_wakes_a_sleeper() {
    model(|| {
        let futex = Futex::default();
        let (left, mut right) = testing::pair(Layout::new(2).unwrap());
        for _ in 0..2 {
            left.try_send(Outgoing::message(1), b"").unwrap();
        }
        let sleeper = futex.clone();
        let sender = thread::spawn(move || {
            while let Err(error) = left.try_send(Outgoing::message(1), b"") {
                assert_eq!(error, TrySendError::Full);
                park(&sleeper, For::Room, &[&left]);
            }
            left
        });
        assert!(take(&mut right) && take(&mut right));
        right.finish_drain();
        wake_if_asleep(&right, &futex);
        sender.join().unwrap();
    });
}

/// One sleeper, two channels: three threads. Both may wake it at once, or one while it arms the other.
#[test]
fn either_of_two_peers_wakes_a_sleeper() {
    model(|| {
        let futex = Futex::default();
        let (ours, senders): (Vec<_>, Vec<_>) = (0..2)
            .map(|_| {
                let (left, right) = testing::pair(Layout::new(2).unwrap());
                let waker = futex.clone();
                let sender = thread::spawn(move || {
                    left.try_send(Outgoing::message(1), b"").unwrap();
                    wake_if_asleep(&left, &waker);
                });
                (right, sender)
            })
            .unzip();
        // Until it is woken once; that it then finds the message, and is woken by the next, is the model with two threads.
        arm_and_sleep(&futex, For::Message, &[&ours[0], &ours[1]]);
        drop(senders);
    });
}
