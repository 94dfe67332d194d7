//! Judging images: in each pool versions only rise, and one version has one content.

use serde::{Deserialize, Serialize};

use super::{Accepted, Judge, MAX_POOLS_HELD, Memory, Refusal};
use crate::Seconds;
use crate::dsse::Envelope;
use crate::id::Digest;
use crate::image::{Image, ImageVersion};
use crate::name::Name;
use crate::statement::Statement as _;

/// The newest image of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageSeen {
    /// Its version.
    pub version: ImageVersion,
    /// Digest of the file.
    pub digest: Digest,
    /// Digest of the statement's payload. The same image may be signed again, for more pools or for longer.
    pub statement: Digest,
}

impl Memory {
    /// Remembers an image for each of these pools. One that is remembered with a higher version stays.
    pub fn remember_image<'a>(
        &mut self,
        pools: impl IntoIterator<Item = &'a Name>,
        image: ImageSeen,
    ) {
        for pool in pools {
            let seen = self.images.get(pool);
            if seen.is_none_or(|seen| seen.version <= image.version) {
                self.images.insert(pool.clone(), image);
            }
        }
    }
}

impl Judge {
    /// The newest image of a pool.
    pub fn image(&self, pool: &Name) -> Option<&Image> {
        self.images.get(pool)
    }

    /// Pools that have an image, with the newest of each.
    pub fn images(&self) -> impl Iterator<Item = (&Name, &Image)> {
        self.images.iter()
    }

    /// Judges an `Image` for the pools that it names and that matter here. One that was accepted before, and is still the
    /// newest of a pool, is taken again for that pool, whatever has become of its others.
    ///
    /// # Errors
    /// The refusal, by name; nothing has changed.
    pub fn accept_image(
        &mut self,
        envelope: &Envelope,
        clock: Seconds,
    ) -> Result<Accepted, Refusal> {
        let image = Image::read(envelope).map_err(Refusal::Malformed)?;
        self.must_be_our_fleet(image.fleet)?;
        let here = self.here.as_ref();
        let matters = |pool: &&Name| here.is_none_or(|here| here == *pool);
        let pools: Vec<Name> = image.pools.iter().filter(matters).cloned().collect();
        if pools.is_empty() {
            return Err(Refusal::ImagePoolOther);
        }
        let statement = envelope.payload_digest();
        let remembered: Vec<&Name> = pools
            .iter()
            .filter(|pool| {
                let seen = self.memory.images.get(*pool);
                seen.is_some_and(|seen| seen.statement == statement)
            })
            .collect();
        if !remembered.is_empty() {
            let is_held = |pool: &&Name| self.images.get(*pool) == Some(&image);
            if remembered.iter().all(is_held) {
                return Ok(Accepted::Held);
            }
            for pool in remembered {
                self.images.insert(pool.clone(), image.clone());
            }
            return Ok(Accepted::Again);
        }
        for pool in &pools {
            self.must_rise(pool, &image)?;
        }
        let unseen = |pool: &&Name| !self.memory.images.contains_key(*pool);
        if self.memory.images.len() + pools.iter().filter(unseen).count() > MAX_POOLS_HELD {
            return Err(Refusal::TooMany("pools with an image"));
        }
        self.must_be_signed_by_root(envelope, clock)?;
        self.must_be_fresh(image.expires, clock, Refusal::ImageExpired)?;
        let seen = ImageSeen {
            version: image.version,
            digest: image.digest,
            statement,
        };
        self.memory.remember_image(&pools, seen);
        self.memory.floor = self.memory.floor.max(image.issued);
        for pool in pools {
            self.images.insert(pool, image.clone());
        }
        Ok(Accepted::New)
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
