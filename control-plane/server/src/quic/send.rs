//! Bundles and pieces of images, each on a stream of its own.

use bytes::Bytes;
use casemate_push::bundle::Header;
use futures_util::{Stream, StreamExt as _};
use quinn::Connection;
use tokio::fs::File;
use tokio::io::Take;

/// Bundles have a lower priority than statements, and images a lower one than both.
const BUNDLE_PRIORITY: i32 = -1;
const IMAGE_PRIORITY: i32 = -2;

type SendError = Box<dyn std::error::Error + Send + Sync>;

/// Sends a bundle, or the rest of it.
pub(super) async fn bundle<E>(
    connection: Connection,
    header: Header,
    mut content: impl Stream<Item = Result<Bytes, E>> + Unpin,
) where
    E: std::error::Error + Send + Sync + 'static,
{
    let sent = async {
        let mut stream = connection.open_uni().await?;
        stream.set_priority(BUNDLE_PRIORITY).ok();
        stream.write_all(&header.to_bytes()).await?;
        while let Some(chunk) = content.next().await {
            stream.write_chunk(chunk?).await?;
        }
        stream.finish()?;
        Ok::<_, SendError>(())
    };
    if let Err(error) = sent.await {
        let digest = header.digest;
        tracing::debug!(%digest, %error, "a bundle was not sent completely");
    }
}

/// Sends a piece of an image.
pub(super) async fn image_piece(connection: Connection, header: Header, mut content: Take<File>) {
    let sent = async {
        let mut stream = connection.open_uni().await?;
        stream.set_priority(IMAGE_PRIORITY).ok();
        stream.write_all(&header.to_bytes()).await?;
        tokio::io::copy(&mut content, &mut stream).await?;
        stream.finish()?;
        Ok::<_, SendError>(())
    };
    if let Err(error) = sent.await {
        let Header { digest, offset, .. } = header;
        tracing::debug!(%digest, offset, %error, "a piece of an image was not sent completely");
    }
}
