//! One-way messages through a handler, two threads. Each sample sends a batch and ends with a call, so that all of it has been
//! handled; what was handled is counted.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tightbeam::{Endpoint, Handlers, Message, Reply};

const BATCH: u64 = 10_000;

fn count(seen: &mut u64, message: Message<'_>, _: Reply<'_>) {
    *seen += u64::from(!message.is_empty());
    std::hint::black_box(message.bytes());
}

fn total(seen: &mut u64, _: Message<'_>, reply: Reply<'_>) {
    reply.send(&seen.to_ne_bytes());
}

fn rate(criterion: &mut Criterion) {
    let path = std::env::temp_dir().join(format!("tb-rate-{}", std::process::id()));
    let address = format!("shm:{}", path.display());
    let (tell, told) = std::sync::mpsc::channel();
    let place = address.clone();
    let server = std::thread::spawn(move || {
        let handlers = Handlers::<u64>::new().on(1, count).on(2, total);
        let mut server = Endpoint::listen(&place, handlers).expect("a free path");
        tell.send(server.stopper()).expect("the bench waits");
        server.run().expect("it listens");
    });
    let stopper = told.recv().expect("the server starts");
    let mut client = Endpoint::connect(&address).expect("it listens");
    let mut sent = 0;
    let mut group = criterion.benchmark_group("one_way");
    group
        .throughput(Throughput::Elements(BATCH))
        .sample_size(10);
    for size in [1usize, 32, 64, 1024] {
        let payload = vec![0x3c; size];
        group.bench_function(BenchmarkId::from_parameter(size), |bencher| {
            bencher.iter(|| {
                for _ in 0..BATCH {
                    client.send(1, &payload).expect("room");
                }
                sent += BATCH;
                assert_eq!(client.call(2, b"").expect("an answer"), sent.to_ne_bytes());
            });
        });
    }
    group.finish();
    stopper.stop();
    server.join().expect("the server ends");
}

criterion_group!(benches, rate);
criterion_main!(benches);
