//! Images of whole machines: the files, and the statements that name them.

use casemate_trust::Seconds;
use casemate_trust::dsse::Envelope;
use casemate_trust::id::Digest;
use casemate_trust::image::ImageVersion;
use casemate_trust::name::Name;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The position of a part within an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImagePart {
    /// Byte at which the part begins, which is the number of bytes that have arrived.
    pub offset: u64,
    /// Size of the whole file.
    pub bytes: u64,
}

/// The progress of an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageUpload {
    /// Bytes that have arrived: an upload continues from here.
    pub received_bytes: u64,
    /// Whether the whole file is there, has the requested digest, and is synced.
    pub whole: bool,
}

/// An image that is the newest of a pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageView {
    /// Version of the image.
    #[schema(value_type = String)]
    pub version: ImageVersion,
    /// SHA-256 of the file.
    #[schema(value_type = String)]
    pub digest: Digest,
    /// Size of the file.
    pub bytes: u64,
    /// Pools of which it is the newest image.
    #[schema(value_type = Vec<String>)]
    pub pools: Vec<Name>,
    /// When the statement expires: nodes that have not accepted it yet refuse it from then on.
    pub expires: Seconds,
    /// The statement, as the root has signed it.
    #[schema(value_type = Object)]
    pub statement: Envelope,
}

/// The newest images of all pools.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageList {
    /// Images, newest first.
    pub images: Vec<ImageView>,
}
