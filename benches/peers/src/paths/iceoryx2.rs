//! `iceoryx2`: publish-subscribe between two processes, one service for each way.
//!
//! The near process creates both services, then starts the far process, which
//! opens them. Messages are loaned, written and sent, and received by polling;
//! a full subscriber refuses (no overflow), so that none is lost. Events,
//! listeners and the wait set stay out of it: they are a system call each.

use iceoryx2::config::Config;
use iceoryx2::node::{Node, NodeBuilder};
use iceoryx2::port::publisher::Publisher;
use iceoryx2::port::subscriber::Subscriber;
use iceoryx2::prelude::{BackpressureStrategy, LogLevel, ServiceName, SignalHandlingMode, ipc};
use iceoryx2::service::port_factory::publish_subscribe::PortFactory;

use super::{Order, Settings, far_process, fresh_name};
use crate::fault::Fault;
use crate::link::Link;
use crate::near::{Near, Runner};
use crate::payload::{check, fill};
use crate::words::Words;

pub(super) const SETTINGS: Settings = Settings {
    package: "iceoryx2",
    sides: "processes",
    pingpong_depth: 2,
    rate_depth: 64,
    rate_depth_large: 64,
    how: "ipc::Service publish-subscribe each way, loan_uninit/write_payload/send, polling receive, \
          1 publisher, 1 subscriber, no safe overflow, DiscardData with a second try when refused, history 0, \
          Config::default() without configuration files",
};

type Service<const N: usize> = PortFactory<ipc::Service, [u8; N], ()>;

/// One side. The ports go before the services, the services before the node.
#[derive(Debug)]
struct Side<const N: usize> {
    out: Publisher<ipc::Service, [u8; N], ()>,
    back: Subscriber<ipc::Service, [u8; N], ()>,
    _services: [Service<N>; 2],
    _node: Node<ipc::Service>,
}

impl<const N: usize> Side<N> {
    fn open(out: &str, back: &str, depth: usize) -> Result<Self, Fault> {
        iceoryx2::prelude::set_log_level(LogLevel::Error);
        let node = NodeBuilder::new()
            .config(&Config::default())
            // Ctrl-C shall end this program as it ends any other.
            .signal_handling_mode(SignalHandlingMode::Disabled)
            .create::<ipc::Service>()
            .map_err(Fault::doing("creating an iceoryx2 node"))?;
        let (there, answers) = (service(&node, out, depth)?, service(&node, back, depth)?);
        let out = there
            .publisher_builder()
            .max_loaned_samples(1)
            .backpressure_strategy(BackpressureStrategy::DiscardData)
            .create()
            .map_err(Fault::doing("creating an iceoryx2 publisher"))?;
        let back = answers
            .subscriber_builder()
            .create()
            .map_err(Fault::doing("creating an iceoryx2 subscriber"))?;
        Ok(Self {
            out,
            back,
            _services: [there, answers],
            _node: node,
        })
    }
}

impl<const N: usize> Link for Side<N> {
    #[inline(always)]
    fn send(&mut self, seed: u64) -> Result<bool, Fault> {
        let sample = self
            .out
            .loan_uninit()
            .map_err(Fault::doing("loaning a sample"))?;
        let receivers = sample
            .write_payload(fill(seed))
            .send()
            .map_err(Fault::doing("sending a sample"))?;
        Ok(receivers > 0)
    }

    #[inline(always)]
    fn receive(&mut self, number: u64, seed: u64) -> Result<bool, Fault> {
        match self.back.receive() {
            Ok(Some(sample)) => check(sample.payload(), number, seed).map(|()| true),
            Ok(None) => Ok(false),
            Err(error) => Err(Fault::doing("receiving a sample")(error)),
        }
    }
}

fn service<const N: usize>(
    node: &Node<ipc::Service>,
    name: &str,
    depth: usize,
) -> Result<Service<N>, Fault> {
    let name = ServiceName::new(name).map_err(Fault::doing("naming an iceoryx2 service"))?;
    node.service_builder(&name)
        .publish_subscribe::<[u8; N]>()
        .max_publishers(1)
        .max_subscribers(1)
        .max_nodes(2)
        .history_size(0)
        .enable_safe_overflow(false)
        .subscriber_max_buffer_size(depth)
        .subscriber_max_borrowed_samples(1)
        .open_or_create()
        .map_err(Fault::doing("opening an iceoryx2 service"))
}

fn names(meet: &str) -> (String, String) {
    (format!("{meet}/there"), format!("{meet}/back"))
}

pub(super) fn open<const N: usize>(order: Order) -> Result<Box<dyn Runner>, Fault> {
    let meet = fresh_name();
    let (there, back) = names(&meet);
    let near = Side::<N>::open(&there, &back, order.depth)?;
    let words = Words::create()?;
    let far = far_process(order, &words, &meet)?;
    Ok(Box::new(Near::meet(near, far, words)?))
}

/// The side that the far process holds.
pub(super) fn far<const N: usize>(meet: &str, depth: usize) -> Result<impl Link, Fault> {
    let (there, back) = names(meet);
    Side::<N>::open(&back, &there, depth)
}
