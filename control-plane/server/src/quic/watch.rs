//! Watches a replaced connection for signs of life, and defines the empty catalog for strangers.

use std::time::Duration;

use casemate_trust::name::Name;
use quinn::Connection;

use super::KEEP_ALIVE;
use super::shell::Shell;

/// Time for packets to arrive that a node sent before it reconnected.
const ON_ITS_WAY: Duration = Duration::from_secs(1);
/// Time for a sign of life after that: more than [`KEEP_ALIVE`], which requests one.
const SIGN_OF_LIFE: Duration = Duration::from_secs(KEEP_ALIVE.as_secs() + 4);
/// Interval between two checks for a sign of life.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// A replaced connection is not closed before it is known whether its other end is alive: a node
/// has one connection at a time, so that a sign of life is another machine's.
pub(super) async fn watch(connection: &Connection, shell: &Shell, node: &Name) {
    let plane = &shell.plane;
    if !plane.begin_watch(node) {
        return;
    }
    let signs = async {
        // Packets that were in transit when the node reconnected prove nothing.
        tokio::time::sleep(ON_ITS_WAY).await;
        let received = || connection.stats().udp_rx.datagrams;
        let before = received();
        while received() == before {
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    };
    let is_alive = tokio::select! {
        alive = tokio::time::timeout(SIGN_OF_LIFE, signs) => alive.is_ok(),
        _ = connection.closed() => false,
        () = shell.stopping.cancelled() => false,
    };
    let address = connection.remote_address().ip();
    plane.end_watch(node, is_alive.then_some(address)).await;
}

/// The statements that a stranger may see: none.
pub(super) struct NoCatalog;

impl casemate_push::Catalog for NoCatalog {
    fn now(&self) -> casemate_push::Cursor {
        casemate_push::Cursor {
            store: casemate_push::StoreId([0; 16]),
            revision: 0,
        }
    }

    fn next_after(&self, _: u64) -> Option<(u64, Vec<casemate_push::StatementId>)> {
        None
    }

    fn tenant_versions(&self, _: &casemate_trust::id::TenantId) -> Vec<(u64, u64)> {
        Vec::new()
    }

    fn statement(&self, _: &casemate_push::StatementId) -> Option<Vec<u8>> {
        None
    }

    fn image(&self, _: &casemate_trust::name::Name) -> Option<casemate_push::StatementId> {
        None
    }

    fn manifest(&self, _: &casemate_trust::id::TenantId) -> Option<(u64, &[u8])> {
        None
    }
}
