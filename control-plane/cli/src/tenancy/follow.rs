//! Following a manifest until the nodes run it.

use std::collections::BTreeSet;
use std::time::Duration;

use casemate_api::tenant::{NodeProgress, Refused, TenantStatus};
use casemate_push::StatementId;
use casemate_trust::id::TenantId;
use casemate_trust::judge::Seen;
use casemate_trust::name::Name;
use tokio::time::Instant;

use super::Tenancy;
use crate::args::Signing;
use crate::error::{Code, Error};
use crate::machine::printable;
use crate::output::Output;

/// Pause between two requests for the nodes' state.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// Progress of a manifest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reach {
    /// Nodes that run it, or a manifest that was signed on top of it.
    pub current: usize,
    /// Nodes in its pools.
    pub total: usize,
    /// Nodes that are not connected and receive it when they are back.
    pub away: Vec<Name>,
}

impl Reach {
    /// Refuses a manifest that does not run everywhere.
    ///
    /// # Errors
    /// Nodes are away; the error lists them.
    pub fn must_be_everywhere(&self, version: u64) -> Result<(), Error> {
        if self.away.is_empty() {
            return Ok(());
        }
        let what = format!(
            "manifest {version} is signed and stored, and {} of {} nodes are away",
            self.away.len(),
            self.total
        );
        let next = "they receive it as soon as they are back; `casemate status` shows whether they \
             have it";
        let lines = self
            .away
            .iter()
            .map(|node| format!("node {node} is not connected"));
        Err(Error::new(Code::NodesAway, what, next).lines(lines))
    }
}

/// The state that a node is to reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until<'a> {
    /// The node has accepted the manifest: what the manifest withdraws is withdrawn.
    Taken,
    /// The node also has the bundles and has loaded the new releases, in particular the one of this
    /// function.
    Runs(&'a Name),
}

/// Why a node cannot load the release of this function that its manifest wants.
pub fn not_loaded<'a>(node: &'a NodeProgress, function: &Name) -> Option<&'a Refused> {
    let is_not_loaded = |refused: &&Refused| {
        casemate_push::is_not_loaded(&refused.code, &refused.message, function.as_str())
    };
    node.refused.as_ref().filter(is_not_loaded)
}

/// The state of one node with regard to the manifest that was signed here.
#[derive(Debug, PartialEq, Eq)]
enum Stand<'a> {
    Current,
    Behind,
    /// The node could not accept the manifest or run its functions, and tries again by itself.
    Hindered(&'a Refused),
    Refuses(&'a Refused),
    /// The node holds a manifest that the control plane has never seen, and accepts nothing older.
    Ahead(u64),
}

/// A version alone is not enough: after a restored backup nodes hold another manifest with the same
/// number, or a higher one that is not an ancestor of any manifest here.
fn stand<'a>(
    node: &'a NodeProgress,
    ours: &Seen,
    id: &str,
    status: &TenantStatus,
    until: Until<'_>,
) -> Stand<'a> {
    let held = node.manifest_version.zip(node.manifest_digest);
    let newest = status.manifest_version.zip(status.manifest_digest);
    let is_ours = held == Some((ours.version, ours.digest));
    let is_later = held == newest && newest.is_some_and(|(version, _)| version > ours.version);
    let is_there = is_ours || is_later;
    if is_there && (node.is_stored || until == Until::Taken) {
        // The same release may have failed to load when an earlier manifest named it.
        return match until {
            Until::Runs(function) => {
                not_loaded(node, function).map_or(Stand::Current, Stand::Refuses)
            }
            Until::Taken => Stand::Current,
        };
    }
    match node.refused.as_ref().filter(|refused| refused.what == id) {
        Some(refused) if casemate_push::is_transient(&refused.code) => {
            return Stand::Hindered(refused);
        }
        Some(refused) => return Stand::Refuses(refused),
        None => {}
    }
    if is_there {
        return Stand::Behind;
    }
    let known = status.manifest_version.unwrap_or_default();
    match node.manifest_version {
        Some(version) if version > known.max(ours.version) => Stand::Ahead(version),
        _ => Stand::Behind,
    }
}

/// Looks at each status while a manifest is followed, and warns once of what hinders a node.
struct Follower {
    id: String,
    ours: Seen,
    output: Output,
    hindered: BTreeSet<(Name, String)>,
}

impl Follower {
    fn new(tenant: TenantId, ours: Seen, output: Output) -> Self {
        let version = ours.version;
        Self {
            id: StatementId::Manifest { tenant, version }.to_string(),
            ours,
            output,
            hindered: BTreeSet::new(),
        }
    }

    /// The nodes that have not reached the state yet.
    fn late<'a>(
        &mut self,
        status: &'a TenantStatus,
        wanted: Until<'_>,
    ) -> Result<Vec<&'a NodeProgress>, Error> {
        let version = self.ours.version;
        let mut late = Vec::new();
        for node in &status.nodes {
            match stand(node, &self.ours, &self.id, status, wanted) {
                Stand::Current => {}
                Stand::Behind => late.push(node),
                Stand::Hindered(refused) => {
                    let cause = (node.node.clone(), refused.code.clone());
                    if self.hindered.insert(cause) {
                        self.output.warn(&hindrance(node, version, refused));
                    }
                    late.push(node);
                }
                Stand::Refuses(refused) => return Err(refuses(node, version, refused)),
                Stand::Ahead(newer) => return Err(ahead(node, version, newer)),
            }
        }
        Ok(late)
    }
}

impl Tenancy<'_> {
    /// Wait until every connected node has reached the state, as long as `signing` allows; `None`
    /// without waiting.
    ///
    /// # Errors
    /// A node refused, a node holds a newer manifest, or the time ran out. The manifest stays
    /// signed and is accepted later.
    pub async fn wait(
        &mut self,
        signing: &Signing,
        wanted: Until<'_>,
    ) -> Result<Option<Reach>, Error> {
        self.session.unlock();
        let output = self.session.cx.output;
        if signing.wait == 0 {
            return Ok(None);
        }
        let seen = self.session.known.judge().memory().tenants.get(&self.id);
        let ours = seen
            .and_then(|seen| seen.manifest)
            .ok_or_else(|| Error::internal("a manifest was signed and is not remembered"))?;
        let version = ours.version;
        let progress = output.progress(format!(
            "waiting for the nodes to accept manifest {version}"
        ));
        let until = Instant::now() + Duration::from_secs(signing.wait);
        let mut follower = Follower::new(self.id, ours, output);
        loop {
            let status = match self.status().await {
                Ok(status) => status,
                // The manifest is stored; the control plane may be restarting.
                Err(error) if error.code() == Code::Unreachable && Instant::now() < until => {
                    tokio::time::sleep(LOOK_INTERVAL).await;
                    continue;
                }
                Err(error) => return Err(broken(version, &error)),
            };
            let total = status.nodes.len();
            if total == 0 {
                drop(progress);
                if !status.functions.is_empty() {
                    output.warn(
                        "no node of these pools has been admitted yet; the first that \
                         joins will run it",
                    );
                }
                return Ok(Some(Reach::default()));
            }
            let late = follower.late(&status, wanted)?;
            let current = total - late.len();
            progress.say(format!(
                "manifest {version}: {current} of {total} nodes run it"
            ));
            let is_over = Instant::now() >= until;
            let all_away = !late.iter().any(|node| node.connected);
            // Nodes that are all away at the same time may be reconnecting after a restart of the
            // control plane.
            if all_away && (current > 0 || is_over) {
                let away = late.iter().map(|node| node.node.clone()).collect();
                return Ok(Some(Reach {
                    current,
                    total,
                    away,
                }));
            }
            if is_over {
                return Err(not_in_time(&late, version, signing.wait));
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Warns about hosts that belong to another tenant, according to the control plane's `status`.
    pub fn warn_of_lost_hosts(&self, status: &TenantStatus) {
        for (name, function) in &status.functions {
            for host in &function.hosts_of_other_tenants {
                self.session.cx.output.warn(&format!(
                    "{} belongs to another tenant, which the operator admitted first: its callers \
                     do not reach {name}. Ask the operator, or take the host out of casemate.toml",
                    printable(host)
                ));
            }
        }
    }
}

/// The error for a wait that could not continue.
pub fn broken(version: u64, error: &Error) -> Error {
    let what = format!(
        "manifest {version} is signed and stored, and its state at the nodes could not be read"
    );
    let next = "nothing is lost, and nothing has to be repeated: run `casemate status` when the \
         control plane answers";
    Error::new(Code::WaitBroken, what, next).lines([error.summary()])
}

fn hindrance(node: &NodeProgress, version: u64, refused: &Refused) -> String {
    let Refused { code, message, .. } = refused;
    format!(
        "node {} cannot run manifest {version} now ({code}) and tries again by itself: {message}",
        node.node
    )
}

fn refuses(node: &NodeProgress, version: u64, refused: &Refused) -> Error {
    let codes = [
        casemate_push::LOAD_FAILED,
        casemate_push::LOAD_FAILED_EARLIER,
    ];
    if codes.contains(&refused.code.as_str()) {
        let what = format!(
            "node {} cannot load a release of manifest {version}",
            node.node
        );
        let next = "correct the function and deploy again; the earlier release keeps serving";
        return Error::new(Code::LoadFailed, what, next).lines([refused.message.clone()]);
    }
    let what = format!(
        "node {} refuses manifest {version} ({})",
        node.node, refused.code
    );
    let next = "correct the named mistake and deploy again; until then the node keeps its earlier \
     manifest";
    Error::new(Code::NodeRefused, what, next).lines([refused.message.clone()])
}

fn ahead(node: &NodeProgress, version: u64, newer: u64) -> Error {
    let what = format!(
        "node {} holds manifest {newer}, which is newer than manifest {version}: it keeps the \
         newer one",
        node.node
    );
    let next = "neither the control plane nor this home has seen that manifest. Run \
         `casemate renew` in the home that signed it; if that home is lost, \
         `casemate renew --from-memory` signs what this home knows above it";
    Error::new(Code::NodeRefused, what, next)
}

fn not_in_time(late: &[&NodeProgress], version: u64, wait_secs: u64) -> Error {
    let what = format!(
        "manifest {version} is stored, but not all nodes have accepted it within {wait_secs} \
         seconds"
    );
    let next = "nothing is lost: they accept it when they can. Run `casemate status`, or wait \
         longer with `--wait`";
    let late = late.iter().map(|node| {
        let state = if node.connected {
            "connected"
        } else {
            "not connected"
        };
        let held = node.manifest_version;
        let has = held.map_or("none".to_owned(), |version| version.to_string());
        let transient = node
            .refused
            .as_ref()
            .filter(|refused| casemate_push::is_transient(&refused.code));
        let why = match transient {
            Some(Refused { code, message, .. }) => format!(" ({code}: {message})"),
            None if held == Some(version) && !node.is_stored => {
                ", and is fetching bundles or loading releases".to_owned()
            }
            None => String::new(),
        };
        format!("node {} ({state}) has manifest {has}{why}", node.node)
    });
    Error::new(Code::NotAcknowledged, what, next).lines(late.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use casemate_api::tenant::StorageView;
    use casemate_trust::id::Digest;

    use super::*;

    const OURS: Seen = Seen {
        version: 5,
        digest: Digest([5; 32]),
    };

    /// The state of a node that holds `held` while the control plane's newest is `newest`.
    fn standing(held: Option<(u64, u8)>, newest: (u64, u8)) -> String {
        let node = holding(held, true);
        stood(&node, newest, Until::Runs(&web()))
    }

    fn web() -> Name {
        "web".parse().unwrap()
    }

    fn holding(held: Option<(u64, u8)>, is_stored: bool) -> NodeProgress {
        NodeProgress {
            node: "edge-1".parse().unwrap(),
            pool: "main".parse().unwrap(),
            connected: true,
            manifest_version: held.map(|(version, _)| version),
            manifest_digest: held.map(|(_, digest)| Digest([digest; 32])),
            acknowledged: None,
            is_stored,
            refused: None,
        }
    }

    fn stood(node: &NodeProgress, newest: (u64, u8), until: Until<'_>) -> String {
        let status = TenantStatus {
            id: TenantId([1; 32]),
            name: "shop".parse().unwrap(),
            manifest_version: Some(newest.0),
            manifest_digest: Some(Digest([newest.1; 32])),
            manifest_expires: None,
            functions: BTreeMap::new(),
            nodes: Vec::new(),
            storage: StorageView {
                used_bytes: 0,
                limit_bytes: 0,
            },
            stopped_credentials: Vec::new(),
        };
        format!("{:?}", stand(node, &OURS, "", &status, until))
    }

    #[test]
    fn a_node_is_current_with_our_manifest_or_what_was_signed_on_top_of_it() {
        assert_eq!(standing(Some((5, 5)), (5, 5)), "Current");
        assert_eq!(standing(Some((5, 5)), (6, 6)), "Current");
        assert_eq!(standing(Some((6, 6)), (6, 6)), "Current");
        for behind in [None, Some((4, 4)), Some((5, 9)), Some((6, 9))] {
            assert_eq!(standing(behind, (6, 6)), "Behind", "{behind:?}");
        }
        assert_eq!(standing(Some((7, 7)), (5, 5)), "Ahead(7)");
        assert_eq!(standing(Some((7, 7)), (6, 6)), "Ahead(7)");
    }

    #[test]
    fn the_reason_why_a_node_lacks_a_bundle_is_shown() {
        let mut node = holding(Some((5, 5)), false);
        node.refused = Some(Refused {
            what: String::new(),
            code: "bundle_quota".to_owned(),
            message: "smaller bundles".to_owned(),
            at: 1,
        });
        assert_eq!(stood(&node, (5, 5), Until::Taken), "Current");
        assert!(stood(&node, (5, 5), Until::Runs(&web())).starts_with("Refuses"));
        let error = refuses(&node, 5, node.refused.as_ref().unwrap()).to_text();
        assert!(
            error.contains("bundle_quota") && error.contains("smaller bundles"),
            "{error}"
        );
        node.is_stored = true;
        assert_eq!(stood(&node, (5, 5), Until::Runs(&web())), "Current");
    }

    #[test]
    fn a_manifest_without_its_bundles_is_accepted_and_does_not_run() {
        let node = holding(Some((5, 5)), false);
        assert_eq!(stood(&node, (5, 5), Until::Taken), "Current");
        assert_eq!(stood(&node, (5, 5), Until::Runs(&web())), "Behind");
        let error = not_in_time(&[&node], 5, 1).to_text();
        assert!(error.contains("is fetching bundles"), "{error}");
    }

    fn refusing(code: &str, message: &str) -> NodeProgress {
        let mut node = holding(Some((5, 5)), false);
        node.refused = Some(Refused {
            what: String::new(),
            code: code.to_owned(),
            message: message.to_owned(),
            at: 1,
        });
        node
    }

    #[test]
    fn a_release_that_does_not_load_fails_the_deployment_with_its_stack_and_a_code_of_its_own() {
        let stack = "`web` cannot be loaded: Error: no\n    at main.js:3:8";
        let node = refusing("load_failed", stack);
        assert!(stood(&node, (5, 5), Until::Runs(&web())).starts_with("Refuses"));
        assert_eq!(stood(&node, (5, 5), Until::Taken), "Current");
        let error = refuses(&node, 5, node.refused.as_ref().unwrap());
        insta::assert_snapshot!(error.to_text(), @r"
        error: node edge-1 cannot load a release of manifest 5
          `web` cannot be loaded: Error: no
              at main.js:3:8
         next: correct the function and deploy again; the earlier release keeps serving
        ");
        assert_eq!(error.to_json()["error"]["exit"], 81);
    }

    #[test]
    fn a_release_that_did_not_load_before_fails_its_own_deployment_and_no_other() {
        let text = "`api`, `web` cannot be loaded since an earlier deployment: Error: no";
        let mut node = refusing("load_failed_earlier", text);
        node.is_stored = true;
        assert!(stood(&node, (5, 5), Until::Runs(&web())).starts_with("Refuses"));
        let other = "other".parse().unwrap();
        assert_eq!(stood(&node, (5, 5), Until::Runs(&other)), "Current");
        assert_eq!(stood(&node, (5, 5), Until::Taken), "Current");
        let error = refuses(&node, 5, node.refused.as_ref().unwrap());
        assert_eq!(error.to_json()["error"]["exit"], 81);
    }

    #[test]
    fn a_temporary_hindrance_is_shown_and_waited_for() {
        for code in ["no_place", "storage_full"] {
            let node = refusing(code, "the disk is full");
            assert!(stood(&node, (5, 5), Until::Runs(&web())).starts_with("Hindered"));
            let told = hindrance(&node, 5, node.refused.as_ref().unwrap());
            assert!(
                told.contains(code) && told.contains("tries again by itself"),
                "{told}"
            );
            let error = not_in_time(&[&node], 5, 1).to_text();
            assert!(error.contains("the disk is full"), "{error}");
        }
    }
}
