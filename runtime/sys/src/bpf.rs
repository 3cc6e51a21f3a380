//! `bpf(2)`: a map of AF_XDP sockets, a program, and the link that attaches it to an interface for as long as the link is open.

use crate::Errno;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

const MAP_CREATE: libc::c_int = 0;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const MAP_DELETE_ELEM: libc::c_int = 3;
const PROG_LOAD: libc::c_int = 5;
const PROG_TEST_RUN: libc::c_int = 10;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const LINK_CREATE: libc::c_int = 28;

const MAP_TYPE_XSKMAP: u32 = 17;
const PROG_TYPE_XDP: u32 = 6;
const ATTACH_XDP: u32 = 37;
const FLAG_GENERIC: u32 = 1 << 1;
const FLAG_NATIVE: u32 = 1 << 2;
/// Of a program: it knows of packets in several parts.
const FLAG_HAS_FRAGS: u32 = 1 << 5;

/// One instruction, as the kernel wants it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Instruction {
    /// Operation, its width and its class.
    pub code: u8,
    /// The destination register in the low four bits, the source in the high ones.
    pub registers: u8,
    /// Offset of a jump in instructions, or of an access in bytes.
    pub offset: i16,
    /// A constant.
    pub constant: i32,
}

/// Where in the kernel a program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attach {
    /// In the driver, before the kernel has a packet of its own.
    Native,
    /// Behind the driver, on any interface.
    Generic,
}

/// The size that the kernel's `union bpf_attr` had in Linux 6.5; what is behind what a command uses is zero.
#[repr(C, align(8))]
struct Attributes([u8; 144]);

impl Attributes {
    fn new() -> Attributes {
        Attributes([0; 144])
    }

    /// Puts a 32-bit field where the kernel has it.
    fn with(mut self, at: usize, value: u32) -> Attributes {
        self.0[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        self
    }

    fn with_fd(self, at: usize, fd: BorrowedFd<'_>) -> Attributes {
        // Descriptors are not negative.
        self.with(at, fd.as_raw_fd() as u32)
    }

    /// Puts an address. What it points to must be as long as the attributes say, which those that call `bpf` prove.
    fn with_address<T>(mut self, at: usize, address: *const T) -> Attributes {
        self.0[at..at + 8].copy_from_slice(&(address as u64).to_ne_bytes());
        self
    }

    /// Puts our name, which `bpftool` shows.
    fn with_name(mut self, at: usize) -> Attributes {
        let name = b"tightbeam";
        self.0[at..at + name.len()].copy_from_slice(name);
        self
    }

    fn field(&self, at: usize) -> u32 {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.0[at..at + 4]);
        u32::from_ne_bytes(bytes)
    }
}

/// Makes the call.
///
/// # Safety
///
/// Every address in the attributes must point to memory that is as long as the command reads or writes, given the lengths in the
/// attributes, and lives through the call.
unsafe fn bpf(command: libc::c_int, attributes: &mut Attributes) -> Result<i32, Errno> {
    let bytes = size_of::<Attributes>();
    // SAFETY: bounds: the kernel reads and writes at most `bytes` of the attributes; what those point to is the caller's proof.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, bytes) };
    match i32::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(crate::last_errno()),
    }
}

/// # Safety
///
/// As for [`bpf`], and the command must be one that returns a new descriptor.
unsafe fn bpf_fd(command: libc::c_int, attributes: &mut Attributes) -> Result<OwnedFd, Errno> {
    // SAFETY: bounds: the caller's proof.
    let fd = unsafe { bpf(command, attributes) }?;
    // SAFETY: aliasing: the kernel has just made the descriptor, close-on-exec, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A map from numbers to AF_XDP sockets, for a program to redirect packets to.
pub struct SocketMap(OwnedFd);

impl SocketMap {
    /// Makes a map for numbers less than `entries`. [`Errno::PERM`] without `CAP_BPF` and `CAP_NET_ADMIN`.
    pub fn create(entries: u32) -> Result<SocketMap, Errno> {
        let attributes = Attributes::new().with(0, MAP_TYPE_XSKMAP).with(4, 4);
        let mut attributes = attributes.with(8, 4).with(12, entries).with_name(28);
        // SAFETY: bounds: there is no address in the attributes of MAP_CREATE, which returns a descriptor.
        Ok(SocketMap(unsafe { bpf_fd(MAP_CREATE, &mut attributes) }?))
    }

    /// Puts a socket into it.
    pub fn insert(&self, key: u32, socket: BorrowedFd<'_>) -> Result<(), Errno> {
        let value = socket.as_raw_fd() as u32;
        let attributes = Attributes::new().with_fd(0, self.as_fd());
        let attributes = attributes.with_address(8, &raw const key);
        let mut attributes = attributes.with_address(16, &raw const value);
        // SAFETY: bounds: key and value have four bytes each, as the map was made with, and live through the call.
        unsafe { bpf(MAP_UPDATE_ELEM, &mut attributes) }.map(|_| ())
    }

    /// Takes a socket out of it. [`Errno::NOENT`] if there is none.
    pub fn remove(&self, key: u32) -> Result<(), Errno> {
        let attributes = Attributes::new().with_fd(0, self.as_fd());
        let mut attributes = attributes.with_address(8, &raw const key);
        // SAFETY: bounds: the key has four bytes, as the map was made with, and lives through the call; the kernel writes nothing.
        unsafe { bpf(MAP_DELETE_ELEM, &mut attributes) }.map(|_| ())
    }
}

impl AsFd for SocketMap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Why the kernel does not take a program.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the kernel refuses the program ({errno}): {log}")]
pub struct LoadError {
    /// Its reason. [`Errno::PERM`] without `CAP_BPF` and `CAP_NET_ADMIN`.
    pub errno: Errno,
    /// What the verifier said; empty if it was not asked.
    pub log: String,
}

/// Loads an XDP program. It calls no helper that asks for a licence, and says that it has ours.
pub fn load_program(instructions: &[Instruction]) -> Result<OwnedFd, LoadError> {
    load(instructions, 0)
}

/// As [`load_program`], one that looks at a packet's first part alone, and so can have packets in several: those that are longer than a page of
/// the driver's, or than a frame of an AF_XDP socket.
pub fn load_program_for_parts(instructions: &[Instruction]) -> Result<OwnedFd, LoadError> {
    load(instructions, FLAG_HAS_FRAGS)
}

fn load(instructions: &[Instruction], flags: u32) -> Result<OwnedFd, LoadError> {
    let count = u32::try_from(instructions.len()).unwrap_or(u32::MAX);
    let fail = |errno, log| LoadError { errno, log };
    let attributes = || {
        let attributes = Attributes::new().with(0, PROG_TYPE_XDP).with(4, count);
        let attributes = attributes.with(44, flags);
        let attributes = attributes
            .with_address(8, instructions.as_ptr())
            .with_name(48);
        attributes.with_address(16, c"Dual MIT/GPL".as_ptr())
    };
    let mut quiet = attributes();
    // SAFETY: bounds: the kernel reads `count` instructions of 8 bytes each, no more than the slice has, and a string up to its end.
    let refused = match unsafe { bpf_fd(PROG_LOAD, &mut quiet) } {
        Ok(program) => return Ok(program),
        Err(errno) if errno == Errno::PERM => return Err(fail(errno, String::new())),
        Err(errno) => errno,
    };
    // Once more, to hear why.
    let mut log = vec![0u8; 1 << 16];
    let mut loud = attributes()
        .with(24, 1)
        .with(28, log.len() as u32)
        .with_address(32, log.as_mut_ptr());
    // SAFETY: bounds: as above; the kernel writes at most the length of the log to it, which lives through the call.
    match unsafe { bpf_fd(PROG_LOAD, &mut loud) } {
        Ok(program) => Ok(program),
        Err(_) => {
            let end = log.iter().position(|&b| b == 0).unwrap_or(log.len());
            Err(fail(refused, String::from_utf8_lossy(&log[..end]).into()))
        }
    }
}

/// Runs a program on a packet, `repeat` times, without any interface: what it returns, and how long a run takes on average.
///
/// [`Errno::INVAL`] for a packet of less than 14 bytes.
pub fn test_run(
    program: BorrowedFd<'_>,
    packet: &[u8],
    repeat: u32,
) -> Result<(u32, Duration), Errno> {
    let len = u32::try_from(packet.len()).map_err(|_| Errno::INVAL)?;
    let attributes = Attributes::new().with_fd(0, program).with(8, len);
    let attributes = attributes.with_address(16, packet.as_ptr());
    let mut attributes = attributes.with(32, repeat);
    // SAFETY: bounds: the kernel reads `len` bytes of the packet; there is no room for an answer, so it writes none.
    unsafe { bpf(PROG_TEST_RUN, &mut attributes) }?;
    let took = Duration::from_nanos(attributes.field(36).into());
    Ok((attributes.field(4), took))
}

/// Attaches a program to an interface, until the link is closed, by whatever closes it.
///
/// [`Errno::BUSY`] or [`Errno::EXIST`]: another program is attached. [`Errno::RANGE`]: the MTU, its own or its peer's, is too large for native
/// programs. [`Errno::NOSPC`]: too few queues. [`Errno::OPNOTSUPP`]: the driver has no native ones.
pub fn attach(program: BorrowedFd<'_>, interface: u32, attach: Attach) -> Result<OwnedFd, Errno> {
    let flags = match attach {
        Attach::Native => FLAG_NATIVE,
        Attach::Generic => FLAG_GENERIC,
    };
    let attributes = Attributes::new().with_fd(0, program).with(4, interface);
    let mut attributes = attributes.with(8, ATTACH_XDP).with(12, flags);
    // SAFETY: bounds: there is no address in the attributes of LINK_CREATE for XDP, which returns a descriptor.
    unsafe { bpf_fd(LINK_CREATE, &mut attributes) }
}

/// The kernel's number of a program.
pub fn program_id(program: BorrowedFd<'_>) -> Result<u32, Errno> {
    // struct bpf_prog_info: type, id.
    Ok(info(program)?[1])
}

/// What a link attaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkInfo {
    /// The kernel's number of the link.
    pub id: u32,
    /// The kernel's number of the program.
    pub program: u32,
    /// The interface; 0 once that is gone.
    pub interface: u32,
}

/// Asks what a link attaches.
pub fn link_info(link: BorrowedFd<'_>) -> Result<LinkInfo, Errno> {
    // struct bpf_link_info: type, id, prog_id, padding, then of an XDP link the interface.
    let [_, id, program, _, interface, ..] = info(link)?;
    Ok(LinkInfo {
        id,
        program,
        interface,
    })
}

/// The first words of what the kernel says about one of its objects.
fn info(object: BorrowedFd<'_>) -> Result<[u32; 8], Errno> {
    let mut words = [0u32; 8];
    let attributes = Attributes::new().with_fd(0, object);
    let attributes = attributes.with(4, size_of_val(&words) as u32);
    let mut attributes = attributes.with_address(8, words.as_mut_ptr());
    // SAFETY: bounds: the kernel writes at most the 32 bytes that the attributes say, to `words`, which lives through the call.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attributes) }?;
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `r0 = value; exit`.
    fn returns(value: i32) -> [Instruction; 2] {
        let mov = Instruction {
            code: 0xb7,
            constant: value,
            ..Instruction::default()
        };
        let exit = Instruction {
            code: 0x95,
            ..Instruction::default()
        };
        [mov, exit]
    }

    /// Whether this process may; says so if not.
    fn may() -> bool {
        let may = SocketMap::create(1).is_ok();
        if !may {
            println!("skipped: needs CAP_BPF, CAP_NET_ADMIN");
        }
        may
    }

    #[test]
    fn a_program_is_loaded_and_runs() {
        if !may() {
            return;
        }
        for value in [1, 2] {
            let program = load_program(&returns(value)).unwrap();
            let (returned, _) = test_run(program.as_fd(), &[0; 64], 3).unwrap();
            assert_eq!(returned, value as u32);
            assert_ne!(program_id(program.as_fd()).unwrap(), 0);
        }
    }

    #[test]
    fn the_verifier_says_why() {
        if !may() {
            return;
        }
        let [_, exit] = returns(0);
        let refused = load_program(&[exit]).unwrap_err();
        assert!(refused.log.contains("R0 !read_ok"), "{refused}");
        let refused = load_program(&[]).unwrap_err();
        assert_ne!(refused.errno, Errno::PERM, "{refused}");
    }

    #[test]
    fn a_map_takes_sockets_of_this_kind_only() {
        if !may() {
            return;
        }
        let map = SocketMap::create(2).unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(map.insert(0, file.as_fd()).is_err());
        assert!(map.remove(2).is_err());
    }
}
