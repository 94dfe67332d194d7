//! Header fields between HTTP and a channel. Hop-by-hop fields stay on their hop (RFC 9110, section
//! 7.6.1).

use std::borrow::Cow;

use casemate_wire::Fields;
use http::header::{CONNECTION, CONTENT_LENGTH, COOKIE, DATE};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::cookies::{self, Reach};

/// Most fields in a request's head, cookies counted as one; the HTTP/1 parser has the same limit.
pub const MAX_REQUEST_FIELDS: usize = 100;

/// Most bytes of a request's head.
pub const MAX_HEAD_BYTES: usize = 48 * 1024;

/// Number of fields that the gateway adds: `host`, `:request`, `:client`, `:hops`.
const OWN_FIELDS: usize = 4;
/// Initial capacity for names and values, bytes: enough for a browser's request, so that the buffer
/// seldom grows.
const ROOM_BYTES: usize = 512;

/// The head of a response cannot be forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the function's response head is not valid HTTP")]
pub struct BadResponse;

/// Whether a field belongs to one hop, or is written anew by each sender.
fn stays_here(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
            | "http2-settings"
    )
}

/// The options in the `Connection` fields of a head, bounded by the number of fields that a head
/// may have. Each field is compared with each option, so unbounded options would make the cost
/// quadratic.
struct Options<'a> {
    named: Vec<&'a [u8]>,
    are_too_many: bool,
}

impl<'a> Options<'a> {
    fn of(connection: impl Iterator<Item = &'a [u8]>) -> Self {
        let options = connection.flat_map(|value| value.split(|byte| *byte == b','));
        let options = options.map(<[u8]>::trim_ascii);
        let options = options.filter(|option| !option.is_empty());
        let named: Vec<_> = options.take(MAX_REQUEST_FIELDS + 1).collect();
        Self {
            are_too_many: named.len() > MAX_REQUEST_FIELDS,
            named,
        }
    }

    /// Whether a field stays on its hop. With too many options, every field does.
    fn name(&self, field: &str) -> bool {
        let is_field = |option: &&[u8]| option.eq_ignore_ascii_case(field.as_bytes());
        self.are_too_many || self.named.iter().any(is_field)
    }
}

/// Whether the `Connection` fields of a caller's head name more options than a head may have
/// fields.
pub fn has_too_many_options(fields: &HeaderMap) -> bool {
    let connection = fields.get_all(CONNECTION).iter();
    Options::of(connection.map(HeaderValue::as_bytes)).are_too_many
}

/// A caller's fields for a worker, with capacity for some more. `Host` is left out: the gateway
/// writes the host that it judged. `Expect` is left out too: the gateway asks for the body when the
/// worker is ready for it.
pub fn to_worker(fields: &HeaderMap) -> Fields {
    let mut out = Fields::with_capacity(fields.len() + OWN_FIELDS, ROOM_BYTES);
    let connection = fields.get_all(CONNECTION).iter();
    let options = Options::of(connection.map(HeaderValue::as_bytes));
    for (name, value) in fields {
        let text = name.as_str();
        if stays_here(text) || matches!(text, "host" | "expect") {
            continue;
        }
        // The length describes the body, whatever `Connection` names.
        if name != CONTENT_LENGTH && options.name(text) {
            continue;
        }
        if name != COOKIE {
            out.push(text, value);
        } else if out.get(text).is_none() {
            out.push(text, joined_cookies(fields));
        }
    }
    out
}

/// Joins a caller's cookies: HTTP/2 clients may send them in several fields, which together are one
/// (RFC 9113, section 8.2.3).
fn joined_cookies(fields: &HeaderMap) -> Cow<'_, [u8]> {
    let mut cookies = fields.get_all(COOKIE).iter().map(HeaderValue::as_bytes);
    let first = cookies.next().unwrap_or_default();
    cookies.fold(Cow::Borrowed(first), |joined, cookie| {
        Cow::Owned([joined.as_ref(), cookie].join(&b"; "[..]))
    })
}

/// The number of fields in a caller's head, with cookies counted as one.
pub fn count(fields: &HeaderMap) -> usize {
    let cookies = fields.get_all(COOKIE).iter().count();
    fields.len() - cookies.saturating_sub(1)
}

/// A caller's trailers for a worker, without fields that belong into a head (RFC 9110, section
/// 6.5.1).
pub fn trailers_to_worker(fields: &HeaderMap) -> Fields {
    let fields = to_worker(fields);
    // An incomplete set of trailers that looks complete would be worse than none.
    if fields.check().is_err() {
        return Fields::default();
    }
    fields.iter().filter(|(name, _)| is_trailer(name)).collect()
}

fn is_trailer(name: &str) -> bool {
    !matches!(
        name,
        "host"
            | "content-length"
            | "content-encoding"
            | "content-type"
            | "content-range"
            | "authorization"
            | "cookie"
            | "set-cookie"
    )
}

/// A response's fields for a caller.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outgoing {
    /// The fields to send.
    pub fields: HeaderMap,
    /// The length that the worker declared.
    pub length: Option<u64>,
    /// Number of dropped cookies: see [`crate::cookies`].
    pub wide_cookies: u32,
}

/// Converts a worker's fields for a caller of this host. Fields of ours (`:`) are never sent; the
/// length is that of what is really sent. `has_neighbours`: whether another tenant has a host below
/// this one.
///
/// # Errors
/// A name, value or length is not valid HTTP, or `Connection` names more options than a head may
/// have fields.
pub fn to_caller(
    fields: &Fields,
    host: &str,
    has_neighbours: impl Fn() -> bool,
) -> Result<Outgoing, BadResponse> {
    // Capacity for the fields that are added later.
    let mut out = HeaderMap::with_capacity(fields.len() + 2);
    let mut length = None;
    let mut wide_cookies = 0;
    let connection = fields.iter().filter(|(name, _)| *name == "connection");
    let options = Options::of(connection.map(|(_, value)| value));
    if options.are_too_many {
        return Err(BadResponse);
    }
    for (name, value) in fields.iter() {
        if name.starts_with(':') || stays_here(name) {
            continue;
        }
        if name == "content-length" {
            let declared = parse_length(value)?;
            if length.is_some_and(|length| length != declared) {
                return Err(BadResponse);
            }
            length = Some(declared);
            continue;
        }
        if options.name(name) {
            continue;
        }
        if name == "set-cookie" {
            let is_too_wide = match cookies::reach(value, host) {
                Reach::Host => false,
                Reach::Below => has_neighbours(),
                Reach::Wider => true,
            };
            if is_too_wide {
                wide_cookies += 1;
                continue;
            }
        }
        let header = HeaderName::from_bytes(name.as_bytes()).map_err(|_| BadResponse)?;
        let value = HeaderValue::from_bytes(value).map_err(|_| BadResponse)?;
        if header == DATE {
            out.insert(header, value);
        } else {
            out.append(header, value);
        }
    }
    Ok(Outgoing {
        fields: out,
        length,
        wide_cookies,
    })
}

/// Converts a worker's trailers for a caller.
///
/// # Errors
/// As for [`to_caller`].
pub fn trailers_to_caller(fields: &Fields) -> Result<HeaderMap, BadResponse> {
    let plain: Fields = fields.iter().filter(|(name, _)| is_trailer(name)).collect();
    // Trailers hold no cookies, so no host is needed.
    to_caller(&plain, "", || false).map(|outgoing| outgoing.fields)
}

fn parse_length(value: &[u8]) -> Result<u64, BadResponse> {
    let text = std::str::from_utf8(value).map_err(|_| BadResponse)?;
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(BadResponse);
    }
    text.parse().map_err(|_| BadResponse)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        fields
            .iter()
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )
            })
            .collect()
    }

    fn names(fields: &Fields) -> Vec<&str> {
        fields.iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn hop_by_hop_fields_stay_also_those_that_connection_lists() {
        let fields = [
            ("host", "a.test"),
            ("connection", "keep-alive, X-Secret"),
            ("connection", " x-other ,content-length"),
            ("x-secret", "1"),
            ("x-other", "1"),
            ("content-length", "3"),
            ("transfer-encoding", "chunked"),
            ("te", "trailers"),
            ("upgrade", "h2c"),
            ("http2-settings", "x"),
            ("proxy-authorization", "x"),
            ("keep-alive", "x"),
            ("proxy-connection", "x"),
            ("trailer", "x"),
            ("expect", "100-continue"),
            ("cookie", "a=1"),
            ("cookie", "b=2"),
        ];
        assert_eq!(
            names(&to_worker(&map(&fields))),
            ["content-length", "cookie"]
        );
        let trailers = trailers_to_worker(&map(&[
            ("host", "b.test"),
            ("authorization", "x"),
            ("checksum", "1"),
            ("content-length", "9"),
        ]));
        assert_eq!(names(&trailers), ["checksum"]);
    }

    #[test]
    fn options_beyond_the_fields_that_a_head_may_have_are_not_compared_with_each_field() {
        let listed = |count: usize| vec!["x"; count].join(", ,");
        for (count, too_many) in [(MAX_REQUEST_FIELDS, false), (MAX_REQUEST_FIELDS + 1, true)] {
            let mut head = map(&[("x-kept", "1"), ("content-length", "3")]);
            let value = HeaderValue::from_str(&listed(count)).unwrap();
            head.insert(CONNECTION, value);
            assert_eq!(has_too_many_options(&head), too_many);
            // No field is forwarded that an option may have named.
            let expected: &[&str] = match too_many {
                true => &["content-length"],
                false => &["x-kept", "content-length"],
            };
            assert_eq!(names(&to_worker(&head)), expected);
            let answer = Fields::default().with("connection", listed(count));
            let passes = to_caller(&answer, "a.test", || false).is_ok();
            assert_eq!(passes, !too_many);
        }
        let long = listed(20_000);
        let options = Options::of([long.as_bytes()].into_iter());
        assert!(options.named.len() <= MAX_REQUEST_FIELDS + 1);
    }

    #[test]
    fn the_crumbs_of_a_cookie_are_one_field() {
        for (crumbs, whole) in [
            (&["a=1"][..], "a=1"),
            (&["a=1", "b=2", "c=3; d=4"], "a=1; b=2; c=3; d=4"),
        ] {
            let mut fields = map(&[("x-before", "1")]);
            let crumbs = crumbs.iter().map(|crumb| HeaderValue::from_static(crumb));
            for crumb in crumbs {
                fields.append(COOKIE, crumb);
            }
            fields.insert("x-after", HeaderValue::from_static("2"));
            let out = to_worker(&fields);
            assert_eq!((out.len(), count(&fields)), (3, 3));
            assert_eq!(out.get("cookie"), Some(whole.as_bytes()));
        }
        assert_eq!(count(&HeaderMap::new()), 0);
    }

    #[test]
    fn our_fields_and_hop_by_hop_fields_never_go_out() {
        let fields = Fields::default()
            .with(":error", "x")
            .with("connection", "x-hop")
            .with("x-hop", "1")
            .with("transfer-encoding", "chunked")
            .with("content-length", "12")
            .with("set-cookie", "a")
            .with("set-cookie", "b; Domain=f.shared.test")
            .with("set-cookie", "c; Domain=shared.test")
            .with("upgrade", "h2c");
        let Outgoing {
            fields: out,
            length,
            wide_cookies,
        } = to_caller(&fields, "f.shared.test", || false).unwrap();
        assert_eq!(length, Some(12));
        assert_eq!(out.get_all("set-cookie").iter().count(), 2);
        assert_eq!((out.len(), wide_cookies), (2, 1));
        let beside_neighbours = to_caller(&fields, "f.shared.test", || true).unwrap();
        assert_eq!(beside_neighbours.wide_cookies, 2);
    }

    #[test]
    fn invalid_or_different_lengths_are_refused() {
        for value in ["", "-1", "+1", "1, 1", " 1", "0x1", "18446744073709551616"] {
            assert_eq!(
                to_caller(
                    &Fields::default().with("content-length", value),
                    "a.test",
                    || false
                ),
                Err(BadResponse),
                "{value:?}"
            );
        }
        let two = |one: &'static str, other: &'static str| {
            to_caller(
                &Fields::default()
                    .with("content-length", one)
                    .with("content-length", other),
                "a.test",
                || false,
            )
            .map(|outgoing| outgoing.length)
        };
        assert_eq!(two("5", "6"), Err(BadResponse));
        assert_eq!(two("5", "5"), Ok(Some(5)));
    }

    fn hostile_fields() -> impl Strategy<Value = Vec<(String, Vec<u8>)>> {
        let value = proptest::collection::vec(any::<u8>(), 0..20);
        proptest::collection::vec(("[:a-zA-Z-]{0,20}|connection", value), 0..20)
    }

    proptest! {
        /// Whatever a worker sends is refused, or becomes HTTP without a line break, without our
        /// own fields, and without hop-by-hop fields.
        #[test]
        fn nothing_of_a_worker_splits_a_response(fields in hostile_fields()) {
            let fields: Fields = fields.into_iter().collect();
            if let Ok(out) = to_caller(&fields, "a.test", || false) {
                for (name, value) in &out.fields {
                    prop_assert!(!name.as_str().starts_with(':') && !stays_here(name.as_str()));
                    prop_assert!(!value.as_bytes().iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)));
                }
            }
        }
    }
}
