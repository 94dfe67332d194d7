//! Join tokens that are registered, and join requests that are relayed to the operator.

use std::net::IpAddr;

use casemate_api::error::code;
use casemate_api::limits::{MAX_JOIN_TOKENS, MAX_JOINS};
use casemate_api::node::{JoinList, JoinView};
use casemate_control_store::Change;
use casemate_trust::dsse::Envelope;
use casemate_trust::id::Digest;
use casemate_trust::join::{JoinError, JoinRequest, TokenRecord};
use casemate_trust::judge::Judge;
use casemate_trust::key::PublicKey;
use casemate_trust::late::Late;
use casemate_trust::statement::Statement as _;

use super::admission::{must_be_new, node_exists, token_used};
use super::rows::JoinRow;
use super::{Actor, Plane, json, key, now};
use crate::fault::Fault;

/// The result of a join request.
#[derive(Debug)]
pub(crate) enum Joining {
    /// The request waits for the operator.
    Pending,
    /// The request is not relayed.
    Refused(Fault),
}

impl Plane {
    /// Registers the public part of a join token.
    pub(crate) async fn register_join_token(
        &self,
        actor: &Actor,
        mut record: TokenRecord,
    ) -> Result<(), Fault> {
        record.used_by = None;
        let writing = self.begin().await;
        {
            let held = self.held();
            let judge = held.judge.as_ref().ok_or_else(Fault::no_fleet)?;
            if judge.newest_pool(&record.pool).is_none() {
                return Err(Fault::new(
                    422,
                    code::POOL_UNKNOWN,
                    format!("there is no pool {}", record.pool),
                ));
            }
            let (expires, clock) = (record.expires, now());
            if expires <= clock {
                let error = JoinError::Expired(Late { expires, clock });
                return Err(Fault::new(422, code::TOKEN_EXPIRED, error.to_string()));
            }
            if held.nodes.contains_key(&record.node) {
                return Err(node_exists(&record.node));
            }
            match held.join_tokens.get(&record.key) {
                Some(known) if known.used_by.is_some() => return Err(token_used()),
                Some(_) => return Ok(()),
                None if held.join_tokens.len() >= MAX_JOIN_TOKENS => {
                    return Err(Fault::too_many("join tokens", MAX_JOIN_TOKENS));
                }
                None => {}
            }
        }
        let changes = vec![Change::put(key::join_token(&record.key), json(&record))];
        let subject = format!("{} in {}", record.node, record.pool);
        writing
            .commit(actor, "join-token.register", subject, vec![], changes)
            .await?;
        self.change(|held| held.join_tokens.insert(record.key, record));
        Ok(())
    }

    /// Accepts a join request from a node whose TLS key is `from`, at `address`.
    pub(crate) async fn join(&self, from: &PublicKey, address: IpAddr, bytes: &[u8]) -> Joining {
        let joined = match read_join(bytes) {
            Ok((envelope, request)) => self
                .try_join(from, envelope, &request)
                .await
                .map_err(|fault| fault.about(format_args!("{}, key {from}", request.node))),
            Err(fault) => Err(fault.about(format_args!("key {from}"))),
        };
        let Err(fault) = joined else {
            return Joining::Pending;
        };
        let about = fault.about.as_deref().unwrap_or_default();
        let stranger = Actor::Stranger(Some(address));
        self.refused(&stranger, "join.refused", about, fault.code())
            .await;
        Joining::Refused(fault)
    }

    async fn try_join(
        &self,
        from: &PublicKey,
        envelope: Envelope,
        request: &JoinRequest,
    ) -> Result<(), Fault> {
        if request.node_key != *from {
            return Err(Fault::new(
                422,
                "join_identity",
                "the request names another key than the connection's",
            ));
        }
        // A stranger's request is checked against the registered tokens before it causes a write.
        let record = self.token_of(&envelope, request)?;
        self.reserve().await?;
        let writing = self.begin().await;
        let digest = envelope.payload_digest();
        let replaced = {
            let held = self.held();
            must_be_new(&held, request)?;
            if held.joins.contains_key(&digest) {
                return Ok(());
            }
            let same_token = held
                .joins
                .iter()
                .find(|(_, row)| row.token == record.key)
                .map(|(digest, _)| *digest);
            if same_token.is_none() && held.joins.len() >= MAX_JOINS {
                return Err(Fault::too_many("join requests", MAX_JOINS));
            }
            same_token
        };
        let row = JoinRow {
            envelope,
            token: record.key,
            first_seen: now(),
        };
        let mut changes = vec![Change::put(key::join(&digest), json(&row))];
        changes.extend(replaced.map(|digest| Change::delete(key::join(&digest))));
        let actor = Actor::Node(request.node.clone());
        writing
            .commit(&actor, "join.request", digest, vec![], changes)
            .await?;
        self.change(|held| {
            replaced.map(|digest| held.joins.remove(&digest));
            held.joins.insert(digest, row);
        });
        Ok(())
    }

    /// The registered token that signed a request.
    fn token_of(&self, envelope: &Envelope, request: &JoinRequest) -> Result<TokenRecord, Fault> {
        let held = self.held();
        if held.judge.as_ref().map(Judge::fleet) != Some(request.fleet) {
            return Err(Fault::new(
                422,
                "fleet_other",
                "the request is for another fleet",
            ));
        }
        let of_name = held
            .join_tokens
            .values()
            .filter(|record| record.node == request.node);
        let mut refused = Fault::new(
            422,
            code::TOKEN_UNKNOWN,
            "no registered join token signed this request",
        );
        for record in of_name {
            match JoinRequest::check(envelope, record, now()) {
                Ok(_) if record.used_by.is_some_and(|node| node != request.node_key) => {
                    return Err(token_used());
                }
                Ok(_) => return Ok(record.clone()),
                Err(error @ JoinError::Expired(_)) => {
                    refused = Fault::new(422, code::TOKEN_EXPIRED, error.to_string());
                }
                Err(_) => {}
            }
        }
        Err(refused)
    }

    /// The waiting requests.
    pub(crate) fn joins(&self) -> JoinList {
        let held = self.held();
        let mut joins: Vec<_> = held
            .joins
            .iter()
            .filter_map(|(digest, row)| view(digest, row))
            .collect();
        joins.sort_by(|one, other| {
            (one.first_seen, &one.node).cmp(&(other.first_seen, &other.node))
        });
        JoinList { joins }
    }
}

fn read_join(bytes: &[u8]) -> Result<(Envelope, JoinRequest), Fault> {
    let no_request = |message: String| {
        let message = format!("this is not a join request: {message}");
        Fault::new(422, "join_format", message)
    };
    let envelope = Envelope::parse(bytes).map_err(|error| no_request(error.to_string()))?;
    let request = JoinRequest::read(&envelope).map_err(no_request)?;
    Ok((envelope, request))
}

fn view(digest: &Digest, row: &JoinRow) -> Option<JoinView> {
    let request = JoinRequest::read(&row.envelope).ok()?;
    Some(JoinView {
        request: *digest,
        node: request.node,
        pool: request.pool,
        node_key: request.node_key,
        envelope: row.envelope.clone(),
        first_seen: row.first_seen,
    })
}
