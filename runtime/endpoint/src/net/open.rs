//! Opening channels over devices, from the endpoint's side.

use super::line::Line;
use super::opening::{self, Desk};
use crate::channel::ChannelId;
use crate::devices::{Carrier, Devices, Location, Purpose};
use crate::{AddressError, Endpoint, OpenError};
use std::rc::Rc;
use tightbeam_proto::wire::message::HEADER;
use tightbeam_segment::MAX_INLINE;

/// Bytes that a packet must be able to carry: then what goes through the rings without a frame is never too long.
const LEAST_PACKET: usize = HEADER + MAX_INLINE;

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
        let opened = opening::connect(&line, address, location.host, &self.options);
        // Meanwhile packets for others may have come.
        self.take_news();
        let opened = opened?;
        if !self.lines.iter().any(|known| Rc::ptr_eq(known, &line)) {
            self.add_line(Rc::clone(&line));
        }
        let (channel, _) = self.adopt_device(&line, opened);
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
        Ok(Line::new(
            device,
            location.device.clone(),
            Desk::new(max_packet),
        ))
    }

    /// From now on the endpoint looks at this line, and waits for it.
    fn add_line(&mut self, line: Rc<Line>) {
        self.lines.push(line);
        // Who waits on descriptors already waits for this one, too.
        self.all_armed.set(false);
    }
}
