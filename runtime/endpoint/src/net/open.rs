//! Opening channels over devices, from the endpoint's side.

use super::desk::{Desk, build, free_slot, seat};
use super::hand::keep;
use super::line::{Inner, Line};
use super::news::Opened;
use crate::channel::ChannelId;
use crate::control::OpenOptions;
use crate::devices::{Carrier, Devices, Location, Purpose};
use crate::{AddressError, Endpoint, OpenError};
use std::net::SocketAddrV4;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Duration;
use tightbeam_proto::opening::{Agreed, Progress, Refusal};
use tightbeam_proto::wire::message::{HEADER, VERSION};
use tightbeam_segment::{MAX_INLINE, Route};
use tightbeam_sys::control::wait_readable;

/// Bytes that a packet of ours must be able to carry: what any ring carries without a frame, and a batch. (A path, or a peer, may be
/// narrower: then what is longer is refused, and of a batch counted as too long.)
const LEAST_PACKET: usize = HEADER + MAX_INLINE;
/// While a client waits for an answer it looks whether packets have come at least so often.
const LOOK: Duration = Duration::from_millis(5);

/// Reads an address of a device; `None` for one of a process.
pub(crate) fn location<D: Devices>(address: &str) -> Result<Option<Location>, OpenError> {
    if let Some(location) = D::location(address) {
        return location.map(Some);
    }
    let forms = ["shm:PATH"].into_iter().chain(D::FORMS.iter().copied());
    let known = || forms.collect::<Vec<_>>().join(", ");
    match address.split_once(':') {
        None => Err(OpenError::Address(AddressError::NoScheme {
            text: address.into(),
            known: known(),
        })),
        Some((scheme, _)) if scheme != "shm" => {
            Err(OpenError::Address(AddressError::UnknownScheme {
                scheme: scheme.into(),
                known: known(),
            }))
        }
        Some(_) => Ok(None),
    }
}

impl<S, D: Devices> Endpoint<S, D> {
    /// Opens a channel to another host.
    pub(crate) fn open_device(
        &mut self,
        address: &str,
        location: &Location,
    ) -> Result<ChannelId, OpenError> {
        let line = self.line(address, location, Purpose::Connect)?;
        let opened = connect(&line, address, location.host, &self.options);
        // Meanwhile packets for others may have come.
        self.take_news();
        let (opened, early) = opened?;
        let slot = opened.slot;
        if !self.lines.iter().any(|known| Rc::ptr_eq(known, &line)) {
            self.add_line(Rc::clone(&line));
        }
        let (channel, _) = self.adopt_device(&line, opened);
        line.inner().take_early(slot, &early);
        self.drop_unused_lines();
        Ok(channel)
    }

    /// Listens at a device.
    pub(crate) fn accept_at_device(
        &mut self,
        address: &str,
        location: &Location,
    ) -> Result<(), OpenError> {
        let line = self.line(address, location, Purpose::Listen)?;
        line.inner().desk.open_to_all(&self.options)?;
        self.listens = true;
        if !self.lines.iter().any(|known| Rc::ptr_eq(known, &line)) {
            self.add_line(line);
        }
        Ok(())
    }

    /// The line of this device; a new one, which the endpoint does not have yet, if there is none.
    fn line(
        &mut self,
        address: &str,
        location: &Location,
        purpose: Purpose,
    ) -> Result<Rc<Line>, OpenError> {
        let known =
            |line: &&Rc<Line>| line.name().is_some() && line.name() == location.device.as_deref();
        if let Some(line) = self.lines.iter().find(known) {
            return Ok(Rc::clone(line));
        }
        let device: Box<dyn Carrier> = D::open(address, purpose)?;
        let max_packet = device.capabilities().max_packet;
        if max_packet < LEAST_PACKET {
            return Err(OpenError::PacketsTooShort {
                max_packet,
                needed: LEAST_PACKET,
            });
        }
        let number = self.lines.last().map_or(0, |last| last.number + 1);
        let name = (location.device.clone(), number);
        Ok(Line::new(device, name, Desk::new(max_packet)))
    }

    /// From now on the endpoint looks at this line, and waits for it.
    fn add_line(&mut self, line: Rc<Line>) {
        self.lines.push(line);
        // Who waits on descriptors already waits for this one, too.
        self.rest.disturb();
    }
}

impl<S, D> Endpoint<S, D> {
    /// Gives up lines over which there is no channel any more: each costs a descriptor, and a look in each poll.
    pub(crate) fn drop_unused_lines(&mut self) {
        let watcher = self.watcher.as_deref();
        self.lines.retain(|line| {
            let used = !line.is_unused();
            if let (false, Some(watcher)) = (used, watcher) {
                line.unwatch(watcher);
            }
            used
        });
    }
}

/// Opens a channel to who listens at `host`, within `options.within`; and what has come over it already.
fn connect(
    line: &Line,
    address: &str,
    host: SocketAddrV4,
    options: &OpenOptions,
) -> Result<(Opened, Vec<Vec<u8>>), OpenError> {
    let route = line.inner().device.route(host)?;
    let slot = free_slot(&line.inner().fars, None);
    line.inner().desk.ask(host, options, slot)?;
    let agreed = ask(line, address, &route, options);
    let mut inner = line.inner();
    let (slot, early) = inner.desk.end_asking();
    let (far, opened) = build(&agreed?, slot, route, options);
    seat(&mut inner.fars, far);
    Ok((opened, early))
}

/// Asks until there is an answer, or patience ends.
fn ask(
    line: &Line,
    address: &str,
    route: &Route,
    options: &OpenOptions,
) -> Result<Agreed, OpenError> {
    loop {
        let mut inner = line.inner();
        let Inner { device, desk, .. } = &mut *inner;
        let wait = desk.ask_again(&mut **device, route);
        let wait = wait.ok_or_else(|| OpenError::TimedOut {
            path: address.into(),
            after: options.within,
        })?;
        wait_readable(device.as_fd(), wait.min(LOOK));
        inner.receive(&mut keep);
        inner.kick();
        match inner.desk.progress() {
            Progress::Nothing | Progress::Again => {}
            Progress::Opened(agreed) => return Ok(agreed),
            Progress::Refused { why, versions } => {
                let (lowest, highest) = versions;
                let why = match why {
                    Refusal::Version => {
                        format!("{why}: it speaks {lowest} to {highest}, we speak {VERSION}")
                    }
                    other => other.to_string(),
                };
                return Err(OpenError::Refused {
                    host: route.to,
                    why,
                });
            }
        }
    }
}
