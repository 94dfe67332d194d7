//! Images: which is the newest of each pool, whose file is kept, and who may have it.

use std::collections::{BTreeMap, BTreeSet};

use casemate_api::error::code;
use casemate_api::image::{ImageList, ImagePart, ImageUpload, ImageView};
use casemate_push::StatementId;
use casemate_trust::dsse::Envelope;
use casemate_trust::id::Digest;
use casemate_trust::image::Image;
use casemate_trust::name::Name;
use casemate_trust::statement::Statement as _;
use futures_util::Stream;
use serde_json::json;
use tokio::fs::File;
use tokio::io::Take;

use super::Plane;
use super::held::Index;
use crate::fault::Fault;

/// The newest image statement of each pool.
#[derive(Debug, Default, Clone)]
pub(super) struct NewestImages(BTreeMap<Name, StatementId>);

impl NewestImages {
    /// The newest that names a pool.
    pub(super) fn get(&self, pool: &Name) -> Option<&StatementId> {
        self.0.get(pool)
    }

    /// Takes the statement for the pools in which it is the newest; those that are the newest of no pool any more.
    pub(super) fn take(&mut self, id: &StatementId, pools: &[Name]) -> Vec<StatementId> {
        let mut before = Vec::new();
        for pool in pools {
            let held = self.0.get(pool);
            if held.is_none_or(|held| held.version() <= id.version()) {
                before.extend(self.0.insert(pool.clone(), id.clone()));
            }
        }
        before.retain(|before| !self.0.values().any(|id| id == before));
        before.sort();
        before.dedup();
        before
    }
}

/// What a stored image statement says.
pub(super) fn read(bytes: &[u8]) -> Option<(Envelope, Image)> {
    let envelope = Envelope::parse(bytes).ok()?;
    let image = Image::read(&envelope).ok()?;
    Some((envelope, image))
}

/// Every image that is the newest of a pool.
fn newest(index: &Index) -> impl Iterator<Item = (Envelope, Image, Vec<Name>)> {
    let mut pools = BTreeMap::<&StatementId, Vec<Name>>::new();
    for (pool, id) in &index.images.0 {
        pools.entry(id).or_default().push(pool.clone());
    }
    pools.into_iter().filter_map(|(id, pools)| {
        let (envelope, image) = read(index.get(id)?.1)?;
        Some((envelope, image, pools))
    })
}

impl Plane {
    /// How far the upload of an image is.
    pub(crate) async fn image_upload(&self, digest: &Digest) -> Result<ImageUpload, Fault> {
        self.images.progress(digest).await
    }

    /// Takes a part of an image.
    pub(crate) async fn put_image(
        &self,
        digest: &Digest,
        place: ImagePart,
        body: impl Stream<Item = Result<bytes::Bytes, Fault>> + Unpin,
    ) -> Result<ImageUpload, Fault> {
        self.reserve().await?;
        let named: BTreeSet<_> = newest(&self.held().index)
            .map(|(_, image, _)| image.digest)
            .collect();
        self.images.put(digest, place, body, &named).await
    }

    /// An image is signed for once its file is there: nodes ask for it at once.
    pub(super) async fn must_have_image(&self, image: &Image) -> Result<(), Fault> {
        match self.images.size(&image.digest).await? {
            Some(bytes) if bytes == image.bytes => Ok(()),
            Some(bytes) => {
                let message = format!(
                    "the image has {bytes} bytes, the statement says {}",
                    image.bytes
                );
                Err(Fault::new(422, code::IMAGE_MISSING, message))
            }
            None => {
                let message = format!(
                    "the image {} was not uploaded; `casemate image push` does both",
                    image.digest
                );
                let details = json!({ "digest": image.digest });
                Err(Fault::new(422, code::IMAGE_MISSING, message).with(details))
            }
        }
    }

    /// All images, newest first.
    pub(crate) fn list_images(&self) -> ImageList {
        let held = self.held();
        let view = |(statement, image, pools): (Envelope, Image, Vec<Name>)| ImageView {
            version: image.version,
            digest: image.digest,
            bytes: image.bytes,
            pools,
            expires: image.expires,
            statement,
        };
        let mut images: Vec<_> = newest(&held.index).map(view).collect();
        images.sort_by_key(|image| std::cmp::Reverse(image.version));
        ImageList { images }
    }

    /// A piece of an image for a node of this pool, if it is the pool's newest.
    pub(crate) async fn image_piece(
        &self,
        pool: &Name,
        digest: &Digest,
        offset: u64,
        bytes: u32,
    ) -> Result<Option<(u64, Take<File>)>, Fault> {
        let is_newest = {
            let held = self.held();
            let id = held.index.images.get(pool);
            let bytes = id.and_then(|id| held.index.get(id)).map(|(_, bytes)| bytes);
            bytes
                .and_then(read)
                .is_some_and(|(_, image)| image.digest == *digest)
        };
        if !is_newest {
            return Ok(None);
        }
        self.images.read(digest, offset, bytes).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(version: u64, statement: u8) -> StatementId {
        StatementId::Image {
            version,
            statement: Digest([statement; 32]),
        }
    }

    #[test]
    fn a_statement_goes_when_it_is_the_newest_of_no_pool() {
        let (main, canary): (Name, Name) = ("main".parse().unwrap(), "canary".parse().unwrap());
        let both = [main.clone(), canary.clone()];
        let mut newest = NewestImages::default();
        assert_eq!(newest.take(&id(1, 1), &both), []);
        assert_eq!(newest.take(&id(2, 2), std::slice::from_ref(&canary)), []);
        // The same version for all.
        assert_eq!(newest.take(&id(2, 3), &both), [id(1, 1), id(2, 2)]);
        assert_eq!(newest.get(&canary), Some(&id(2, 3)));
        // One that is lower in a pool is not its newest, whenever it is read.
        assert_eq!(newest.take(&id(1, 1), std::slice::from_ref(&main)), []);
        assert_eq!(newest.get(&main), Some(&id(2, 3)));
    }
}
