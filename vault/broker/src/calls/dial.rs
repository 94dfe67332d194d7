//! Dials upstreams: resolve, check, connect to the checked address, TLS.

use std::error::Error as _;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use casemate_trust::host::HostName;
use casemate_trust::id::TenantId;
use casemate_wire::CallCode;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::cut::{Cut, CutWhenOver};
use super::refused::Refused;
use super::resolve::Resolving;

/// Time until a connection is established, TLS included, for each address that is tried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The trusted certificate authorities.
pub(crate) struct Trust {
    own: Arc<RootCertStore>,
}

impl Trust {
    pub(crate) fn new(anchors: &[String]) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        for anchor in anchors {
            if anchor == "system" {
                let found = rustls_native_certs::load_native_certs();
                roots.add_parsable_certificates(found.certs);
                continue;
            }
            let pem = std::fs::read(anchor)
                .map_err(|error| format!("trust_anchors: {anchor} cannot be read: {error}"))?;
            add_pem(&mut roots, &pem)
                .map_err(|message| format!("trust_anchors: {anchor}: {message}"))?;
        }
        if roots.is_empty() {
            tracing::warn!(
                "no certificate authority is trusted: only slots with a `ca` of their own can reach an upstream"
            );
        }
        Ok(Self {
            own: Arc::new(roots),
        })
    }

    /// Makes a TLS client for one pool, so that session tickets are not shared between tenants.
    pub(crate) fn client(&self, ca: Option<&str>) -> Result<TlsConnector, Refused> {
        let roots = match ca {
            None => self.own.clone(),
            Some(pem) => {
                let mut roots = RootCertStore::empty();
                add_pem(&mut roots, pem.as_bytes()).map_err(|message| {
                    Refused::new(
                        CallCode::UpstreamTls,
                        format!("the release's `ca`: {message}"),
                    )
                })?;
                Arc::new(roots)
            }
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder =
            ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder =
            builder.map_err(|error| Refused::new(CallCode::UpstreamTls, error.to_string()))?;
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(TlsConnector::from(Arc::new(config)))
    }
}

fn add_pem(roots: &mut RootCertStore, pem: &[u8]) -> Result<(), String> {
    let certificates: Result<Vec<CertificateDer<'_>>, _> =
        CertificateDer::pem_slice_iter(pem).collect();
    let certificates =
        certificates.map_err(|error| format!("expected certificates in PEM: {error}"))?;
    if certificates.is_empty() {
        return Err("expected at least one certificate in PEM".into());
    }
    for certificate in certificates {
        roots
            .add(certificate)
            .map_err(|error| format!("a certificate cannot be trusted: {error}"))?;
    }
    Ok(())
}

/// Connects to one host, whatever the URI names: the policy has judged this host alone.
#[derive(Clone)]
pub(crate) struct Dialer {
    host: HostName,
    port: u16,
    tls: Option<TlsConnector>,
    resolving: Arc<Resolving>,
    tenant: TenantId,
    private: Option<Vec<IpNet>>,
}

impl Dialer {
    pub(crate) fn new(
        (host, port): (HostName, u16),
        tls: Option<TlsConnector>,
        resolving: Arc<Resolving>,
        (tenant, private): (TenantId, Option<Vec<IpNet>>),
    ) -> Self {
        Self {
            host,
            port,
            tls,
            resolving,
            tenant,
            private,
        }
    }

    async fn dial(self) -> Result<TokioIo<Dialled>, Refused> {
        let private = self.private.as_deref();
        let addresses = self
            .resolving
            .addresses(&self.tenant, &self.host, private)
            .await?;
        let mut last = Refused::new(
            CallCode::UpstreamUnreachable,
            format!("{} cannot be reached", self.host),
        );
        for address in addresses {
            match tokio::time::timeout(
                CONNECT_TIMEOUT,
                self.connect(SocketAddr::new(address, self.port)),
            )
            .await
            {
                Ok(Ok(dialled)) => return Ok(dialled),
                Ok(Err(refused)) => last = refused,
                Err(_) => {
                    last = Refused::new(
                        CallCode::UpstreamTimeout,
                        format!("{} did not accept the connection in time", self.host),
                    );
                }
            }
        }
        Err(last)
    }

    async fn connect(&self, address: SocketAddr) -> Result<TokioIo<Dialled>, Refused> {
        let unreachable = |error: io::Error| {
            Refused::new(
                CallCode::UpstreamUnreachable,
                format!("{} cannot be reached: {error}", self.host),
            )
        };
        let stream = TcpStream::connect(address).await.map_err(unreachable)?;
        stream.set_nodelay(true).map_err(unreachable)?;
        let Some(tls) = &self.tls else {
            return Ok(Dialled::new(Stream::Clear(stream)));
        };
        let failed = |why: String| {
            Refused::new(
                CallCode::UpstreamTls,
                format!("TLS with {} failed: {why}", self.host),
            )
        };
        let name = ServerName::try_from(self.host.to_string())
            .map_err(|error| failed(error.to_string()))?;
        let stream = tls
            .connect(name, stream)
            .await
            .map_err(|error| failed(error.to_string()))?;
        Ok(Dialled::new(Stream::Tls(Box::new(stream))))
    }
}

impl tower::Service<http::Uri> for Dialer {
    type Response = TokioIo<Dialled>;
    type Error = Refused;
    type Future = Pin<Box<dyn Future<Output = Result<TokioIo<Dialled>, Refused>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Refused>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Uri) -> Self::Future {
        Box::pin(self.clone().dial())
    }
}

/// A connection to an upstream.
pub(crate) struct Dialled {
    stream: Stream,
    /// Whether calls share the connection (HTTP/2).
    is_h2: bool,
    cut: Cut,
}

enum Stream {
    Clear(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Dialled {
    fn new(stream: Stream) -> TokioIo<Self> {
        let is_h2 = match &stream {
            Stream::Tls(stream) => stream.get_ref().1.alpn_protocol() == Some(b"h2"),
            Stream::Clear(_) => false,
        };
        TokioIo::new(Self {
            stream,
            is_h2,
            cut: Cut::default(),
        })
    }
}

impl Drop for Dialled {
    fn drop(&mut self) {
        if !self.cut.is_cut() {
            return;
        }
        let socket = match &self.stream {
            Stream::Clear(stream) => stream,
            Stream::Tls(stream) => stream.get_ref().0,
        };
        // Otherwise the kernel would keep data that an upstream does not read as long as the
        // upstream wants.
        let reset = rustix::net::sockopt::set_socket_linger(socket, Some(Duration::ZERO));
        if let Err(error) = reset {
            tracing::debug!(%error, "cannot set a reset at close; a connection that is cut ends without one");
        }
    }
}

impl Connection for Dialled {
    fn connected(&self) -> Connected {
        if self.is_h2 {
            // hyper resets the stream of a call that has ended.
            Connected::new().negotiated_h2()
        } else {
            Connected::new().extra(CutWhenOver::new(&self.cut))
        }
    }
}

impl AsyncRead for Dialled {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.cut.check(context)?;
        let before = buffer.filled().len();
        let read = match &mut this.stream {
            Stream::Clear(stream) => Pin::new(stream).poll_read(context, buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        };
        this.cut.received(buffer.filled().len() - before);
        read
    }
}

impl AsyncWrite for Dialled {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.cut.check(context)?;
        if this.cut.is_deaf() {
            return Poll::Ready(Ok(bytes.len()));
        }
        let wrote = match &mut this.stream {
            Stream::Clear(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        };
        if this.is_h2 {
            return wrote;
        }
        this.cut.wrote(wrote, bytes.len())
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.cut.check(context)?;
        if this.cut.is_deaf() {
            return Poll::Ready(Ok(()));
        }
        let flushed = match &mut this.stream {
            Stream::Clear(stream) => Pin::new(stream).poll_flush(context),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(context),
        };
        if this.is_h2 {
            return flushed;
        }
        this.cut.wrote(flushed, ())
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.cut.check(context)?;
        match &mut this.stream {
            Stream::Clear(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

/// The refusal of a failed call. The text is our own, because a library's error might quote what
/// was sent.
pub(crate) fn refusal(error: &hyper_util::client::legacy::Error) -> Refused {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(refused) = cause.downcast_ref::<Refused>() {
            return refused.clone();
        }
        source = cause.source();
    }
    let what = if error.is_connect() {
        "the connection could not be made"
    } else {
        "the upstream broke the connection or the protocol"
    };
    Refused::new(CallCode::UpstreamFailed, what)
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;
    use hyper::client::conn::http1;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    use super::*;

    /// A connection whose upstream has answered, and reset it before a byte of the request was
    /// written.
    async fn answered_and_reset() -> TokioIo<Dialled> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await;
        let near = near.unwrap();
        let (mut far, _) = listener.accept().await.unwrap();
        let answer =
            b"HTTP/1.1 413 Too Large\r\nconnection: close\r\ncontent-length: 5\r\n\r\nlarge";
        far.write_all(answer).await.unwrap();
        rustix::net::sockopt::set_socket_linger(&far, Some(Duration::ZERO)).unwrap();
        drop(far);
        while near.take_error().unwrap().is_none() {
            tokio::task::yield_now().await;
        }
        Dialled::new(Stream::Clear(near))
    }

    #[tokio::test]
    async fn an_answer_that_is_there_counts_although_the_request_cannot_be_written() {
        let (mut sender, connection) = http1::handshake(answered_and_reset().await).await.unwrap();
        let body = Full::new(bytes::Bytes::from_static(&[7; 1 << 20]));
        let request = http::Request::post("/").body(body).unwrap();
        let answer = sender.send_request(request);
        tokio::spawn(connection);
        let answer = answer.await.unwrap();
        assert_eq!(answer.status(), 413);
        let body = http_body_util::BodyExt::collect(answer.into_body()).await;
        assert_eq!(body.unwrap().to_bytes(), "large");
    }
}
