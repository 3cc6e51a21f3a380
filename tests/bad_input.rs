//! Wrong addresses, wrong paths, wrong users, wrong limits: each gets an error that names what is wrong and what to do.
//! Wrong peers are in `bad_peers.rs`.

mod support;

use std::os::unix::fs::PermissionsExt;
use support::{Peer, Scratch, assert_says, patiently, role};
use tightbeam::{AddressError, Endpoint, Handlers, OpenError, Want};
use tightbeam_sys::control;

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

/// What both verbs say of an address or a path that neither can use.
fn refusals(address: &str) -> [OpenError; 2] {
    let listening = Endpoint::listen(address, Handlers::<()>::new());
    [refusal(address), listening.err().expect("refused")]
}

#[test]
fn an_address_that_is_none() {
    for error in refusals("tcp:127.0.0.1:80") {
        let is_it = matches!(
            error,
            OpenError::Address(AddressError::UnknownScheme { .. })
        );
        assert!(is_it, "{error}");
        assert_says(&error, &["tcp", "shm:PATH"]);
    }
    for error in refusals("/tmp/x.sock") {
        let is_it = matches!(error, OpenError::Address(AddressError::NoScheme { .. }));
        assert!(is_it, "{error}");
        assert_says(&error, &["/tmp/x.sock", "shm:PATH"]);
    }
    let long = format!("/{}", "y".repeat(107));
    for error in refusals(&format!("shm:{long}")) {
        let is_it = matches!(
            error,
            OpenError::Address(AddressError::PathTooLong { len: 108, .. })
        );
        assert!(is_it, "{error}");
        assert_says(&error, &["108 bytes", "107", &long]);
    }
    for error in refusals("shm:") {
        assert!(matches!(error, OpenError::Address(AddressError::NoPath)));
        assert_says(&error, &["no path", "shm:/tmp/echo.sock"]);
    }
    for error in refusals("shm:/tmp/a\0b") {
        assert!(matches!(error, OpenError::Address(AddressError::NulInPath)));
        assert_says(&error, &["NUL"]);
    }
    // The longest path that fits works, without its last byte lost.
    let scratch = Scratch::new("long");
    let room = 107 - scratch.path("").as_os_str().len();
    let longest = format!("shm:{}", scratch.path(&"z".repeat(room)).display());
    let _server = listen(&longest);
    Endpoint::connect(&longest).expect("it fits");
}

#[test]
fn paths_that_cannot_be_used() {
    let scratch = Scratch::new("paths");
    let error = refusal(&scratch.address());
    assert!(matches!(error, OpenError::NobodyListens { .. }), "{error}");
    assert_says(&error, &["nobody listens", "sock", "start the server"]);

    for error in refusals(&format!("shm:{}/sock", scratch.path("missing").display())) {
        assert!(matches!(error, OpenError::NoDirectory { .. }), "{error}");
        assert_says(&error, &["directory", "missing/sock", "does not exist"]);
    }

    std::fs::write(scratch.path("sock"), "a file").expect("write");
    for error in refusals(&scratch.address()) {
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

    let path = scratch.path("stream");
    let other = std::os::unix::net::UnixListener::bind(&path).expect("bind");
    let [error, listening] = refusals(&format!("shm:{}", path.display()));
    assert!(matches!(error, OpenError::NotTightbeam { .. }), "{error}");
    assert_says(&error, &["does not speak Tightbeam", "stream"]);
    assert!(matches!(listening, OpenError::InUse { .. }), "{listening}");
    // Of whatever type, what a dead process left is nobody's.
    drop(other);
    let error = refusal(&format!("shm:{}", path.display()));
    assert!(
        matches!(
            error,
            OpenError::NobodyListens { .. } | OpenError::NotTightbeam { .. }
        ),
        "{error}"
    );
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
