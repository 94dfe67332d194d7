//! Images of whole machines: the files, and the statements that name them.

use casemate_trust::Seconds;
use casemate_trust::dsse::Envelope;
use casemate_trust::id::Digest;
use casemate_trust::image::ImageVersion;
use casemate_trust::name::Name;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Where a part of an image belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImagePart {
    /// Byte at which the part begins: as many as are there already.
    pub offset: u64,
    /// Size of the whole file.
    pub bytes: u64,
}

/// How far an upload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageUpload {
    /// Bytes that are there: an upload goes on from here.
    pub received_bytes: u64,
    /// Whether the file is there whole, with the digest that it is asked for by, and synced.
    pub whole: bool,
}

/// An image that is the newest of a pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageView {
    /// Version.
    #[schema(value_type = String)]
    pub version: ImageVersion,
    /// SHA-256 of the file.
    #[schema(value_type = String)]
    pub digest: Digest,
    /// Size of the file.
    pub bytes: u64,
    /// Pools of which it is the newest.
    #[schema(value_type = Vec<String>)]
    pub pools: Vec<Name>,
    /// Until when nodes accept it that have not yet.
    pub expires: Seconds,
    /// As the root has signed it.
    #[schema(value_type = Object)]
    pub statement: Envelope,
}

/// All images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageList {
    /// Newest first.
    pub images: Vec<ImageView>,
}
