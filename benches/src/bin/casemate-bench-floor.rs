//! A plain hyper server with the answers of the `hello` function: the floor that no runtime can
//! beat.
#![forbid(unsafe_code)]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::USER_AGENT;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let address = std::env::args().nth(1).context("expected an address")?;
    let listener = TcpListener::bind(address.parse::<SocketAddr>()?).await?;
    let count = Arc::new(AtomicU64::new(0));
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let count = Arc::clone(&count);
        tokio::spawn(async move {
            let service = service_fn(|request| answer(request, &count));
            // A client that closes its connection early is no fault of the server.
            let _ended = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn answer<B>(
    request: Request<B>,
    count: &AtomicU64,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let count = count.fetch_add(1, Ordering::Relaxed) + 1;
    let agent = request.headers().get(USER_AGENT);
    let agent = agent
        .and_then(|agent| agent.to_str().ok())
        .unwrap_or_default();
    let path = request.uri().path();
    let text = format!("hello {path} from {agent}, call {count}");
    Ok(Response::new(Full::new(text.into())))
}
