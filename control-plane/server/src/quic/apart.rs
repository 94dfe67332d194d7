//! The version of the protocol; and nodes that have none in common with this control plane: the
//! node and the operator learn the reason.

use std::net::SocketAddr;

use casemate_push::{Agreed, MAX_OFFER_BYTES, Offer, Versions, close};
use casemate_trust::key::PublicKey;
use quinn::crypto::rustls::HandshakeData;
use quinn::{Connection, RecvStream};

use super::ending::{Ending, Gone, Stop};
use super::shell::{FIRST_WORD, Shell};

/// The version that the handshake has agreed on.
pub(super) fn agreed(connection: &Connection, versions: Versions) -> Option<Agreed> {
    let data = connection.handshake_data()?.downcast::<HandshakeData>();
    versions.agreed(data.ok()?.protocol.as_deref()?)
}

/// Reads the node's hello, records it for the list of nodes, and sends the reason why the
/// connection ends.
pub(super) async fn part(
    shell: &Shell,
    address: SocketAddr,
    key: PublicKey,
    mut recv: RecvStream,
) -> Stop {
    let offer = match tokio::time::timeout(FIRST_WORD, read(&mut recv)).await {
        Ok(Ok(offer)) => offer,
        Ok(Err(stop)) => return stop,
        Err(_) => return Ending::new(close::WAITED, "the node offered no versions").into(),
    };
    let ours = env!("CARGO_PKG_VERSION");
    let why = casemate_push::apart(&offer, shell.versions, ours);
    let node = shell.plane.member(&key).map(|member| member.name);
    tracing::warn!(%address, %key, node = node.as_ref().map(tracing::field::display), why, "a node is not served");
    if let Some(node) = node {
        shell.plane.apart(&node, &offer.software, &why);
    }
    Ending::new(close::APART, why).into()
}

async fn read(recv: &mut RecvStream) -> Result<Offer, Stop> {
    let mut bytes = Vec::new();
    loop {
        if let Some(offer) = Offer::decode(&bytes)? {
            return Ok(offer);
        }
        let chunk = recv.read_chunk(MAX_OFFER_BYTES, true).await;
        let chunk = chunk.ok().flatten().ok_or(Gone)?;
        bytes.extend_from_slice(&chunk.bytes);
    }
}
