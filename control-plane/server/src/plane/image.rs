//! Images: the newest of each pool, their files, and the nodes that may fetch them.

use std::collections::{BTreeMap, BTreeSet};

use casemate_api::error::code;
use casemate_api::image::{ImageList, ImagePart, ImageUpload, ImageView};
use casemate_push::StatementId;
use casemate_trust::dsse::Envelope;
use casemate_trust::id::Digest;
use casemate_trust::image::Image;
use casemate_trust::judge::ImageSeen;
use casemate_trust::name::Name;
use casemate_trust::statement::Statement as _;
use futures_util::Stream;
use serde_json::json;
use tokio::fs::File;
use tokio::io::Take;

use super::Plane;
use super::held::Held;
use crate::fault::Fault;

/// The newest image of a pool.
pub(super) fn newest_of(held: &Held, pool: &Name) -> Option<StatementId> {
    let id = id(held.judge.as_ref()?.memory().images.get(pool)?);
    held.index.get(&id).is_some().then_some(id)
}

fn id(seen: &ImageSeen) -> StatementId {
    StatementId::Image {
        version: seen.version.as_u64(),
        statement: seen.statement,
    }
}

/// Parses a stored image statement.
fn read(bytes: &[u8]) -> Option<(Envelope, Image)> {
    let envelope = Envelope::parse(bytes).ok()?;
    let image = Image::read(&envelope).ok()?;
    Some((envelope, image))
}

/// Every image that is the newest of a pool.
fn newest(held: &Held) -> impl Iterator<Item = (Envelope, Image, Vec<Name>)> {
    let mut pools = BTreeMap::<StatementId, Vec<Name>>::new();
    let seen = held.judge.iter().flat_map(|judge| &judge.memory().images);
    for (pool, seen) in seen {
        pools.entry(id(seen)).or_default().push(pool.clone());
    }
    pools.into_iter().filter_map(|(id, pools)| {
        let (envelope, image) = read(held.index.get(&id)?.1)?;
        Some((envelope, image, pools))
    })
}

impl Plane {
    /// Progress of the upload of an image.
    pub(crate) async fn image_upload(&self, digest: &Digest) -> Result<ImageUpload, Fault> {
        self.images.progress(digest).await
    }

    /// Accepts a part of an image.
    pub(crate) async fn put_image(
        &self,
        digest: &Digest,
        place: ImagePart,
        body: impl Stream<Item = Result<bytes::Bytes, Fault>> + Unpin,
    ) -> Result<ImageUpload, Fault> {
        self.reserve().await?;
        let named: BTreeSet<_> = newest(&self.held())
            .map(|(_, image, _)| image.digest)
            .collect();
        self.images.put(digest, place, body, &named).await
    }

    /// An image's statement is accepted only after its file was uploaded: nodes ask for the file at
    /// once.
    pub(super) async fn must_have_image(&self, image: &Image) -> Result<(), Fault> {
        match self.images.size(&image.digest).await? {
            Some(bytes) if bytes == image.bytes => Ok(()),
            Some(bytes) => {
                let message = format!(
                    "the image has {bytes} bytes, the statement names {}",
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
        let mut images: Vec<_> = newest(&held).map(view).collect();
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
            let id = newest_of(&held, pool);
            let bytes = id.and_then(|id| Some(held.index.get(&id)?.1));
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
