//! Creates a state folder, and runs the control plane from one.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use casemate_api::fleet::PublicKeys;
use casemate_api::token::{NewToken, Scope};
use serde::Serialize;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::backup;
use crate::config::Config;
use crate::failure::Failure;
use crate::keys::Keys;
use crate::new_folder::NewFolder;
use crate::plane::{Actor, LogLimits, Plane, collect};
use crate::reserve::Reserve;
use crate::state_folder::{BUNDLES, KEYS, PUBLIC, open};
use crate::{files, format, https, quic, tls};

const OPERATOR_TOKEN: &str = "operator.token";
const ADDRESSES: &str = "addresses.json";
const MIB_BYTES: u64 = 1024 * 1024;
/// A file that is written and removed at the start, to check for free space on the disk, and its
/// size: the space that opening a store may need.
const PROBE: &str = "room";
const PROBE_BYTES: usize = 1024 * 1024;
/// Time limit for running requests and connections to end.
const DRAIN: Duration = Duration::from_secs(10);

/// The result of `init`.
#[derive(Debug, Serialize)]
pub struct Initialised {
    /// The folder.
    pub state: PathBuf,
    /// File of the public keys, for the operator's machine.
    pub public_file: PathBuf,
    /// File of the first operator token.
    pub operator_token_file: PathBuf,
    /// The public keys.
    pub keys: PublicKeys,
}

/// Makes a state folder: keys, an empty store, the first operator token. It exists completely or
/// not at all.
///
/// # Errors
/// The folder exists and is not empty, or cannot be written.
pub async fn init(state: &Path) -> Result<Initialised, Failure> {
    let new = NewFolder::create(state)?;
    let keys = fill(new.folder()).await?;
    new.put_in_place()?;
    Ok(Initialised {
        keys,
        state: state.to_owned(),
        public_file: state.join(PUBLIC),
        operator_token_file: state.join(OPERATOR_TOKEN),
    })
}

async fn fill(folder: &Path) -> Result<PublicKeys, Failure> {
    files::create_folder(&folder.join(KEYS))?;
    files::create_folder(&folder.join(BUNDLES))?;
    let keys = Keys::create(&folder.join(KEYS))?;
    let public = serde_json::to_vec_pretty(&keys.public())
        .map_err(|error| Failure::internal(error.to_string()))?;
    files::write_public(&folder.join(PUBLIC), &public)?;
    let plane = open(folder, &keys, String::new(), true, 0, LogLimits::default()).await?;
    let new = NewToken {
        scope: Scope::Operator,
        label: "first operator".into(),
        expires: None,
    };
    let made = plane.make_token(&Actor::Program, new).await;
    let made = made.map_err(|fault| Failure::io(fault.body.error.message.clone()))?;
    files::write_private(&folder.join(OPERATOR_TOKEN), made.token.as_bytes())?;
    Ok(keys.public())
}

/// Opening the store needs space on the disk if the program was killed before. If there is none,
/// the space that is reserved for the operator is released, so that the control plane starts.
fn make_room(state: &Path) {
    let probe = state.join(PROBE);
    let written = std::fs::write(&probe, vec![1; PROBE_BYTES]);
    std::fs::remove_file(&probe).ok();
    if let Err(error) = written
        && Reserve::release(state)
    {
        tracing::warn!(%error, "the disk is full: the start uses the space that is reserved for the operator");
    }
}

/// The addresses of a running control plane, as in `addresses.json`.
#[derive(Serialize)]
struct Addresses {
    api: String,
    quic: String,
}

/// The sockets and files that are opened before the control plane serves.
struct Started {
    keys: Arc<Keys>,
    listener: TcpListener,
    endpoint: quinn::Endpoint,
    addresses: Addresses,
    plane: Arc<Plane>,
    backups: Option<backup::Socket>,
}

/// Runs until `stop` ends.
///
/// # Errors
/// The control plane could not start.
pub async fn serve(config: Config, stop: impl Future<Output = ()>) -> Result<(), Failure> {
    let Started {
        keys,
        listener,
        endpoint,
        addresses,
        plane,
        backups,
    } = start(&config).await?;
    prepare(&plane).await;
    let stopping = CancellationToken::new();
    let api = tokio::spawn(https::serve(
        listener,
        tls::api(&keys.api)?,
        Arc::clone(&plane),
        config.api_limits,
        stopping.clone(),
    ));
    let backups = tokio::spawn(backup::serve(backups, Arc::clone(&plane), stopping.clone()));
    let logging = tokio::spawn(Arc::clone(&plane).write_logs(stopping.clone()));
    let removing = tokio::spawn(collect::run(Arc::clone(&plane), stopping.clone()));
    let nodes = tokio::spawn(quic::serve(
        endpoint,
        plane,
        keys,
        config.push_versions,
        stopping.clone(),
    ));
    tracing::info!("ready api={} quic={}", addresses.api, addresses.quic);
    stop.await;
    tracing::info!("stopping");
    stopping.cancel();
    let drained = async { tokio::join!(api, nodes, removing, backups, logging) };
    let drained = tokio::time::timeout(DRAIN, drained).await;
    if drained.is_err() {
        tracing::warn!("stopped with requests under way");
    }
    Ok(())
}

/// Checks the state folder, binds both ports, opens the state, and writes down where it listens.
async fn start(config: &Config) -> Result<Started, Failure> {
    let state = &config.state;
    must_be_readable(state)?;
    format::check(state)?;
    let keys = Arc::new(Keys::open(&state.join(KEYS))?);
    let listener = TcpListener::bind(config.api)
        .await
        .map_err(|error| quic::cannot_listen(config.api, &error))?;
    let endpoint = quic::bind(config.quic, &keys, config.push_versions)?;
    let unknown = |error: std::io::Error| Failure::internal(error.to_string());
    let addresses = Addresses {
        api: listener.local_addr().map_err(unknown)?.to_string(),
        quic: endpoint.local_addr().map_err(unknown)?.to_string(),
    };
    let public = config
        .public_quic
        .clone()
        .unwrap_or_else(|| addresses.quic.clone());
    let limit_bytes = config.tenant_storage_mib.saturating_mul(MIB_BYTES);
    let json =
        serde_json::to_vec(&addresses).map_err(|error| Failure::internal(error.to_string()))?;
    make_room(state);
    let plane = Arc::new(open(state, &keys, public, false, limit_bytes, config.log_limits).await?);
    let backups = backup::Socket::open(state);
    files::write_public(&state.join(ADDRESSES), &json)?;
    Ok(Started {
        keys,
        listener,
        endpoint,
        addresses,
        plane,
        backups,
    })
}

fn must_be_readable(state: &Path) -> Result<(), Failure> {
    let Err(error) = std::fs::read_dir(state.join(KEYS)) else {
        return Ok(());
    };
    if error.kind() == std::io::ErrorKind::PermissionDenied {
        let message = format!(
            "{} cannot be read as this user: run as the user that made it, or chown it",
            state.display()
        );
        return Err(Failure::config(message));
    }
    let message = format!(
        "{} is not a state folder; `casemate-control init --state {0}` makes one",
        state.display()
    );
    Err(Failure::config(message))
}

/// Prepares the state before the first request. A failure here does not prevent the start.
async fn prepare(plane: &Plane) {
    // A full disk must not prevent the start: the control plane is needed most then.
    plane.reserve().await.ok();
    if let Err(fault) = plane.remove_revoked_before().await {
        let message = &fault.body.error.message;
        tracing::warn!(
            message,
            "records of revoked nodes could not be removed; the nodes stay out"
        );
    }
    if !plane.audit_intact() {
        tracing::error!(
            "the audit log was tampered with; new records follow the break, and the API reports it"
        );
    }
}
