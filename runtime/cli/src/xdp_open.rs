//! `tightbeam xdp-open`: opens an AF_XDP device as root and hands it to a program that has no privilege.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode, ExitStatus};
use tightbeam_sys::Network;
use tightbeam_xdp::{HandOver, Options, User, XdpAddress};

/// Arguments of `tightbeam xdp-open`.
#[derive(Debug, clap::Args)]
pub(crate) struct XdpOpenArgs {
    /// The interface
    #[arg(long, value_name = "NAME")]
    dev: String,
    /// The UDP port whose packets the program gets; 0 takes a free one
    #[arg(long)]
    port: u16,
    /// The interface's address to use; its first one without
    #[arg(long)]
    ip: Option<Ipv4Addr>,
    /// Options as in an address: queue=N&mode=auto|generic|native&copy=auto|copy|zerocopy&strict
    #[arg(long, value_name = "OPTIONS", default_value = "mode=auto")]
    with: Options,
    /// Run the program as this user and group, by their numbers
    #[arg(long, value_name = "UID:GID", value_parser = user)]
    user: Option<User>,
    /// The program and its arguments
    #[arg(last = true, required = true)]
    program: Vec<String>,
}

fn user(text: &str) -> Result<User, String> {
    let parsed = text.split_once(':').and_then(|(user, group)| {
        Some(User {
            user: user.parse().ok()?,
            group: group.parse().ok()?,
        })
    });
    parsed.ok_or_else(|| "two numbers, as in 65534:65534".into())
}

/// Opens, hands over, waits; ends as the program does.
pub(crate) fn run(args: &XdpOpenArgs) -> ExitCode {
    match open_and_run(args) {
        Ok(ended) => code(ended),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn open_and_run(args: &XdpOpenArgs) -> Result<ExitStatus, Box<dyn std::error::Error>> {
    let ip = match args.ip {
        Some(ip) => ip,
        None => first_address(&args.dev)?,
    };
    let address = XdpAddress {
        interface: args.dev.clone(),
        at: SocketAddrV4::new(ip, args.port),
        options: args.with,
    };
    let device = HandOver::open(&address)?;
    let (name, arguments) = args.program.split_first().ok_or("there is no program")?;
    let mut command = Command::new(name);
    command.args(arguments);
    let ended = device.run(command, args.user);
    Ok(ended.map_err(|error| format!("cannot run {name}: {error}"))?)
}

fn first_address(interface: &str) -> Result<Ipv4Addr, String> {
    let network = Network::open().map_err(|errno| format!("cannot ask for interfaces: {errno}"))?;
    let link = network.link(interface);
    let link = link.map_err(|errno| format!("there is no interface {interface} ({errno})"))?;
    let all = network.addresses_of(link.index).unwrap_or_default();
    let none =
        format!("{interface} has no IPv4 address: `ip address add A.B.C.D/24 dev {interface}`");
    all.first().copied().ok_or(none)
}

/// As a shell says it: 128 and the signal, if it was one.
fn code(ended: ExitStatus) -> ExitCode {
    let number = ended.code().or(ended.signal().map(|signal| 128 + signal));
    ExitCode::from(number.and_then(|n| u8::try_from(n).ok()).unwrap_or(1))
}
