//! The life of the gateway after its sandbox has closed.

use std::net::TcpListener;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use casemate_channel::{ControlError, Skipped};
use casemate_wire::control::gateway::{FromGateway, ToGateway};
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

use crate::connection::Patience;
use crate::exchange::RequestIds;
use crate::health;
use crate::renew::Renewal;
use crate::serve::Gateway;
use crate::start::{Prepared, Supervisor};
use crate::supervise;
use crate::tls::{Certificates, TlsError};

/// Time limit of the last messages to the supervisor.
const FAREWELL: Duration = Duration::from_secs(5);

/// Grace time for requests under way after SIGTERM, which names no time.
const GRACE: Duration = Duration::from_secs(10);

/// The first messages to a supervisor: the listening sockets, for the next gateway, and that we
/// listen.
struct Greeting {
    sockets: Vec<TcpListener>,
    ready: FromGateway,
}

impl Greeting {
    async fn send(&self, supervisor: &Supervisor) -> Result<(), ControlError> {
        for (place, socket) in (0..).zip(&self.sockets) {
            let message = FromGateway::Socket { place };
            supervisor.send(&message, &[socket.as_fd()]).await?;
        }
        supervisor.send(&self.ready, &[]).await
    }
}

/// Why the gateway ended without having been drained.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The supervisor has closed the control channel.
    #[error("the supervisor is gone")]
    Alone,
    /// The control channel failed in one direction.
    #[error("the control channel failed")]
    Control(#[from] ControlError),
    /// A socket cannot be registered with the runtime.
    #[error("a socket cannot be registered with the runtime")]
    Socket(#[from] std::io::Error),
    /// TLS cannot be set up.
    #[error("TLS cannot be set up")]
    Tls(#[from] TlsError),
    /// The kernel gave no random bytes.
    #[error("the kernel gave no random bytes")]
    Random,
}

/// Serves until the supervisor or SIGTERM drains the gateway, plus at most the grace time.
///
/// # Errors
/// See [`RunError`].
#[expect(clippy::too_many_lines, reason = "older than the limit")]
pub async fn run(prepared: Prepared) -> Result<(), RunError> {
    let Prepared {
        start,
        listeners,
        health,
        addresses,
        certificates,
        layers,
        control,
    } = prepared;
    let patience = Patience {
        header: Duration::from_millis(start.header_timeout_ms.max(1).into()),
        idle: Duration::from_millis(start.idle_timeout_ms.max(1).into()),
    };
    let mut random = [0; 8];
    SystemRandom::new()
        .fill(&mut random)
        .map_err(|_| RunError::Random)?;
    let ids = RequestIds::new(u64::from_le_bytes(random), 0);
    let tls = certificates
        .as_ref()
        .map(Certificates::config)
        .transpose()?
        .map(TlsAcceptor::from);
    let renewal = certificates
        .clone()
        .map(|certificates| Renewal::new(certificates, start.certificates.clone()));
    let gateway = Gateway::new(
        ids,
        patience,
        start.max_connections,
        start.shares,
        certificates,
        renewal.clone(),
    );
    let mut terminate = signal(SignalKind::terminate())?;
    let supervisor = Arc::new(Supervisor::new(control)?);
    let all = listeners.iter().map(|(listener, _)| listener);
    let copies = all.chain(&health).map(TcpListener::try_clone);
    let greeting = Greeting {
        sockets: copies.collect::<Result<_, _>>()?,
        ready: FromGateway::Ready {
            addresses: addresses.clone(),
            layers,
        },
    };
    for (listener, speaks_tls) in listeners {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let tls = tls.clone().filter(|_| speaks_tls);
        gateway.listen(
            listener,
            tls,
            Duration::from_millis(start.load_wait_ms.into()),
        );
    }
    for listener in health {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        tokio::spawn(health::listen(gateway.clone(), listener));
    }
    tracing::info!(?addresses, "listening");
    greeting.send(&supervisor).await?;

    if let Some(renewal) = renewal {
        // Ends with the process, or with the control channel, which ends the process.
        tokio::spawn(renewal.keep(supervisor.clone()));
    }

    let (stop, stopped) = oneshot::channel();
    let mut speaking = tokio::spawn(supervise::speak(
        gateway.clone(),
        supervisor.clone(),
        stopped,
    ));
    let grace = tokio::select! {
        grace = obey_until_drain(&gateway, &supervisor, &greeting) => grace?,
        _ = terminate.recv() => GRACE,
        _ = &mut speaking => return Err(RunError::Alone),
    };
    tokio::select! {
        in_time = gateway.drain(grace) => tracing::info!(in_time, "drained"),
        // Workers still start and end during the drain.
        broken = until_broken(&gateway, &supervisor, &greeting) => return Err(broken),
    }
    drop(stop);
    let said = tokio::time::timeout(FAREWELL, speaking).await;
    if matches!(said, Ok(Ok(Ok(())))) {
        Ok(())
    } else {
        Err(RunError::Alone)
    }
}

/// Handles control messages while requests finish; a second `Drain` changes nothing.
async fn until_broken(
    gateway: &Arc<Gateway>,
    supervisor: &Supervisor,
    greeting: &Greeting,
) -> RunError {
    loop {
        if let Err(error) = obey_until_drain(gateway, supervisor, greeting).await {
            return error;
        }
    }
}

async fn obey_until_drain(
    gateway: &Arc<Gateway>,
    supervisor: &Supervisor,
    greeting: &Greeting,
) -> Result<Duration, RunError> {
    let mut skipped = Skipped::default();
    loop {
        let (message, fds) = match supervisor.recv().await {
            Ok(received) => received.ok_or(RunError::Alone)?,
            // Callers may have used up our descriptors: connections that are served continue.
            Err(error) if error.is_of_one_message() => {
                if let Some(packets) = skipped.one_more(Instant::now()) {
                    tracing::warn!(%error, packets, "invalid control packets from the supervisor skipped");
                }
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        if message == ToGateway::Resume {
            greeting.send(supervisor).await?;
            continue;
        }
        if let Some(grace) = supervise::obey(gateway, message, fds) {
            return Ok(grace);
        }
    }
}
