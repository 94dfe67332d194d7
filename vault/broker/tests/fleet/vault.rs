//! The vault as a real child process.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use casemate_channel::Control;
use casemate_trust::judge::MAX_TENANTS;
use casemate_trust::statement::MAX_FUNCTIONS;
use casemate_wire::control::parts::Arriving;
use casemate_wire::control::vault::{FromVault, Have, ObjectKind, Plan, ToVault, Verdict};

const SOON: Duration = Duration::from_secs(30);

/// The child and our end of its control socket.
pub(crate) struct Vault {
    child: Child,
    control: Control<ToVault, FromVault>,
    /// The same socket, for packets that are not a message.
    pub(crate) socket: OwnedFd,
    kept: Vec<FromVault>,
    next: u64,
}

impl Vault {
    /// A figure of the process from the kernel, in KiB.
    pub(crate) fn kib(&self, what: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with(what)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Waits until the process has ended by itself.
    pub(super) fn exit_code(&mut self) -> i32 {
        self.child.wait().unwrap().code().unwrap()
    }

    pub(crate) fn process(&self) -> u32 {
        self.child.id()
    }

    /// The description's part about calls.
    pub(crate) async fn upstreams(&mut self) -> serde_json::Value {
        self.describe().await["upstreams"].take()
    }

    /// Waits until so many calls are under way.
    pub(crate) async fn wait_for_calls(&mut self, count: u64) {
        let end = tokio::time::Instant::now() + SOON;
        while self.upstreams().await["calls"] != count {
            assert!(tokio::time::Instant::now() < end, "not {count} calls");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(super) fn start(folder: &Path) -> Self {
        let (ours, theirs) = casemate_channel::control::pair().unwrap();
        rustix::io::ioctl_fionbio(&theirs, false).unwrap();
        // The test may set limits; without any, this only runs the vault.
        let limits = std::fs::read_to_string(folder.join("limits")).unwrap_or_default();
        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg(format!("{limits} exec \"$0\" \"$@\""))
            .arg(env!("CARGO_BIN_EXE_casemate-vault"))
            .arg("--config")
            .arg(folder.join("vault.toml"))
            .arg("--state")
            .arg(folder.join("vault"));
        let child = command.stdin(Stdio::from(theirs)).spawn().unwrap();
        Self {
            child,
            socket: ours.try_clone().unwrap(),
            control: Control::new(ours).unwrap(),
            kept: Vec::new(),
            next: 0,
        }
    }

    pub(crate) async fn send(&mut self, message: ToVault, fd: Option<OwnedFd>) {
        let fds: Vec<_> = fd.iter().map(|fd| fd.as_fd()).collect();
        self.control.send(&message, &fds).await.unwrap();
    }

    /// The list of held statements.
    pub(crate) async fn have(&mut self) -> Have {
        self.send(ToVault::Connected, None).await;
        let mut arriving = Arriving::new(MAX_TENANTS as u32);
        loop {
            let part = self.wait(|message| match message {
                FromVault::Have(part) => Some(*part),
                _ => None,
            });
            if let Some(have) = arriving.take(part.await).unwrap() {
                return have;
            }
        }
    }

    /// The next plan.
    pub(crate) async fn plan(&mut self) -> Plan {
        let mut arriving = Arriving::new(MAX_FUNCTIONS as u32);
        loop {
            let part = self.wait(|message| match message {
                FromVault::Plan(part) => Some(*part),
                _ => None,
            });
            if let Some(plan) = arriving.take(part.await).unwrap() {
                return plan;
            }
        }
    }

    /// The status page.
    pub(crate) async fn describe(&mut self) -> serde_json::Value {
        self.send(ToVault::Describe, None).await;
        let description = self.wait(|message| match message {
            FromVault::Description { json } => Some(json),
            _ => None,
        });
        serde_json::from_str(&description.await).unwrap()
    }

    /// The next message that `pick` selects; others are kept for later.
    pub(crate) async fn wait<T>(&mut self, pick: impl Fn(FromVault) -> Option<T>) -> T {
        if let Some(at) = self
            .kept
            .iter()
            .position(|message| pick(message.clone()).is_some())
        {
            return pick(self.kept.remove(at)).unwrap();
        }
        loop {
            let received = tokio::time::timeout(SOON, self.control.recv())
                .await
                .expect("the vault sends nothing")
                .unwrap();
            let (message, _) = received.expect("the vault has ended");
            match pick(message.clone()) {
                Some(picked) => return picked,
                None => self.kept.push(message),
            }
        }
    }

    pub(crate) async fn submit(&mut self, kind: ObjectKind, bytes: Vec<u8>) -> Verdict {
        self.next += 1;
        let asked = self.next;
        self.send(
            ToVault::Submit {
                id: asked,
                kind,
                bytes,
            },
            None,
        )
        .await;
        self.wait(move |message| match message {
            FromVault::Verdict { id, verdict } if id == asked => Some(verdict),
            _ => None,
        })
        .await
    }
}

impl Drop for Vault {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}
