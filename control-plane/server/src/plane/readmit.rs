//! Registers a node again that a restored store does not know.

use casemate_api::limits::MAX_NODES;
use casemate_api::node::{NodeView, Readmission};
use casemate_control_store::{Change, Compare};
use casemate_trust::join::{Grant, JoinRequest};
use casemate_trust::statement::Statement as _;

use super::admission::{check_grants, must_be_new};
use super::rows::NodeRow;
use super::{Actor, Plane, json, key, now};
use crate::fault::Fault;

impl Plane {
    /// Registers again a node whose admission is lost. The operator decides, as in
    /// [`Plane::admit`]; the token that the node once used may be lost too, or expired.
    pub(crate) async fn readmit(
        &self,
        actor: &Actor,
        readmission: Readmission,
    ) -> Result<NodeView, Fault> {
        let Readmission { join, grants } = readmission;
        let no_request = |message| Fault::new(422, "join_format", message);
        let request = JoinRequest::read(&join).map_err(no_request)?;
        if !join.verify(&[request.node_key], 1) {
            let message = "the node's key has not signed the join request";
            return Err(Fault::new(422, "join_signature", message));
        }
        let JoinRequest {
            node: name,
            pool,
            node_key,
            ..
        } = request.clone();
        let writing = self.begin().await;
        let about = format!("{name} in {pool}, key {node_key}");
        {
            let held = self.held();
            let checked = must_be_new(&held, &request)
                .and_then(|()| check_grants(&held, &grants, &pool, &node_key));
            checked.map_err(|fault| fault.about(&about))?;
            if held.nodes.len() >= MAX_NODES {
                return Err(Fault::too_many("nodes", MAX_NODES));
            }
        }
        let row = NodeRow {
            name: name.clone(),
            pool,
            key: node_key,
            admitted: now(),
            join,
        };
        let mut changes = vec![Change::put(key::node(&name), json(&row))];
        let of_grant =
            |grant: &Grant| Change::put(key::grant(&name, grant.epoch), grant.to_bytes());
        changes.extend(grants.iter().map(of_grant));
        let compare = vec![Compare::absent(key::node(&name))];
        let action = "node.readmit";
        let revision = writing
            .commit(actor, action, about, compare, changes)
            .await?;
        self.change(|held| {
            for grant in &grants {
                held.index
                    .insert_grant(name.clone(), grant.epoch, revision, grant.to_bytes());
            }
            held.nodes.insert(name.clone(), row);
        });
        writing.announce();
        self.node(&name)
    }
}
