//! Rings over plain memory, with both sides ours: the wrap of the indices, and what a lying side can do.

use super::*;
use std::sync::Arc;

const PLACES: Places = Places {
    producer: 0,
    consumer: 64,
    flags: 128,
    entries: 192,
};

fn memory(size: u32) -> Arc<[AtomicU64]> {
    (0..24 + 2 * size).map(|_| AtomicU64::new(0)).collect()
}

fn ring<E: Entry>(memory: &Arc<[AtomicU64]>, size: u32) -> Memory {
    let base = NonNull::from(&memory[0]).cast();
    let keeper = Keeper::Plain(Arc::clone(memory));
    let bytes = memory.len() * 8;
    // The pointer of the whole allocation, not of its first word.
    let whole = NonNull::new(memory.as_ptr().cast_mut()).unwrap().cast();
    assert_eq!(base, whole);
    Memory::at("test", whole, bytes, PLACES, size, E::WORDS, keeper).unwrap()
}

/// Both sides of one ring, of which both indices start at `start`.
fn pair<E: Entry>(size: u32, start: u32) -> (Producer<E>, Consumer<E>) {
    let memory = memory(size);
    let of = |m| ring::<E>(m, size);
    of(&memory).producer().store(start, Ordering::Relaxed);
    of(&memory).consumer().store(start, Ordering::Relaxed);
    (Producer::over(of(&memory)), Consumer::over(of(&memory)))
}

#[test]
fn entries_come_in_order_through_the_wrap_of_the_indices() {
    for start in [0, 5, u32::MAX - 9, u32::MAX - 1, u32::MAX, 1 << 31] {
        let (mut producer, mut consumer) = pair::<Descriptor>(8, start);
        let (mut sent, mut received) = (0u32, 0u32);
        for round in 0..100u32 {
            let wanted = round % 8 + 1;
            let room = producer.room(wanted).unwrap();
            for _ in 0..wanted.min(room) {
                producer.write(Descriptor {
                    address: u64::from(sent) << 20,
                    len: sent,
                    options: !sent,
                });
                sent += 1;
            }
            // Nothing is seen before it is published.
            if received == sent - wanted.min(room) {
                assert_eq!(consumer.read(), Ok(None));
            }
            producer.publish();
            for _ in 0..round % 5 + 1 {
                let Some(entry) = consumer.read().unwrap() else {
                    break;
                };
                assert_eq!(entry.address, u64::from(received) << 20);
                assert_eq!((entry.len, entry.options), (received, !received));
                received += 1;
            }
            consumer.release();
        }
        assert!(received > 100, "from {start}: {received}");
    }
}

#[test]
fn a_full_ring_has_no_room_until_the_other_side_releases() {
    for start in [0, u32::MAX - 2] {
        let (mut producer, mut consumer) = pair::<u64>(4, start);
        assert_eq!(producer.room(1), Ok(4));
        for n in 0..4 {
            producer.write(n);
        }
        assert_eq!(producer.room(1), Ok(0));
        producer.publish();
        assert_eq!(producer.outstanding(), Ok(4));
        assert_eq!(consumer.read(), Ok(Some(0)));
        assert_eq!(producer.room(1), Ok(0), "read, but not given back");
        consumer.release();
        assert_eq!(producer.room(1), Ok(1));
        assert_eq!(producer.outstanding(), Ok(3));
    }
}

#[test]
#[should_panic(expected = "no room was asked for")]
fn writing_without_room_is_our_own_mistake() {
    let (mut producer, _consumer) = pair::<u64>(2, u32::MAX);
    for n in 0..3 {
        producer.write(n);
    }
}

#[test]
fn an_index_that_cannot_be_is_a_fault_not_an_access() {
    for start in [0, u32::MAX - 1] {
        let (mut producer, mut consumer) = pair::<u64>(4, start);
        producer.room(1).unwrap();
        producer.write(7);
        producer.publish();
        // The other side cannot have taken what was not published.
        for wrong in [2, 3, 4, 5, 1 << 31] {
            let taken = start.wrapping_add(wrong);
            let words = producer.memory.consumer();
            words.store(taken, Ordering::Relaxed);
            let fault = producer.room(4).unwrap_err();
            assert_eq!(fault.found, u64::from(taken));
        }
        // Nor can it publish more than the ring holds, or take back what it has published.
        assert_eq!(consumer.read(), Ok(Some(7)));
        for wrong in [5, 6, 1 << 31, u32::MAX, 0] {
            let published = start.wrapping_add(wrong);
            let words = consumer.memory.producer();
            words.store(published, Ordering::Relaxed);
            let fault = consumer.read().unwrap_err();
            assert_eq!(fault.found, u64::from(published), "{wrong} from {start}");
        }
    }
}

#[test]
fn a_ring_is_taken_over_as_it_stands() {
    let memory = memory(4);
    let mut first = Producer::<u64>::over(ring::<u64>(&memory, 4));
    first.room(2).unwrap();
    first.write(1);
    first.write(2);
    first.publish();
    drop(first);
    let mut second = Producer::<u64>::over(ring::<u64>(&memory, 4));
    assert_eq!(second.room(3), Ok(2));
    second.write(3);
    second.publish();
    let mut consumer = Consumer::<u64>::over(ring::<u64>(&memory, 4));
    let read: Vec<_> = std::iter::from_fn(|| consumer.read().unwrap()).collect();
    assert_eq!(read, [1, 2, 3]);
}

#[test]
fn the_parts_of_a_ring_must_lie_in_its_memory() {
    let memory = memory(4);
    let try_places = |places, size| {
        let base = NonNull::new(memory.as_ptr().cast_mut()).unwrap().cast();
        let keeper = Keeper::Plain(Arc::clone(&memory));
        Memory::at("test", base, memory.len() * 8, places, size, 2, keeper).is_some()
    };
    assert!(try_places(PLACES, 4));
    assert!(!try_places(PLACES, 3), "no power of two");
    assert!(!try_places(PLACES, 8), "longer than the memory");
    for at in [256, u64::MAX, u64::MAX - 3, 2] {
        let producer = Places {
            producer: at,
            ..PLACES
        };
        let entries = Places {
            entries: at,
            ..PLACES
        };
        assert!(!try_places(producer, 4));
        assert!(!try_places(entries, 4));
    }
}

#[test]
fn the_flag_of_a_sleeping_kernel_is_seen() {
    let (producer, _consumer) = pair::<u64>(4, 0);
    assert!(!producer.needs_wakeup());
    producer.memory.flags().store(1, Ordering::Relaxed);
    assert!(producer.needs_wakeup());
}

/// Two threads, a small ring, indices that wrap soon: nothing is lost, doubled or torn.
#[test]
fn two_threads_exchange_everything_in_order() {
    const COUNT: u64 = 100_000;
    let (mut producer, mut consumer) = pair::<Descriptor>(8, u32::MAX - 1000);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut next = 0;
            while next < COUNT {
                let room = u64::from(producer.room(1).unwrap()).min(COUNT - next);
                for _ in 0..room {
                    producer.write(Descriptor {
                        address: next,
                        len: next as u32,
                        options: !(next as u32),
                    });
                    next += 1;
                }
                producer.publish();
                std::thread::yield_now();
            }
        });
        let mut expected = 0;
        while expected < COUNT {
            while let Some(entry) = consumer.read().unwrap() {
                assert_eq!(entry.address, expected);
                assert_eq!(entry.options, !entry.len);
                expected += 1;
            }
            consumer.release();
            std::thread::yield_now();
        }
    });
}
