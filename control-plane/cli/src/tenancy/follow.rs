//! Following a manifest until the nodes run it.

use std::time::Duration;

use casemate_api::tenant::TenantStatus;

use super::Tenancy;
use crate::args::Signing;
use crate::error::{Code, Error};

/// Between two looks at what the nodes have acknowledged.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

impl Tenancy<'_> {
    /// Wait until every connected node has acknowledged a version, as long as `signing` says.
    ///
    /// # Errors
    /// A node refused, or not all were in time. The manifest stays signed and is taken when they can.
    pub async fn wait(
        &mut self,
        version: u64,
        signing: &Signing,
    ) -> Result<Option<TenantStatus>, Error> {
        self.session.unlock();
        let output = self.session.cx.output;
        if signing.wait == 0 {
            return Ok(None);
        }
        let progress = output.progress(format!("waiting for the nodes to take manifest {version}"));
        let until = tokio::time::Instant::now() + Duration::from_secs(signing.wait);
        let this = format!("manifest {version}");
        loop {
            let status = match self.status().await {
                Ok(status) => status,
                // The manifest is stored; the control plane may be starting again.
                Err(error)
                    if error.code() == Code::Unreachable && tokio::time::Instant::now() < until =>
                {
                    tokio::time::sleep(LOOK_INTERVAL).await;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let current =
                |node: &&casemate_api::tenant::NodeProgress| node.manifest_version >= Some(version);
            let (done, total) = (
                status.nodes.iter().filter(current).count(),
                status.nodes.len(),
            );
            if total > 0 {
                progress.say(format!(
                    "manifest {version}: {done} of {total} nodes run it"
                ));
            }
            for node in status.nodes.iter().filter(|node| !current(node)) {
                if let Some(refused) = node.refused.as_ref().filter(|refused| refused.what == this)
                {
                    let what = format!(
                        "node {} refuses {} ({})",
                        node.node, refused.what, refused.code
                    );
                    let next = "correct what it names and deploy again; until then the node goes on with what it had";
                    return Err(Error::new(Code::NodeRefused, what, next)
                        .lines([crate::machine::printable(&refused.message)]));
                }
            }
            let awaited = status
                .nodes
                .iter()
                .filter(|node| node.connected && !current(node))
                .count();
            let away: Vec<_> = status
                .nodes
                .iter()
                .filter(|node| !node.connected && !current(node))
                .collect();
            if total == 0 {
                drop(progress);
                output.warn("no node of these pools has been admitted yet; the first that joins will run it");
                return Ok(Some(status));
            }
            if awaited == 0 && done > 0 {
                drop(progress);
                for node in away {
                    output.warn(&format!(
                        "node {} is not connected; it takes manifest {version} when it is back",
                        node.node
                    ));
                }
                return Ok(Some(status));
            }
            if tokio::time::Instant::now() >= until {
                let late = status
                    .nodes
                    .iter()
                    .filter(|node| !current(node))
                    .map(|node| {
                        let state = if node.connected {
                            "connected"
                        } else {
                            "not connected"
                        };
                        let has = node
                            .manifest_version
                            .map_or("none".to_owned(), |version| version.to_string());
                        format!("node {} ({state}) has manifest {has}", node.node)
                    });
                let what = format!(
                    "manifest {version} is stored, but not all nodes have taken it within {} seconds",
                    signing.wait
                );
                let next = "nothing is lost: they take it when they can. Look with `casemate status`, or wait longer with `--wait`";
                return Err(
                    Error::new(Code::NotAcknowledged, what, next).lines(late.collect::<Vec<_>>())
                );
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }
}
