//! A tenant's caller: plain HTTP/1.1 to the gateway, one connection a call.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{HeaderMap, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// A call without an answer fails after this time, which is longer than any limit of a test's
/// function.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// A complete answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Status.
    pub status: StatusCode,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// GET of `path` on `host` from the gateway at `gateway`.
pub async fn get(gateway: SocketAddr, host: &str, path: &str) -> Result<Answer> {
    let request = Request::get(path)
        .header("host", host)
        .body(Full::default())?;
    send(gateway, request).await
}

/// POST of `body` to `path` on `host`.
pub async fn post(
    gateway: SocketAddr,
    host: &str,
    path: &str,
    body: impl Into<Bytes>,
) -> Result<Answer> {
    let request = Request::post(path)
        .header("host", host)
        .body(Full::new(body.into()))?;
    send(gateway, request).await
}

/// Sends `request`, which carries its own `Host`, and reads the whole answer.
pub async fn send(gateway: SocketAddr, request: Request<Full<Bytes>>) -> Result<Answer> {
    let call = async {
        let stream = TcpStream::connect(gateway)
            .await
            .with_context(|| format!("connecting to the gateway at {gateway}"))?;
        stream.set_nodelay(true)?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(connection);
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        driver.abort();
        Ok(Answer {
            status: head.status,
            headers: head.headers,
            body,
        })
    };
    tokio::time::timeout(CALL_TIMEOUT, call)
        .await
        .context("the caller waited too long")?
}
