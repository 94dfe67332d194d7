//! Which header fields pass between a function and an upstream, beyond what
//! [`casemate_vault_core::slot`] decides.
//!
//! An answer to a call with a credential is searched for the credential, and each match is
//! replaced. Any other data that reveals the replaced text (a length, a digest, a part of the body)
//! would undo that. The lists below are reviewed data.

use casemate_wire::CallCode;
use http::header::{CONTENT_ENCODING, TRANSFER_ENCODING};
use http::{HeaderMap, StatusCode, Version};

use super::refused::Refused;

/// The loop header of RFC 8586. The function's own value is dropped.
pub(super) const CDN_LOOP: &str = "cdn-loop";
/// Number of nodes that a request has passed; the gateway reads it from `CDN-Loop` and the worker
/// forwards it.
const HOPS: &str = ":hops";
/// The value of a missing or unreadable [`HOPS`]: the last hop that a gateway accepts, so that a
/// taken-over worker cannot begin an endless loop.
const UNKNOWN_HOPS: u8 = 7;

/// Request fields that ask for a part of an answer, with the reason for each. A function could
/// otherwise read a reflected credential in parts too short to be recognised.
const PARTS: &[(&str, &str)] = &[
    ("range", "RFC 9110, section 14.2"),
    ("if-range", "RFC 9110, section 13.1.5"),
    (
        "request-range",
        "an old name of `Range`, which Apache still takes",
    ),
    ("x-ms-range", "Azure takes it instead of `Range`"),
    (
        "a-im",
        "asks for a difference to an earlier answer (RFC 3229)",
    ),
];

/// Request fields whose answer reveals whether the function knows the answer's digest or date.
/// Where the method changes nothing, they only save a transfer.
const CONDITIONS: &[&str] = &[
    "if-match",
    "if-none-match",
    "if-modified-since",
    "if-unmodified-since",
];

/// Fields of an answer that reveal something about its body before the credential was replaced.
const LENGTHS_AND_DIGESTS: &[(&str, &str)] = &[
    (
        "content-digest",
        "a digest of the body (RFC 9530): it confirms a guess",
    ),
    (
        "content-length",
        "the length before the replacement tells how often and how long",
    ),
    (
        "content-md5",
        "a digest of the body, withdrawn with RFC 7231 and still sent",
    ),
    ("digest", "a digest of the body (RFC 3230)"),
    (
        "repr-digest",
        "a digest of the whole representation (RFC 9530)",
    ),
    ("x-content-length", "a proxy's copy of `content-length`"),
    ("x-cos-hash-crc64ecma", "Tencent's checksum"),
    (
        "x-decompressed-content-length",
        "the length of the decoded body",
    ),
    ("x-goog-hash", "Google's checksums"),
    (
        "x-goog-stored-content-length",
        "the length in Google's store",
    ),
    ("x-ms-blob-content-md5", "Azure's digest of a whole blob"),
    ("x-ms-content-crc64", "Azure's checksum of a part"),
    ("x-ms-content-md5", "Azure's digest of a part"),
    (
        "x-original-content-length",
        "a proxy's note of the length before it encoded the body",
    ),
    ("x-oss-hash-crc64ecma", "Alibaba's checksum"),
    (
        "x-uncompressed-content-length",
        "the length of the decoded body",
    ),
];

/// Prefixes of names of fields with digests.
const DIGEST_PREFIXES: &[(&str, &str)] = &[
    (
        "x-amz-checksum-",
        "Amazon's checksums, one name for each algorithm",
    ),
    ("x-checksum-", "checksums of package registries"),
];

/// Fields of an answer that belong to range requests, or that most servers derive from the body.
/// Only a credential that declares `ranges` gets them.
const RANGES_AND_VALIDATORS: &[(&str, &str)] = &[
    ("accept-ranges", "invites requests that are not forwarded"),
    (
        "content-range",
        "the length of the whole, and which part this is",
    ),
    ("etag", "mostly a digest of the body: it confirms a guess"),
    (
        "last-modified",
        "a validator, of use only with conditions that are not forwarded",
    ),
];

/// Fields of a connection (RFC 9110, section 7.6.1).
const HOP_BY_HOP: &[&str] = &[
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// What a call with a credential may use beyond a plain exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CredentialedRules {
    /// The release declares that it needs range requests and validators.
    pub(super) ranges: bool,
}

fn is_in(list: &[(&str, &str)], name: &str) -> bool {
    list.iter().any(|(listed, _)| *listed == name)
}

impl CredentialedRules {
    /// Whether a field of the function's request is sent to the upstream.
    ///
    /// Conditions are dropped where the method changes nothing: the answer then comes in full. For
    /// a change they are kept, because a guarded write must not become an unguarded one. They may
    /// name one entity tag at most: the upstream confirms a right tag, and a list would test a
    /// guess with each tag.
    ///
    /// # Errors
    /// A condition names several entity tags.
    pub(super) fn sends(self, method: &str, name: &str, value: &[u8]) -> Result<bool, Refused> {
        let name = name.to_ascii_lowercase().replace('_', "-");
        if self.ranges {
            return Ok(true);
        }
        if is_in(PARTS, &name) {
            return Ok(false);
        }
        if CONDITIONS.contains(&name.as_str()) {
            if matches!(method, "GET" | "HEAD" | "OPTIONS") {
                return Ok(false);
            }
            if value.contains(&b',') && name.ends_with("match") {
                let message =
                    format!("expected one entity tag in `{name}` on a call with a credential");
                return Err(Refused::new(CallCode::CallInvalid, message));
            }
        }
        Ok(true)
    }

    /// Whether the function sees a field of the answer.
    pub(super) fn shows(self, name: &str) -> bool {
        let is_digest = DIGEST_PREFIXES
            .iter()
            .any(|(prefix, _)| name.starts_with(prefix));
        !is_digest
            && !is_in(LENGTHS_AND_DIGESTS, name)
            && (self.ranges || !is_in(RANGES_AND_VALIDATORS, name))
    }

    /// Checks that the answer is a whole one, unless ranges were declared.
    ///
    /// # Errors
    /// The answer is a part.
    pub(super) fn check_status(self, status: StatusCode) -> Result<(), Refused> {
        let is_part = matches!(status, StatusCode::PARTIAL_CONTENT | StatusCode::IM_USED);
        if is_part && !self.ranges {
            let message = format!(
                "the upstream answered with a part ({}), and the release declares no `ranges` for \
                 this credential",
                status.as_u16()
            );
            return Err(Refused::new(CallCode::RangesUndeclared, message));
        }
        Ok(())
    }
}

/// The loop header for a call.
pub(super) fn cdn_loop(fields: &casemate_wire::Fields) -> String {
    let hops = fields
        .text(HOPS)
        .and_then(|text| text.parse::<u8>().ok())
        .unwrap_or(UNKNOWN_HOPS);
    format!("casemate; hops={}", hops.saturating_add(1))
}

/// Whether a field of an answer belongs to the connection.
pub(super) fn is_hop_by_hop(name: &str) -> bool {
    HOP_BY_HOP.contains(&name)
}

/// Checks that the body has no transfer coding except `chunked`: hyper decodes `chunked` and
/// nothing else, so any other coding would reach the function unsearched and unlabelled.
///
/// # Errors
/// There is another coding, or any at all over HTTP/2, which has none (RFC 9113, section 8.2.2).
pub(super) fn check_transfer_encoding(
    version: Version,
    headers: &HeaderMap,
) -> Result<(), Refused> {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let expected = match (codings.next(), codings.next()) {
        (None, _) => true,
        (Some(coding), None) => {
            version == Version::HTTP_11
                && coding
                    .as_bytes()
                    .trim_ascii()
                    .eq_ignore_ascii_case(b"chunked")
        }
        (Some(_), Some(_)) => false,
    };
    if expected {
        return Ok(());
    }
    Err(Refused::new(
        CallCode::UpstreamTransferEncoding,
        "the upstream's answer has a transfer encoding other than `chunked`",
    ))
}

/// How the content of an answer is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ContentEncoding {
    Identity,
    Gzip,
}

impl ContentEncoding {
    /// The content encoding of an answer to a call with a credential, which asks for gzip and
    /// nothing else (RFC 9110, section 8.4.1).
    ///
    /// # Errors
    /// The answer has another encoding, or several: the body could not be searched for the
    /// credential.
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, Refused> {
        let mut encodings = headers.get_all(CONTENT_ENCODING).iter();
        let encoding = match (encodings.next(), encodings.next()) {
            (None, _) => return Ok(Self::Identity),
            (Some(one), None) => one.as_bytes().trim_ascii().to_ascii_lowercase(),
            (Some(_), Some(_)) => b"several of them".to_vec(),
        };
        match encoding.as_slice() {
            b"gzip" | b"x-gzip" => Ok(Self::Gzip),
            b"identity" | b"" => Ok(Self::Identity),
            _ => Err(Refused::new(
                CallCode::UpstreamEncoding,
                "the upstream's answer has a content encoding other than gzip, which alone was \
                 asked for, and cannot be searched for the credential",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    const PLAIN: CredentialedRules = CredentialedRules { ranges: false };
    const RANGES: CredentialedRules = CredentialedRules { ranges: true };

    fn headers(name: HeaderName, values: &[&'static str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(&name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn transfer_codings_other_than_one_chunked_are_refused_in_every_spelling() {
        let check = |version, values: &[&'static str]| {
            check_transfer_encoding(version, &headers(TRANSFER_ENCODING, values))
        };
        for values in [&[][..], &["chunked"], &["Chunked"], &["CHUNKED "]] {
            assert_eq!(check(Version::HTTP_11, values), Ok(()), "{values:?}");
        }
        for values in [
            &["gzip, chunked"][..],
            &["GZIP,chunked"],
            &["gzip", "chunked"],
            &["chunked", "gzip"],
            &["chunked", "chunked"],
            &["chunked, chunked"],
            &["chunked, gzip"],
            &["gzip"],
            &["identity"],
            &["deflate ,chunked"],
            &[", chunked"],
            &["chunked;q=1"],
            &[""],
        ] {
            let code = check(Version::HTTP_11, values).unwrap_err().code;
            assert_eq!(code, CallCode::UpstreamTransferEncoding, "{values:?}");
        }
        assert!(check(Version::HTTP_2, &["chunked"]).is_err());
        assert!(check(Version::HTTP_10, &["chunked"]).is_err());
    }

    #[test]
    fn encodings_that_were_not_asked_for_are_refused() {
        let of = |values: &[&'static str]| ContentEncoding::of(&headers(CONTENT_ENCODING, values));
        assert_eq!(of(&[]), Ok(ContentEncoding::Identity));
        assert_eq!(of(&["Identity"]), Ok(ContentEncoding::Identity));
        assert_eq!(of(&[" GZIP"]), Ok(ContentEncoding::Gzip));
        for values in [
            &["br"][..],
            &["zstd"],
            &["deflate"],
            &["gzip, gzip"],
            &["gzip", "gzip"],
        ] {
            assert_eq!(
                of(values).unwrap_err().code,
                CallCode::UpstreamEncoding,
                "{values:?}"
            );
        }
    }

    #[test]
    fn parts_are_asked_for_and_taken_only_where_they_are_declared() {
        for name in [
            "range",
            "Range",
            "IF_RANGE",
            "If-Range",
            "x-ms-range",
            "request-range",
        ] {
            assert_eq!(PLAIN.sends("GET", name, b"bytes=0-1"), Ok(false), "{name}");
            assert_eq!(RANGES.sends("GET", name, b"bytes=0-1"), Ok(true), "{name}");
        }
        assert_eq!(PLAIN.sends("GET", "accept", b"*/*"), Ok(true));
        for status in [StatusCode::PARTIAL_CONTENT, StatusCode::IM_USED] {
            assert_eq!(
                PLAIN.check_status(status).unwrap_err().code,
                CallCode::RangesUndeclared
            );
            assert_eq!(RANGES.check_status(status), Ok(()));
        }
        assert_eq!(PLAIN.check_status(StatusCode::OK), Ok(()));
    }

    #[test]
    fn conditions_spare_no_transfer_and_guard_a_change_with_one_tag() {
        for name in CONDITIONS {
            assert_eq!(PLAIN.sends("GET", name, b"\"a\""), Ok(false), "{name}");
            assert_eq!(PLAIN.sends("PUT", name, b"\"a\""), Ok(true), "{name}");
        }
        let date = b"Mon, 30 Nov 2026 08:00:00 GMT";
        assert_eq!(PLAIN.sends("PUT", "if-unmodified-since", date), Ok(true));
        let several = PLAIN.sends("PUT", "If-Match", b"\"a\", \"b\"");
        assert_eq!(several.unwrap_err().code, CallCode::CallInvalid);
    }

    #[test]
    fn lengths_digests_and_validators_are_not_shown() {
        for (name, _) in LENGTHS_AND_DIGESTS {
            assert!(!PLAIN.shows(name) && !RANGES.shows(name), "{name}");
        }
        for (name, _) in RANGES_AND_VALIDATORS {
            assert!(!PLAIN.shows(name) && RANGES.shows(name), "{name}");
        }
        assert!(!PLAIN.shows("x-amz-checksum-sha256"));
        assert!(PLAIN.shows("content-type"));
    }

    #[test]
    fn a_hop_is_counted_and_an_unknown_count_is_the_last() {
        let with = |hops: &str| cdn_loop(&casemate_wire::Fields::default().with(HOPS, hops));
        assert_eq!(with("0"), "casemate; hops=1");
        assert_eq!(with("6"), "casemate; hops=7");
        assert_eq!(with("255"), "casemate; hops=255");
        for unreadable in ["", "-1", "256", "x"] {
            assert_eq!(with(unreadable), "casemate; hops=8", "{unreadable}");
        }
        assert_eq!(
            cdn_loop(&casemate_wire::Fields::default()),
            "casemate; hops=8"
        );
    }
}
