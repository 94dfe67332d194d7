//! The files of a state folder, and the state that is loaded from them.

use std::path::Path;

use casemate_control_store::{Redb, StoreId};

use crate::bundles::Bundles;
use crate::failure::Failure;
use crate::format;
use crate::images::Images;
use crate::keys::{self, Keys};
use crate::plane::{Folders, LogLimits, Logs, Plane};
use crate::reserve::Reserve;

/// The folder of the control plane's own keys.
pub(crate) const KEYS: &str = "keys";
/// The folder of bundles.
pub(crate) const BUNDLES: &str = "bundles";
/// The store.
pub(crate) const STORE: &str = "store.redb";
/// The file of the public keys, for the operator's machine.
pub(crate) const PUBLIC: &str = "public.json";
const IMAGES: &str = "images";
const LOGS: &str = "logs";

/// Opens the state in a folder. A store that is missing is made only where `is_new`.
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
