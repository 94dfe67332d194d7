//! Casemate as a user runs it: a fleet of one node with the real programs, and functions that are
//! deployed to the node.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use casemate_tests::caller;
use casemate_tests::fleet::{Fleet, SOON, UPSTREAM_HOST};
use casemate_tests::node::{Node, Settings, Workers};
use tokio::task::block_in_place;

use crate::load::Target;

/// A fleet of one node, to which the cases deploy their functions.
#[derive(Debug)]
pub(crate) struct Ours {
    pub(crate) fleet: Fleet,
    _folder: tempfile::TempDir,
}

impl Ours {
    pub(crate) fn start(workers: Workers) -> Result<Self> {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::Builder::new()
            .prefix("casemate-bench-")
            .tempdir()?;
        // The node's programs run as users of their own and have to traverse this folder.
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755))?;
        let start = |folder: &Path, token: &str| {
            let settings = Settings {
                hosts: vec![UPSTREAM_HOST.to_owned()],
                require: vec!["seccomp".into(), "no_new_privs".into()],
                user: None,
                workers,
            };
            Node::start(folder, token, &settings)
        };
        let fleet = Fleet::start_with(folder.path(), None, &mut |_| (), start)?;
        fleet
            .node
            .wait_for("a member with a lease", SOON, |status| {
                let left = status["vault"]["lease_left_secs"].as_u64();
                left.is_some_and(|left| left > 0)
            })?;
        Ok(Self {
            fleet,
            _folder: folder,
        })
    }

    /// A project of one file.
    pub(crate) fn project(&self, name: &str, config: &str, code: &Path) -> Result<PathBuf> {
        let code = std::fs::read_to_string(code).with_context(|| code.display().to_string())?;
        self.fleet.small_project(name, config, &code)
    }

    /// Deploys the function, and waits until the function answers; returns its host.
    pub(crate) async fn deploy(&self, name: &str, config: &str, code: &Path) -> Result<String> {
        let project = self.project(name, config, code)?;
        block_in_place(|| self.fleet.deploy(&project))?;
        self.answers(host(name)).await
    }

    /// Deploys the function as a tenant of its own, and waits until the function answers; returns
    /// its host.
    pub(crate) async fn deploy_of_its_own_tenant(&self, name: &str, code: &Path) -> Result<String> {
        let host = format!("{name}.tenant.test");
        block_in_place(|| {
            let code = std::fs::read_to_string(code).with_context(|| code.display().to_string())?;
            let tenant = self.fleet.add_tenant(name, &[&host])?;
            let project = self.fleet.small_project_at(&host, name, "", &code)?;
            tenant.ok(&project, &["deploy", "--wait", "60"], b"")
        })?;
        self.answers(host).await
    }

    async fn answers(&self, host: String) -> Result<String> {
        let end = std::time::Instant::now() + SOON;
        loop {
            let answer = caller::get(self.fleet.node.gateway, &host, "/").await;
            match answer {
                // The gateway answers 404 `no_such_host` until it has the route; any other 404 is
                // the function's own answer.
                Ok(answer) if answer.status != 503 && !answer.text().contains("no_such_host") => {
                    return Ok(host);
                }
                answer => anyhow::ensure!(std::time::Instant::now() < end, "{host}: {answer:?}"),
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }

    pub(crate) fn target(&self, hosts: Vec<String>) -> Target {
        Target {
            origin: format!("http://{}", self.fleet.node.gateway),
            hosts,
            authorization: None,
        }
    }
}

/// The host of a function of [`Fleet::small_project`].
pub(crate) fn host(name: &str) -> String {
    format!("{name}.apps.demo.test")
}
