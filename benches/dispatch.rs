//! From a message that is there to its handler and back: two endpoints of one thread, so no time is spent on the way.

use criterion::{Criterion, criterion_group, criterion_main};
use tightbeam::{Endpoint, Handlers, Message, Reply};

fn dispatch(criterion: &mut Criterion) {
    let path = std::env::temp_dir().join(format!("tb-dispatch-{}", std::process::id()));
    let address = format!("shm:{}", path.display());
    let count = |seen: &mut u64, message: Message<'_>, _: Reply<'_>| {
        *seen += message.bytes().len() as u64;
    };
    let handlers = Handlers::<u64>::new().on(1, count);
    let mut server = Endpoint::listen(&address, handlers).expect("a free path");
    let mut client = Endpoint::connect(&address).expect("it listens");
    while server.channels().next().is_none() {
        server.poll(1);
    }
    criterion.bench_function("send_poll_handle", |bencher| {
        bencher.iter(|| {
            client.try_send(1, b"56 bytes").expect("room");
            assert_eq!(server.poll(16), 1);
        });
    });
    criterion.bench_function("empty_poll", |bencher| bencher.iter(|| server.poll(16)));
    assert!(*server.state() > 0);
}

criterion_group!(benches, dispatch);
criterion_main!(benches);
