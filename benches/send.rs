//! What one message costs its sender and its receiver in instructions and cache hits, without a second CPU: both ends of a ring in
//! one thread, one message put in and taken out. For latency between CPUs see `pingpong.rs` and `tightbeam bench`.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use std::hint::black_box;
use tightbeam_segment::{Arrival, Layout, Outgoing, testing};

fn send(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("send_and_take");
    for size in [0usize, 8, 56, 64, 256, 1024] {
        let (left, mut right) = testing::pair(Layout::new(1024).expect("a depth"));
        let payload = vec![0x5a; size];
        group.bench_function(BenchmarkId::from_parameter(size), |bencher| {
            bencher.iter(|| {
                left.try_send(Outgoing::message(1), black_box(&payload))
                    .expect("room");
                assert!(matches!(right.arrival(), Arrival::Message { handler: 1 }));
                assert_eq!(black_box(right.incoming().0.bytes()).len(), size);
                right.consume();
                right.finish_drain();
            });
        });
    }
    group.finish();
}

criterion_group!(benches, send);
criterion_main!(benches);
