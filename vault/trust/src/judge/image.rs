//! Judges images: in each pool versions only rise, and one version has one content.

use std::collections::BTreeSet;

use super::change::Held;
use super::memory::ImageSeen;
use super::{Accepted, Change, Judge, MemoryRow, Refusal, Row, RowKey};
use crate::Seconds;
use crate::dsse::Envelope;
use crate::image::Image;
use crate::name::Name;
use crate::statement::{MAX_FLEET_POOLS, Statement as _};

impl Judge {
    /// The newest image of a pool.
    pub fn image(&self, pool: &Name) -> Option<&Image> {
        self.images.get(pool)
    }

    /// The newest image of each pool that has one.
    pub fn images(&self) -> impl Iterator<Item = (&Name, &Image)> {
        self.images.iter()
    }

    /// Judges an `Image` for its pools, as far as they matter here. An image that was accepted
    /// before, and is still the newest of a pool, is accepted again for that pool, whatever its
    /// other pools have now.
    pub(super) fn decide_image(
        &self,
        envelope: &Envelope,
        clock: Option<Seconds>,
    ) -> Result<Change, Refusal> {
        let image = Image::read(envelope).map_err(Refusal::Malformed)?;
        self.must_be_our_fleet(image.fleet)?;
        let here = self.here.as_ref();
        let matters = |pool: &&Name| here.is_none_or(|here| here == *pool);
        let pools: Vec<Name> = image.pools.iter().filter(matters).cloned().collect();
        if pools.is_empty() {
            return Err(Refusal::ImagePoolOther);
        }
        let statement = envelope.payload_digest();
        let row = (RowKey::Image(image.version, statement), envelope);
        let seen = |pool: &Name| self.memory.images.get(pool);
        let is_remembered =
            |pool: &&Name| seen(pool).is_some_and(|seen| seen.statement == statement);
        let remembered: Vec<Name> = pools.iter().filter(is_remembered).cloned().collect();
        if !remembered.is_empty() {
            let is_held = |pool: &Name| self.images.get(pool) == Some(&image);
            if remembered.iter().all(is_held) {
                return Ok(self.unchanged());
            }
            let held = Held::Image(remembered, image);
            return Ok(self.put(Accepted::Again, row, held, Vec::new()));
        }
        for pool in &pools {
            self.must_rise(pool, &image)?;
        }
        let unseen = pools.iter().filter(|pool| seen(pool).is_none()).count();
        if self.memory.images.len() + unseen > MAX_FLEET_POOLS {
            return Err(Refusal::TooMany("pools with an image"));
        }
        if let Some(clock) = clock {
            self.must_be_signed_by_root(envelope, clock)?;
            self.must_be_fresh(image.expires, clock, Refusal::ImageExpired)?;
        }
        let newest = ImageSeen {
            version: image.version,
            digest: image.digest,
            statement,
        };
        let of_pool = |pool: &Name| MemoryRow::Image(pool.clone(), newest);
        let mut memory: Vec<_> = pools.iter().map(of_pool).collect();
        memory.extend(self.floor(image.issued));
        let superseded = self.superseded(&pools);
        let mut change = self.put(Accepted::New, row, Held::Image(pools, image), memory);
        change.rows.splice(..0, superseded);
        Ok(change)
    }

    /// Rows of images that are the newest of no pool once another one is the newest of `pools`.
    fn superseded(&self, pools: &[Name]) -> Vec<Row> {
        let images = &self.memory.images;
        let before: BTreeSet<_> = pools.iter().filter_map(|pool| images.get(pool)).collect();
        let stays = |seen: &&ImageSeen| {
            let elsewhere = images.iter().filter(|(pool, _)| !pools.contains(pool));
            elsewhere.into_iter().any(|(_, other)| other == *seen)
        };
        let gone = before.into_iter().filter(|seen| !stays(seen));
        gone.map(|seen| Row::Drop(RowKey::Image(seen.version, seen.statement)))
            .collect()
    }

    fn must_rise(&self, pool: &Name, image: &Image) -> Result<(), Refusal> {
        match self.memory.images.get(pool) {
            Some(seen) if image.version < seen.version => Err(Refusal::ImageVersionLower {
                pool: pool.clone(),
                held: seen.version,
                got: image.version,
            }),
            Some(seen) if image.version == seen.version && image.digest != seen.digest => {
                Err(Refusal::ImageEqualOther {
                    pool: pool.clone(),
                    version: image.version,
                })
            }
            _ => Ok(()),
        }
    }
}
