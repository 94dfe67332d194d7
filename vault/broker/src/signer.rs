//! Signs the node's TLS handshakes, and nothing else: only the content that a TLS 1.3 client signs
//! (RFC 8446, section 4.4.3) is accepted, so that a taken-over supervisor cannot have statements or
//! join requests signed.

use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::vault::Vault;

/// Longest request: 64 spaces, the context, a separator, and a SHA-384.
const MAX_QUESTION_BYTES: usize = 64 + 33 + 1 + 48;
const CONTEXT: &[u8] = b"TLS 1.3, client CertificateVerify\0";
/// The answer of a refusal.
const REFUSED: &[u8] = &[0];

/// Whether the content is what a TLS 1.3 client signs.
pub(crate) fn is_client_handshake(question: &[u8]) -> bool {
    let Some(rest) = question.strip_prefix(&[0x20; 64][..]) else {
        return false;
    };
    rest.strip_prefix(CONTEXT)
        .is_some_and(|hash| matches!(hash.len(), 32 | 48))
}

/// Answers requests until the other end closes.
pub(crate) async fn serve(socket: OwnedFd, vault: Arc<Vault>) -> std::io::Result<()> {
    let socket = std::os::unix::net::UnixStream::from(socket);
    socket.set_nonblocking(true)?;
    let socket = UnixStream::from_std(socket)?;
    loop {
        let mut question = [0; MAX_QUESTION_BYTES + 1];
        let read = socket
            .async_io(Interest::READABLE, || socket.try_read(&mut question))
            .await;
        let length = match read {
            Ok(0) => return Ok(()),
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(error),
        };
        let question = &question[..length];
        let answer = is_client_handshake(question).then(|| vault.sign_handshake(question));
        let answer = answer
            .as_ref()
            .map_or(REFUSED, |signature| signature.as_slice());
        socket
            .async_io(Interest::WRITABLE, || socket.try_write(answer))
            .await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_tls_clients_content_is_signed() {
        let question =
            |context: &[u8], hash: usize| [&[0x20; 64][..], context, &vec![7; hash]].concat();
        assert!(is_client_handshake(&question(CONTEXT, 32)));
        assert!(is_client_handshake(&question(CONTEXT, 48)));
        assert!(!is_client_handshake(&question(CONTEXT, 33)));
        assert!(!is_client_handshake(&question(
            b"TLS 1.3, server CertificateVerify\0",
            32
        )));
        assert!(!is_client_handshake(
            b"DSSEv1 39 application/vnd.casemate.join.v1+json 2 {}"
        ));
    }
}
