//! The measurements of a boot, and the keys that the boot may open.

use std::collections::BTreeMap;
use std::fs;

use casemate_measured_boot::{
    Approvals, IMAGE_PCRS, ImageKey, PLATFORM_PCR, PcrValue, SignedApproval,
};
use casemate_trust::image::ImageVersion;
use zeroize::Zeroizing;

use super::{Kept, broken};
use crate::console::Page;
use crate::secure_boot;
use crate::tpm::{Tpm, WATCHED};

/// The image's sections `.pcrsig` and `.pcrpkey`, as the boot stub passes them on
/// (systemd-stub(7)).
const APPROVALS: &str = "/.extra/tpm2-pcr-signature.json";
const IMAGE_KEY: &str = "/.extra/tpm2-pcr-public-key.pem";
const NOT_MEASURED: &str =
    "this boot was not measured: the image is not signed, or was started without its boot stub";

/// The means by which this boot can open a key.
pub(crate) struct Boot {
    pub(super) tpm: Option<Tpm>,
    /// The image's key and its approvals, if the image has them.
    pub(super) approvals: Option<(ImageKey, Approvals)>,
    /// The firmware starts only signed programs.
    pub(super) secure_boot: bool,
}

impl Boot {
    /// Reads the facts of this machine and its image.
    pub(crate) fn look(version: ImageVersion, page: &mut Page) -> Self {
        let tpm = Tpm::open().unwrap_or_else(|fault| {
            page.problem(broken(&fault));
            None
        });
        let read = |path: &str| fs::read(path).ok();
        let approvals = read(IMAGE_KEY)
            .zip(read(APPROVALS))
            .and_then(|(key, text)| {
                let key = ImageKey::from_pem(&String::from_utf8_lossy(&key)).ok()?;
                Some((key, Approvals::from_text(&text).ok()?))
            });
        Self {
            secure_boot: secure_boot::is_on(),
            ..Self::of(version, tpm, approvals)
        }
    }

    /// Takes the valid approvals for this image. The section with the approvals is not measured, so
    /// only approvals with the key's signature count.
    pub(super) fn of(
        version: ImageVersion,
        tpm: Option<Tpm>,
        approvals: Option<(ImageKey, Approvals)>,
    ) -> Self {
        let approvals = approvals.and_then(|(key, mut approvals)| {
            approvals
                .0
                .retain(|signed| signed.approval.version == version && key.has_signed(signed));
            (!approvals.0.is_empty()).then_some((key, approvals))
        });
        Self {
            tpm,
            approvals,
            secure_boot: true,
        }
    }

    /// The TPM, key and approval, when a key that is sealed now will open at the next boot;
    /// otherwise the reason why not.
    pub(super) fn sealer(
        &mut self,
    ) -> Result<(&mut Tpm, &ImageKey, &SignedApproval, PcrValue), String> {
        let tpm = self.tpm.as_mut().ok_or("this machine has no TPM")?;
        let (key, approvals) = self.approvals.as_ref().ok_or(NOT_MEASURED)?;
        let pcrs = tpm.pcrs().map_err(|fault| fault.to_string())?;
        let signed = approved(&pcrs, approvals)?;
        let platform = pcrs[&PLATFORM_PCR];
        if platform == PcrValue::ZERO {
            return Err(format!(
                "the firmware has measured nothing into PCR {PLATFORM_PCR}"
            ));
        }
        Ok((tpm, key, signed, platform))
    }

    /// The version of this image, if it is known.
    pub(super) fn version(&self) -> Option<ImageVersion> {
        let (_, approvals) = self.approvals.as_ref()?;
        Some(approvals.0.first()?.approval.version)
    }

    /// Returns a message if the machine has run a newer image than this.
    pub(super) fn is_older(&mut self) -> Result<Option<String>, String> {
        let (Some(version), Some(tpm)) = (self.version(), &mut self.tpm) else {
            return Ok(None);
        };
        let floor = tpm.floor().map_err(|fault| fault.to_string())?;
        let newer = floor.filter(|floor| *floor > version.as_u64());
        Ok(newer.map(|floor| {
            format!(
                "this image is older than one that this machine has run: its version is {version}, expected at least {}",
                version_text(floor)
            )
        }))
    }

    /// Opens a sealed key; otherwise returns the reason.
    pub(super) fn open(&mut self, kept: &Kept) -> Result<Zeroizing<Vec<u8>>, String> {
        if let Some(older) = self.is_older()? {
            return Err(older);
        }
        let tpm = self
            .tpm
            .as_mut()
            .ok_or("this machine has no TPM, and the key was sealed to one")?;
        let (key, approvals) = self.approvals.as_ref().ok_or(NOT_MEASURED)?;
        if key.to_pem() != kept.image_key {
            return Err("this image is signed by another key".into());
        }
        let pcrs = tpm.pcrs().map_err(|fault| fault.to_string())?;
        let signed = approved(&pcrs, approvals)?;
        tpm.unseal(&kept.sealed, key, signed).map_err(|fault| {
            if fault.is_foreign() || fault.is_absence() {
                return "the key was sealed by another TPM, or this one was cleared".to_owned();
            }
            let before = kept.pcrs.get(&PLATFORM_PCR);
            if before.is_some_and(|before| *before != pcrs[&PLATFORM_PCR]) {
                return format!(
                    "PCR {PLATFORM_PCR} has changed: Secure Boot was turned on or off, or has other keys{}",
                    others_changed(&kept.pcrs, &pcrs)
                );
            }
            format!("{fault}{}", others_changed(&kept.pcrs, &pcrs))
        })
    }
}

/// The approval of this boot's measurements; otherwise the PCR that differs.
fn approved<'a>(
    pcrs: &BTreeMap<u8, PcrValue>,
    approvals: &'a Approvals,
) -> Result<&'a SignedApproval, String> {
    let [image, outside] = IMAGE_PCRS.map(|pcr| (pcr, pcrs[&pcr]));
    if image.1 == PcrValue::ZERO {
        return Err(format!(
            "PCR {} is empty: the boot stub has measured nothing into it",
            image.0
        ));
    }
    let all = || approvals.0.iter();
    let is_image = |signed: &&SignedApproval| signed.approval.pcr11 == image.1;
    let whole = all()
        .filter(is_image)
        .find(|signed| signed.approval.pcr12 == outside.1);
    whole.ok_or_else(|| {
        let ((pcr, value), what) = if all().any(|signed| is_image(&signed)) {
            (
                outside,
                "the kernel got another command line, or more files",
            )
        } else {
            (image, "another image was started")
        };
        format!("PCR {pcr} has changed: {what} (it is {value})")
    })
}

/// Names other changed PCRs, which are in no policy, as a hint.
fn others_changed(before: &BTreeMap<u8, PcrValue>, now: &BTreeMap<u8, PcrValue>) -> String {
    let is_bound = |pcr: &u8| *pcr == PLATFORM_PCR || IMAGE_PCRS.contains(pcr);
    let changed: Vec<_> = WATCHED
        .iter()
        .filter(|pcr| !is_bound(pcr) && before.get(pcr) != now.get(pcr))
        .map(ToString::to_string)
        .collect();
    if changed.is_empty() {
        return String::new();
    }
    format!(
        "; PCR {} too (firmware, its settings, or the boot loader)",
        changed.join(" and ")
    )
}

/// The version that a floor (the least accepted version) encodes.
fn version_text(floor: u64) -> String {
    ImageVersion::from_u64(floor).map_or_else(|| floor.to_string(), |version| version.to_string())
}
