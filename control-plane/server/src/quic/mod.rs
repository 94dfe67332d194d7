//! The QUIC socket of the nodes.

mod apart;
mod connection;
mod ending;
mod seat;
mod send;
mod shell;
mod watch;

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use casemate_push::{Versions, close};
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{
    ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig, ServerConfig, TokioRuntime,
    TransportConfig, VarInt,
};
use ring::rand::{SecureRandom as _, SystemRandom};
use ring::{hkdf, hmac};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::arrivals::Arrivals;
use crate::failure::Failure;
use crate::keys::{Keys, SocketSecrets};
use crate::places::{Places, network};
use crate::plane::Plane;
use crate::tls;

use seat::Seats;

/// A node without any packet for this long is considered disconnected.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Interval of keep-alive packets of both sides: three may be lost.
const KEEP_ALIVE: Duration = Duration::from_secs(8);
/// A node opens one stream.
const NODE_STREAMS: u32 = 1;
/// Bytes that a node may have in transit to the control plane: hellos and log batches, a quarter of
/// a frame at a time.
const RECEIVE_WINDOW: u32 = 1024 * 1024;
/// Bytes that the control plane may have in transit to a node.
const SEND_WINDOW: u64 = 8 * 1024 * 1024;
/// Handshakes in progress whose state is kept.
const MAX_INCOMING: usize = 512;
/// Bytes that a handshake may send before it is done.
const INCOMING_BYTES: u64 = 16 * 1024;
/// With more connections than this, an address has to prove that it receives packets before it gets
/// any state.
const CONNECTIONS_WITHOUT_PROOF: usize = 64;
/// Connections at a time: every node, newcomers, strangers, and those that are about to close.
const MAX_CONNECTIONS: usize = casemate_api::limits::MAX_NODES + 2000;
/// Handshakes at a time, that is, connections whose key is not known yet; a new one evicts an old
/// one. The number is well below what is left besides the nodes, which keep their slots.
const MAX_HANDSHAKES: usize = 512;
/// Handshakes from one address: a site whose nodes all reconnect at once.
const MAX_HANDSHAKES_FROM_ADDRESS: usize = MAX_HANDSHAKES / 2;
/// Connections of members at a time that have not sent their hello: no stranger can hold one of
/// them.
const MAX_SILENT_MEMBERS: usize = 1024;
/// Such connections of one node: its newest, and earlier ones that the node has abandoned and whose
/// end the control plane has not noticed yet.
const MAX_SILENT_OF_NODE: usize = 4;
/// Connections at a time whose key is unknown and which have shown no registered join token; a new
/// one evicts an old one.
const MAX_STRANGERS: usize = 128;
/// Such connections from one address.
const MAX_STRANGERS_FROM_ADDRESS: usize = 16;
/// Connections at a time of newcomers whose join request was made with a registered token, and which wait for the operator.
const MAX_JOINING: usize = 256;
/// Such connections of one key.
const MAX_JOINING_OF_KEY: usize = 2;
/// Least time between two stateless resets (RFC 9000, section 10.3), which tell nodes that the
/// control plane has restarted: a thousand a second, and none is longer than the packet that it
/// answers.
const RESET_INTERVAL: Duration = Duration::from_millis(1);
/// Length of the connection ids, bytes.
const CONNECTION_ID_BYTES: usize = 8;
/// Time limit for closing the connections at a stop.
const GOODBYE: Duration = Duration::from_secs(3);

/// Opens the socket; it answers nothing before [`serve`].
pub(crate) fn bind(
    address: SocketAddr,
    keys: &Keys,
    versions: Versions,
) -> Result<Endpoint, Failure> {
    let crypto = QuicServerConfig::try_from(tls::quic(&keys.quic, versions)?)
        .map_err(|error| Failure::internal(error.to_string()))?;
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(NODE_STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(RECEIVE_WINDOW))
        .receive_window(VarInt::from_u32(RECEIVE_WINDOW))
        .send_window(SEND_WINDOW)
        .datagram_receive_buffer_size(None)
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(IDLE_TIMEOUT.try_into().ok());
    let SocketKeys { reset, token } = SocketKeys::new(&keys.socket);
    let mut server = ServerConfig::new(Arc::new(crypto), Arc::new(token));
    server
        .transport_config(Arc::new(transport))
        .max_incoming(MAX_INCOMING)
        .incoming_buffer_size(INCOMING_BYTES)
        .incoming_buffer_size_total(INCOMING_BYTES * MAX_INCOMING as u64);
    let mut endpoint = EndpointConfig::new(Arc::new(reset));
    endpoint
        .cid_generator(|| Box::new(RandomIds))
        .min_reset_interval(RESET_INTERVAL);
    let socket = UdpSocket::bind(address).map_err(|error| cannot_listen(address, &error))?;
    let made = Endpoint::new(endpoint, Some(server), socket, Arc::new(TokioRuntime));
    made.map_err(|error| cannot_listen(address, &error))
}

pub(crate) fn cannot_listen(address: SocketAddr, error: &std::io::Error) -> Failure {
    let hint = match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            "; another program uses this port: stop it, or choose another in the configuration"
        }
        std::io::ErrorKind::AddrNotAvailable => "; this machine does not have that address",
        _ => "",
    };
    Failure::unavailable(format!("cannot listen on {address}: {error}{hint}"))
}

struct SocketKeys {
    reset: hmac::Key,
    token: hkdf::Prk,
}

impl SocketKeys {
    fn new(secrets: &SocketSecrets) -> Self {
        Self {
            reset: hmac::Key::new(hmac::HMAC_SHA256, secrets.expose_reset_key()),
            token: hkdf::Salt::new(hkdf::HKDF_SHA256, b"casemate quic token v1")
                .extract(secrets.expose_token_key()),
        }
    }
}

/// Random connection ids, any of which may be from before a restart: a stateless reset, whose key
/// is kept, then reaches the node at once. quinn's own generator would not recognise them.
#[derive(Debug)]
struct RandomIds;

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut bytes = [0; CONNECTION_ID_BYTES];
        // Zeros from a kernel without randomness would collide, and quinn then asks again.
        SystemRandom::new().fill(&mut bytes).ok();
        ConnectionId::new(&bytes)
    }

    fn cid_len(&self) -> usize {
        CONNECTION_ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// Serves until `stopping`.
pub(crate) async fn serve(
    endpoint: Endpoint,
    plane: Arc<Plane>,
    keys: Arc<Keys>,
    versions: Versions,
    stopping: CancellationToken,
) {
    let handshakes = Arrivals::new("quic", MAX_HANDSHAKES, MAX_HANDSHAKES_FROM_ADDRESS);
    let seats = Seats {
        members: Places::new(MAX_SILENT_MEMBERS, MAX_SILENT_OF_NODE),
        strangers: Arrivals::new(
            "quic, keys that nobody knows",
            MAX_STRANGERS,
            MAX_STRANGERS_FROM_ADDRESS,
        ),
        joining: Places::new(MAX_JOINING, MAX_JOINING_OF_KEY),
    };
    let tracker = TaskTracker::new();
    loop {
        let incoming = tokio::select! {
            incoming = endpoint.accept() => incoming,
            () = stopping.cancelled() => None,
        };
        let Some(incoming) = incoming else { break };
        let open = endpoint.open_connections();
        if open >= MAX_CONNECTIONS {
            incoming.refuse();
        } else if open > CONNECTIONS_WITHOUT_PROOF && !incoming.remote_address_validated() {
            // An error means that the packet is already answered with a retry.
            incoming.retry().ok();
        } else if let Some(arrival) = handshakes.arrive(network(incoming.remote_address().ip())) {
            let driver = shell::Shell {
                plane: Arc::clone(&plane),
                keys: Arc::clone(&keys),
                versions,
                seats: seats.clone(),
                stopping: stopping.clone(),
            };
            if let Ok(connecting) = incoming.accept() {
                tracker.spawn(driver.run(connecting, arrival));
            }
        } else {
            // The packet is not answered, so that the node tries again a second later.
            incoming.ignore();
        }
    }
    tracker.close();
    tracker.wait().await;
    endpoint.close(
        VarInt::from_u32(close::STOPPING),
        b"the control plane stops",
    );
    tokio::time::timeout(GOODBYE, endpoint.wait_idle())
        .await
        .ok();
}
