//! Builds the head of an outgoing call: the function's header fields, less those that it may not
//! set, and the secret in its slot.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use casemate_trust::release::Slot;
use casemate_trust::secret::SecretValue;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use zeroize::{Zeroize as _, Zeroizing};

use crate::target::Target;

/// Most header fields of a call.
pub const MAX_FIELDS: usize = 128;

/// Fields that belong to the connection (RFC 9110, section 7.6.1), that the vault sets, or that a
/// client never sends.
const NOT_THE_FUNCTIONS: &[&str] = &[
    "host",
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authorization",
    "proxy-authenticate",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "expect",
    "content-length",
    "http2-settings",
    "forwarded",
    "via",
];

/// Header fields with which servers, frameworks and proxies replace the method or the path of a
/// request. Names are written with `-`; servers treat `_` alike.
const OVERRIDES: &[&str] = &[
    "x-http-method",
    "x-method",
    "x-request-method",
    "x-tunneled-method",
    "x-rewrite-url",
    "x-rewrite-uri",
    "x-url",
    "x-uri",
    "x-path",
    "x-path-info",
    "x-proxy-url",
    "x-request-uri",
    "x-request-url",
    "x-script-name",
    "x-envoy-original-path",
    "x-envoy-original-method",
    "x-accel-redirect",
    "x-http-destinationurl",
    "x-waws-unencoded-url",
    "x-matched-path",
    "x-invoke-path",
    "x-invoke-query",
    "x-now-route-matches",
    "path-info",
    "request-uri",
    "script-name",
    "base-url",
];

/// Prefixes of such names. Fields about the caller alone may pass: [`NO_OVERRIDES`].
const OVERRIDE_PREFIXES: &[&str] = &["x-forwarded-", "x-original-", "x-middleware-"];

/// Fields that begin like an override but describe the caller, not the request.
const NO_OVERRIDES: &[&str] = &[
    "x-forwarded-for",
    "x-forwarded-port",
    "x-forwarded-proto",
    "x-original-forwarded-for",
];

/// Whether a field may replace the judged method or path. The name is in lower case.
fn is_override(lower: &str) -> bool {
    let name = lower.replace('_', "-");
    let begins = OVERRIDE_PREFIXES
        .iter()
        .any(|prefix| name.starts_with(prefix));
    name.contains("override")
        || OVERRIDES.contains(&name.as_str())
        || (begins && !NO_OVERRIDES.contains(&name.as_str()))
}

/// The encoding that a call asks for if its answer is searched, whatever the function asked for:
/// the only one that the vault decodes.
const ACCEPT_ENCODING: &str = "gzip";

/// Unreserved characters are not encoded (RFC 3986, section 2.3).
pub(crate) const QUERY_VALUE: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// The head of an outgoing call. The fields of the slot are marked, so that they are neither logged
/// nor indexed.
pub struct Outgoing {
    /// Path and query.
    pub path_and_query: Zeroizing<String>,
    /// Fields: name, value, and whether it holds a secret.
    pub fields: Vec<(String, Bytes, bool)>,
}

/// Bytes that are wiped when the last holder drops them.
struct Wiped(Vec<u8>);

impl AsRef<[u8]> for Wiped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Wiped {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// Builds the head of a call from the function's fields and, if a slot is filled, the opened
/// secret. A value that the function itself put into the slot, under any spelling that servers
/// treat alike, is dropped. If the call is limited by method or path (`limited`), fields that
/// replace these are dropped too, because the server would otherwise carry out another request than
/// the judged one. If the answer is `searched`, the call asks for the one encoding that the vault
/// decodes.
pub fn fill<'a>(
    target: &Target,
    fields: impl Iterator<Item = (&'a str, &'a [u8])> + Clone,
    slot: Option<(&Slot, &SecretValue)>,
    limited: bool,
    searched: bool,
) -> Outgoing {
    let named_by_connection: BTreeSet<String> = fields
        .clone()
        .filter(|(name, _)| name.eq_ignore_ascii_case("connection"))
        .flat_map(|(_, value)| value.split(|byte| *byte == b','))
        .map(|name| String::from_utf8_lossy(name).trim().to_ascii_lowercase())
        .collect();
    let slot_header = slot.and_then(|(slot, _)| slot.header());
    let is_the_functions = |name: &str| {
        let lower = name.to_ascii_lowercase();
        let is_slot =
            slot_header.is_some_and(|header| lower.replace('_', "-") == header.replace('_', "-"));
        let replaces_request = limited && is_override(&lower);
        let is_ours = searched && lower == "accept-encoding";
        !name.starts_with(':')
            && !is_slot
            && !is_ours
            && !replaces_request
            && !NOT_THE_FUNCTIONS.contains(&lower.as_str())
            && !named_by_connection.contains(&lower)
    };
    let kept = fields
        .filter(|(name, _)| is_the_functions(name))
        .take(MAX_FIELDS);
    let mut fields: Vec<_> = kept
        .map(|(name, value)| {
            (
                name.to_ascii_lowercase(),
                Bytes::copy_from_slice(value),
                false,
            )
        })
        .collect();
    if searched {
        let value = Bytes::from_static(ACCEPT_ENCODING.as_bytes());
        fields.push(("accept-encoding".to_owned(), value, false));
    }
    let mut path_and_query = Zeroizing::new(target.path_and_query());
    match slot {
        Some((Slot::Query { name }, secret)) => {
            path_and_query = with_parameter(target, name, secret);
        }
        Some((slot, secret)) => {
            let name = slot.header().expect("a slot that is not a query parameter");
            fields.push((
                name.to_owned(),
                Bytes::from_owner(Wiped(header_value(slot, secret))),
                true,
            ));
        }
        None => {}
    }
    Outgoing {
        path_and_query,
        fields,
    }
}

fn header_value(slot: &Slot, secret: &SecretValue) -> Vec<u8> {
    let secret = secret.expose_secret();
    match slot {
        Slot::Header { prefix, .. } => [prefix.as_bytes(), secret].concat(),
        Slot::Bearer => [b"Bearer ", secret].concat(),
        Slot::Basic { username } => {
            let pair = Zeroizing::new([username.as_bytes(), b":", secret].concat());
            let encoded = Zeroizing::new(STANDARD.encode(pair.as_slice()));
            [b"Basic ", encoded.as_bytes()].concat()
        }
        Slot::Query { .. } => Vec::new(),
    }
}

/// The query without any parameter that decodes to the slot's name, and with the slot at its end.
fn with_parameter(target: &Target, name: &str, secret: &SecretValue) -> Zeroizing<String> {
    let is_slot = |pair: &&str| {
        let key = pair.split('=').next().unwrap_or(pair).replace('+', " ");
        percent_decode_str(&key)
            .decode_utf8_lossy()
            .eq_ignore_ascii_case(name)
    };
    let query = target.query.as_deref().unwrap_or("");
    let kept: Vec<&str> = query
        .split('&')
        .filter(|pair| !pair.is_empty() && !is_slot(pair))
        .collect();
    let text = Zeroizing::new(String::from_utf8_lossy(secret.expose_secret()).into_owned());
    let encoded: Zeroizing<String> =
        Zeroizing::new(utf8_percent_encode(&text, QUERY_VALUE).to_string());
    let separator = if kept.is_empty() { "" } else { "&" };
    Zeroizing::new(format!(
        "{}?{}{separator}{name}={}",
        target.path,
        kept.join("&"),
        *encoded
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret() -> SecretValue {
        SecretValue::parse(Zeroizing::new(b"s3cr&t".to_vec())).unwrap()
    }

    fn filled(
        fields: &[(&str, &'static str)],
        slot: &Slot,
        url: &str,
    ) -> (String, Vec<(String, String)>) {
        let fields = fields.iter().map(|(name, value)| (*name, value.as_bytes()));
        let outgoing = fill(
            &Target::parse(url).unwrap(),
            fields,
            Some((slot, &secret())),
            false,
            true,
        );
        let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
        let mut sent: Vec<_> = outgoing
            .fields
            .iter()
            .map(|(name, value, _)| (name.clone(), text(value)))
            .collect();
        let encodings = sent
            .extract_if(.., |(name, _)| name == "accept-encoding")
            .map(|(_, value)| value);
        assert_eq!(encodings.collect::<Vec<_>>(), [ACCEPT_ENCODING]);
        (outgoing.path_and_query.to_string(), sent)
    }

    fn pair(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    #[test]
    fn whatever_the_function_puts_into_the_slot_is_dropped() {
        let tries = [
            ("authorization", "mine"),
            ("Authorization", "Mine"),
            ("AUTHORIZATION", "x"),
            ("x-kept", "yes"),
        ];
        let (_, sent) = filled(&tries, &Slot::Bearer, "https://a.test/");
        assert_eq!(
            sent,
            [
                pair("x-kept", "yes"),
                pair("authorization", "Bearer s3cr&t")
            ]
        );
        let slot = Slot::Header {
            name: "x-api-key".into(),
            prefix: "k=".into(),
        };
        let (_, sent) = filled(
            &[("x_api_key", "a"), ("X-API_key", "b")],
            &slot,
            "https://a.test/",
        );
        assert_eq!(sent, [pair("x-api-key", "k=s3cr&t")]);
    }

    #[test]
    fn hop_by_hop_names_cannot_remove_the_slot_or_smuggle() {
        let tries = [
            ("connection", "authorization, x-mine"),
            ("x-mine", "1"),
            ("host", "evil.test"),
            ("transfer-encoding", "chunked"),
            ("content-length", "5"),
            ("trailer", "authorization"),
            (":authority", "evil.test"),
            ("te", "trailers"),
            ("expect", "100-continue"),
            ("Accept-Encoding", "zstd"),
            ("upgrade", "h2c"),
        ];
        let (_, sent) = filled(&tries, &Slot::Bearer, "https://a.test/");
        assert_eq!(sent, [pair("authorization", "Bearer s3cr&t")]);
    }

    #[test]
    fn fields_that_replace_the_judged_method_or_path_are_dropped_where_these_decide() {
        let overrides = [
            "X-HTTP-Method-Override",
            "x_http_method_override",
            "X-Method-Override",
            "X-HTTP-Method",
            "X-Http_Method",
            "X-Original-URL",
            "x_original_url",
            "X-Original-Method",
            "X-Rewrite-URL",
            "X-Forwarded-Path",
            "X-Forwarded-Prefix",
            "X-Forwarded-Uri",
            "X_Forwarded_Method",
            "X-Forwarded-Host",
            "X-HTTP-Path-Override",
            "X-Envoy-Original-Path",
        ];
        let kept = [
            "x-forwarded-for",
            "x-forwarded-proto",
            "x-original",
            "x-mine",
        ];
        let sent = |limited: bool| {
            let names = overrides.iter().chain(&kept).copied();
            let fields = names.map(|name| (name, &b"v"[..]));
            let target = Target::parse("https://a.test/v1/x").unwrap();
            let fields = fill(&target, fields, None, limited, false).fields;
            fields
                .into_iter()
                .map(|(name, ..)| name)
                .collect::<Vec<_>>()
        };
        assert_eq!(sent(true), kept);
        assert_eq!(sent(false).len(), overrides.len() + kept.len());
    }

    #[test]
    fn basic_and_query_slots() {
        let (_, sent) = filled(
            &[],
            &Slot::Basic {
                username: "me".into(),
            },
            "https://a.test/",
        );
        assert_eq!(sent, [pair("authorization", "Basic bWU6czNjciZ0")]);
        let slot = Slot::Query { name: "key".into() };
        assert_eq!(filled(&[], &slot, "https://a.test/x").0, "/x?key=s3cr%26t");
        assert_eq!(
            filled(&[], &slot, "https://a.test/x?key=1&a=2&k%65y=3&KEY=4&key").0,
            "/x?a=2&key=s3cr%26t"
        );
    }
}
