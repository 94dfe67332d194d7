//! The state is read from the store when the program starts.

use std::collections::{BTreeMap, HashMap};

use casemate_api::audit::AuditRecord;
use casemate_control_store::{MAX_RANGE, Redb, Store as _, StoreError};
use casemate_push::StoreId;
use casemate_trust::dsse::Envelope;
use casemate_trust::id::{Digest, FleetId};
use casemate_trust::join::{Grant, TokenRecord};
use casemate_trust::judge::{Judge, Memory};
use casemate_trust::statement::{Manifest, Root, Statement as _};

use super::held::Held;
use super::index::Index;
use super::key;
use super::objects::{listed, objects};
use super::rows::{JoinRow, NodeRow, TokenRow, parse, rows};
use super::statement_ids::statement_id;

/// Key prefixes of the statements, roots first.
const STATEMENTS: [&str; 8] = [
    key::ROOT,
    key::ONLINE,
    key::REVOCATIONS,
    key::POOL,
    key::IMAGE,
    key::TENANT,
    key::MANIFEST,
    key::FRESHNESS,
];

impl Held {
    /// Reads the whole state.
    pub(crate) async fn load(store: &Redb) -> Result<Self, StoreError> {
        let mut held = Self {
            store: StoreId(store.id().0),
            judge: None,
            index: Index::default(),
            tokens: HashMap::new(),
            join_tokens: rows(store, key::JOIN_TOKEN)
                .await?
                .map(|(_, record): (_, TokenRecord)| (record.key, record))
                .collect(),
            joins: rows(store, key::JOIN)
                .await?
                .map(|(_, row): (_, JoinRow)| (row.envelope.payload_digest(), row))
                .collect(),
            nodes: rows(store, key::NODE)
                .await?
                .map(|(_, row): (_, NodeRow)| (row.name.clone(), row))
                .collect(),
            audit: None,
            audit_intact: true,
        };
        held.tokens = rows(store, key::TOKEN)
            .await?
            .map(|(_, row): (_, TokenRow)| (row.hash, row.view))
            .collect();
        held.load_statements(store).await?;
        for (entry, grant) in rows::<Grant>(store, key::GRANT).await? {
            let node = entry
                .key
                .split('/')
                .nth(1)
                .and_then(|name| name.parse().ok());
            if let Some(node) = node {
                held.index
                    .insert_grant(node, grant.epoch, entry.revision, entry.value);
            }
        }
        held.load_audit(store).await?;
        Ok(held)
    }

    /// Has the judge accept the stored statements again.
    async fn load_statements(&mut self, store: &Redb) -> Result<(), StoreError> {
        let (mut statements, mut listed_objects) = (Vec::new(), BTreeMap::new());
        for prefix in STATEMENTS {
            let mut found: Vec<_> = rows::<Envelope>(store, prefix).await?.collect();
            // Images are judged in the order of their arrival.
            if prefix == key::IMAGE {
                found.sort_by_key(|(entry, _)| entry.revision);
            }
            for (entry, envelope) in found {
                // The statement was signed and accepted, so a newer control plane has written it: a
                // judge without it would remember less than was accepted.
                let id = statement_id(&envelope).map_err(|message| StoreError::Unreadable {
                    key: entry.key.clone(),
                    message,
                })?;
                if let Ok(manifest) = Manifest::read(&envelope) {
                    let found = objects(store, &manifest.tenant, &listed(&manifest)).await?;
                    listed_objects.extend(found);
                }
                self.index.insert(entry.revision, id, entry.value);
                statements.push((entry.key, envelope));
            }
        }
        // The first root determines the fleet, and roots come first.
        let is_root = |(_, envelope): &&(_, Envelope)| envelope.payload_type() == Root::TYPE;
        let Some((_, root)) = statements.first().filter(is_root) else {
            return Ok(());
        };
        let memory = Memory::new(FleetId(root.payload_digest().0));
        let find = |digest: &Digest| Some(listed_objects.get(digest)?.bytes.clone());
        let (judge, refused) = Judge::replay(memory, None, statements, &find);
        for (key, refusal) in refused {
            let code = refusal.code();
            tracing::warn!(key, code, %refusal, "a stored statement is refused");
        }
        self.judge = Some(judge);
        Ok(())
    }

    /// Checks the whole audit chain and remembers its end.
    async fn load_audit(&mut self, store: &Redb) -> Result<(), StoreError> {
        loop {
            let after = self.audit.as_ref().map(|record| key::audit(record.seq));
            let page = store.range(key::AUDIT, after.as_deref(), MAX_RANGE).await?;
            let records: Vec<AuditRecord> = page.iter().filter_map(parse).collect();
            let chained = AuditRecord::verify(self.audit.as_ref(), &records);
            if let Some(broken) = chained.err().filter(|_| self.audit_intact) {
                tracing::error!(
                    seq = broken.seq,
                    "the audit chain is broken: a record was changed, added or taken out"
                );
                self.audit_intact = false;
            }
            self.audit = records.last().cloned().or(self.audit.take());
            if page.len() < MAX_RANGE {
                return Ok(());
            }
        }
    }
}
