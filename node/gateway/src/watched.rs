//! The bytes of one caller's connection, on their way to and from the HTTP parser.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::connection::Connection;
use crate::frames::Frames;
use crate::strict::Scanner;
use crate::workers::now_ms;

/// An interim response, which every HTTP/1.1 client has to skip.
const PROBE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// How long a caller's further bytes are read and discarded after the answer, so that the reset of
/// a closed socket does not destroy the answer (RFC 9112, section 9.6). A connection whose slot
/// others wait for is closed earlier: see [`Connection::judge`].
const LINGER: Duration = Duration::from_secs(30);
/// Longest pause between two pieces in that time: a caller that is silent for longer has read its
/// answer or is gone.
const LINGER_QUIET: Duration = Duration::from_secs(5);
/// Most bytes in that time: a caller that sends more than this after its answer is cut off.
const LINGER_BYTES: usize = 256 * 1024 * 1024;

/// A socket, or TLS over one, between the caller and the HTTP parser.
///
/// It reports to its connection when bytes come and when they cannot be sent, and holds the caller
/// to [`crate::strict`] and [`crate::frames`].
///
/// A caller that ends its side after a whole HTTP/1 request gets its answer: the parser sees the
/// end only when no request is under way. Such a caller may also be gone. So after a while the
/// gateway sends `100 Continue` to an HTTP/1.1 caller, which every client has to skip (RFC 9110,
/// section 15.2); the kernel of a caller that is gone answers with a reset, and the next write
/// fails.
#[derive(Debug)]
pub struct Watched<S> {
    stream: S,
    connection: Arc<Connection>,
    scanner: Scanner,
    frames: Frames,
    /// The caller has ended its side.
    ended: bool,
    /// Bytes were sent since the last whole head: an interim response would split a response.
    has_sent: bool,
    /// Present after the gateway has ended its side.
    linger: Option<Linger>,
}

/// The state of a connection that is closing while its caller still sends.
#[derive(Debug)]
struct Linger {
    until: Pin<Box<Sleep>>,
    quiet_until: Pin<Box<Sleep>>,
    left_bytes: usize,
    /// Whether the caller is known to be sending. Otherwise only bytes that have arrived already
    /// are read.
    is_awaited: bool,
}

impl Linger {
    fn new(is_awaited: bool) -> Self {
        Self {
            until: Box::pin(tokio::time::sleep(LINGER)),
            quiet_until: Box::pin(tokio::time::sleep(LINGER_QUIET)),
            left_bytes: LINGER_BYTES,
            is_awaited,
        }
    }

    /// Records a piece; returns whether more may come.
    fn took(&mut self, bytes: usize) -> bool {
        self.is_awaited = true;
        let quiet_until = Instant::now() + LINGER_QUIET;
        self.quiet_until.as_mut().reset(quiet_until);
        let left_bytes = self.left_bytes.checked_sub(bytes);
        self.left_bytes = left_bytes.unwrap_or(0);
        left_bytes.is_some()
    }
}

impl<S> Watched<S> {
    /// Starts without any bytes.
    pub fn new(stream: S, connection: Arc<Connection>) -> Self {
        Self {
            stream,
            connection,
            scanner: Scanner::default(),
            frames: Frames::new(now_ms()),
            ended: false,
            has_sent: false,
            linger: None,
        }
    }

    /// Whether a whole request has come and its answer is not complete.
    fn is_answering(&self) -> bool {
        let done = self.connection.done();
        self.scanner.is_between_requests() && self.scanner.heads() != done
    }

    fn sends(&mut self, polled: &Poll<io::Result<usize>>) {
        self.has_sent = true;
        self.connection.writes(polled.is_pending());
        if let Poll::Ready(Ok(bytes)) = polled {
            self.frames.sent(*bytes);
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Watched<S> {
    /// After the caller has ended its side: pending while a request is under way.
    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.connection.wakes(context.waker());
        if !self.is_answering() {
            return Poll::Ready(Ok(()));
        }
        self.connection.ends();
        if self.connection.takes_probe() && !self.has_sent && self.scanner.is_http11() {
            match Pin::new(&mut self.stream).poll_write(context, PROBE) {
                Poll::Ready(Ok(sent)) if sent == PROBE.len() => {
                    let _ = Pin::new(&mut self.stream).poll_flush(context)?;
                }
                Poll::Ready(Ok(_)) => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {}
            }
        }
        Poll::Pending
    }
}

impl<S: AsyncRead + Unpin> Watched<S> {
    /// Discards what still comes, until the caller ends its side too. A caller in the middle of a
    /// request is waited for. Of another caller, such as one whose next request crosses the end of
    /// the connection, only the bytes that have arrived and those that follow them are read.
    fn poll_linger(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let is_awaited = self.scanner.is_within_request();
        let linger = self.linger.get_or_insert_with(|| Linger::new(is_awaited));
        let mut piece = [0; 16 * 1024];
        loop {
            let is_late = linger.until.as_mut().poll(context).is_ready()
                || linger.quiet_until.as_mut().poll(context).is_ready();
            if is_late {
                return Poll::Ready(());
            }
            let mut piece = ReadBuf::new(&mut piece);
            match Pin::new(&mut self.stream).poll_read(context, &mut piece) {
                Poll::Ready(Ok(())) if !piece.filled().is_empty() => {
                    if !linger.took(piece.filled().len()) {
                        return Poll::Ready(());
                    }
                }
                // A caller that is gone, or has ended its side, sends nothing more.
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending if linger.is_awaited => return Poll::Pending,
                Poll::Pending => return Poll::Ready(()),
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.ended {
            return this.poll_end(context);
        }
        if let Some(refusal) = this.scanner.refusal(buffer.remaining()) {
            buffer.put_slice(refusal);
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(context, buffer))?;
        if buffer.filled().len() == before {
            this.ended = buffer.remaining() > 0;
            return this.poll_end(context);
        }
        this.connection.received();
        this.frames.set_time(now_ms());
        let heads = this.scanner.heads();
        let came = &buffer.filled()[before..];
        let passed = this.scanner.scan(came, &mut this.frames);
        let passed = passed.map_err(io::Error::other)?;
        buffer.set_filled(before + passed);
        if let Some(refusal) = this.scanner.refusal(buffer.remaining()) {
            buffer.put_slice(refusal);
        }
        if this.scanner.heads() != heads {
            this.has_sent = false;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.sends(&polled);
        polled
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.sends(&polled);
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(context);
        if polled.is_pending() {
            self.connection.writes(true);
        }
        polled
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.linger.is_none() {
            let polled = Pin::new(&mut self.stream).poll_shutdown(context);
            self.connection.writes(polled.is_pending());
            ready!(polled)?;
        }
        if !self.ended {
            ready!(self.poll_linger(context));
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
    use tokio::time::{Instant, sleep};

    use super::*;

    const HEAD: &[u8] = b"POST / HTTP/1.1\r\nContent-Length: 900000000\r\n\r\n";

    /// A connection on which the server has read the head of this request and ends its side.
    async fn ending(request: &[u8]) -> (DuplexStream, tokio::task::JoinHandle<()>) {
        let (mut caller, ours) = duplex(1 << 20);
        let client = Bytes::from_static(b"192.0.2.1");
        let connection = Arc::new(Connection::new(client, false, None, None));
        let mut watched = Watched::new(ours, connection);
        caller.write_all(request).await.unwrap();
        let mut head = vec![0; request.len()];
        watched.read_exact(&mut head).await.unwrap();
        let ending = tokio::spawn(async move { watched.shutdown().await.unwrap() });
        (caller, ending)
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_goes_on_sending_is_listened_to_for_a_while() {
        let (mut caller, ending) = ending(HEAD).await;
        let started = Instant::now();
        let sending = tokio::spawn(async move {
            // The caller never pauses for long.
            while caller.write_all(b"x").await.is_ok() {
                sleep(LINGER_QUIET - Duration::from_secs(1)).await;
            }
        });
        ending.await.unwrap();
        assert_eq!(started.elapsed(), LINGER);
        sending.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_is_quiet_or_has_ended_is_not_waited_for() {
        let (_caller, quiet) = ending(HEAD).await;
        let started = Instant::now();
        quiet.await.unwrap();
        assert_eq!(started.elapsed(), LINGER_QUIET);
        let (mut caller, ended) = ending(HEAD).await;
        let started = Instant::now();
        caller.shutdown().await.unwrap();
        ended.await.unwrap();
        assert_eq!(started.elapsed(), Duration::ZERO);
        let (_caller, between_requests) = ending(b"GET / HTTP/1.1\r\n\r\n").await;
        between_requests.await.unwrap();
        assert_eq!(started.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_sends_without_end_is_cut() {
        let (mut caller, ending) = ending(HEAD).await;
        let started = Instant::now();
        let mut sent = 0;
        let piece = vec![b'x'; 1 << 20];
        while sent <= 2 * LINGER_BYTES && caller.write_all(&piece).await.is_ok() {
            sent += piece.len();
        }
        ending.await.unwrap();
        assert!(
            (LINGER_BYTES..LINGER_BYTES + (4 << 20)).contains(&sent),
            "{sent}"
        );
        assert_eq!(started.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_crosses_the_end_of_the_connection_is_taken() {
        let (mut caller, ending) = ending(b"GET / HTTP/1.1\r\n\r\n").await;
        caller
            .write_all(b"GET /next HTTP/1.1\r\n\r\n")
            .await
            .unwrap();
        let mut rest = String::new();
        caller.read_to_string(&mut rest).await.unwrap();
        assert!(
            !ending.is_finished(),
            "a socket that is closed now sends a reset"
        );
        drop(caller);
        ending.await.unwrap();
    }
}
