//! Nodes: admission, grants, connections, revocation.

use std::net::IpAddr;

use casemate_api::error::code;
use casemate_api::limits::{MAX_GRANTS, MAX_NODES};
use casemate_api::node::{Admission, NewGrants, NodeView};
use casemate_control_store::{Change, Compare};
use casemate_push::{Member, StatementId};
use casemate_trust::id::{Digest, TenantId};
use casemate_trust::join::{JoinError, JoinRequest, TokenRecord};
use casemate_trust::judge::Judge;
use casemate_trust::key::PublicKey;
use casemate_trust::name::Name;

use super::admission::{check_grants, must_be_new, node_exists, token_used};
use super::rows::{JoinRow, NodeRow};
use super::{Actor, Plane, Visit, Writing, json, key, now};
use crate::fault::Fault;

/// The code of the audit records that name a node whose disk was copied.
const DUPLICATE: &str = "duplicate_identity";

/// Why a member is not served.
#[derive(Debug)]
pub(crate) enum Unwelcome {
    /// The member was revoked just now.
    Revoked,
    /// Another machine with its key is connected.
    Duplicate,
}

impl Plane {
    /// Admits a node.
    pub(crate) async fn admit(
        &self,
        actor: &Actor,
        admission: Admission,
    ) -> Result<NodeView, Fault> {
        let writing = self.begin().await;
        let about = format!(
            "{} in {}, key {}",
            admission.name, admission.pool, admission.node_key
        );
        let checked = self.check_admission(&admission);
        let (row, mut record) = checked.map_err(|fault| fault.about(&about))?;
        record.used_by = Some(admission.node_key);
        let node = NodeRow {
            name: admission.name.clone(),
            pool: admission.pool,
            key: admission.node_key,
            admitted: now(),
            join: row.envelope,
        };
        let mut changes = vec![
            Change::put(key::node(&node.name), json(&node)),
            Change::put(key::join_token(&record.key), json(&record)),
            Change::delete(key::join(&admission.request)),
        ];
        changes.extend(
            admission
                .grants
                .iter()
                .map(|grant| Change::put(key::grant(&node.name, grant.epoch), grant.to_bytes())),
        );
        let compare = vec![Compare::absent(key::node(&node.name))];
        let revision = writing
            .commit(actor, "node.admit", about, compare, changes)
            .await?;
        self.change(|held| {
            held.joins.remove(&admission.request);
            held.join_tokens.insert(record.key, record);
            for grant in &admission.grants {
                held.index
                    .insert_grant(node.name.clone(), grant.epoch, revision, grant.to_bytes());
            }
            held.nodes.insert(node.name.clone(), node);
        });
        writing.announce();
        self.node(&admission.name)
    }

    fn check_admission(&self, admission: &Admission) -> Result<(JoinRow, TokenRecord), Fault> {
        let held = self.held();
        let row = match held.joins.get(&admission.request) {
            Some(row) => row.clone(),
            // A second admission of the same node reports that it is admitted, not that there is no
            // request.
            None if held.nodes.contains_key(&admission.name) => {
                return Err(node_exists(&admission.name));
            }
            None => return Err(Fault::not_found("join request")),
        };
        let record = held
            .join_tokens
            .get(&row.token)
            .ok_or_else(|| Fault::not_found("join token"))?;
        if record.used_by.is_some() {
            return Err(token_used());
        }
        let request =
            JoinRequest::check(&row.envelope, record, now()).map_err(|error| match error {
                JoinError::Expired(_) => Fault::new(422, code::TOKEN_EXPIRED, error.to_string()),
                error => Fault::new(422, error.code(), error.to_string()),
            })?;
        let is_same = (&request.node, &request.pool, &request.node_key)
            == (&admission.name, &admission.pool, &admission.node_key);
        if !is_same {
            return Err(Fault::bad_request(
                "name, pool and key are not those of the join request",
            ));
        }
        must_be_new(&held, &request)?;
        if held.nodes.len() >= MAX_NODES {
            return Err(Fault::too_many("nodes", MAX_NODES));
        }
        check_grants(
            &held,
            &admission.grants,
            &admission.pool,
            &admission.node_key,
        )?;
        Ok((row, record.clone()))
    }

    /// Stores more grants for a node.
    pub(crate) async fn grant(
        &self,
        actor: &Actor,
        name: &Name,
        new: NewGrants,
    ) -> Result<NodeView, Fault> {
        let writing = self.begin().await;
        {
            let held = self.held();
            let node = held
                .nodes
                .get(name)
                .ok_or_else(|| Fault::not_found("node"))?;
            check_grants(&held, &new.grants, &node.pool, &node.key)?;
        }
        let changes = new
            .grants
            .iter()
            .map(|grant| Change::put(key::grant(name, grant.epoch), grant.to_bytes()));
        let epochs: Vec<_> = new
            .grants
            .iter()
            .map(|grant| grant.epoch.to_string())
            .collect();
        let subject = format!("{name}, epochs {}", epochs.join(" "));
        let revision = writing
            .commit(actor, "node.grant", subject, vec![], changes.collect())
            .await?;
        self.change(|held| {
            for grant in &new.grants {
                held.index
                    .insert_grant(name.clone(), grant.epoch, revision, grant.to_bytes());
            }
        });
        writing.announce();
        self.node(name)
    }

    /// Revokes a node: its row, its grants and its connection are removed.
    pub(crate) async fn revoke(&self, actor: &Actor, name: &Name) -> Result<(), Fault> {
        let writing = self.begin().await;
        self.remove(&writing, actor, name).await
    }

    /// Removes the nodes that the root's list names. After a crash right after the write of the list
    /// some of them remain; they do not count as members anywhere, and the next start removes them.
    pub(super) async fn remove_revoked(
        &self,
        writing: &Writing<'_>,
        actor: &Actor,
    ) -> Result<(), Fault> {
        let revoked: Vec<Name> = {
            let held = self.held();
            let nodes = held.nodes.values();
            nodes
                .filter(|node| held.is_revoked(&node.key))
                .map(|node| node.name.clone())
                .collect()
        };
        for name in revoked {
            self.remove(writing, actor, &name).await?;
        }
        Ok(())
    }

    /// Like `remove_revoked`, at the start of the program.
    pub(crate) async fn remove_revoked_before(&self) -> Result<(), Fault> {
        let writing = self.begin().await;
        self.remove_revoked(&writing, &Actor::Program).await
    }

    /// The root's list of revoked nodes, if it names this key.
    pub(crate) fn revocation(&self, key: &PublicKey) -> Option<Vec<u8>> {
        let held = self.held();
        let version = held.judge.as_ref()?.revocations()?.version;
        let list = held.index.get(&StatementId::Revocations { version })?;
        held.is_revoked(key).then(|| list.1.to_vec())
    }

    async fn remove(&self, writing: &Writing<'_>, actor: &Actor, name: &Name) -> Result<(), Fault> {
        let epochs: Vec<_> = {
            let held = self.held();
            held.nodes
                .get(name)
                .ok_or_else(|| Fault::not_found("node"))?;
            held.index.grants(name).map(|(epoch, _, _)| epoch).collect()
        };
        let mut changes = vec![
            Change::delete(key::node(name)),
            Change::delete(key::seen(name)),
        ];
        // A node whose grants do not fit into one commit loses the rest right afterwards; without
        // its row they mean nothing.
        let (first, rest) = epochs.split_at(epochs.len().min(MAX_GRANTS));
        changes.extend(
            first
                .iter()
                .map(|epoch| Change::delete(key::grant(name, *epoch))),
        );
        writing
            .commit(actor, "node.revoke", name, vec![], changes)
            .await?;
        self.change(|held| {
            held.nodes.remove(name);
            held.index.remove_grants(name);
        });
        self.presence.revoke(name);
        writing.announce();
        for epochs in rest.chunks(MAX_GRANTS) {
            let changes = epochs
                .iter()
                .map(|epoch| Change::delete(key::grant(name, *epoch)));
            writing
                .commit(actor, "node.revoke", name, vec![], changes.collect())
                .await?;
        }
        Ok(())
    }

    /// The member that a key belongs to.
    pub(crate) fn member(&self, key: &PublicKey) -> Option<Member> {
        let held = self.held();
        let fleet = held.judge.as_ref()?.fleet();
        let node = held.nodes.values().find(|node| node.key == *key)?;
        if held.is_revoked(key) {
            return None;
        }
        Some(Member {
            name: node.name.clone(),
            pool: node.pool.clone(),
            key: node.key,
            fleet,
        })
    }

    /// Registers a member's connection, or returns why it has to end at once.
    pub(crate) fn arrive(&self, member: &Member) -> Result<Visit, Unwelcome> {
        // The state's lock is held, so that a revocation is either seen here or finds the
        // registered connection.
        let held = self.held();
        let is_member = held
            .nodes
            .get(&member.name)
            .is_some_and(|node| node.key == member.key && !held.is_revoked(&node.key));
        if !is_member {
            return Err(Unwelcome::Revoked);
        }
        self.presence
            .arrive(&member.name)
            .ok_or(Unwelcome::Duplicate)
    }

    /// Whether a member's replaced connection is to be watched for signs of life.
    pub(crate) fn begin_watch(&self, node: &Name) -> bool {
        self.presence.begin_watch(node)
    }

    /// Ends the watch; `was_alive` is the address that a sign of life came from.
    pub(crate) async fn end_watch(&self, node: &Name, was_alive: Option<IpAddr>) {
        let is_certain = self.presence.end_watch(node, was_alive.is_some());
        if let Some(address) = was_alive.filter(|_| is_certain) {
            tracing::error!(%node, %address, "two machines have this node's key: its disk was copied");
            let subject = format!("two machines have the key of {node}, one of them at {address}");
            let actor = Actor::Node(node.clone());
            self.refused(&actor, "node.duplicate", subject, DUPLICATE)
                .await;
        }
    }

    /// Registers the end of a member's connection.
    pub(crate) async fn depart(&self, visit: &Visit) {
        let Some(last) = self.presence.depart(visit) else {
            return;
        };
        let _writing = self.begin().await;
        if self.held().nodes.contains_key(&visit.node) {
            let changes = vec![Change::put(key::seen(&visit.node), json(&last))];
            if let Err(error) =
                casemate_control_store::Store::commit(&self.store, vec![], changes).await
            {
                tracing::warn!(node = %visit.node, %error, "a node's last report could not be written");
            }
        }
    }

    /// Whether a release that runs, or may run, in this pool has this bundle.
    pub(crate) fn bundle_owner(&self, pool: &Name, digest: &Digest) -> Option<TenantId> {
        let held = self.held();
        let tenants = held.judge.iter().flat_map(Judge::tenants);
        let mut accords = tenants.filter_map(|(id, state)| Some((*id, state.manifest.as_ref()?)));
        let owner = accords.find(|(_, accord)| {
            let functions = accord
                .manifest
                .functions
                .values()
                .filter(|wanted| wanted.pools.contains(pool));
            let mut releases = functions
                .flat_map(|wanted| std::iter::once(&wanted.release).chain(&wanted.fallbacks));
            releases.any(|release| {
                accord
                    .releases
                    .get(release)
                    .is_some_and(|release| release.bundle.digest == *digest)
            })
        });
        owner.map(|(id, _)| id)
    }
}
