//! A real control plane on loopback.
// Each test program uses a part of this.
#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used
)]

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::time::Duration;

use casemate_api::audit::{AuditPage, AuditRecord};
use casemate_control::Config;
use casemate_push::{VERSIONS, Versions};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

pub use casemate_control_testing::{Client, Fleet, Node, Plane, SOON, client, fleet, node};

/// A running control plane.
pub struct Control {
    pub folder: tempfile::TempDir,
    pub plane: Plane,
    pub tenant_storage_mib: u64,
    /// Versions of the push protocol, from its next start on.
    pub push_versions: Versions,
    stop: Option<oneshot::Sender<()>>,
    task: Option<JoinHandle<()>>,
}

impl Control {
    /// A new control plane, without a fleet.
    pub async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let made = casemate_control::init(&folder.path().join("state"))
            .await
            .unwrap();
        let operator = std::fs::read_to_string(&made.operator_token_file).unwrap();
        let mut control = Self {
            folder,
            plane: Plane {
                api: String::new(),
                quic: String::new(),
                keys: made.keys,
                operator,
            },
            tenant_storage_mib: 1024,
            push_versions: VERSIONS,
            stop: None,
            task: None,
        };
        control.start().await;
        control
    }

    /// A control plane on the state of an earlier program: `folder` holds that state in `state`,
    /// and the operator's token.
    pub async fn of_earlier(folder: tempfile::TempDir) -> Self {
        let operator = std::fs::read_to_string(folder.path().join("operator.token")).unwrap();
        let keys = std::fs::read(folder.path().join("state/public.json")).unwrap();
        let mut control = Self {
            plane: Plane {
                api: String::new(),
                quic: String::new(),
                keys: serde_json::from_slice(&keys).unwrap(),
                operator,
            },
            folder,
            tenant_storage_mib: 1024,
            push_versions: VERSIONS,
            stop: None,
            task: None,
        };
        control.start().await;
        control
    }

    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    pub async fn start(&mut self) {
        let addresses = self.state().join("addresses.json");
        std::fs::remove_file(&addresses).ok();
        let mut config = config(&self.state());
        config.tenant_storage_mib = self.tenant_storage_mib;
        config.push_versions = self.push_versions;
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            let stop = async { drop(stopped.await) };
            casemate_control::serve(config, stop).await.unwrap();
        });
        (self.stop, self.task) = (Some(stop), Some(task));
        eventually("addresses", async || addresses.exists()).await;
        let text = std::fs::read(&addresses).unwrap();
        let found: serde_json::Value = serde_json::from_slice(&text).unwrap();
        self.plane.api = found["api"].as_str().unwrap().to_owned();
        self.plane.quic = found["quic"].as_str().unwrap().to_owned();
    }

    pub async fn stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        self.task.take().unwrap().await.unwrap();
    }
}

impl Deref for Control {
    type Target = Plane;

    fn deref(&self) -> &Plane {
        &self.plane
    }
}

pub fn config(state: &Path) -> Config {
    Config {
        state: state.to_owned(),
        api: "127.0.0.1:0".parse().unwrap(),
        quic: "127.0.0.1:0".parse().unwrap(),
        public_quic: None,
        tenant_storage_mib: 1024,
        api_limits: casemate_control::ApiLimits::default(),
        log_limits: casemate_control::LogLimits::default(),
        push_versions: VERSIONS,
        log: None,
    }
}

/// Records of refused requests: client, action, object.
pub async fn refused(control: &Control) -> Vec<(String, String, String)> {
    let page: AuditPage = control.operator().get("/v1/audit").await.ok().json();
    AuditRecord::verify(None, &page.records).unwrap();
    let refused = page.records.into_iter();
    refused
        .filter(|record| record.action.ends_with(".refused"))
        .map(|record| (record.actor, record.action, record.subject))
        .collect()
}

/// Subjects of the records of one action.
pub async fn refused_as(control: &Control, action: &str) -> Vec<String> {
    let page: AuditPage = control.operator().get("/v1/audit").await.ok().json();
    let records = page.records.into_iter();
    records
        .filter(|record| record.action == action)
        .map(|record| record.subject)
        .collect()
}

/// Waits until a condition holds.
pub async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(SOON, waiting)
        .await
        .unwrap_or_else(|_| panic!("waited too long: {what}"));
}
