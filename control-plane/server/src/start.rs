//! Creates a state folder, and runs the control plane from one.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use casemate_api::fleet::PublicKeys;
use casemate_api::token::{NewToken, Scope};
use casemate_control_store::{Redb, StoreId};
use serde::Serialize;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::backup;
use crate::backup::New;
use crate::bundles::Bundles;
use crate::config::Config;
use crate::failure::Failure;
use crate::images::Images;
use crate::keys::Keys;
use crate::plane::{Actor, Folders, LogLimits, Logs, Plane, collect};
use crate::reserve::Reserve;
use crate::{files, format, https, keys, quic, tls};

pub(crate) const KEYS: &str = "keys";
pub(crate) const BUNDLES: &str = "bundles";
const IMAGES: &str = "images";
const LOGS: &str = "logs";
pub(crate) const STORE: &str = "store.redb";
pub(crate) const PUBLIC: &str = "public.json";
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
    let new = New::create(state)?;
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

pub(crate) async fn open(
    state: &Path,
    keys: &Keys,
    quic_address: String,
    is_new: bool,
    tenant_limit_bytes: u64,
    log_limits: LogLimits,
) -> Result<Plane, Failure> {
    let marking = format::check(state)?;
    let path = state.join(STORE);
    if !is_new && !path.exists() {
        let message = format!(
            "there is no store {}; restore it from a backup",
            path.display()
        );
        return Err(Failure::io(message));
    }
    let store =
        StoreId(keys::random().map_err(|_| Failure::internal("the kernel gave no random bytes"))?);
    let store = tokio::task::spawn_blocking(move || Redb::open(&path, store)).await;
    let store = store.map_err(|error| Failure::internal(error.to_string()))??;
    format::mark(state, marking)?;
    let folder = state.join(BUNDLES);
    let bundles = Bundles::open(&folder)
        .map_err(|error| Failure::io(format!("cannot open {}: {error}", folder.display())))?;
    let folder = state.join(IMAGES);
    let images = Images::open(&folder)
        .map_err(|error| Failure::io(format!("cannot open {}: {error}", folder.display())))?;
    let keys = keys.public();
    let logs = state.join(LOGS);
    let logs = tokio::task::spawn_blocking(move || Logs::open(&logs, log_limits)).await;
    let logs = logs.map_err(|error| Failure::internal(error.to_string()))?;
    let folders = Folders {
        bundles,
        images,
        logs,
        reserve: Reserve::new(state),
    };
    Ok(Plane::open(store, folders, keys, quic_address, tenant_limit_bytes).await?)
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

/// Runs until `stop` ends.
///
/// # Errors
/// The control plane could not start.
#[expect(clippy::too_many_lines, reason = "older than the limit")]
pub async fn serve(config: Config, stop: impl Future<Output = ()>) -> Result<(), Failure> {
    let state = &config.state;
    if let Err(error) = std::fs::read_dir(state.join(KEYS)) {
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
        return Err(Failure::config(message));
    }
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
    let socket = backup::Socket::open(state);
    files::write_public(&state.join(ADDRESSES), &json)?;
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
    let stopping = CancellationToken::new();
    let api = tokio::spawn(https::serve(
        listener,
        tls::api(&keys.api)?,
        Arc::clone(&plane),
        config.api_limits,
        stopping.clone(),
    ));
    let backups = tokio::spawn(backup::serve(socket, Arc::clone(&plane), stopping.clone()));
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
