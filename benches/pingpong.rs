//! Round trips between two threads, each with its endpoint and on its own CPU if there are two. `tightbeam bench` measures two
//! processes beside the hardware floor; this follows changes of the code with criterion's statistics.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use tightbeam::{Endpoint, Handlers, Message, Reply, Wait};

fn echo(_: &mut (), message: Message<'_>, reply: Reply<'_>) {
    reply.send(message.bytes());
}

fn pin(which: usize) {
    // On a machine with one CPU both stay where they are.
    let cpus = tightbeam_sys::cpu::allowed().unwrap_or_default();
    if let Some(&cpu) = cpus.get(which) {
        let _ = tightbeam_sys::cpu::pin(cpu);
    }
}

fn pingpong(criterion: &mut Criterion) {
    let path = std::env::temp_dir().join(format!("tb-pingpong-{}", std::process::id()));
    let address = format!("shm:{}", path.display());
    let (tell, told) = std::sync::mpsc::channel();
    let place = address.clone();
    let server = std::thread::spawn(move || {
        pin(1);
        let builder = Endpoint::builder().handlers(Handlers::new().on(1, echo));
        let mut server = builder
            .wait(Wait::Adaptive)
            .listen(&place)
            .expect("a free path");
        tell.send(server.stopper()).expect("the bench waits");
        server.run().expect("it listens");
    });
    let stopper = told.recv().expect("the server starts");
    pin(0);
    let mut client = Endpoint::connect(&address).expect("it listens");
    let mut group = criterion.benchmark_group("round_trip");
    for size in [0usize, 8, 56, 64, 256, 1024] {
        let payload = vec![0xa5; size];
        group.bench_function(BenchmarkId::from_parameter(size), |bencher| {
            bencher.iter(|| assert_eq!(client.call(1, &payload).expect("an answer").len(), size));
        });
    }
    group.finish();
    stopper.stop();
    server.join().expect("the server ends");
}

criterion_group!(benches, pingpong);
criterion_main!(benches);
