//! Hosts that are not there: network namespaces of this process, joined by virtual cables.
//!
//! ```text
//!   two hosts:    near 10.77.1.1 ------------------------------------ 10.77.1.2 far
//!   three hosts:  near 10.77.1.1 --- 10.77.1.2 middle 10.77.2.1 ===== 10.77.2.2 far      ===== may be shaped
//! ```
//!
//! The namespaces have no names, only descriptors: with the last process that has one they go, and the cables with them, however that
//! process ends. Making them needs root.

use rustix::io::Errno;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};
use tightbeam_sys::netns;

/// What a row says that cannot be measured without root.
pub(crate) const NEEDS: &str = "needs CAP_BPF, CAP_NET_ADMIN, CAP_NET_RAW";

/// The cable of this process, for paths that go over it.
static LAID: Mutex<Option<Cable>> = Mutex::new(None);

/// Hosts in a row.
pub(crate) struct Cable {
    home: OwnedFd,
    hosts: Vec<OwnedFd>,
    /// Strands laid so far beside the first cable.
    strands: AtomicU8,
}

/// A further cable between the first two hosts, for a path that needs an interface to itself; where it is plugged in.
#[derive(Debug, Clone)]
pub(crate) struct Strand {
    /// The name of both interfaces.
    pub(crate) interface: String,
    /// The second host's address on it.
    pub(crate) far: Ipv4Addr,
}

/// Why there is no cable.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CableError {
    #[error("{NEEDS}")]
    Forbidden,
    #[error("cannot make a network namespace: {0}")]
    Namespace(Errno),
    #[error("`{command}` failed: {said}")]
    Command { command: String, said: String },
}

impl From<Errno> for CableError {
    fn from(errno: Errno) -> CableError {
        match errno {
            Errno::PERM | Errno::ACCESS => CableError::Forbidden,
            errno => CableError::Namespace(errno),
        }
    }
}

impl Cable {
    /// Lays cables between two or three hosts.
    pub(crate) fn lay(hosts: usize) -> Result<Cable, CableError> {
        let made: Result<Vec<_>, Errno> = (0..hosts).map(|_| netns::create()).collect();
        let cable = Cable {
            home: netns::current()?,
            hosts: made?,
            strands: AtomicU8::new(0),
        };
        for host in 0..hosts {
            cable.run(host, "ip link set lo up")?;
        }
        for (near, far) in (0..hosts).zip(1..hosts) {
            cable.join(near, far)?;
        }
        if hosts > 2 {
            cable.run(0, "ip route add default via 10.77.1.2")?;
            cable.run(2, "ip route add default via 10.77.2.1")?;
            let forward = || std::fs::write("/proc/sys/net/ipv4/ip_forward", "1");
            let forwards = cable.at(1, forward)?;
            forwards.map_err(|error| CableError::Command {
                command: "echo 1 > /proc/sys/net/ipv4/ip_forward".into(),
                said: error.to_string(),
            })?;
        }
        Ok(cable)
    }

    /// Lays one more between the first two hosts.
    pub(crate) fn another(&self) -> Result<Strand, CableError> {
        let number = self.strands.fetch_add(1, Ordering::Relaxed);
        let strand = Strand {
            interface: format!("strand{number}"),
            far: Ipv4Addr::new(10, 78, number, 2),
        };
        let (name, place) = (&strand.interface, self.place(1));
        self.run(
            0,
            &format!("ip link add {name} type veth peer name {name} netns {place}"),
        )?;
        for (host, last) in [(0, 1), (1, 2)] {
            let address = format!("10.78.{number}.{last}/24");
            self.run(host, &format!("ip address add {address} dev {name}"))?;
            self.run(host, &format!("ip link set {name} up"))?;
        }
        Ok(strand)
    }

    /// A path to a host's namespace: for `ip`, a name with a slash is one.
    fn place(&self, host: usize) -> String {
        let (process, fd) = (std::process::id(), self.hosts[host].as_raw_fd());
        format!("/proc/{process}/fd/{fd}")
    }

    /// Between two neighbours; each end has the name of the other's number.
    fn join(&self, near: usize, far: usize) -> Result<(), CableError> {
        let place = self.place(far);
        self.run(
            near,
            &format!("ip link add eth{far} type veth peer name eth{near} netns {place}"),
        )?;
        for (host, other, last) in [(near, far, 1), (far, near, 2)] {
            let net = near + 1;
            self.run(
                host,
                &format!("ip address add 10.77.{net}.{last}/24 dev eth{other}"),
            )?;
            self.run(host, &format!("ip link set eth{other} up"))?;
        }
        Ok(())
    }

    /// The address of the first or the last host.
    pub(crate) fn address(&self, host: usize) -> Ipv4Addr {
        match host {
            0 => Ipv4Addr::new(10, 77, 1, 1),
            host => Ipv4Addr::new(10, 77, host as u8, 2),
        }
    }

    /// The namespace of a host.
    pub(crate) fn host(&self, host: usize) -> BorrowedFd<'_> {
        self.hosts[host].as_fd()
    }

    /// Does something on a host: what is opened or started then is there. This thread only.
    pub(crate) fn at<T>(&self, host: usize, act: impl FnOnce() -> T) -> Result<T, CableError> {
        let before = netns::current()?;
        netns::enter(self.host(host))?;
        let done = act();
        netns::enter(before.as_fd())?;
        Ok(done)
    }

    /// Takes this thread to a host for good, or home.
    pub(crate) fn move_to(&self, host: Option<usize>) -> Result<(), CableError> {
        let there = host.map_or(self.home.as_fd(), |host| self.host(host));
        Ok(netns::enter(there)?)
    }

    /// Runs a command on a host.
    pub(crate) fn run(&self, host: usize, command: &str) -> Result<(), CableError> {
        let words: Vec<_> = command.split_whitespace().collect();
        let ran = self.at(host, || Command::new(words[0]).args(&words[1..]).output())?;
        let said = match ran {
            Ok(output) if output.status.success() => return Ok(()),
            Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            Err(error) => error.to_string(),
        };
        Err(CableError::Command {
            command: command.into(),
            said,
        })
    }
}

/// Makes a cable the one that paths go over.
pub(crate) fn share(cable: Cable) {
    *LAID.lock().unwrap_or_else(PoisonError::into_inner) = Some(cable);
}

/// Does something with the cable that was shared; an error if there is none.
pub(crate) fn shared<T>(act: impl FnOnce(&Cable) -> T) -> Result<T, CableError> {
    let laid = LAID.lock().unwrap_or_else(PoisonError::into_inner);
    laid.as_ref().map(act).ok_or(CableError::Forbidden)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::time::Duration;

    #[test]
    fn three_hosts_reach_each_other_and_nobody_else_sees_them() {
        let cable = match Cable::lay(3) {
            Ok(cable) => cable,
            Err(CableError::Forbidden) => return eprintln!("skipped: not root"),
            Err(error) => panic!("{error}"),
        };
        let bind = |host| {
            let bound = cable.at(host, || UdpSocket::bind((cable.address(host), 7000)));
            bound.unwrap().unwrap()
        };
        let (near, far) = (bind(0), bind(2));
        far.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        near.send_to(b"hello", (cable.address(2), 7000)).unwrap();
        let (length, from) = far.recv_from(&mut [0; 8]).unwrap();
        assert_eq!((length, from), (5, near.local_addr().unwrap()));
        assert!(UdpSocket::bind((cable.address(0), 7000)).is_err());
        let failed = cable.run(0, "ip link set nothing up").unwrap_err();
        assert!(failed.to_string().contains("nothing"), "{failed}");
    }
}
