//! The views that the API returns.

use std::collections::{BTreeMap, BTreeSet};

use casemate_api::fleet::{FleetView, PoolList, PoolView};
use casemate_api::node::{MachineView, NodeList, NodeSummary, NodeView};
use casemate_api::tenant::{
    FunctionStatus, NodeProgress, TenantList, TenantStatus, TenantSummary, TenantView,
};
use casemate_api::token::Scope;
use casemate_push::StatementId;
use casemate_trust::dsse::Envelope;
use casemate_trust::id::TenantId;
use casemate_trust::judge::{Judge, TenantState};
use casemate_trust::lease::Claims;
use casemate_trust::name::Name;
use serde_json::Value;

use super::catalog::is_removed;
use super::held::Held;
use super::presence::Presence;
use super::rows::NodeRow;
use super::{Actor, Plane, health, now, stopped};
use crate::fault::Fault;

/// Longest text of a node's report on its machine in a list, characters.
const MAX_MACHINE_CHARS: usize = 200;

impl Plane {
    /// The fleet as every client may see it.
    pub(crate) fn fleet(&self) -> FleetView {
        let held = self.held();
        let (first, last) = (
            StatementId::Root { version: 0 },
            StatementId::Root { version: u64::MAX },
        );
        let online = (
            StatementId::OnlineKey { version: 0 },
            StatementId::OnlineKey { version: u64::MAX },
        );
        let revocations = (
            StatementId::Revocations { version: 0 },
            StatementId::Revocations { version: u64::MAX },
        );
        FleetView {
            fleet: held.judge.as_ref().map(Judge::fleet),
            roots: envelopes(&held, first, last),
            online_key: envelopes(&held, online.0, online.1).pop(),
            revocations: envelopes(&held, revocations.0, revocations.1).pop(),
            quic_address: self.quic_address.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// The versions that a lease for a node of this pool names as the newest: of the tenants whose
    /// manifests list a function for the pool, and of those of which the node has a manifest.
    pub(crate) fn claims(&self, node: &Name, pool: &Name) -> Claims {
        let held = self.held();
        let has: BTreeSet<TenantId> = self
            .presence
            .look(node, |last, _| last.manifests.keys().copied().collect());
        let tenants = held.judge.iter().flat_map(Judge::tenants);
        let newest = tenants.filter_map(|(id, state)| {
            let manifest = &state.manifest.as_ref()?.manifest;
            let runs = manifest
                .functions
                .values()
                .any(|wanted| wanted.pools.contains(pool));
            let injects = || {
                manifest
                    .secrets
                    .values()
                    .any(|pools| pools.contains_key(pool))
            };
            let is_wanted = (runs || injects()) && !is_removed(&held, id);
            (is_wanted || has.contains(id)).then_some((*id, manifest.version))
        });
        let revocations = held.judge.as_ref().and_then(Judge::revocations);
        let version = revocations.map_or(0, |list| list.version);
        Claims::new(now(), version, newest.collect())
    }

    /// All pools.
    pub(crate) fn pools(&self) -> PoolList {
        let held = self.held();
        let pools = held.judge.iter().flat_map(Judge::pools).map(|pool| {
            let of = |epoch| StatementId::Pool {
                name: pool.name.clone(),
                epoch,
            };
            PoolView {
                name: pool.name.clone(),
                epoch: pool.epoch,
                expires: pool.expires,
                nodes: held
                    .nodes
                    .values()
                    .filter(|node| node.pool == pool.name)
                    .count(),
                statements: envelopes(&held, of(0), of(u64::MAX)),
            }
        });
        PoolList {
            pools: pools.collect(),
        }
    }

    /// The tenants that an actor may see.
    pub(crate) fn tenants(&self, actor: &Actor) -> TenantList {
        let held = self.held();
        let may_see = |id: &TenantId| match actor {
            Actor::Token {
                scope: Scope::Tenant(own),
                ..
            } => own == id,
            _ => true,
        };
        let tenants = held
            .judge
            .iter()
            .flat_map(Judge::tenants)
            .filter(|(id, _)| may_see(id));
        TenantList {
            tenants: tenants.map(|(id, state)| summary(id, state)).collect(),
        }
    }

    /// One tenant with its statements.
    pub(crate) fn tenant(&self, id: &TenantId) -> Result<TenantView, Fault> {
        let held = self.held();
        let state = tenant_state(&held, id)?;
        let statement = |version| StatementId::Tenant {
            tenant: *id,
            version,
        };
        let manifest = |version| StatementId::Manifest {
            tenant: *id,
            version,
        };
        Ok(TenantView {
            id: *id,
            name: state.tenant.name.clone(),
            statements: envelopes(&held, statement(0), statement(u64::MAX)),
            manifest: envelopes(&held, manifest(0), manifest(u64::MAX)).pop(),
            freshness: held
                .index
                .freshness(id)
                .and_then(|bytes| Envelope::parse(bytes).ok()),
        })
    }

    /// The nodes' state with regard to a tenant's newest manifest.
    pub(crate) fn tenant_status(&self, id: &TenantId) -> Result<TenantStatus, Fault> {
        let held = self.held();
        let state = tenant_state(&held, id)?;
        let mut status = TenantStatus {
            id: *id,
            name: state.tenant.name.clone(),
            manifest_version: None,
            manifest_digest: None,
            manifest_expires: None,
            functions: BTreeMap::new(),
            nodes: Vec::new(),
            storage: self.ledger.view(id),
            stopped_credentials: Vec::new(),
        };
        let Some(accord) = &state.manifest else {
            return Ok(status);
        };
        let manifest = &accord.manifest;
        status.manifest_version = Some(manifest.version);
        status.manifest_digest = Some(accord.digest);
        status.manifest_expires = Some(manifest.expires);
        let runs_in = |pool: &Name| {
            manifest
                .functions
                .values()
                .any(|wanted| wanted.pools.contains(pool))
        };
        let nodes = held.nodes.values().filter(|node| runs_in(&node.pool));
        let stopped = nodes
            .clone()
            .map(|node| (node, self.presence.stopped(&node.name, id)));
        status.stopped_credentials = stopped::of_tenant(stopped, id, manifest, now());
        status.nodes = nodes
            .map(|node| progress(&self.presence, node, id))
            .collect();
        for (function, wanted) in &manifest.functions {
            let here = || {
                status
                    .nodes
                    .iter()
                    .filter(|node| wanted.pools.contains(&node.pool))
            };
            let release = accord.releases.get(&wanted.release);
            let hosts = release.map_or(&[][..], |release| &release.hosts);
            let judge = held.judge.iter();
            let lost = judge.flat_map(|judge| judge.lost_hosts(id, hosts));
            let function_status = FunctionStatus {
                release: wanted.release,
                pools: wanted.pools.clone(),
                hosts: hosts.iter().map(ToString::to_string).collect(),
                hosts_of_other_tenants: lost.map(|(host, _)| host.to_string()).collect(),
                nodes_current: here()
                    .filter(|node| {
                        node.is_stored
                            && node.manifest_version == Some(manifest.version)
                            && node.manifest_digest == Some(accord.digest)
                            && !cannot_load(node, function)
                    })
                    .count(),
                nodes_total: here().count(),
            };
            status.functions.insert(function.clone(), function_status);
        }
        Ok(status)
    }

    /// All nodes.
    pub(crate) fn nodes(&self) -> NodeList {
        let held = self.held();
        NodeList {
            nodes: held
                .nodes
                .values()
                .map(|node| node_summary(&self.presence, node))
                .collect(),
        }
    }

    /// One node.
    pub(crate) fn node(&self, name: &Name) -> Result<NodeView, Fault> {
        let held = self.held();
        let node = held
            .nodes
            .get(name)
            .ok_or_else(|| Fault::not_found("node"))?;
        let summary = node_summary(&self.presence, node);
        let grants = held.index.grants(name).map(|(epoch, _, _)| epoch).collect();
        Ok(self.presence.look(name, |last, _| NodeView {
            summary,
            join: node.join.clone(),
            grants,
            status: last.status.clone(),
            manifests: last
                .manifests
                .iter()
                .map(|(tenant, taken)| (*tenant, taken.version))
                .collect(),
            refused: last
                .refused
                .iter()
                .map(|(_, refused)| refused.clone())
                .collect(),
        }))
    }
}

fn envelopes(held: &Held, from: StatementId, to: StatementId) -> Vec<Envelope> {
    held.index
        .range(from, to)
        .filter_map(|(_, _, bytes)| Envelope::parse(bytes).ok())
        .collect()
}

fn tenant_state<'a>(held: &'a Held, id: &TenantId) -> Result<&'a TenantState, Fault> {
    let found = held.judge.as_ref().and_then(|judge| judge.tenant(id));
    found.ok_or_else(|| Fault::not_found("tenant"))
}

fn summary(id: &TenantId, state: &TenantState) -> TenantSummary {
    let manifest = state.manifest.as_ref().map(|accord| &accord.manifest);
    TenantSummary {
        id: *id,
        name: state.tenant.name.clone(),
        version: state.tenant.version,
        expires: state.tenant.expires,
        hosts: state.tenant.hosts.iter().map(ToString::to_string).collect(),
        manifest_version: manifest.map(|manifest| manifest.version),
        manifest_expires: manifest.map(|manifest| manifest.expires),
        functions: manifest.map_or(0, |manifest| manifest.functions.len()),
        memory_mib: Some(state.tenant.ceilings.memory_mib),
    }
}

fn node_summary(presence: &Presence, node: &NodeRow) -> NodeSummary {
    presence.look(&node.name, |last, connected_since| NodeSummary {
        name: node.name.clone(),
        pool: node.pool.clone(),
        key: node.key,
        admitted: node.admitted,
        connected_since,
        last_seen: last.last_seen,
        version: last.software.clone(),
        synced_revision: last.synced,
        machine: machine(&last.status),
        duplicate_seen: last.duplicate,
        health: health::of(last, now()),
    })
}

/// A node's report on its machine, cut to the length of a list.
fn machine(status: &Value) -> Option<MachineView> {
    let text = |value: &Value| {
        let text = value.as_str()?;
        let shown = text.chars().filter(|letter| !letter.is_control());
        Some(shown.take(MAX_MACHINE_CHARS).collect::<String>())
    };
    let machine = status["machine"].as_object()?;
    let of = |name: &str| machine.get(name).and_then(text);
    let image = &status["image"];
    let fetching = || {
        let (version, state) = (text(&image["version"])?, text(&image["state"])?);
        let share = match (image["fetched_bytes"].as_u64(), image["bytes"].as_u64()) {
            (Some(fetched), Some(bytes @ 1..)) if state == "fetching" => {
                format!(" {} %", fetched.min(bytes) * 100 / bytes)
            }
            _ => String::new(),
        };
        (state != "installed").then(|| format!("{version} {state}{share}"))
    };
    Some(MachineView {
        version: of("version"),
        storage_key: of("storage_key"),
        update: of("update").or_else(fetching),
    })
}

/// Whether a node keeps running the earlier release because it cannot load the one that the
/// manifest wants.
fn cannot_load(node: &NodeProgress, function: &Name) -> bool {
    node.refused.as_ref().is_some_and(|refused| {
        casemate_push::is_not_loaded(&refused.code, &refused.message, function.as_str())
    })
}

fn progress(presence: &Presence, node: &NodeRow, tenant: &TenantId) -> NodeProgress {
    presence.look(&node.name, |last, connected_since| {
        let taken = last.manifests.get(tenant);
        let of_tenant = |(id, _): &&(StatementId, _)| id.tenant() == Some(tenant);
        let mut refused = last.refused.iter().rev().filter(of_tenant);
        // The refusal of a manifest matters more than the refusal of a statement of freshness about it.
        let refused = refused
            .clone()
            .find(|(id, _)| !matches!(id, StatementId::Freshness { .. }))
            .or_else(|| refused.next());
        NodeProgress {
            node: node.name.clone(),
            pool: node.pool.clone(),
            connected: connected_since.is_some(),
            manifest_version: taken.map(|taken| taken.version),
            manifest_digest: taken.and_then(|taken| taken.digest),
            acknowledged: taken.map(|taken| taken.at),
            is_stored: taken.is_some_and(|taken| taken.is_stored),
            refused: refused.map(|(_, refused)| refused.clone()),
        }
    })
}
