//! Signs images: for firmware (UEFI Secure Boot) with sbsigntool, and for TPMs with an approval.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use casemate_measured_boot::ApprovalKey;
use casemate_trust::image::ImageVersion;
use zeroize::Zeroizing;

use crate::{Error, Image};

/// A key whose certificate is in the `db` of the machines' firmware.
#[derive(Debug, Clone)]
pub struct SecureBootKey {
    /// RSA private key of 2048 bits, PEM.
    pub key: PathBuf,
    /// Its certificate, PEM.
    pub certificate: PathBuf,
}

impl Image {
    /// Signs everything that firmware starts, and approves that boots of this image open what nodes
    /// have sealed to their TPMs under the same key.
    ///
    /// # Errors
    /// sbsigntool is missing, the key cannot be used, or the image's version is not one of three
    /// numbers.
    pub fn sign(&mut self, key: &SecureBootKey) -> Result<(), Error> {
        let version: ImageVersion = self.version.parse()?;
        let pem = Zeroizing::new(fs::read(&key.key).map_err(Error::file(&key.key))?);
        let approves = ApprovalKey::from_pem(&pem)?;
        self.uki = self.unify(Some((&approves, version)))?;
        self.uki = key.sign("the unified kernel image", &self.uki)?;
        self.loader = key.sign("the boot loader", &self.loader)?;
        Ok(())
    }
}

impl SecureBootKey {
    fn sign(&self, what: &str, program: &[u8]) -> Result<Vec<u8>, Error> {
        let folder = tempfile::tempdir().map_err(Error::file("a temporary folder"))?;
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        fs::write(&from, program).map_err(Error::file(&from))?;
        let failed = |message: String| Error::Tool {
            command: format!("sbsign ({what})"),
            message,
        };
        let output = Command::new("sbsign")
            .arg("--key")
            .arg(&self.key)
            .arg("--cert")
            .arg(&self.certificate)
            .arg("--output")
            .args([&to, &from])
            .output()
            .map_err(|error| failed(format!("{error}; install the Debian package sbsigntool")))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(failed(said.trim().replace('\n', "; ")));
        }
        fs::read(&to).map_err(Error::file(&to))
    }
}
