//! Which statement an envelope or a row of the judge is about.

use casemate_push::StatementId;
use casemate_trust::dsse::Envelope;
use casemate_trust::freshness::Freshness;
use casemate_trust::image::Image;
use casemate_trust::judge::{Row, RowKey};
use casemate_trust::revocation::Revocations;
use casemate_trust::statement::{Manifest, OnlineKey, Pool, Root, Statement as _, Tenant};

/// The kind, name and version that an envelope claims to have.
pub(super) fn statement_id(envelope: &Envelope) -> Result<StatementId, String> {
    Ok(match envelope.payload_type() {
        Root::TYPE => StatementId::Root {
            version: Root::read(envelope)?.version,
        },
        OnlineKey::TYPE => StatementId::OnlineKey {
            version: OnlineKey::read(envelope)?.version,
        },
        Revocations::TYPE => StatementId::Revocations {
            version: Revocations::read(envelope)?.version,
        },
        Pool::TYPE => {
            let Pool { name, epoch, .. } = Pool::read(envelope)?;
            StatementId::Pool { name, epoch }
        }
        Image::TYPE => StatementId::Image {
            version: Image::read(envelope)?.version.as_u64(),
            statement: envelope.payload_digest(),
        },
        Tenant::TYPE => {
            let Tenant { id, version, .. } = Tenant::read(envelope)?;
            let tenant = id;
            StatementId::Tenant { tenant, version }
        }
        Manifest::TYPE => {
            let Manifest {
                tenant, version, ..
            } = Manifest::read(envelope)?;
            StatementId::Manifest { tenant, version }
        }
        Freshness::TYPE => {
            let statement = Freshness::read(envelope)?;
            StatementId::Freshness {
                tenant: statement.tenant,
                version: statement.version,
                issued: statement.issued,
            }
        }
        _ => {
            let expected = "expected a Root, OnlineKey, Pool, Revocations, Tenant or Image";
            return Err(expected.to_owned());
        }
    })
}

/// The other statement that a change removes from the store. Objects are removed later, with others
/// that nothing lists.
pub(super) fn dropped(row: &Row) -> Option<StatementId> {
    match row {
        Row::Drop(RowKey::Freshness(tenant)) => Some(StatementId::Freshness {
            tenant: *tenant,
            version: 0,
            issued: 0,
        }),
        Row::Drop(RowKey::Image(version, statement)) => Some(StatementId::Image {
            version: version.as_u64(),
            statement: *statement,
        }),
        _ => None,
    }
}
