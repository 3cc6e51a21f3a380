//! Opening a channel: until both sides have it and a first call was answered, and what it costs in memory.

use criterion::{Criterion, criterion_group, criterion_main};
use tightbeam::{Builder, Endpoint, Handlers, Message, Reply};

const SMALL_DEPTH: usize = 64;

fn echo(_: &mut (), message: Message<'_>, reply: Reply<'_>) {
    reply.send(message.bytes());
}

fn open(criterion: &mut Criterion) {
    let path = std::env::temp_dir().join(format!("tb-open-{}", std::process::id()));
    let address = format!("shm:{}", path.display());
    let (tell, told) = std::sync::mpsc::channel();
    let place = address.clone();
    let server = std::thread::spawn(move || {
        let builder = Endpoint::builder().handlers(Handlers::new().on(1, echo));
        let mut server = builder.listen(&place).expect("a free path");
        tell.send(server.stopper()).expect("the bench waits");
        server.run().expect("it listens");
    });
    let stopper = told.recv().expect("the server starts");
    let mut group = criterion.benchmark_group("open");
    let small = || Endpoint::builder().depth(SMALL_DEPTH);
    for (name, builder) in [
        ("default", &Endpoint::builder as &dyn Fn() -> Builder<()>),
        ("small", &small),
    ] {
        let connect = || builder().connect(&address).expect("it listens");
        let client = connect();
        let channel = client.channels().next().expect("an open channel");
        let memory = client.memory(channel).expect("an open channel");
        println!("{name} channel: {} bytes of memory a side", memory.bytes);
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let mut client = connect();
                assert_eq!(client.call(1, b"there?").expect("an answer"), b"there?");
            });
        });
    }
    group.finish();
    stopper.stop();
    server.join().expect("the server ends");
}

criterion_group!(benches, open);
criterion_main!(benches);
