//! What an interface offers to `xdp:` addresses, and what stands in the way.

use super::capabilities::Effective;
use super::finding::Finding;
use super::{holder, self_test};
use rustix::process::{Resource, getrlimit};
use tightbeam_sys::Errno;
use tightbeam_sys::xdp::Opening;
use tightbeam_xdp::Interface;

/// Frames of a device, for receiving and for sending.
const FRAMES: u64 = 1536;

/// Looks at an interface; with `test` sends it a packet.
pub(super) fn look(name: &str, test: bool) -> Vec<Finding> {
    let interface = match Interface::find(name) {
        Ok(interface) => interface,
        Err(_) => return vec![missing(name).of(name)],
    };
    let mut findings = vec![
        state(&interface),
        addresses(&interface),
        driver(&interface),
        queues(&interface),
        modes(&interface),
        offloads(&interface),
        checksums(&interface),
        mtu(&interface),
        program(&interface),
        sockets(),
        frames(&interface),
        capabilities(&interface),
    ];
    if test {
        findings.extend(self_test::run(&interface));
    }
    findings
        .into_iter()
        .map(|finding| finding.of(name))
        .collect()
}

fn missing(name: &str) -> Finding {
    // Not /sys/class/net, which is of the namespace in which /sys was mounted.
    let known = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default();
    let others = known.lines().filter_map(|line| line.split_once(':'));
    let mut others: Vec<&str> = others.map(|(name, _)| name.trim()).collect();
    others.sort_unstable();
    let says = format!("there is no {name}; there is {}", others.join(", "));
    Finding::problem("interface", says, "ip link")
}

fn state(interface: &Interface) -> Finding {
    let name = &interface.link.name;
    match interface.link.up {
        true => Finding::ok("interface", "up"),
        false => Finding::problem("interface", "down", format!("ip link set dev {name} up")),
    }
}

fn addresses(interface: &Interface) -> Finding {
    let name = &interface.link.name;
    if interface.addresses.is_empty() {
        let mend = format!("ip address add 10.0.0.1/24 dev {name}");
        return Finding::problem("addresses", "no IPv4 address", mend);
    }
    let all: Vec<String> = interface
        .addresses
        .iter()
        .map(ToString::to_string)
        .collect();
    Finding::ok("addresses", all.join(", "))
}

fn driver(interface: &Interface) -> Finding {
    let kind = interface.link.kind.as_deref();
    let kind = kind.map_or(String::new(), |kind| {
        format!(", a virtual interface ({kind})")
    });
    Finding::ok("driver", format!("{}{kind}", interface.driver))
}

fn queues(interface: &Interface) -> Finding {
    let says = match interface.queues {
        many @ 0..=1 => many.to_string(),
        many => format!(
            "{many}: a device has a socket on each and looks at all of them, or on one alone (?queue=N), which gets what the NIC puts there"
        ),
    };
    Finding::ok("queues", says)
}

/// What the driver can do, and what is therefore tried.
fn modes(interface: &Interface) -> Finding {
    let can = match interface.features {
        None => "the kernel does not say what the driver can do".to_owned(),
        Some(can) => {
            let yes = |can| if can { "yes" } else { "no" };
            format!(
                "native: {}, redirection: {}, zero-copy: {}",
                yes(can.native),
                yes(can.redirect),
                yes(can.zero_copy)
            )
        }
    };
    let ways = interface.ways();
    let tried: Vec<String> = ways
        .iter()
        .map(|(mode, copy)| format!("{mode} {copy}"))
        .collect();
    let says = format!("{can}; mode=auto tries {}", tried.join(", then "));
    let silent = interface.features.is_none();
    if silent {
        Finding::note("modes", says)
    } else {
        Finding::ok("modes", says)
    }
}

fn offloads(interface: &Interface) -> Finding {
    match (&interface.in_the_way, interface.offloads_off()) {
        (None, _) => Finding::note("offloads", "the driver does not say which are on"),
        (_, None) => Finding::ok("offloads", "none in the way (GRO_HW, LRO, GRO lists)"),
        (Some(names), Some(command)) => Finding::problem(
            "offloads",
            format!(
                "on: {}; packets that were merged are not what was sent, or go past the program",
                names.join(", ")
            ),
            command,
        ),
    }
}

/// On virtual links the kernel's own sockets leave half-made sums.
fn checksums(interface: &Interface) -> Finding {
    let is_virtual = interface.link.loopback || interface.driver == "veth";
    let says = match is_virtual {
        true => {
            "left out: no byte breaks on a virtual link. A kernel socket must leave them out too (SO_NO_CHECK), as udp: does"
        }
        false => "made in full, in software; offloads of it are not in the way",
    };
    Finding::ok("checksums", says)
}

/// The first way that is tried is the one that counts.
fn mtu(interface: &Interface) -> Finding {
    const NAME: &str = "mtu";
    let (name, mtu) = (&interface.link.name, interface.link.mtu);
    let frame = Interface::frame_ceiling();
    let native = interface
        .ways()
        .first()
        .is_some_and(|(mode, _)| *mode == "native");
    let ceiling = interface.native_ceiling().filter(|_| native);
    match ceiling {
        Some(ceiling) if mtu > ceiling => Finding::problem(
            NAME,
            format!(
                "{mtu}, too long for native programs of {}, which take {ceiling}: it falls back to generic",
                interface.driver
            ),
            format!("ip link set dev {name} mtu {ceiling}"),
        ),
        _ if mtu > frame => Finding::note(
            NAME,
            format!(
                "{mtu}; a frame holds {frame}, so that is the longest packet of ours. What others send longer to our port is dropped"
            ),
        ),
        Some(ceiling) => Finding::ok(NAME, format!("{mtu}; native programs take {ceiling}")),
        None => Finding::ok(NAME, format!("{mtu}; a frame holds {frame}")),
    }
}

/// An interface has one program.
fn program(interface: &Interface) -> Finding {
    const NAME: &str = "program";
    let Some(attached) = interface.link.program else {
        return Finding::ok(NAME, "none attached");
    };
    let (name, id) = (&interface.link.name, attached.id);
    let mode = if attached.native { "native" } else { "generic" };
    let holders = holder::of(id);
    if holders.is_empty() {
        let says = format!(
            "one is attached already, {mode}, id {id}, and no process that we may look at holds it"
        );
        return Finding::problem(NAME, says, format!("ip link set dev {name} xdp off"));
    }
    let who: Vec<String> = holders
        .iter()
        .map(|(pid, name)| format!("{pid} ({name})"))
        .collect();
    let says = format!(
        "one is attached already, {mode}, id {id}, held by process {}",
        who.join(", ")
    );
    let pids: Vec<String> = holders.iter().map(|(pid, _)| pid.to_string()).collect();
    Finding::problem(NAME, says, format!("kill {}", pids.join(" ")))
}

/// Whether the kernel has AF_XDP at all.
fn sockets() -> Finding {
    const NAME: &str = "AF_XDP";
    match Opening::new() {
        // Whoever may not make one is told so because it could be made.
        Ok(_) | Err(Errno::PERM) => Finding::ok(NAME, "the kernel has it"),
        Err(Errno::AFNOSUPPORT) => Finding::problem(
            NAME,
            "the kernel does not have it",
            "boot a kernel with CONFIG_XDP_SOCKETS=y",
        ),
        Err(errno) => Finding::problem(NAME, errno.to_string(), "ulimit -n 1024"),
    }
}

/// Whether the frames of a device may be pinned.
fn frames(interface: &Interface) -> Finding {
    const NAME: &str = "frames";
    let bytes = FRAMES * u64::from(Interface::frame_bytes(interface.link.mtu));
    let limit = getrlimit(Resource::Memlock).current;
    let enough = Effective::read().may_lock() || limit.is_none_or(|limit| limit >= bytes);
    let says = format!("{} KiB are pinned for a device", bytes / 1024);
    match enough {
        true => Finding::ok(NAME, format!("{says}; the memlock limit allows it")),
        false => Finding::problem(
            NAME,
            format!(
                "{says}, more than the memlock limit of {} KiB",
                limit.unwrap_or(0) / 1024
            ),
            format!("ulimit -l {}", bytes / 1024 + 1024),
        ),
    }
}

fn capabilities(interface: &Interface) -> Finding {
    const NAME: &str = "capabilities";
    let missing = Effective::read().missing_for_xdp();
    if missing.is_empty() {
        return Finding::ok(NAME, "this process may open xdp: addresses");
    }
    let says = format!(
        "for xdp: addresses {} is missing; udp: needs none. Or root opens it for a program without any: \
         `tightbeam xdp-open --dev {} --port PORT -- PROGRAM`",
        missing.join(", "),
        interface.link.name
    );
    let program = std::env::current_exe();
    let program = program.map_or_else(|_| "PROGRAM".into(), |path| path.display().to_string());
    let mend = format!("setcap cap_bpf,cap_net_admin,cap_net_raw+ep {program}");
    Finding::note(NAME, says).mended_by(mend)
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;
    use tightbeam_sys::link::{AttachedProgram, XdpFeatures};

    type Look = fn(&Interface) -> Finding;

    /// A NIC, which no machine of a test need have.
    fn nic() -> Interface {
        let mut nic = Interface::find("lo").unwrap();
        nic.link.name = "eth7".into();
        nic.link.loopback = false;
        nic.link.up = true;
        nic.link.program = None;
        nic.addresses = vec![std::net::Ipv4Addr::new(10, 0, 0, 1)];
        nic.link.mtu = 1500;
        nic.driver = "ena".into();
        nic.features = Some(XdpFeatures {
            native: true,
            redirect: true,
            zero_copy: true,
        });
        nic.in_the_way = Some(Vec::new());
        nic
    }

    fn found(finding: &Finding) -> (Verdict, Option<&str>) {
        (finding.verdict, finding.mend.as_deref())
    }

    #[test]
    fn a_nic_that_is_well_has_no_problem() {
        let nic = nic();
        for look in [
            state, addresses, driver, queues, modes, offloads, checksums, mtu, program,
        ] {
            let finding = look(&nic);
            assert_eq!(found(&finding), (Verdict::Ok, None), "{finding:?}");
        }
        let modes = modes(&nic).says;
        assert!(
            modes.ends_with("native zerocopy, then native copy, then generic copy"),
            "{modes}"
        );
    }

    #[test]
    fn each_problem_has_the_command_that_mends_it() {
        let mut nic = nic();
        nic.link.up = false;
        nic.addresses.clear();
        nic.link.mtu = 9000;
        nic.in_the_way = Some(vec!["rx-gro-hw".into(), "rx-lro".into()]);
        // No process holds such a program.
        nic.link.program = Some(AttachedProgram {
            id: u32::MAX,
            native: true,
        });
        let problems: [(Look, &str); 5] = [
            (state, "ip link set dev eth7 up"),
            (addresses, "ip address add 10.0.0.1/24 dev eth7"),
            (mtu, "ip link set dev eth7 mtu 3498"),
            (offloads, "ethtool -K eth7 rx-gro-hw off rx-lro off"),
            (program, "ip link set dev eth7 xdp off"),
        ];
        for (look, command) in problems {
            let finding = look(&nic);
            assert_eq!(
                found(&finding),
                (Verdict::Problem, Some(command)),
                "{finding:?}"
            );
        }
    }

    #[test]
    fn several_queues_are_no_problem() {
        let mut nic = nic();
        nic.queues = 4;
        let finding = queues(&nic);
        assert_eq!(found(&finding), (Verdict::Ok, None));
        assert!(finding.says.starts_with("4: "), "{finding:?}");
    }
}
