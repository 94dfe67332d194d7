//! `casemate-gateway`: started by the supervisor, which speaks on descriptor 0.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use casemate_gateway::connection::Patience;
use casemate_gateway::exchange::RequestIds;
use casemate_gateway::serve::{self, Gateway};
use casemate_gateway::start::{self, Prepared, Supervisor};
use casemate_gateway::supervise;
use casemate_gateway::tls::Certificates;
use casemate_wire::control::gateway::FromGateway;
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;
use tracing_subscriber::EnvFilter;

/// The supervisor is gone, or speaks another language.
const EXIT_ALONE: u8 = 1;
/// `EX_SOFTWARE`: something of ours.
const EXIT_SOFTWARE: u8 = 70;
/// The last words to the supervisor may take so long.
const FAREWELL: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    log();
    // Asked for before the walls close: the answer comes from files.
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let prepared = match start::prepare() {
        Ok(prepared) => prepared,
        Err(error) => {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "the gateway did not start"
            );
            return ExitCode::from(error.exit_code());
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build();
    let ran = runtime.map_err(Into::into).and_then(|runtime| {
        let code = runtime.block_on(run(prepared));
        // Connections over the grace time end with the process.
        runtime.shutdown_background();
        code
    });
    ran.unwrap_or_else(|error: Box<dyn std::error::Error>| {
        tracing::error!(error = &*error, "the gateway failed");
        ExitCode::from(EXIT_SOFTWARE)
    })
}

async fn run(prepared: Prepared) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let Prepared {
        start,
        listeners,
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
        .map_err(|_| "no random bytes")?;
    let ids = RequestIds::new(u64::from_le_bytes(random), 0);
    let tls = certificates
        .as_ref()
        .map(Certificates::config)
        .transpose()?
        .map(TlsAcceptor::from);
    let (gateway, records) = Gateway::new(ids, patience, start.max_connections, certificates);
    for (listener, speaks_tls) in listeners {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        tokio::spawn(serve::listen(
            gateway.clone(),
            listener,
            tls.clone().filter(|_| speaks_tls),
        ));
    }
    let supervisor = Arc::new(Supervisor::new(control)?);
    tracing::info!(?addresses, "listening");
    supervisor
        .send(&FromGateway::Ready { addresses, layers }, &[])
        .await?;

    let (stop, stopped) = oneshot::channel();
    let mut speaking = tokio::spawn(supervise::speak(
        gateway.clone(),
        supervisor.clone(),
        records,
        stopped,
    ));
    let grace = loop {
        let message = tokio::select! {
            message = supervisor.recv() => message,
            _ = &mut speaking => return Ok(ExitCode::from(EXIT_ALONE)),
        };
        match message {
            Ok(Some((message, fds))) => {
                if let Some(grace) = supervise::obey(&gateway, message, fds) {
                    break grace;
                }
            }
            Ok(None) => return Ok(ExitCode::from(EXIT_ALONE)),
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "the control channel broke"
                );
                return Ok(ExitCode::from(EXIT_ALONE));
            }
        }
    };
    gateway.drain();
    let drained = tokio::time::timeout(grace, gateway.drained());
    tokio::pin!(drained);
    loop {
        tokio::select! {
            done = &mut drained => {
                tracing::info!(in_time = done.is_ok(), "drained");
                break;
            }
            // Workers still come and go while requests finish.
            message = supervisor.recv() => match message {
                Ok(Some((message, fds))) => drop(supervise::obey(&gateway, message, fds)),
                _ => return Ok(ExitCode::from(EXIT_ALONE)),
            },
        }
    }
    drop(stop);
    let said = tokio::time::timeout(FAREWELL, speaking).await;
    Ok(if matches!(said, Ok(Ok(Ok(())))) {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(EXIT_ALONE)
    })
}

fn log() {
    let filter = EnvFilter::try_from_env("CASEMATE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let subscriber = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(filter);
    if std::env::var("CASEMATE_LOG_FORMAT").is_ok_and(|format| format == "json") {
        subscriber.json().init();
    } else {
        subscriber.with_ansi(false).init();
    }
}
