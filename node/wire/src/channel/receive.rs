//! What comes from the other end: each frame is checked against what this end has allowed.

use bytes::{Buf as _, Bytes};

use super::{Channel, Side};
use crate::RESET_REFUSED;
use crate::error::Violation;
use crate::fields::Fields;
use crate::frame::{self, FLAG_ACK, FLAG_ASK, FLAG_END, HEADER_BYTES, Header, Kind, StreamId};
use crate::head::{RequestHead, ResponseHead};
use crate::limits::{
    CHANNEL_WINDOW_BYTES, MAX_OUTPUT_BYTES, MAX_STREAMS, STREAM_WINDOW_BYTES, WINDOW_UPDATE_BYTES,
};
use crate::stream::{Event, Stream};

impl Channel {
    /// Processes bytes from the other end, in whole frames or pieces.
    ///
    /// # Errors
    /// A [`Violation`]; the channel must be closed.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<(), Violation> {
        self.input.extend_from_slice(bytes);
        while let Some(header) = self.input.first_chunk::<HEADER_BYTES>() {
            let header = Header::parse(header)?;
            let length = HEADER_BYTES + header.length as usize;
            if self.input.len() < length {
                self.input.reserve(length - self.input.len());
                break;
            }
            let mut payload = self.input.split_to(length).freeze();
            payload.advance(HEADER_BYTES);
            self.handle(header, payload)?;
        }
        Ok(())
    }

    fn handle(&mut self, header: Header, payload: Bytes) -> Result<(), Violation> {
        let id = header.stream;
        let out_of_place = Violation::Unexpected(header.kind, id);
        let on_channel = matches!(header.kind, Kind::Ping | Kind::GoAway)
            || (header.kind == Kind::Window && id == 0);
        if on_channel != (id == 0) || header.kind == Kind::Control {
            return Err(out_of_place);
        }
        match header.kind {
            Kind::Head if self.side == Side::Acceptor => {
                self.handle_request(id, &payload, header.flags)
            }
            Kind::Head => self.handle_response(id, &payload, header.flags & FLAG_END != 0),
            Kind::Data => self.handle_data(id, payload),
            Kind::End => {
                self.must_have_been(id, header.kind)?;
                let trailers = if payload.is_empty() {
                    Fields::default()
                } else {
                    Fields::parse(&payload)?
                };
                if let Some(stream) = self.streams.get_mut(&id) {
                    if !stream.receive_open || !stream.head_received {
                        return Err(out_of_place);
                    }
                    stream.receive_open = false;
                    self.events.push_back(Event::End { id, trailers });
                    self.forget_if_over(id);
                }
                Ok(())
            }
            Kind::Reset => {
                self.must_have_been(id, header.kind)?;
                let code = <[u8; 2]>::try_from(payload.as_ref()).map_err(|_| out_of_place)?;
                if let Some(stream) = self.streams.remove(&id) {
                    self.give_back(stream.held);
                    self.events.push_back(Event::Reset {
                        id,
                        code: u16::from_le_bytes(code),
                    });
                }
                Ok(())
            }
            Kind::Window => self.handle_window(
                id,
                <[u8; 4]>::try_from(payload.as_ref()).map_err(|_| out_of_place)?,
            ),
            Kind::Ping if payload.len() != 8 => Err(out_of_place),
            Kind::Ping if header.flags & FLAG_ACK != 0 => {
                self.pings = self.pings.checked_sub(1).ok_or(out_of_place)?;
                Ok(())
            }
            Kind::Ping if self.output.len() >= MAX_OUTPUT_BYTES => Err(Violation::Flood),
            Kind::Ping => {
                frame::write(&mut self.output, Kind::Ping, FLAG_ACK, 0, &payload);
                Ok(())
            }
            Kind::GoAway => {
                let last = <[u8; 4]>::try_from(payload.as_ref()).map_err(|_| out_of_place)?;
                self.going_away = true;
                self.events.push_back(Event::GoAway);
                if self.side == Side::Opener {
                    let over = self.remove_above(StreamId::from_le_bytes(last));
                    let code = RESET_REFUSED;
                    let resets = over.into_iter().map(|id| Event::Reset { id, code });
                    self.events.extend(resets);
                }
                Ok(())
            }
            Kind::Control => Err(out_of_place),
        }
    }

    fn handle_request(&mut self, id: StreamId, payload: &[u8], flags: u8) -> Result<(), Violation> {
        if id <= self.highest {
            return Err(Violation::StreamId {
                highest: self.highest,
                got: id,
            });
        }
        if self.streams.len() >= MAX_STREAMS {
            return Err(Violation::TooManyStreams);
        }
        let head = RequestHead::parse(payload)?;
        self.highest = id;
        if id > self.last {
            // The frame was sent before the other end knew of our reset.
            return Ok(());
        }
        let (end, unasked) = (flags & FLAG_END != 0, flags & FLAG_ASK != 0);
        self.streams.insert(
            id,
            Stream {
                head_received: true,
                receive_open: !end,
                unasked,
                receive_credit: Stream::first_window(unasked),
                ..Stream::new()
            },
        );
        self.events.push_back(Event::Request { id, head, end });
        Ok(())
    }

    fn handle_response(
        &mut self,
        id: StreamId,
        payload: &[u8],
        end: bool,
    ) -> Result<(), Violation> {
        self.must_have_been(id, Kind::Head)?;
        let head = ResponseHead::parse(payload)?;
        if let Some(stream) = self.streams.get_mut(&id) {
            if stream.head_received {
                return Err(Violation::Unexpected(Kind::Head, id));
            }
            stream.head_received = true;
            stream.receive_open = !end;
            self.events.push_back(Event::Response { id, head, end });
            self.forget_if_over(id);
        }
        Ok(())
    }

    fn handle_data(&mut self, id: StreamId, bytes: Bytes) -> Result<(), Violation> {
        self.must_have_been(id, Kind::Data)?;
        if bytes.is_empty() {
            // Exceeds a window of zero.
            return Err(Violation::Unexpected(Kind::Data, id));
        }
        let length = bytes.len() as u32;
        self.receive_credit = self
            .receive_credit
            .checked_sub(length)
            .ok_or(Violation::Credit(0))?;
        let Some(stream) = self.streams.get_mut(&id) else {
            // The data was sent before our reset arrived.
            self.give_back(length);
            return Ok(());
        };
        if !stream.receive_open || !stream.head_received {
            return Err(Violation::Unexpected(Kind::Data, id));
        }
        stream.receive_credit = stream
            .receive_credit
            .checked_sub(length)
            .ok_or(Violation::Credit(id))?;
        stream.held += length;
        if stream.discard {
            self.consumed(id, bytes.len());
        } else {
            self.events.push_back(Event::Data { id, bytes });
        }
        Ok(())
    }

    fn handle_window(&mut self, id: StreamId, payload: [u8; 4]) -> Result<(), Violation> {
        let more = u32::from_le_bytes(payload);
        if more < WINDOW_UPDATE_BYTES {
            // Each update wakes a waiting sender, so only a hostile peer sends more of them than we
            // would.
            return Err(Violation::Window(id));
        }
        let raise = |credit: u32, limit: u32| credit.checked_add(more).filter(|sum| *sum <= limit);
        if id == 0 {
            self.send_credit =
                raise(self.send_credit, CHANNEL_WINDOW_BYTES).ok_or(Violation::Window(0))?;
        } else {
            self.must_have_been(id, Kind::Window)?;
            let Some(stream) = self.streams.get_mut(&id) else {
                return Ok(());
            };
            stream.send_credit =
                raise(stream.send_credit, STREAM_WINDOW_BYTES).ok_or(Violation::Window(id))?;
            stream.unasked = false;
        }
        if self.send_credit > 0 {
            for id in std::mem::take(&mut self.blocked) {
                match self.streams.get_mut(&id) {
                    Some(stream) if stream.send_credit > 0 => {
                        stream.blocked = false;
                        self.events.push_back(Event::Writable { id });
                    }
                    Some(_) => self.blocked.push_back(id),
                    None => {}
                }
            }
        }
        Ok(())
    }

    /// Checks that a stream has existed: frames for streams that are over may still arrive, but not
    /// for streams that never existed.
    fn must_have_been(&self, id: StreamId, kind: Kind) -> Result<(), Violation> {
        if id <= self.highest {
            Ok(())
        } else {
            Err(Violation::Unexpected(kind, id))
        }
    }
}
