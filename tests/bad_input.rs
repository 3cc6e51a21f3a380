//! Wrong addresses, wrong peers, wrong limits: each gets an error that names what is wrong and what to do.

mod support;

use rustix::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};
use support::{Peer, Scratch, next_event, patiently, role};
use tightbeam::{AddressError, Endpoint, Event, Handlers, OpenError, PeerFault, Wait, Want};
use tightbeam_segment::{Identity, Incarnation, LAYOUT_HASH, Layout, VERSION};
use tightbeam_sys::control;
use tightbeam_sys::memory::{MemoryOptions, OwnMemory, SharedWords};

/// Nobody, who owns nothing here.
const NOBODY: u32 = 65_534;

fn listen(address: &str) -> Endpoint {
    Endpoint::listen(address, Handlers::new()).expect("a free path")
}

fn refusal(address: &str) -> OpenError {
    Endpoint::connect(address)
        .err()
        .expect("it must be refused")
}

fn assert_says(error: &OpenError, words: &[&str]) {
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "`{text}` does not say `{word}`");
    }
}

/// Runs what a child is asked to be, after it has become nobody; in the test runner it does nothing.
#[test]
fn child_role() {
    let Some((role, address)) = role() else {
        return;
    };
    if role == "locked memory" {
        let limit = rustix::process::Rlimit {
            current: Some(8192),
            maximum: Some(8192),
        };
        rustix::process::setrlimit(rustix::process::Resource::Memlock, limit).expect("lower");
    }
    // SAFETY: bounds: the call changes this process's ids only, and takes a plain number.
    let group = unsafe { libc::setgid(NOBODY) };
    // SAFETY: bounds: as above.
    let user = unsafe { libc::setuid(NOBODY) };
    assert_eq!((group, user), (0, 0), "this test runs as root");
    match role.as_str() {
        "no permission to listen" => {
            let error = Endpoint::listen(&address, Handlers::<()>::new())
                .err()
                .expect("refused");
            assert!(matches!(error, OpenError::NoPermission { .. }), "{error}");
            assert_says(&error, &["no permission", "sock"]);
        }
        "no permission to connect" => {
            let error = refusal(&address);
            assert!(matches!(error, OpenError::NoPermission { .. }), "{error}");
            assert_says(&error, &["no permission", "sock"]);
        }
        "not admitted" => {
            let builder = Endpoint::builder().admit(|_| true);
            let error = builder.connect(&address).err().expect("refused");
            assert!(
                matches!(error, OpenError::NotAdmitted { uid: NOBODY }),
                "{error}"
            );
            assert_says(&error, &["65534", "policy"]);
        }
        "untrusted listener" => {
            let error = refusal(&address);
            assert!(
                matches!(error, OpenError::Untrusted { uid: 0, .. }),
                "{error}"
            );
            assert_says(&error, &["user 0", "policy"]);
        }
        "admitted" => {
            let builder = Endpoint::builder().admit(|_| true);
            builder
                .connect(&address)
                .expect("the policy admits everybody");
        }
        "locked memory" => {
            let builder = Endpoint::builder()
                .admit(|_| true)
                .memory(Want::Require, Want::No);
            let error = builder.connect(&address).err().expect("refused");
            assert_says(&error, &["8192 bytes", "ulimit -l", "RLIMIT_MEMLOCK"]);
            let builder = Endpoint::builder()
                .admit(|_| true)
                .memory(Want::Try, Want::No);
            let client = builder
                .connect(&address)
                .expect("tried in vain, and reported");
            let channel = client.channels().next().expect("a channel");
            assert!(!client.memory(channel).expect("it lives").locked);
        }
        other => panic!("no such role: {other}"),
    }
}

/// Runs a role as nobody, while `server` polls.
fn as_nobody(role: &str, address: &str, server: Option<&mut Endpoint>) {
    if control::own_uid() != 0 {
        println!("skipped: {role}: not root, cannot become another user");
        return;
    }
    let mut child = Peer::start(role, address);
    let mut server = server;
    let status = patiently(|| {
        if let Some(server) = &mut server {
            server.poll(16);
        }
        child.0.try_wait().expect("our own child")
    });
    assert!(status.success(), "{role}");
}

#[test]
fn an_address_that_is_none() {
    let error = refusal("tcp:127.0.0.1:80");
    assert!(
        matches!(
            error,
            OpenError::Address(AddressError::UnknownScheme { .. })
        ),
        "{error}"
    );
    assert_says(&error, &["tcp", "shm:PATH"]);
    let error = refusal("/tmp/x.sock");
    assert_says(&error, &["/tmp/x.sock", "shm:PATH"]);
    let error = refusal(&format!("shm:/{}", "y".repeat(107)));
    assert_says(&error, &["108 bytes", "107"]);
}

#[test]
fn paths_that_cannot_be_used() {
    let scratch = Scratch::new("paths");
    let error = refusal(&scratch.address());
    assert!(matches!(error, OpenError::NobodyListens { .. }), "{error}");
    assert_says(&error, &["nobody listens", "sock", "start the server"]);

    let error = refusal(&format!("shm:{}/sock", scratch.path("missing").display()));
    assert!(matches!(error, OpenError::NoDirectory { .. }), "{error}");

    std::fs::write(scratch.path("sock"), "a file").expect("write");
    for error in [
        refusal(&scratch.address()),
        Endpoint::listen(&scratch.address(), Handlers::<()>::new())
            .err()
            .expect("refused"),
    ] {
        assert!(matches!(error, OpenError::NotASocket { .. }), "{error}");
        assert_says(&error, &["no socket", "sock"]);
    }
    assert_eq!(
        std::fs::read(scratch.path("sock")).expect("still there"),
        b"a file"
    );
    std::fs::remove_file(scratch.path("sock")).expect("ours");

    let _server = listen(&scratch.address());
    let error = Endpoint::listen(&scratch.address(), Handlers::<()>::new())
        .err()
        .expect("refused");
    assert!(matches!(error, OpenError::InUse { .. }), "{error}");
    assert_says(&error, &["live listener", "sock"]);

    let other = scratch.path("stream");
    let _other = std::os::unix::net::UnixListener::bind(&other).expect("bind");
    let error = refusal(&format!("shm:{}", other.display()));
    assert!(matches!(error, OpenError::NotTightbeam { .. }), "{error}");
}

#[test]
fn users_who_are_not_admitted() {
    let scratch = Scratch::new("users");
    let mut server = listen(&scratch.address());
    let open = |mode| {
        for path in [scratch.path(""), scratch.path("sock")] {
            let permissions = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(path, permissions).expect("ours");
        }
    };
    open(0o700);
    as_nobody("no permission to connect", &scratch.address(), None);
    as_nobody(
        "no permission to listen",
        &format!("shm:{}", scratch.path("sock2").display()),
        None,
    );
    open(0o777);
    as_nobody("not admitted", &scratch.address(), Some(&mut server));
    as_nobody("untrusted listener", &scratch.address(), Some(&mut server));
    assert!(server.next_event().is_none(), "nobody was admitted");
    drop(server);

    let builder = Endpoint::builder().admit(|_| true);
    let mut generous = builder.listen(&scratch.address()).expect("a free path");
    open(0o777);
    as_nobody("admitted", &scratch.address(), Some(&mut generous));
    as_nobody("locked memory", &scratch.address(), Some(&mut generous));
}

#[test]
fn limits_are_named() {
    let scratch = Scratch::new("limits");
    let error = Endpoint::builder()
        .depth(1000)
        .connect(&scratch.address())
        .err()
        .expect("refused");
    assert!(matches!(error, OpenError::Depth(_)), "{error}");
    assert_says(&error, &["1000", "power of two", "512", "1024"]);
    let error = Endpoint::builder()
        .depth(1 << 17)
        .listen(&scratch.address())
        .err();
    assert_says(&error.expect("refused"), &["131072", "2 to 65536"]);

    let free = std::fs::read_to_string("/proc/sys/vm/nr_hugepages").unwrap_or_default();
    if free.trim() != "0" {
        println!("skipped: huge pages are reserved on this machine");
        return;
    }
    let _server = listen(&scratch.address());
    let builder = Endpoint::builder().memory(Want::No, Want::Require);
    let error = builder.connect(&scratch.address()).err().expect("refused");
    assert_says(&error, &["huge pages", "vm.nr_hugepages"]);
    let builder = Endpoint::builder().memory(Want::No, Want::Try);
    let client = builder
        .connect(&scratch.address())
        .expect("tried in vain, and reported");
    let channel = client.channels().next().expect("a channel");
    assert!(!client.memory(channel).expect("it lives").huge_pages);
}

/// The opening message, written by hand: see `runtime/endpoint/src/control/wire.rs`.
fn opening(kind: u32, identity: Identity) -> Vec<u8> {
    let mut bytes = b"tb-open\x9d".to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(identity.version.to_ne_bytes());
    bytes.extend(identity.layout_hash.to_ne_bytes());
    bytes.extend(identity.page_size.to_ne_bytes());
    bytes.extend(identity.depth.to_ne_bytes());
    bytes.extend(
        identity
            .incarnation
            .0
            .iter()
            .flat_map(|word| word.to_ne_bytes()),
    );
    bytes.extend([0; 8]);
    bytes
}

const HELLO: u32 = 1;
const WELCOME: u32 = 2;
const REFUSAL: u32 = 3;

fn identity() -> Identity {
    let layout = Layout::new(64).expect("a depth");
    Identity::ours(
        layout,
        tightbeam_sys::memory::page_size() as u32,
        Incarnation([3, 4]),
    )
}

/// What is wrong with an identity, and the words with which that is told.
fn misfits() -> [(Identity, &'static str, [String; 2]); 4] {
    let page = identity().page_size;
    [
        (
            Identity {
                version: 77,
                ..identity()
            },
            "version",
            [VERSION.to_string(), "77".into()],
        ),
        (
            Identity {
                layout_hash: 0xabcd,
                ..identity()
            },
            "layout",
            [format!("{LAYOUT_HASH:#018x}"), "0x000000000000abcd".into()],
        ),
        (
            Identity {
                page_size: 65_536,
                ..identity()
            },
            "page size",
            [page.to_string(), "65536".into()],
        ),
        (
            Identity {
                depth: 7,
                ..identity()
            },
            "depth",
            ["7".into(), "depth".into()],
        ),
    ]
}

fn receive(socket: &OwnedFd) -> Option<Vec<u8>> {
    let mut buffer = [0; 256];
    let received = patiently(|| match control::receive(socket.as_fd(), &mut buffer) {
        Err(tightbeam_sys::Errno::AGAIN) => None,
        other => Some(other),
    });
    match received {
        Ok(received) if received.bytes > 0 => Some(buffer[..received.bytes].to_vec()),
        _ => None,
    }
}

#[test]
fn a_client_of_another_build_is_told_who_we_are() {
    let scratch = Scratch::new("misfit");
    let mut server = listen(&scratch.address());
    let options = MemoryOptions::default();
    for (theirs, what, _) in misfits() {
        let memory = OwnMemory::create(1 << 16, &options).expect("memory");
        let socket = control::connect(&scratch.path("sock")).expect("it listens");
        control::send(socket.as_fd(), &opening(HELLO, theirs), Some(memory.fd())).expect("sent");
        let answer = receive(&socket).unwrap_or_else(|| panic!("an answer to a wrong {what}"));
        assert_eq!(answer[8..12], REFUSAL.to_ne_bytes(), "{what}");
        assert_eq!(answer[12..16], VERSION.to_ne_bytes());
        assert_eq!(answer[16..24], LAYOUT_HASH.to_ne_bytes());
    }
    server.poll(1);
    assert!(server.next_event().is_none());
}

#[test]
fn a_listener_of_another_build_is_named_in_the_error() {
    for (theirs, what, words) in misfits() {
        for kind in [WELCOME, REFUSAL] {
            let scratch = Scratch::new("other");
            let listener = control::listen(&scratch.path("sock")).expect("a free path");
            let address = scratch.address();
            let client = std::thread::spawn(move || refusal(&address));
            let socket = patiently(|| control::accept(listener.as_fd()).ok());
            receive(&socket).expect("a hello");
            let memory = OwnMemory::create(1 << 16, &MemoryOptions::default()).expect("memory");
            let segment = (kind == WELCOME).then_some(memory.fd());
            control::send(socket.as_fd(), &opening(kind, theirs), segment).expect("sent");
            let error = client.join().expect("no panic");
            assert!(matches!(error, OpenError::Mismatch(_)), "{what}: {error}");
            assert_says(&error, &[what, &words[0], &words[1]]);
        }
    }
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("proc").count()
}

/// Clients that say nothing, or garbage, or bring the wrong descriptors, get no channel and delay nobody.
#[test]
fn strange_clients() {
    let scratch = Scratch::new("strange");
    let builder = Endpoint::builder()
        .open_within(Duration::from_millis(200))
        .wait(Wait::Spin);
    let mut server = builder.listen(&scratch.address()).expect("a free path");
    let connect = || control::connect(&scratch.path("sock")).expect("it listens");
    let send = |bytes: &[u8], descriptor: Option<&OwnedFd>| {
        let socket = connect();
        let descriptor = descriptor.map(|d| d.as_fd());
        control::send(socket.as_fd(), bytes, descriptor).expect("sent");
        socket
    };
    let words = SharedWords::create(1 << 12)
        .expect("memory")
        .fd()
        .try_clone_to_owned();
    let unsealed = words.expect("a descriptor");
    let sealed = |bytes| {
        let memory = OwnMemory::create(bytes, &MemoryOptions::default()).expect("memory");
        memory.fd().try_clone_to_owned().expect("a descriptor")
    };
    let (pipe, _writer) = std::io::pipe().expect("a pipe");
    let pipe = OwnedFd::from(pipe);
    let hello = opening(HELLO, identity());
    let before = open_descriptors();

    let silent: Vec<OwnedFd> = (0..100).map(|_| connect()).collect();
    // Somebody with manners gets through meanwhile.
    let mut polite = Endpoint::connect(&scratch.address()).expect("not delayed");
    assert!(matches!(next_event(&mut server), Event::Opened { .. }));
    assert!(polite.try_send(1, b"hello").is_ok());
    drop(silent);

    for (bytes, descriptor) in [
        (b"GET / HTTP/1.1\r\n".as_slice(), None),
        (b"GET / HTTP/1.1\r\n", Some(&pipe)),
        (&[0xff; 200], None),
        (&hello[..40], Some(&sealed(1 << 16))),
        (&hello, None),
        (&opening(WELCOME, identity()), Some(&sealed(1 << 16))),
    ] {
        assert_eq!(
            receive(&send(bytes, descriptor)),
            None,
            "hung up without an answer"
        );
    }
    for descriptor in [&unsealed, &pipe, &sealed(4096)] {
        let answer = receive(&send(&hello, Some(descriptor))).expect("a refusal");
        assert_eq!(answer[8..12], REFUSAL.to_ne_bytes());
    }
    // A silent client is hung up on when its time is over.
    let start = Instant::now();
    assert_eq!(receive(&connect()), None);
    assert!(
        start.elapsed() >= Duration::from_millis(100),
        "it was given time"
    );

    drop(polite);
    assert!(matches!(next_event(&mut server), Event::Closed { .. }));
    patiently(|| (open_descriptors() <= before).then_some(()));
}

/// After the opening nothing belongs on the control socket.
#[test]
fn a_client_that_talks_on_the_control_socket_is_at_fault() {
    let scratch = Scratch::new("babble");
    let mut server = listen(&scratch.address());
    let memory = OwnMemory::create(1 << 16, &MemoryOptions::default()).expect("memory");
    let descriptor = memory.fd().try_clone_to_owned().expect("a descriptor");
    let layout = Layout::new(64).expect("a depth");
    let _formatted = layout.format(tightbeam_segment::OwnLines::new(memory), &identity());
    let socket = control::connect(&scratch.path("sock")).expect("it listens");
    let hello = opening(HELLO, identity());
    control::send(socket.as_fd(), &hello, Some(descriptor.as_fd())).expect("sent");
    assert!(matches!(next_event(&mut server), Event::Opened { .. }));
    control::send(socket.as_fd(), b"and another thing", None).expect("sent");
    let end = next_event(&mut server);
    assert!(
        matches!(
            end,
            Event::Faulted {
                fault: PeerFault::Control,
                ..
            }
        ),
        "{end:?}"
    );
}

/// A peer that hangs up, lives, and never closed the channel broke the rules; it is not dead.
#[test]
fn a_client_that_only_hangs_up_is_at_fault() {
    let scratch = Scratch::new("hangup");
    let mut server = listen(&scratch.address());
    let memory = OwnMemory::create(1 << 16, &MemoryOptions::default()).expect("memory");
    let descriptor = memory.fd().try_clone_to_owned().expect("a descriptor");
    let layout = Layout::new(64).expect("a depth");
    let _formatted = layout.format(tightbeam_segment::OwnLines::new(memory), &identity());
    let socket = control::connect(&scratch.path("sock")).expect("it listens");
    let hello = opening(HELLO, identity());
    control::send(socket.as_fd(), &hello, Some(descriptor.as_fd())).expect("sent");
    assert!(matches!(next_event(&mut server), Event::Opened { .. }));
    drop(socket);
    let end = next_event(&mut server);
    assert!(
        matches!(
            end,
            Event::Faulted {
                fault: PeerFault::HungUp,
                ..
            }
        ),
        "{end:?}"
    );
}
