//! From the process's start to the closed sandbox: read the supervisor's `Start`, adopt the sockets
//! of an earlier gateway, bind the others, read certificates, close.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use casemate_channel::{Control, ControlError};
use casemate_sandbox::{Access, LayerReport, Profile};
use casemate_wire::control::gateway::{FromGateway, MAX_SOCKETS, Start, ToGateway};
use socket2::{Domain, Protocol, Socket, Type};

use crate::renew;
use crate::tls::{Certificates, TlsError};

/// The control channel.
pub type Supervisor = Control<FromGateway, ToGateway>;

/// Connections that the kernel queues until they are accepted, and while there is no gateway. The
/// kernel queues no more than `net.core.somaxconn`, which is 4096 by default.
const BACKLOG: i32 = 4096;

/// Why the gateway did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Descriptor 0 is not a control channel, or the channel failed.
    #[error("descriptor 0 is not a usable control channel: {0}")]
    Control(ControlError),
    /// Descriptor 0 could not be registered with the runtime.
    #[error("descriptor 0 cannot be watched: {0}")]
    Descriptor(std::io::Error),
    /// The supervisor closed the channel.
    #[error("the control channel closed before `Start`")]
    Closed,
    /// Another message came first.
    #[error("expected sockets and then `Start` as the first messages")]
    Order,
    /// A listener has no valid address.
    #[error("listener {0:?}: expected an address and a port such as 0.0.0.0:443")]
    Address(String),
    /// A TLS listener has no certificate.
    #[error("listener {0}: TLS needs at least one certificate")]
    NoCertificate(String),
    /// A certificate cannot be served.
    #[error("{0}")]
    Tls(#[from] TlsError),
    /// The address cannot be listened on.
    #[error("listener {address}: {source}; stop the program that uses it, or choose another port")]
    Bind {
        /// The address.
        address: String,
        /// The kernel's error.
        source: std::io::Error,
    },
    /// The sandbox could not be closed.
    #[error("the sandbox could not be closed: {0}")]
    Sandbox(#[from] casemate_sandbox::SandboxError),
}

impl StartError {
    /// The exit code, as in `sysexits.h`.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Closed | Self::Control(_) => 1,
            Self::Address(_) | Self::NoCertificate(_) | Self::Tls(_) => 64,
            Self::Bind { .. } => 69,
            Self::Descriptor(_) | Self::Order | Self::Sandbox(_) => 70,
        }
    }
}

/// The prepared state of a gateway whose sandbox is closed.
#[derive(Debug)]
pub struct Prepared {
    /// The supervisor's `Start` message.
    pub start: Start,
    /// The listening sockets, in the order of `Start`, and whether each uses TLS.
    pub listeners: Vec<(TcpListener, bool)>,
    /// The sockets for probes.
    pub health: Vec<TcpListener>,
    /// The sockets' addresses, in this order.
    pub addresses: Vec<String>,
    /// Certificates, if any.
    pub certificates: Option<Arc<Certificates>>,
    /// The sandbox's layers.
    pub layers: Vec<LayerReport>,
    /// The control channel's socket.
    pub control: OwnedFd,
}

/// Sockets of an earlier gateway, by their positions in `Start`.
type Given = BTreeMap<u32, OwnedFd>;

/// Waits for `Start` and carries it out. The process has one thread at this point, so that all
/// later threads inherit layers that apply to a thread.
///
/// # Errors
/// See [`StartError`]; the error has been reported to the supervisor.
pub fn prepare() -> Result<Prepared, StartError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(StartError::Descriptor)?;
    let control = std::io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .map_err(StartError::Descriptor)?;
    let watched = control.try_clone().map_err(StartError::Descriptor)?;
    runtime.block_on(async move {
        let supervisor = Supervisor::new(watched).map_err(StartError::Descriptor)?;
        let mut given = Given::new();
        let start = loop {
            match supervisor.recv().await.map_err(StartError::Control)? {
                Some((ToGateway::Start(start), _)) => break start,
                Some((ToGateway::Socket { place }, fds)) if given.len() < MAX_SOCKETS => {
                    given.extend(fds.into_iter().next().map(|socket| (place, socket)));
                }
                Some(_) => return tell(&supervisor, StartError::Order).await,
                None => return Err(StartError::Closed),
            }
        };
        match open(start, given, control) {
            Ok(prepared) => Ok(prepared),
            Err(error) => tell(&supervisor, error).await,
        }
    })
}

async fn tell(supervisor: &Supervisor, error: StartError) -> Result<Prepared, StartError> {
    supervisor
        .send(
            &FromGateway::Failed {
                message: error.to_string(),
            },
            &[],
        )
        .await
        .map_err(StartError::Control)?;
    Err(error)
}

fn open(mut start: Start, mut given: Given, control: OwnedFd) -> Result<Prepared, StartError> {
    let certificates = Certificates::read(&start.certificates)?;
    if let Some(listener) = start
        .listeners
        .iter()
        .find(|listener| listener.tls && start.certificates.is_empty())
    {
        return Err(StartError::NoCertificate(listener.address.clone()));
    }
    let mut places = 0..;
    let mut socket = |address: &str| match places.next().and_then(|place| given.remove(&place)) {
        Some(socket) => adopt(socket, address),
        None => bind(address),
    };
    let listeners = start
        .listeners
        .iter()
        .map(|listener| Ok((socket(&listener.address)?, listener.tls)));
    let listeners = listeners.collect::<Result<Vec<_>, StartError>>()?;
    let health = start.health.iter().map(|address| socket(address));
    let health = health.collect::<Result<Vec<_>, StartError>>()?;
    let address = |socket: &TcpListener| socket.local_addr().map(|address| address.to_string());
    let sockets = listeners.iter().map(|(socket, _)| socket);
    let addresses = sockets
        .chain(&health)
        .map(address)
        .collect::<Result<_, _>>()
        .map_err(StartError::Descriptor)?;
    start.max_connections = connections(
        start.max_connections,
        casemate_sandbox::raise_descriptors()?,
    );
    // Renewed certificates are read from the same places as these.
    let folders = renew::folders(&start.certificates);
    let folders: Vec<_> = folders
        .iter()
        .map(|folder| (folder.as_path(), Access::Read))
        .collect();
    let layers = casemate_sandbox::close_with(Profile::Gateway, &folders)?;
    let certificates = (!start.certificates.is_empty()).then(|| Arc::new(certificates));
    Ok(Prepared {
        start,
        listeners,
        health,
        addresses,
        certificates,
        layers,
        control,
    })
}

/// Most connections at a time: each has a descriptor, and so has each worker's channel, which
/// callers must not use up.
fn connections(asked: u32, descriptors: u64) -> u32 {
    let most = u32::try_from(descriptors / 4 * 3).unwrap_or(u32::MAX);
    if asked > most {
        tracing::warn!(
            asked,
            most,
            descriptors,
            "max_connections reduced to what the descriptor limit allows; raise the hard limit (LimitNOFILE)"
        );
    }
    asked.min(most)
}

/// Adopts a socket that an earlier gateway has opened, with the callers in its queue.
fn adopt(socket: OwnedFd, address: &str) -> Result<TcpListener, StartError> {
    let listener = TcpListener::from(socket);
    let adopted = listener.set_nonblocking(true);
    adopted.map_err(|source| StartError::Bind {
        address: address.to_owned(),
        source,
    })?;
    Ok(listener)
}

fn bind(text: &str) -> Result<TcpListener, StartError> {
    let address: SocketAddr = text
        .parse()
        .map_err(|_| StartError::Address(text.to_owned()))?;
    let listening = || {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM,
            Some(Protocol::TCP),
        )?;
        // A restart does not wait for the earlier gateway's connections.
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    listening().map_err(|source| StartError::Bind {
        address: text.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_leave_descriptors_to_workers() {
        assert_eq!(connections(10_000, 65_536), 10_000);
        assert_eq!(connections(10_000, 1024), 768);
        assert_eq!(connections(u32::MAX, u64::MAX), u32::MAX);
    }

    #[test]
    fn a_port_in_use_and_an_invalid_address_are_named() {
        let taken = bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap().to_string();
        let error = bind(&address).unwrap_err();
        assert!(error.to_string().contains(&address), "{error}");
        assert_eq!(error.exit_code(), 69);
        let error = bind("localhost").unwrap_err();
        assert!(error.to_string().contains("\"localhost\""), "{error}");
        assert_eq!(error.exit_code(), 64);
    }
}
