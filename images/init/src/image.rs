//! The image that this machine runs.

use std::fs;

use casemate_trust::image::ImageVersion;
use serde::Deserialize;

use crate::Failure;

const IMAGE: &str = "/etc/casemate/image.json";

/// The image's own description of itself.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Image {
    pub(crate) version: ImageVersion,
    pub(crate) profile: String,
    /// Unix time at which the image was made, seconds.
    pub(crate) time: u32,
}

impl Image {
    pub(crate) fn read() -> Result<Self, Failure> {
        let text = fs::read(IMAGE).map_err(Failure::step(format!("read {IMAGE}")))?;
        serde_json::from_slice(&text).map_err(|_| Failure::Image(IMAGE))
    }
}
