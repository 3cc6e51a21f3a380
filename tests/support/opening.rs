//! The opening exchange spoken by hand, for peers of another build and peers without manners: see
//! `runtime/endpoint/src/control/wire.rs`.

use super::patiently;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use tightbeam_segment::{Formatted, Identity, Incarnation, LAYOUT_HASH, Layout, OwnLines, VERSION};
use tightbeam_sys::control;
use tightbeam_sys::control::Received;
use tightbeam_sys::memory::{MemoryOptions, OwnMemory, PeerMemory, SharedWords};

pub(crate) const HELLO: u32 = 1;
pub(crate) const WELCOME: u32 = 2;
pub(crate) const REFUSAL: u32 = 3;
pub(crate) const READY: u32 = 4;
/// What memory is passed with: "tb-mem" and two bytes that no text has (`runtime/endpoint/src/connection.rs`).
pub(crate) const GRANT: u64 = u64::from_le_bytes(*b"tb-mem\x9d\xff");

/// The most descriptors that a test sends at once.
const MANY: usize = 20;

/// An opening message.
pub(crate) fn opening(kind: u32, identity: Identity) -> Vec<u8> {
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

/// What an honest peer of this build says.
pub(crate) fn identity() -> Identity {
    let layout = Layout::new(64).expect("a depth");
    Identity::ours(
        layout,
        tightbeam_sys::memory::page_size() as u32,
        Incarnation([3, 4]),
    )
}

/// Bytes of a segment that goes with [`identity`].
pub(crate) fn segment_bytes() -> usize {
    let layout = Layout::new(64).expect("a depth");
    layout.bytes(tightbeam_sys::memory::page_size())
}

/// A segment that goes with [`identity`]: keep the first while the second is in use.
pub(crate) fn segment() -> (Formatted, OwnedFd) {
    let memory = OwnMemory::create(segment_bytes(), &MemoryOptions::default()).expect("memory");
    let descriptor = memory.fd().try_clone_to_owned().expect("a descriptor");
    let layout = Layout::new(64).expect("a depth");
    (
        layout.format(OwnLines::new(memory), &identity()),
        descriptor,
    )
}

/// A sealed segment of this size in which nothing is written.
pub(crate) fn sealed(bytes: usize) -> OwnedFd {
    let memory = OwnMemory::create(bytes, &MemoryOptions::default()).expect("memory");
    memory.fd().try_clone_to_owned().expect("a descriptor")
}

/// A memfd without seals.
pub(crate) fn unsealed() -> OwnedFd {
    let words = SharedWords::create(1 << 12).expect("memory");
    words.fd().try_clone_to_owned().expect("a descriptor")
}

/// What is wrong with an identity, and the words with which that is told.
pub(crate) fn misfits() -> [(Identity, &'static str, [String; 2]); 4] {
    let (good, page) = (identity(), identity().page_size);
    [
        (
            Identity {
                version: 77,
                ..good
            },
            "version",
            [VERSION.to_string(), "77".into()],
        ),
        (
            Identity {
                layout_hash: 0xabcd,
                ..good
            },
            "layout",
            [format!("{LAYOUT_HASH:#018x}"), "0x000000000000abcd".into()],
        ),
        (
            Identity {
                page_size: 65_536,
                ..good
            },
            "page size",
            [page.to_string(), "65536".into()],
        ),
        (
            Identity { depth: 7, ..good },
            "depth",
            ["7".into(), "depth".into()],
        ),
    ]
}

/// Sends one message with any number of descriptors.
pub(crate) fn send(socket: &OwnedFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
    try_send(socket, bytes, descriptors).expect("sent");
}

/// The same to somebody who may have hung up.
pub(crate) fn try_send(
    socket: &OwnedFd,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> rustix::io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MANY))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(descriptors)));
    }
    let bytes = [IoSlice::new(bytes)];
    rustix::net::sendmsg(socket, &bytes, &mut ancillary, SendFlags::NOSIGNAL)
}

/// Connects to a listener and sends one message.
pub(crate) fn greet(path: &Path, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> OwnedFd {
    let socket = control::connect(path).expect("it listens");
    send(&socket, bytes, descriptors);
    socket
}

/// The next message, or `None` if the other side has hung up.
pub(crate) fn receive(socket: &OwnedFd) -> Option<Vec<u8>> {
    receive_all(socket).map(|(bytes, _)| bytes)
}

/// The same with its descriptors.
pub(crate) fn receive_all(socket: &OwnedFd) -> Option<(Vec<u8>, Vec<OwnedFd>)> {
    let mut buffer = [0; 256];
    let received = patiently(|| match control::receive(socket.as_fd(), &mut buffer) {
        Err(tightbeam_sys::Errno::AGAIN) => None,
        other => Some(other),
    });
    match received {
        Ok(Received {
            bytes, descriptors, ..
        }) if bytes > 0 => {
            let descriptors = descriptors.iter().map(|passed| passed.duplicate());
            let descriptors = descriptors.collect::<Result<_, _>>().expect("descriptors");
            Some((buffer[..bytes].to_vec(), descriptors))
        }
        _ => None,
    }
}

/// Maps all of an honest peer's segment, whatever its depth, which puts the last seals on it.
pub(crate) fn map_whole(segment: OwnedFd) -> PeerMemory {
    let bytes = rustix::fs::fstat(&segment).expect("a memfd").st_size;
    PeerMemory::map(segment, bytes as usize).expect("mapped")
}

/// Maps the segment that comes with the next message.
pub(crate) fn map_next(socket: &OwnedFd) -> PeerMemory {
    let (_, mut descriptors) = receive_all(socket).expect("a message");
    map_whole(descriptors.pop().expect("a segment with it"))
}

/// What a client does that has been welcomed.
pub(crate) fn get_ready(socket: &OwnedFd) -> PeerMemory {
    let memory = map_next(socket);
    send(socket, &opening(READY, identity()), &[]);
    memory
}

/// What the next message says of its sender, and the segment that comes with it, not mapped and not sealed yet.
pub(crate) fn get_segment(socket: &OwnedFd) -> (Identity, OwnedFd) {
    let (bytes, mut descriptors) = receive_all(socket).expect("a message");
    let word = |at: usize| bytes[at..at + 8].try_into().map(u64::from_ne_bytes);
    let half = |at: usize| bytes[at..at + 4].try_into().map(u32::from_ne_bytes);
    let said = "a whole message";
    let identity = Identity {
        version: half(12).expect(said),
        layout_hash: word(16).expect(said),
        page_size: half(24).expect(said),
        depth: half(28).expect(said),
        incarnation: Incarnation([word(32).expect(said), word(40).expect(said)]),
    };
    (identity, descriptors.pop().expect("a segment with it"))
}
