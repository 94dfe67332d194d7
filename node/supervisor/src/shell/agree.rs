//! Which version of the push protocol is spoken with the control plane.

use std::time::Duration;

use casemate_push::{Agreed, Offer, Versions};
use quinn::crypto::rustls::HandshakeData;
use quinn::{Connection, ConnectionError, TransportErrorCode};

use super::push::Broken;

/// The TLS alert `no_application_protocol` (RFC 7301, section 3.2).
const NO_PROTOCOL: u8 = 120;
/// Until the control plane has said what it speaks.
const REASON_TIMEOUT: Duration = Duration::from_secs(10);

/// The version that the handshake has agreed on. Where there is none, the control plane is told what this node speaks, and says
/// why it closes the connection.
pub(super) async fn agree(versions: Versions, connection: &Connection) -> Result<u16, Broken> {
    let data = connection.handshake_data();
    let data = data.and_then(|data| data.downcast::<HandshakeData>().ok());
    let name = data.and_then(|data| data.protocol);
    match name.and_then(|name| versions.agreed(&name)) {
        Some(Agreed::Version(version)) => Ok(version),
        Some(Agreed::Apart) => {
            let (mut writer, _reader) = connection.open_bi().await?;
            let offer = Offer::encode(versions, env!("CARGO_PKG_VERSION"));
            let written = writer.write_all(&offer).await;
            written.map_err(|error| Broken::Stream(error.to_string()))?;
            let closed = tokio::time::timeout(REASON_TIMEOUT, connection.closed()).await;
            let silent = "the control plane has no version of the push protocol in common with this node, and did not say which it speaks";
            Err(closed.map_or_else(|_| Broken::Connect(silent.into()), Into::into))
        }
        None => Err(Broken::Connect(
            "the handshake agreed on no protocol".into(),
        )),
    }
}

/// Why a handshake has failed. A control plane from before versions were negotiated says no more than the alert.
pub(super) fn handshake_failed(error: &ConnectionError, versions: Versions) -> String {
    match error {
        ConnectionError::ConnectionClosed(close)
            if close.error_code == TransportErrorCode::crypto(NO_PROTOCOL) =>
        {
            format!(
                "the control plane speaks none of the versions {} to {} of the push protocol, which this node speaks: upgrade the \
             older of the two",
                versions.oldest, versions.newest
            )
        }
        error => error.to_string(),
    }
}
