//! The `tightbeam` command: `bench` compares paths, `ping` and `pong` measure one of them live, `doctor` says what this machine offers.
//!
//! Exit codes: 0 done, 1 something failed (said on standard error), 2 wrong arguments, 130 ended by Ctrl-C before there was a
//! result. Standard output has results only.
#![forbid(unsafe_code)]

mod bench;
mod cleanup;
mod doctor;
mod ping;
mod xdp_open;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Kernel-bypass messaging between processes.
#[derive(Debug, Parser)]
#[command(name = "tightbeam", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Compare the local path with every socket path of this machine
    Bench(Bench),
    /// Measure the latency of calls to `tightbeam pong`, live
    Ping(ping::PingArgs),
    /// Answer `tightbeam ping`
    Pong(ping::PongArgs),
    /// Open an AF_XDP device as root, and hand it to a program without privilege
    XdpOpen(xdp_open::XdpOpenArgs),
    /// Say what this host and its NIC offer, and what mends each problem
    Doctor(doctor::DoctorArgs),
    /// The second process of a bench
    #[command(hide = true)]
    BenchPeer(bench::peer::PeerArgs),
    /// The second process of `bench channels`
    #[command(hide = true)]
    BenchChannelsPeer(bench::channels::PeerArgs),
    /// The second process of `bench wait`
    #[command(hide = true)]
    BenchWaitPeer(bench::wait::PeerArgs),
    /// The second process of `bench sizes`
    #[command(hide = true)]
    BenchSizesPeer(bench::sizes::PeerArgs),
    /// The receivers of `bench fanout`
    #[command(hide = true)]
    BenchFanoutPeer(bench::fanout::PeerArgs),
    /// A stage of `bench handoff`
    #[command(hide = true)]
    BenchHandoffPeer(bench::handoff::PeerArgs),
    /// The second process of `bench overload`
    #[command(hide = true)]
    BenchOverloadPeer(bench::overload::PeerArgs),
    /// The second process of `bench loss` and `bench n90`
    #[command(hide = true)]
    BenchNetPeer(bench::net::sink::PeerArgs),
}

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
struct Bench {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    args: bench::BenchArgs,
}

#[derive(Debug, Subcommand)]
enum What {
    /// What many channels of one endpoint cost, beside one channel
    Channels(bench::channels::ChannelsArgs),
    /// What waiting costs, beside the bare futex and a Unix socket
    Wait(bench::wait::WaitArgs),
    /// Latency and rate against the size of a message, and what handing a frame over costs
    Sizes(bench::sizes::SizesArgs),
    /// Copied, mapped, secured, moved: what a message costs at each process that it goes through
    Handoff(bench::handoff::HandoffArgs),
    /// One frame for several receivers, and what one that stands still costs the others
    Fanout(bench::fanout::FanoutArgs),
    /// What a consumer gets while it is offered more than it takes
    Overload(bench::overload::OverloadArgs),
    /// Messages between two hosts, which are network namespaces on a virtual cable; needs root
    Net(bench::net::NetArgs),
    /// Offered rate against loss between two hosts, by cause; needs root
    Loss(bench::net::loss::LossArgs),
    /// The smallest message that fills 90 % of a shaped link between two hosts; needs root
    N90(bench::net::n90::N90Args),
}

fn main() -> ExitCode {
    let ended = match Cli::parse().command {
        Command::Bench(Bench {
            what: Some(What::Channels(args)),
            ..
        }) => bench::channels::run(&args),
        Command::Bench(Bench {
            what: Some(What::Wait(args)),
            ..
        }) => bench::wait::run(&args),
        Command::Bench(Bench {
            what: Some(What::Sizes(args)),
            ..
        }) => bench::sizes::run(&args),
        Command::Bench(Bench {
            what: Some(What::Handoff(args)),
            ..
        }) => bench::handoff::run(&args),
        Command::Bench(Bench {
            what: Some(What::Net(args)),
            ..
        }) => bench::net::run(&args),
        Command::Bench(Bench {
            what: Some(What::Fanout(args)),
            ..
        }) => bench::fanout::run(&args),
        Command::Bench(Bench {
            what: Some(What::Overload(args)),
            ..
        }) => bench::overload::run(&args),
        Command::Bench(Bench {
            what: Some(What::Loss(args)),
            ..
        }) => bench::net::loss::run(&args),
        Command::Bench(Bench {
            what: Some(What::N90(args)),
            ..
        }) => bench::net::n90::run(&args),
        Command::Bench(Bench { what: None, args }) => bench::run(&args),
        Command::Ping(args) => ping::ping(&args),
        Command::Pong(args) => ping::pong(&args),
        Command::XdpOpen(args) => return xdp_open::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::BenchPeer(args) => bench::peer::run(&args).map_err(Into::into),
        Command::BenchChannelsPeer(args) => bench::channels::serve(&args).map_err(Into::into),
        Command::BenchWaitPeer(args) => bench::wait::serve(&args).map_err(Into::into),
        Command::BenchNetPeer(args) => bench::net::sink::serve(&args).map_err(Into::into),
        Command::BenchSizesPeer(args) => bench::sizes::serve(&args).map_err(Into::into),
        Command::BenchFanoutPeer(args) => bench::fanout::serve(&args).map_err(Into::into),
        Command::BenchHandoffPeer(args) => bench::handoff::serve(&args).map_err(Into::into),
        Command::BenchOverloadPeer(args) => bench::overload::serve(&args).map_err(Into::into),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
