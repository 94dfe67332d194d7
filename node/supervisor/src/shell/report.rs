//! Log records for tenants, and the status page.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use casemate_push::{LogEntry, LogLevel, MAX_LOG_BYTES, MAX_STATUS_BYTES};
use casemate_trust::id::TenantId;
use casemate_wire::control::gateway::Access;
use casemate_wire::control::vault::{Event, ToVault};
use casemate_wire::control::{Failure, FunctionKey, LayerReport};

use super::Shell;
use super::push::Say;

/// Of a record's text and of the request that it names, what the control plane is sent at most, in bytes.
const MAX_MESSAGE_BYTES: usize = MAX_LOG_BYTES / 2;
const MAX_REQUEST_BYTES: usize = MAX_LOG_BYTES / 8;
/// What a text ends with that was cut. A worker marks with the same what it has cut itself, at a greater length: a text that
/// is cut here has lost that mark.
const CUT: &str = "... (cut)";

impl Shell {
    /// Records what a worker has to say, as far as its budget goes.
    pub(super) fn log(
        &mut self,
        worker: u64,
        request: Option<String>,
        level: LogLevel,
        message: &str,
        failure: Option<&str>,
    ) {
        let now_ms = self.now_ms();
        let Some(serving) = self.serving.get_mut(&worker) else {
            return;
        };
        let bytes = message.len() + request.as_ref().map_or(0, String::len);
        match serving.records.spend(bytes, now_ms) {
            Some(dropped) => {
                let key = serving.key.clone();
                self.log_dropped(&key, dropped, "the function logs too fast");
                self.log_function(&key, request, level, message, failure);
            }
            None => self.lost_logs += 1,
        }
    }

    /// Says in a function's own log what is missing there.
    pub(super) fn log_dropped(&mut self, key: &FunctionKey, dropped: u32, why: &str) {
        if dropped > 0 {
            let message = format!("{dropped} records were dropped: {why}");
            self.log_function(key, None, LogLevel::Warn, &message, None);
        }
    }

    /// Tells a function's owner and the operator.
    pub(super) fn warn(&mut self, key: &FunctionKey, message: &str) {
        tracing::warn!(function = key.function, message);
        self.log_function(key, None, LogLevel::Warn, message, None);
    }

    fn log_function(
        &mut self,
        key: &FunctionKey,
        request: Option<String>,
        level: LogLevel,
        message: &str,
        failure: Option<&str>,
    ) {
        if let Some(entry) = entry(key, request, level, message, failure)
            && !self.records.logs.push(key.clone(), entry)
        {
            self.lost_logs += 1;
        }
    }

    pub(super) fn log_event(&mut self, event: Event) {
        let (code, message) = (event.code, event.message);
        let Some(key) = event.key else {
            tracing::warn!(code, message, "vault event without a function");
            return;
        };
        let missing = (event.dropped > 0).then(|| {
            let dropped = event.dropped;
            format!("{dropped} refused calls of this tenant were not recorded: there are too many")
        });
        let missing = missing.and_then(|text| entry(&key, None, LogLevel::Warn, &text, None));
        let refusal = entry(&key, event.request, LogLevel::Warn, &message, Some(&code));
        for entry in missing.into_iter().chain(refusal) {
            if !self.records.refusals.push(entry.tenant, entry) {
                self.lost_logs += 1;
            }
        }
    }

    pub(super) fn log_access(&mut self, access: Access) {
        let key = access.key;
        self.log_dropped(&key, access.dropped, "there are too many requests");
        let message = format!(
            "{} {} {} {} us",
            access.method, access.path, access.status, access.head_us
        );
        if access.wide_cookies > 0 {
            let message = format!(
                "{} cookies were dropped: with their `Domain` they would reach hosts of other tenants; leave `Domain` out",
                access.wide_cookies
            );
            let request = Some(access.request.clone());
            self.log_function(&key, request, LogLevel::Warn, &message, None);
        }
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
        self.say(Say::Status(short(self.status())));
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
            .map(|(id, serving)| serde_json::json!({ "worker": id, "pid": pid(Some(*id)), "function": serving.key.function }))
            .collect();
        let certificates: Vec<_> = self
            .certificates
            .iter()
            .map(|one| serde_json::json!({ "chain": one.chain, "expires": one.expires, "refused": one.refused }))
            .collect();
        serde_json::json!({
            "software": env!("CARGO_PKG_VERSION"), "time": unix_secs(),
            "node": self.identity.as_ref().map(|identity| identity.node.clone()),
            "connected": self.connected, "disconnected_because": self.last_disconnect, "listening": self.addresses,
            "certificates": certificates,
            "state": self.state.describe(), "vault": self.description, "sandbox": layers,
            "pids": { "vault": pid(self.vault), "gateway": pid(self.gateway) }, "workers": workers, "lost_logs": self.lost_logs,
            "machine": self.image.describe_machine(), "image": self.image.describe(),
        })
    }
}

/// This machine's clock, Unix seconds: the control plane compares it with its own.
fn unix_secs() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// A status that the control plane takes: of a node that serves many tenants without the lists, which are what is long.
fn short(mut status: serde_json::Value) -> String {
    let text = status.to_string();
    if text.len() <= MAX_STATUS_BYTES {
        return text;
    }
    for list in [
        "/vault/tenants",
        "/vault/upstreams",
        "/state/functions",
        "/state/tenants",
        "/workers",
    ] {
        if let Some(list) = status.pointer_mut(list) {
            *list = serde_json::Value::Null;
        }
    }
    status["shortened"] = true.into();
    status.to_string()
}

/// A record of now, if a function can have that name; cut to what is sent of it, so that a full queue has a known size.
fn entry(
    key: &FunctionKey,
    request: Option<String>,
    level: LogLevel,
    message: &str,
    failure: Option<&str>,
) -> Option<LogEntry> {
    let time_ms = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        });
    Some(LogEntry {
        tenant: TenantId(key.tenant),
        function: key.function.parse().ok()?,
        request: request.map(|request| {
            let end = request.floor_char_boundary(MAX_REQUEST_BYTES);
            request[..end].to_owned()
        }),
        level,
        message: cut(message),
        time_ms,
        failure: failure.map(ToOwned::to_owned),
    })
}

/// At most [`MAX_MESSAGE_BYTES`] of a text, between characters, and in that case with the mark.
fn cut(text: &str) -> String {
    if text.len() <= MAX_MESSAGE_BYTES {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(MAX_MESSAGE_BYTES - CUT.len());
    format!("{}{CUT}", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_line_is_cut_once_and_marked() {
        let key = FunctionKey {
            tenant: [1; 32],
            function: "web".into(),
        };
        let recorded = |text: &str| {
            entry(&key, None, LogLevel::Info, text, None)
                .unwrap()
                .message
        };
        // As the worker sends a line of a megabyte: cut at 16 KiB, with its mark.
        let line = recorded(&format!("{}{CUT}", "\u{e4}".repeat(8000)));
        assert!(line.ends_with(&format!("\u{e4}{CUT}")), "{line}");
        assert_eq!(line.matches("(cut)").count(), 1);
        assert!((MAX_MESSAGE_BYTES - 1..=MAX_MESSAGE_BYTES).contains(&line.len()));
        // What fits is as it was, with the worker's mark or without.
        for text in ["x".repeat(MAX_MESSAGE_BYTES), format!("short{CUT}")] {
            assert_eq!(recorded(&text), text);
        }
    }

    #[test]
    fn a_node_of_many_tenants_still_says_how_its_machine_is() {
        let status = |tenants: usize| {
            let tenants = vec!["x".repeat(200); tenants];
            serde_json::json!({ "vault": { "tenants": tenants, "root": 1 }, "machine": { "version": "1.0.0" } })
        };
        assert_eq!(short(status(2)), status(2).to_string());
        let text = short(status(1000));
        assert!(text.len() < MAX_STATUS_BYTES);
        let read: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(read["machine"]["version"], "1.0.0");
        assert_eq!(
            (&read["vault"]["root"], &read["shortened"]),
            (&1.into(), &true.into())
        );
    }
}
