//! Reads an image's description of itself: the `.osrel` section of a unified kernel image, in the
//! format of `os-release(5)` (UAPI group, UKI).

use casemate_measured_boot::{Approvals, ImageKey, SECTIONS, SignedApproval, measured};
use object::pe::IMAGE_DIRECTORY_ENTRY_SECURITY;
use object::read::pe::PeFile64;
use object::{LittleEndian, Object as _, ObjectSection as _};

use crate::Error;

/// The section with the description.
const SECTION: &str = ".osrel";
/// Largest such section, bytes: ours has some hundred bytes.
const MAX_BYTES: usize = 64 * 1024;
/// Longest value in the section, bytes.
const MAX_VALUE_BYTES: usize = 64;

/// An image's description of itself. The maker of the file wrote the description, so it is as
/// trustworthy as the file's signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspected {
    /// `IMAGE_VERSION=`
    pub version: String,
    /// `VARIANT_ID=`, the profile; images of earlier builds lack it.
    pub profile: Option<String>,
    /// The file has a signature for firmware to check (Authenticode). The signature itself is not
    /// checked here.
    pub is_signed: bool,
    /// A key approves this file, so that its boots can open what is sealed to a machine's TPM.
    pub is_approved: bool,
}

/// Reads an image's description of itself.
///
/// # Errors
/// The file is not a unified kernel image for 64-bit machines, or has no unique, well-formed
/// version.
pub fn inspect(file: &[u8]) -> Result<Inspected, Error> {
    let no_image = |message: String| Error::NoImage { message };
    let parsed = PeFile64::parse(file)
        .map_err(|error| no_image(format!("it is not a PE file for 64-bit machines: {error}")))?;
    let mut sections = parsed
        .sections()
        .filter(|section| section.name_bytes() == Ok(SECTION.as_bytes()));
    let section = sections
        .next()
        .ok_or_else(|| no_image(format!("it has no section {SECTION}")))?;
    if sections.next().is_some() {
        return Err(no_image(format!("it has more than one section {SECTION}")));
    }
    let data = section
        .data()
        .map_err(|error| no_image(format!("its section {SECTION}: {error}")))?;
    if data.len() > MAX_BYTES {
        return Err(no_image(format!(
            "its section {SECTION}: expected at most {MAX_BYTES} bytes, got {}",
            data.len()
        )));
    }
    let text = std::str::from_utf8(data)
        .map_err(|error| no_image(format!("its section {SECTION} is not UTF-8: {error}")))?;
    let text = text.trim_end_matches('\0');
    let version = value(text, "IMAGE_VERSION")?.ok_or_else(|| {
        no_image(format!(
            "its section {SECTION} has no line IMAGE_VERSION=; `casemate image build` writes one"
        ))
    })?;
    let profile = value(text, "VARIANT_ID")?;
    let security = parsed
        .data_directories()
        .get(IMAGE_DIRECTORY_ENTRY_SECURITY);
    Ok(Inspected {
        is_signed: security.is_some_and(|entry| entry.size.get(LittleEndian) > 0),
        is_approved: is_approved(&parsed, &version),
        version,
        profile,
    })
}

/// Whether the key in the image has approved the measurements of the boot stub for this version.
fn is_approved(file: &PeFile64<'_>, version: &str) -> bool {
    let section = |name: &str| {
        let section = file.section_by_name(name)?;
        let bytes = section.data().ok()?;
        // Bytes beyond the virtual size pad the file and are not measured.
        Some(&bytes[..bytes.len().min(usize::try_from(section.size()).ok()?)])
    };
    let approved = || {
        let key = std::str::from_utf8(section(".pcrpkey")?).ok()?;
        let key = ImageKey::from_pem(key.trim_end_matches('\0')).ok()?;
        let approvals = Approvals::from_text(section(".pcrsig")?).ok()?;
        let sections: Vec<_> = SECTIONS
            .iter()
            .filter_map(|name| Some((*name, section(name)?)))
            .collect();
        let pcr11 = measured(&sections);
        let is_right = |signed: &SignedApproval| {
            signed.approval.pcr11 == pcr11
                && signed.approval.version.to_string() == version
                && key.has_signed(signed)
        };
        Some(approvals.0.iter().all(is_right))
    };
    approved().unwrap_or_default()
}

/// The value of a key that occurs at most once.
fn value(text: &str, key: &str) -> Result<Option<String>, Error> {
    let mut values = text
        .lines()
        .filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let wrong = |message: &str| Error::NoImage {
        message: format!("its line {key}= {message}"),
    };
    if values.next().is_some() {
        return Err(wrong("occurs twice"));
    }
    let value = value
        .strip_prefix('"')
        .and_then(|value| value.strip_suffix('"'))
        .unwrap_or(value);
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_+".contains(&byte);
    if value.is_empty() || value.len() > MAX_VALUE_BYTES || !value.bytes().all(is_plain) {
        return Err(wrong(
            "is not 1 to 64 letters, digits, `.`, `-`, `_` or `+`",
        ));
    }
    Ok(Some(value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pe::tests::stub;
    use crate::pe::{Section, add_sections};

    const WHOLE: &str = "ID=casemate\nIMAGE_VERSION=1.2.3\nVARIANT_ID=\"virtual-machine\"\n";

    fn image(texts: &[&str]) -> Vec<u8> {
        let sections: Vec<_> = texts
            .iter()
            .map(|text| Section {
                name: SECTION,
                bytes: text.as_bytes(),
            })
            .collect();
        add_sections(&stub(), &sections).unwrap()
    }

    fn refused(texts: &[&str]) -> String {
        inspect(&image(texts)).unwrap_err().to_string()
    }

    #[test]
    fn an_image_says_version_and_profile() {
        let inspected = inspect(&image(&[WHOLE])).unwrap();
        assert_eq!(inspected.version, "1.2.3");
        assert_eq!(inspected.profile.as_deref(), Some("virtual-machine"));
        let earlier = inspect(&image(&["IMAGE_VERSION=1.0.0\n"])).unwrap();
        assert_eq!(earlier.profile, None);
    }

    #[test]
    fn what_says_it_not_or_twice_is_refused() {
        let long = format!("IMAGE_VERSION={}\n", "1".repeat(MAX_VALUE_BYTES + 1));
        let twice = WHOLE.repeat(2);
        let refusals = [
            (refused(&[]), "no section"),
            (refused(&[WHOLE, WHOLE]), "more than one"),
            (refused(&["ID=casemate\n"]), "no line IMAGE_VERSION="),
            (refused(&["XIMAGE_VERSION=1\n"]), "no line IMAGE_VERSION="),
            (refused(&[&twice]), "twice"),
            (refused(&["IMAGE_VERSION=\n"]), "is not 1 to 64"),
            (refused(&["IMAGE_VERSION=\u{1b}[2J\n"]), "is not 1 to 64"),
            (refused(&[&long]), "is not 1 to 64"),
            (refused(&[&"#".repeat(MAX_BYTES + 1)]), "at most"),
        ];
        for (refusal, wanted) in refusals {
            assert!(refusal.contains(wanted), "{refusal}: {wanted}");
        }
        for file in [&b""[..], b"MZ", b"\x7fELF", &[0; 4096]] {
            let refusal = inspect(file).unwrap_err().to_string();
            assert!(refusal.contains("not a PE file"), "{refusal}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_do_harm(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..600)) {
            let _ = inspect(&bytes);
        }

        #[test]
        fn no_changed_byte_and_no_cut_does_harm(
            changes in proptest::collection::vec((0_usize..0x500, proptest::num::u8::ANY), 1..8),
            cut in 0_usize..0x900,
        ) {
            let mut file = image(&[WHOLE]);
            for (at, to) in changes {
                file[at] = to;
            }
            file.truncate(cut);
            if let Ok(inspected) = inspect(&file) {
                proptest::prop_assert!(inspected.version.len() <= MAX_VALUE_BYTES);
            }
        }
    }
}
