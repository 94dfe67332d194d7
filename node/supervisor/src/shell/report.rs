//! Log records for tenants, and the status page.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use casemate_push::{LogEntry, LogLevel};
use casemate_trust::id::TenantId;
use casemate_wire::control::gateway::Access;
use casemate_wire::control::vault::{Event, ToVault};
use casemate_wire::control::{Failure, FunctionKey, LayerReport};

use super::Shell;
use super::push::Say;

impl Shell {
    pub(super) fn log(
        &mut self,
        worker: u64,
        request: Option<String>,
        level: LogLevel,
        message: &str,
        failure: Option<&str>,
    ) {
        if let Some(key) = self.serving.get(&worker).cloned() {
            self.log_function(&key, request, level, message, failure);
        }
    }

    pub(super) fn log_function(
        &mut self,
        key: &FunctionKey,
        request: Option<String>,
        level: LogLevel,
        message: &str,
        failure: Option<&str>,
    ) {
        let Ok(function) = key.function.parse() else {
            return;
        };
        let time_ms = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| {
                u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
            });
        let (message, failure) = (message.to_owned(), failure.map(ToOwned::to_owned));
        self.say(Say::Log(LogEntry {
            tenant: TenantId(key.tenant),
            function,
            request,
            level,
            message,
            time_ms,
            failure,
        }));
    }

    pub(super) fn log_event(&mut self, event: Event) {
        match event.key {
            Some(key) => self.log_function(
                &key,
                event.request,
                LogLevel::Warn,
                &event.message,
                Some(&event.code),
            ),
            None => tracing::warn!(
                code = event.code,
                message = event.message,
                "the vault reports"
            ),
        }
    }

    pub(super) fn log_access(&mut self, access: Access) {
        let Some(key) = access.key else { return };
        let message = format!(
            "{} {} {} {} us",
            access.method, access.path, access.status, access.head_us
        );
        let failure = access.failure.map(Failure::code);
        self.log_function(
            &key,
            Some(access.request),
            LogLevel::Info,
            &message,
            failure,
        );
    }

    /// Tells the control plane how we are, and asks the vault how it is for the next time.
    pub(super) fn report(&mut self) {
        self.children
            .vault(self.vault, ToVault::Describe, Vec::new());
        let status = self.status().to_string();
        self.say(Say::Status(status));
    }

    /// Answers whoever waits at the admin socket.
    pub(super) fn answer(&mut self) {
        for ask in std::mem::take(&mut self.asks) {
            // Whoever asked may be gone.
            let _sent = ask.send(self.status());
        }
    }

    pub(super) fn status(&self) -> serde_json::Value {
        let layers: BTreeMap<_, Vec<_>> = self
            .layers
            .iter()
            .map(|(program, layers)| {
                let layer = |layer: &LayerReport| {
                    let LayerReport {
                        layer,
                        in_force,
                        detail,
                    } = layer;
                    serde_json::json!({ "layer": layer, "in_force": in_force, "detail": detail })
                };
                (*program, layers.iter().map(layer).collect())
            })
            .collect();
        let pid = |id: Option<u64>| id.and_then(|id| self.alive.get(&id)).map(|child| child.pid);
        let workers: Vec<_> = self
            .serving
            .iter()
            .map(|(id, key)| serde_json::json!({ "worker": id, "pid": pid(Some(*id)), "function": key.function }))
            .collect();
        serde_json::json!({
            "software": env!("CARGO_PKG_VERSION"),
            "node": self.identity.as_ref().map(|identity| identity.node.clone()),
            "connected": self.connected, "disconnected_because": self.last_disconnect, "listening": self.addresses,
            "state": self.state.describe(), "vault": self.description, "sandbox": layers,
            "pids": { "vault": pid(self.vault), "gateway": pid(self.gateway) }, "workers": workers, "lost_logs": self.lost_logs,
        })
    }
}
