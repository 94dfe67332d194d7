//! An upstream that speaks HTTP/1.1 byte by byte, by a script.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::Upstream;

/// What follows the bytes of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// The connection is closed.
    Close,
    /// Nothing more is read or written.
    Hold,
    /// The next head is read, and the connection is closed without an answer, as by an idle timeout
    /// at that moment.
    CloseAtNext,
}

/// The upstream's behaviour after it has read a head.
pub(crate) type Script = dyn Fn(&str) -> (Vec<u8>, Then) + Send + Sync;

/// The upstream and the state of its connections.
pub(crate) struct Raw {
    pub(crate) upstream: Upstream,
    heads: Arc<Mutex<Vec<String>>>,
    open: Arc<AtomicUsize>,
}

struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(open: &Arc<AtomicUsize>) -> Self {
        open.fetch_add(1, Ordering::SeqCst);
        Self(open.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Raw {
    pub(crate) async fn start(
        script: impl Fn(&str) -> (Vec<u8>, Then) + Send + Sync + 'static,
    ) -> Self {
        Self::start_with(true, script).await
    }

    /// Starts the upstream; without handshakes, it accepts connections and never begins TLS.
    pub(crate) async fn start_with(
        handshakes: bool,
        script: impl Fn(&str) -> (Vec<u8>, Then) + Send + Sync + 'static,
    ) -> Self {
        let (upstream, listener, tls) = Upstream::listen(&["http/1.1"]).await;
        let raw = Self {
            upstream,
            heads: Arc::default(),
            open: Arc::default(),
        };
        let (heads, open) = (raw.heads.clone(), raw.open.clone());
        let script: Arc<Script> = Arc::new(script);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (tls, heads, script) = (tls.clone(), heads.clone(), script.clone());
                let counted = Counted::new(&open);
                tokio::spawn(async move {
                    if handshakes {
                        let _closed = serve(stream, tls, heads, script).await;
                    } else {
                        until_closed(&stream).await;
                    }
                    drop(counted);
                });
            }
        });
        raw
    }

    /// Connections that the vault has not closed.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    /// Waits until so many connections are open.
    pub(crate) async fn wait_for_open(&self, count: usize) {
        let wait = async {
            while self.open() != count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(20), wait).await;
        assert!(
            waited.is_ok(),
            "{} connections are open, not {count}",
            self.open()
        );
    }

    /// The heads that were read, in order.
    pub(crate) fn heads(&self) -> Vec<String> {
        self.heads.lock().clone()
    }
}

async fn serve(
    stream: TcpStream,
    tls: TlsAcceptor,
    heads: Arc<Mutex<Vec<String>>>,
    script: Arc<Script>,
) -> std::io::Result<()> {
    let mut stream = tls.accept(stream).await?;
    let head = read_head(&mut stream).await?;
    heads.lock().push(head.clone());
    let (bytes, then) = script(&head);
    stream.write_all(&bytes).await?;
    stream.flush().await?;
    match then {
        Then::Close => stream.shutdown().await,
        Then::Hold => {
            until_closed(stream.get_ref().0).await;
            Ok(())
        }
        Then::CloseAtNext => {
            let head = read_head(&mut stream).await?;
            heads.lock().push(head);
            stream.shutdown().await
        }
    }
}

async fn read_head(stream: &mut TlsStream<TcpStream>) -> std::io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

/// Waits until the other end has closed, without reading what it has sent.
async fn until_closed(stream: &TcpStream) {
    while let Ok(ready) = stream.ready(Interest::READABLE | Interest::ERROR).await {
        if ready.is_read_closed() || ready.is_error() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
