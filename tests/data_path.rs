//! Between open and close, while both sides poll: no system calls (a kernel filter kills on any) and no allocations (a
//! counting allocator), on either side (I5). Two processes, calls and one-way messages of all sizes.

mod support;

use seccompiler::{SeccompAction, SeccompFilter, TargetArch};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::process::ExitStatus;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use support::{Ledger, Peer, Scratch, opened, patiently, role};
use tightbeam::{Endpoint, Handlers, MAX_INLINE, PAYLOAD_BYTES, Wait};
use tightbeam_sys::process::exit_now;

const ECHO: u16 = 1;
const COUNT: u16 = 2;
const TRESPASS: u16 = 3;

/// Calls under the filter, and calls with counted allocations.
const FILTERED_CALLS: u64 = 1_000_000;
const COUNTED_CALLS: u64 = 100_000;
/// One-way messages after them, of all sizes, in each direction at once.
const STREAM: u64 = 50_000;

/// Words of the ledger: each side says when it has done its part.
const SERVED: usize = 0;
const CALLED: usize = 1;

/// Exit code of a child that cannot install a filter.
const NO_FILTER: i32 = 77;

struct Counting;

thread_local! {
    static WATCHED: Cell<bool> = const { Cell::new(false) };
    static COUNTED: Cell<u64> = const { Cell::new(0) };
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Counts a request to the allocator if it comes from the thread that is watched.
fn note() {
    if WATCHED.get() {
        COUNTED.set(COUNTED.get() + 1);
    }
}

// SAFETY: every request is passed on as it is to the system's allocator, which keeps the contract; the counters are
// thread-locals without initialisers or destructors, so counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        note();
        // SAFETY: as in `alloc`; the pointer came from there.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: as in `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note();
        // SAFETY: as in `dealloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// How often this thread asks the allocator for something, or gives something back, while it does this.
fn allocations(work: impl FnOnce()) -> u64 {
    let before = COUNTED.get();
    WATCHED.set(true);
    work();
    WATCHED.set(false);
    COUNTED.get() - before
}

/// From now on any system call of this thread but the one that ends the process kills the process.
fn forbid_system_calls() {
    let arch = TargetArch::try_from(std::env::consts::ARCH).expect("x86-64 or AArch64");
    let allowed = BTreeMap::from([(libc::SYS_exit_group, Vec::new())]);
    let filter = SeccompFilter::new(
        allowed,
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        arch,
    );
    let program: seccompiler::BpfProgram = filter
        .and_then(|filter| filter.try_into())
        .expect("one rule without conditions");
    if let Err(error) = seccompiler::apply_filter(&program) {
        eprintln!("no filter: {error}");
        exit_now(NO_FILTER);
    }
    // Dropping what is not needed any more might give memory back to the kernel.
    std::mem::forget(program);
}

/// What each side has handled.
#[derive(Default)]
struct Handled {
    calls: u64,
    messages: u64,
}

fn handlers() -> Handlers<Handled> {
    Handlers::new()
        .on(ECHO, |handled: &mut Handled, message, reply| {
            handled.calls += 1;
            reply.send(message.bytes());
        })
        .on(COUNT, |handled, message, _| {
            handled.messages += u64::from(!message.bytes().ends_with(b"not this"));
        })
        .on(TRESPASS, |_, _, _| {
            let _ = rustix::process::getppid();
        })
}

fn builder() -> tightbeam::Builder<Handled> {
    let builder = Endpoint::builder().state(Handled::default());
    builder.handlers(handlers()).wait(Wait::Spin).deadline(BUSY)
}

/// The server's side: answers calls until the first one-way message, then streams as much as it gets.
fn serve(server: &mut Endpoint<Handled>, calls: u64) {
    while server.state().calls < calls {
        server.poll_for(64, BUSY);
    }
    stream(server);
}

/// The client's side.
fn call(client: &mut Endpoint<Handled>, calls: u64) {
    let mut payload = [0x5a; PAYLOAD_BYTES];
    for n in 0..calls {
        payload[..8].copy_from_slice(&n.to_ne_bytes());
        let payload = &payload[..8 + (n % 49) as usize];
        let answer = client.call(ECHO, payload);
        assert_eq!(answer, Ok(payload));
    }
    stream(client);
}

/// Both sides send to each other, faster than they handle: rings fill, and sending waits.
fn stream(endpoint: &mut Endpoint<Handled>) {
    let payload = [0xa5; MAX_INLINE];
    for n in 0..STREAM {
        let payload = &payload[..n as usize % (MAX_INLINE + 1)];
        assert_eq!(endpoint.send(COUNT, payload), Ok(()));
    }
    while endpoint.state().messages < STREAM {
        endpoint.poll_for(64, BUSY);
    }
}

fn listening(address: &str) -> Endpoint<Handled> {
    let mut server = builder().listen(address).expect("a free path");
    opened(&mut server);
    server
}

fn connected(address: &str) -> Endpoint<Handled> {
    patiently(|| builder().connect(address).ok())
}

/// Does its part, says so, and stays there until the other side has done its own: an end of the peer is no data path.
fn part(ledger: &Ledger, mine: usize, theirs: usize, work: impl FnOnce()) {
    work();
    ledger.write(mine, 1);
    while ledger.read(theirs) == 0 {
        std::hint::spin_loop();
    }
}

/// Runs what a child is asked to be; in the test runner it does nothing.
#[test]
fn child_role() {
    let Some((role, address)) = role() else {
        return;
    };
    let ledger = Ledger::of(&address);
    match role.as_str() {
        "serve filtered" => {
            let mut server = listening(&address);
            forbid_system_calls();
            part(&ledger, SERVED, CALLED, || {
                serve(&mut server, FILTERED_CALLS)
            });
            exit_now(0);
        }
        "call filtered" => {
            let mut client = connected(&address);
            forbid_system_calls();
            part(&ledger, CALLED, SERVED, || {
                call(&mut client, FILTERED_CALLS)
            });
            exit_now(0);
        }
        // Its peer has it make a system call inside a handler, after calls that went well.
        "serve filtered until trespass" => {
            let mut server = listening(&address);
            forbid_system_calls();
            loop {
                server.poll_for(64, BUSY);
            }
        }
        "busy in a runtime" => busy_in_a_runtime(&address),
        "serve counted" => {
            let mut server = listening(&address);
            let counted = allocations(|| {
                part(&ledger, SERVED, CALLED, || {
                    serve(&mut server, COUNTED_CALLS)
                });
            });
            assert_eq!(counted, 0, "the server allocates");
        }
        "call counted" => {
            let mut client = connected(&address);
            let counted = allocations(|| {
                part(&ledger, CALLED, SERVED, || call(&mut client, COUNTED_CALLS));
            });
            assert_eq!(counted, 0, "the client allocates");
        }
        other => panic!("no such role: {other}"),
    }
}

/// Both endpoints on one thread, so that each finds something whenever it looks; and they would sleep if they did not.
fn busy_in_a_runtime(address: &str) {
    const ROUNDS: u64 = 20_000;
    let builder = || builder().wait(Wait::Adaptive);
    let mut server = builder().listen(address).expect("a free path");
    let mut client = builder().connect(address).expect("it listens");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(async {
        // The event that it was opened.
        server.ready().await.expect("descriptors");
        server.next_event().expect("opened");
        forbid_system_calls();
        for round in 1..=ROUNDS {
            for endpoint in [&mut client, &mut server] {
                let sent = endpoint.try_send(COUNT, &round.to_ne_bytes());
                assert_eq!(sent, Ok(()));
            }
            for endpoint in [&mut server, &mut client] {
                while endpoint.state().messages < round {
                    assert!(endpoint.ready().await.expect("descriptors") > 0);
                }
            }
        }
        exit_now(0);
    });
}

/// Two processes that spin need a CPU each, and these tests need them for themselves: one at a time.
static CPUS: Mutex<()> = Mutex::new(());

/// How long two spinning processes may take on a busy machine, on which each round trip may cost a time slice.
const BUSY: Duration = Duration::from_secs(100);

/// Runs both sides, and says how each ended; the one is not waited for once the other has failed.
fn run(server: &str, client: &str, place: &str) -> [Option<ExitStatus>; 2] {
    let mut peers = [server, client].map(|role| Peer::start(role, place));
    let ledger = Ledger::of(place);
    let deadline = Instant::now() + BUSY;
    loop {
        let ends = peers
            .each_mut()
            .map(|peer| peer.0.try_wait().expect("our own child"));
        let failed = ends.iter().flatten().any(|end| !end.success());
        if failed || ends.iter().all(Option::is_some) {
            return ends;
        }
        assert!(
            Instant::now() < deadline,
            "server done: {}, client done: {}, ended: {ends:?}",
            ledger.read(SERVED),
            ledger.read(CALLED),
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Whether the machine can run this at all; says so if not.
fn can_run(ends: &[Option<ExitStatus>]) -> bool {
    let refused = ends.iter().flatten().any(|e| e.code() == Some(NO_FILTER));
    if refused {
        println!("skipped: this machine lets no seccomp filter be installed");
    }
    !refused
}

fn enough_cpus() -> bool {
    let enough = tightbeam_sys::cpu::allowed().is_ok_and(|cpus| cpus.len() >= 2);
    if !enough {
        println!("skipped: two processes that spin need two CPUs");
    }
    enough
}

/// A million round trips and a stream in both directions under the filter.
#[test]
fn no_system_calls_between_open_and_close() {
    let _alone = CPUS.lock();
    let scratch = Scratch::new("filtered");
    if !enough_cpus() {
        return;
    }
    let ends = run("serve filtered", "call filtered", &scratch.address());
    if can_run(&ends) {
        let codes = ends.map(|end| end.and_then(|e| e.code()));
        assert_eq!(codes, [Some(0); 2], "server and client: {ends:?}");
    }
}

/// While messages keep coming an endpoint in a tokio runtime makes none either.
#[test]
fn no_system_calls_in_a_busy_runtime() {
    let scratch = Scratch::new("filtered-runtime");
    let status = Peer::start("busy in a runtime", &scratch.address()).status();
    if can_run(&[Some(status)]) {
        assert_eq!(status.code(), Some(0), "{status}");
    }
}

/// The filter kills who makes a system call, so that the tests above can fail.
#[test]
fn a_system_call_under_the_filter_is_fatal() {
    let _alone = CPUS.lock();
    let scratch = Scratch::new("trespass");
    let server = Peer::start("serve filtered until trespass", &scratch.address());
    let mut client = connected(&scratch.address());
    for _ in 0..1000 {
        if let Err(error) = client.call(ECHO, b"well behaved") {
            let status = server.status();
            assert!(!can_run(&[Some(status)]), "{error}; {status}");
            return;
        }
    }
    client.send(TRESPASS, b"").expect("room");
    assert_eq!(server.killed_by(), Some(libc::SIGSYS));
}

#[test]
fn no_allocations_between_open_and_close() {
    let _alone = CPUS.lock();
    let scratch = Scratch::new("counted");
    if !enough_cpus() {
        return;
    }
    let ends = run("serve counted", "call counted", &scratch.address());
    let codes = ends.map(|end| end.and_then(|e| e.code()));
    assert_eq!(codes, [Some(0); 2], "server and client: {ends:?}");
}

/// The allocator counts, so that the test above can fail.
#[test]
fn an_allocation_is_counted() {
    let counted = allocations(|| drop(std::hint::black_box(Box::new(1))));
    assert_eq!(counted, 2);
    let mut list = Vec::with_capacity(1);
    list.push(1u8);
    assert_eq!(allocations(|| list.reserve(1 << 10)), 1);
    assert_eq!(allocations(|| ()), 0);
}
