//! Outgoing calls: from JavaScript's request to a stream of the vault's channel.
//!
//! While the channel has no free stream, calls wait in their order, each at most until the
//! wall-time limit of its request. A call's body waits too: a complete body, or the first piece of
//! a stream.

use bytes::Bytes;
use casemate_channel::{Exchange, StreamError};
use casemate_wire::RequestHead;
use futures_util::FutureExt;

use crate::call_error::{CallError, lost};
use crate::engine::Event;
use crate::engine::ops::{Call, CallBody, Handle, RequestId};
use crate::fields;
use crate::state::{Done, Held, State, Worker};

/// Field of a request's head, and of each call of the request: the number of functions on its way.
const HOPS: &str = ":hops";

/// The part of a body that JavaScript has sent before its call is opened. JavaScript sends a piece
/// when the one before was taken, so there is never more than one.
#[derive(Debug)]
pub(crate) enum Early {
    /// JavaScript has sent no piece yet.
    Nothing,
    /// The first piece.
    Piece(Bytes),
    /// The end of a body without a piece.
    End,
}

impl State {
    /// Opens a stream to the vault for a call, now or when the channel has a free one.
    pub(crate) fn call(
        &mut self,
        request: RequestId,
        name: String,
        handle: Handle,
        call: Call<'_>,
    ) -> Result<(), CallError> {
        let head = self.call_head(request, name, &call)?;
        let vault = self
            .vault
            .as_ref()
            .ok_or(CallError::lost(StreamError::Closed))?;
        let mut opening = vault.open_in_turn(head, matches!(call.body, CallBody::Empty));
        match (&mut opening).now_or_never() {
            Some(opened) => {
                let exchange = opened.map_err(CallError::lost)?;
                self.opened(request, handle, exchange, call.body);
            }
            None => {
                if matches!(call.body, CallBody::Stream) {
                    self.early.insert(handle, Early::Nothing);
                }
                let body = call.body;
                let busy =
                    self.start_abortable(async move { Done::Opened(handle, opening.await, body) });
                self.calling.insert(handle, (request, busy));
            }
        }
        Ok(())
    }

    fn call_head(
        &self,
        request: RequestId,
        name: String,
        call: &Call<'_>,
    ) -> Result<RequestHead, CallError> {
        let mut fields = fields::from_script(call.headers)
            .ok_or_else(|| CallError::new("the call has too many headers"))?;
        fields.push(":request", name);
        // The number of functions on the request's way. Without a count the vault assumes the
        // maximum.
        let caller = self.requests.get(&request);
        if let Some(hops) = caller.and_then(|caller| caller.head.fields.get(HOPS)) {
            fields.push(HOPS, hops);
        }
        if let Some(binding) = usize::try_from(call.binding)
            .ok()
            .and_then(|index| self.bindings.get(index))
        {
            fields.push(":binding", binding);
        }
        if let CallBody::Whole(bytes) = &call.body {
            fields.push("content-length", bytes.len().to_string());
        }
        Ok(RequestHead {
            method: call.method.to_owned(),
            target: call.url.split('#').next().unwrap_or_default().to_owned(),
            fields,
        })
    }

    /// The vault's stream for a call is open: sends the body and waits for the answer.
    fn opened(&mut self, request: RequestId, handle: Handle, exchange: Exchange, body: CallBody) {
        let mut sending = exchange.body;
        match body {
            CallBody::Empty => sending.finish(),
            CallBody::Whole(bytes) => self.start(async move {
                if sending.send(bytes).await.is_ok() {
                    sending.finish();
                }
                None
            }),
            CallBody::Stream => match self.early.remove(&handle) {
                Some(Early::End) => sending.finish(),
                early => {
                    self.sending.insert(handle, Held::new(request, sending));
                    if let Some(Early::Piece(bytes)) = early {
                        self.write(handle, bytes);
                    }
                }
            },
        }
        let response = exchange.response;
        let busy =
            self.start_abortable(async move { Done::Answered(handle, response.head().await) });
        self.calling.insert(handle, (request, busy));
    }

    /// Sends a piece of a body.
    pub(crate) fn write(&mut self, handle: Handle, bytes: Bytes) {
        if let Some(early) = self.early.get_mut(&handle) {
            *early = Early::Piece(bytes);
            return;
        }
        let body = self
            .sending
            .get_mut(&handle)
            .and_then(|held| held.body.take());
        let Some(mut body) = body else {
            // The body has ended already: the writer gets the same notice as after a later end.
            self.ready.push_back(Done::Unwanted(handle));
            return;
        };
        let busy = self.start_abortable(async move {
            let result = body.send(bytes).await;
            Done::Written(handle, body, result)
        });
        if let Some(held) = self.sending.get_mut(&handle) {
            held.busy = Some(busy);
        }
    }
}

impl Worker {
    /// The stream of a waiting call is open, or cannot be opened any more.
    pub(crate) fn call_opened(
        &self,
        handle: Handle,
        opened: Result<Exchange, StreamError>,
        body: CallBody,
    ) {
        let mut state = self.state.borrow_mut();
        let Some((request, _)) = state.calling.remove(&handle) else {
            return;
        };
        match opened {
            Ok(exchange) => state.opened(request, handle, exchange, body),
            Err(error) => {
                let has_writer = state.early.remove(&handle).is_some();
                drop(state);
                if has_writer {
                    self.tell(Event::Taken {
                        request,
                        body: handle,
                        wanted: false,
                    });
                }
                self.tell(lost(request, handle, error));
            }
        }
    }
}
