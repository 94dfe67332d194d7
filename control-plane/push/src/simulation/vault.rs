//! The vault of the simulated node.

use super::*;

/// A model of a vault: never a lower version, never an equal one with other content, tenants
/// without a gap, and a memory.
#[derive(Clone)]
pub(crate) struct Vault {
    pub(crate) has: Has,
    pub(crate) objects: BTreeMap<Digest, Vec<u8>>,
    pub(super) cursor: Option<Cursor>,
    /// The bytes that have come of the wanted bundles.
    pub(super) bundles: BTreeMap<Digest, Vec<u8>>,
    /// The accepted image, and the bytes that have come of it.
    pub(super) image: Option<(Digest, Vec<u8>)>,
    /// Most tenants that its hello lists.
    pub(super) listed: usize,
}

impl Default for Vault {
    fn default() -> Self {
        Self {
            has: Has::default(),
            objects: BTreeMap::new(),
            cursor: None,
            bundles: BTreeMap::new(),
            image: None,
            listed: usize::MAX,
        }
    }
}

impl Vault {
    pub(super) fn judge(&mut self, id: &StatementId, bytes: &[u8]) -> Result<(), &'static str> {
        let raise = |held: &mut u64, version: u64, may_skip: bool| match version {
            lower if lower < *held => Err("lower"),
            gap if !may_skip && gap > *held + 1 => Err("gap"),
            version => {
                *held = version;
                Ok(())
            }
        };
        match id {
            StatementId::Root { version } => raise(&mut self.has.root, *version, false),
            StatementId::OnlineKey { version } => raise(&mut self.has.online, *version, true),
            StatementId::Revocations { version } => {
                raise(&mut self.has.revocations, *version, true)
            }
            StatementId::Pool { name, epoch } => {
                assert_eq!(name.as_str(), "main", "another pool's statement was sent");
                self.has.epochs.insert(*epoch).then_some(()).ok_or("again")
            }
            StatementId::Grant { epoch, .. } => {
                self.has.grants.insert(*epoch).then_some(()).ok_or("again")
            }
            StatementId::Image { version, statement } => {
                self.judge_image(*version, *statement, bytes)
            }
            StatementId::Tenant { tenant, version } => raise(
                &mut self.has.tenants.entry(*tenant).or_default().version,
                *version,
                false,
            ),
            StatementId::Manifest { tenant, version } => {
                self.judge_manifest(tenant, *version, bytes)
            }
            StatementId::Freshness {
                tenant,
                version,
                issued,
            } => self.judge_freshness(tenant, (*version, *issued)),
        }
    }

    fn judge_image(
        &mut self,
        version: u64,
        statement: Digest,
        bytes: &[u8],
    ) -> Result<(), &'static str> {
        let (pool, digest) = image_of(bytes);
        assert_eq!(pool, "main", "another pool's image was sent");
        match self.has.image {
            Some((held, _)) if version < held => return Err("lower"),
            Some((_, other)) if statement == other => return Err("again"),
            _ => {}
        }
        self.has.image = Some((version, statement));
        if self.image.as_ref().is_none_or(|(held, _)| *held != digest) {
            self.image = Some((digest, Vec::new()));
        }
        Ok(())
    }

    fn judge_manifest(
        &mut self,
        tenant: &TenantId,
        version: u64,
        bytes: &[u8],
    ) -> Result<(), &'static str> {
        let envelope = Envelope::parse(bytes).unwrap();
        let manifest = Manifest::read(&envelope).unwrap();
        let held = self.has.tenants.get_mut(tenant).ok_or("unknown tenant")?;
        match held.manifest {
            Some((before, _)) if version < before => return Err("lower"),
            Some((before, digest)) if version == before && digest != envelope.payload_digest() => {
                return Err("other");
            }
            _ => {}
        }
        let mut here = manifest
            .functions
            .values()
            .filter(|wanted| wanted.pools.contains(&name("main")));
        if here.any(|wanted| !self.objects.contains_key(&wanted.release)) {
            return Err("objects_missing");
        }
        held.manifest = Some((version, envelope.payload_digest()));
        held.freshness = held.freshness.filter(|(named, _)| *named >= version);
        Ok(())
    }

    pub(crate) fn hello(&self) -> Hello {
        let mut has = self.has.clone();
        has.more_tenants = has.tenants.len() > self.listed;
        has.tenants = has.tenants.into_iter().take(self.listed).collect();
        Hello {
            protocol: VERSIONS.newest,
            node: name("edge"),
            node_key: KEY,
            fleet: FLEET,
            software: "sim".into(),
            cursor: self.cursor,
            has,
        }
    }
}
