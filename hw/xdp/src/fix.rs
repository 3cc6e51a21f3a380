//! Errors of the opening, each with the command or the capability that mends it.

use rustix::io::Errno;
use tightbeam_segment::DeviceError;
use tightbeam_sys::bpf::LoadError;
use tightbeam_sys::link::Link;
use tightbeam_sys::xdp::RingFault;

/// What native programs need of a driver: no IP packet longer than this fits into a page with what the driver keeps there.
const CEILINGS: [(&str, u32); 4] = [
    ("veth", 3520),
    ("virtio_net", 3506),
    ("ena", 3498),
    ("bnxt_en", 3502),
];

/// The longest IP packet that a driver's native programs take, if it is one that is known.
pub(crate) fn ceiling(driver: &str) -> Option<u32> {
    let known = CEILINGS.iter().find(|(name, _)| *name == driver);
    known.map(|&(_, most)| most)
}

/// What is known of drivers that do less than they seem to, or do it badly.
const NOTES: [(&str, &str); 4] = [
    (
        "bonding",
        "a bond has no zero-copy, and copies once more: open the interface below it",
    ),
    (
        "bnxt_en",
        "no zero-copy in the kernel's own driver; native programs take packets of 3502 bytes at most",
    ),
    (
        "ena",
        "zero-copy only in Amazon's own driver, from 2.13 on, and slower there than copy: say copy=copy",
    ),
    (
        "virtio_net",
        "native programs may need `ethtool -K IFACE rx-gro-hw off`, and as many queues again: `ethtool -l IFACE`",
    ),
];

/// What is known of a driver, if it is anything.
pub(crate) fn note(driver: &str) -> Option<&'static str> {
    let known = NOTES.iter().find(|(name, _)| *name == driver);
    known.map(|&(_, note)| note)
}

/// An error of a call that was made for `what`, with what mends it.
pub(crate) fn system(what: impl Into<String>, errno: Errno, fix: impl Into<String>) -> DeviceError {
    DeviceError::System {
        what: what.into(),
        errno: errno.raw_os_error(),
        fix: fix.into(),
    }
}

/// The kernel was not asked.
pub(crate) fn refused(what: impl Into<String>, fix: impl Into<String>) -> DeviceError {
    DeviceError::System {
        what: what.into(),
        errno: 0,
        fix: fix.into(),
    }
}

/// A ring says what cannot be.
pub(crate) fn ring(fault: RingFault) -> DeviceError {
    refused("use the socket's rings", fault.to_string())
}

pub(crate) fn down(errno: Errno) -> DeviceError {
    DeviceError::Down {
        errno: errno.raw_os_error(),
    }
}

/// For want of a capability.
fn privilege(missing: &str) -> String {
    format!(
        "needs CAP_BPF, CAP_NET_ADMIN and CAP_NET_RAW (here {missing}): run it as root, or \
         `setcap cap_bpf,cap_net_admin,cap_net_raw+ep PROGRAM`, or have root open it for you: \
         `tightbeam xdp-open --dev IFACE --port PORT -- PROGRAM`"
    )
}

pub(crate) fn no_link(name: &str, errno: Errno) -> DeviceError {
    let fix = "`ip link` says which interfaces there are in this network namespace";
    system(format!("find the interface {name}"), errno, fix)
}

pub(crate) fn socket(errno: Errno) -> DeviceError {
    let fix = match errno {
        Errno::PERM => privilege("CAP_NET_RAW"),
        Errno::AFNOSUPPORT => "the kernel needs CONFIG_XDP_SOCKETS=y".into(),
        _ => "is the limit of descriptors reached? `ulimit -n` says what it is".to_owned(),
    };
    system("make an AF_XDP socket", errno, fix)
}

pub(crate) fn memory(bytes: u64, errno: Errno) -> DeviceError {
    let fix = match errno {
        Errno::NOBUFS | Errno::NOMEM | Errno::AGAIN | Errno::PERM => format!(
            "the kernel pins this memory: raise RLIMIT_MEMLOCK (`ulimit -l {}`, or LimitMEMLOCK= in a unit), or run with CAP_IPC_LOCK",
            bytes.div_ceil(1024).max(1) + 1024
        ),
        _ => "this is not expected".into(),
    };
    system(format!("register {bytes} bytes of frames"), errno, fix)
}

pub(crate) fn rings(errno: Errno) -> DeviceError {
    let fix = "is there memory left? `free -m` says";
    system("make and map the socket's rings", errno, fix)
}

/// Queues that an interface has, and which was asked for.
pub(crate) fn no_queue(link: &Link, queue: u32, queues: u32) -> DeviceError {
    let name = &link.name;
    refused(
        format!("bind to queue {queue} of {name}"),
        format!(
            "it has {queues}, numbered from 0: say queue=N with N < {queues}, or `ethtool -L {name} combined {}`",
            queue + 1
        ),
    )
}

pub(crate) fn bind(link: &Link, queue: u32, errno: Errno) -> DeviceError {
    let name = &link.name;
    let fix = match errno {
        Errno::BUSY => format!(
            "another AF_XDP socket has that queue, or one that was closed while its rings were mapped: end its process, or say queue=N for \
             another queue (`ethtool -l {name}` says how many there are)"
        ),
        Errno::NETDOWN => format!("`ip link set dev {name} up`"),
        Errno::NODEV | Errno::NXIO => format!("{name} is gone; `ip link` says what there is"),
        Errno::OPNOTSUPP | Errno::INVAL | Errno::PROTONOSUPPORT => {
            "the driver cannot do that; say copy=copy, or mode=generic".into()
        }
        _ => "say copy=copy and mode=generic, which every driver can do".into(),
    };
    system(format!("bind to queue {queue} of {name}"), errno, fix)
}

pub(crate) fn map(errno: Errno) -> DeviceError {
    let fix = match errno {
        Errno::PERM => privilege("CAP_BPF and CAP_NET_ADMIN"),
        _ => "is there memory left? `free -m` says".into(),
    };
    system("make a map of sockets", errno, fix)
}

pub(crate) fn load(error: LoadError) -> DeviceError {
    let fix = match error.errno {
        Errno::PERM => privilege("CAP_BPF and CAP_NET_ADMIN"),
        _ => format!(
            "please report this, with what the verifier said: {}",
            error.log
        ),
    };
    system("load the steering program", error.errno, fix)
}

/// A program that is not ours has the interface.
pub(crate) fn foreign(name: &str, id: Option<u32>, errno: Errno) -> DeviceError {
    let id = id.map_or_else(|| "ID".into(), |id| id.to_string());
    system(
        format!("attach to {name}: the XDP program with id {id} has it"),
        errno,
        format!(
            "an interface has one: `bpftool prog show id {id}` and `bpftool link` say whose it is; end that process, or \
             `ip link set dev {name} xdp off` if it was attached with ip or by netlink"
        ),
    )
}

pub(crate) fn attach(link: &Link, driver: &str, mode: &str, errno: Errno) -> DeviceError {
    let name = &link.name;
    let most = ceiling(driver).unwrap_or(3498);
    let fix = match errno {
        Errno::PERM => privilege("CAP_NET_ADMIN"),
        // veth answers so for the MTU of its other end.
        Errno::RANGE => format!(
            "the MTU is too large for {driver}: `ip link set dev {name} mtu {most}`, and the same at the other end of a veth pair; or say mode=generic"
        ),
        Errno::NOSPC => format!(
            "too few receive queues: `ethtool -L {name} rx N` with as many as the other end has for sending; or say mode=generic"
        ),
        Errno::OPNOTSUPP => format!("{driver} has no native programs: say mode=generic"),
        Errno::INVAL => format!(
            "is the MTU more than {most} (`ip link set dev {name} mtu {most}`), or GRO, LRO or the like on \
             (`ethtool -K {name} rx-gro-hw off lro off`)? Or say mode=generic"
        ),
        _ => "say mode=generic".into(),
    };
    let what = format!("attach the {mode} steering program to {name}");
    system(what, errno, fix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_names_what_mends_it() {
        let link = Link {
            name: "eth7".into(),
            ..Link::default()
        };
        let says = [
            (socket(Errno::PERM), "CAP_NET_RAW"),
            (socket(Errno::AFNOSUPPORT), "CONFIG_XDP_SOCKETS"),
            (memory(8 << 20, Errno::NOBUFS), "ulimit -l 9216"),
            (memory(8 << 20, Errno::NOMEM), "CAP_IPC_LOCK"),
            (no_queue(&link, 5, 2), "ethtool -L eth7 combined 6"),
            (bind(&link, 0, Errno::BUSY), "ethtool -l eth7"),
            (bind(&link, 0, Errno::NETDOWN), "ip link set dev eth7 up"),
            (map(Errno::PERM), "CAP_BPF and CAP_NET_ADMIN"),
            (foreign("eth7", Some(12), Errno::BUSY), "show id 12"),
            (
                attach(&link, "veth", "native", Errno::RANGE),
                "ip link set dev eth7 mtu 3520",
            ),
            (
                attach(&link, "e", "native", Errno::NOSPC),
                "ethtool -L eth7",
            ),
            (
                attach(&link, "virtio_net", "native", Errno::INVAL),
                "ethtool -K eth7 rx-gro-hw off lro off",
            ),
        ];
        for (error, words) in says {
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}
