//! Header fields between the channels and JavaScript, which uses `name NUL value NUL ...` in
//! Latin-1.

use std::borrow::Cow;

use casemate_wire::Fields;

/// Fields about one connection, or about how a body travels on it: the sender on the next
/// connection writes its own.
const OF_THE_CONNECTION: &[&str] = &[
    "connection",
    "content-length",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Most bytes of fields in a head from the function, so that the head fits into a frame with our
/// fields.
pub(crate) const MAX_HEAD_BYTES: usize = 32 * 1024;
/// Most fields of the function in a head: `head::MAX_FIELDS` less some for ours.
const MAX_FIELDS: usize = 200;
/// Initial capacity: the number of fields in most heads.
const USUAL_FIELDS: usize = 8;
/// Initial capacity for the fields that we add, bytes.
const ADDED_BYTES: usize = 64;

/// The field whose values are not a comma-separated list. A caller or an HTTP/2 upstream may send
/// several fields, each with some of the cookies; a program that needs one field joins them with
/// [`BETWEEN_COOKIES`] (RFC 9113, section 8.2.3). `Set-Cookie`, the other such field, stays
/// separate everywhere.
const COOKIE: &str = "cookie";
const BETWEEN_COOKIES: &[u8] = b"; ";

/// Fields for JavaScript, without ours. There is at most one `cookie`, at the place of the first.
pub(crate) fn to_script(fields: &Fields) -> Vec<u8> {
    let mut text = Vec::with_capacity(512);
    let mut had_cookies = false;
    for (name, value) in fields.iter().filter(|(name, _)| !name.starts_with(':')) {
        let is_cookie = name == COOKIE;
        if is_cookie && had_cookies {
            continue;
        }
        if !text.is_empty() {
            text.push(0);
        }
        text.extend_from_slice(name.as_bytes());
        text.push(0);
        if is_cookie {
            had_cookies = true;
            let values = fields.iter().filter(|(name, _)| *name == COOKIE);
            values.for_each(|(_, value)| add_cookies(&mut text, value));
        } else {
            text.extend_from_slice(value);
        }
    }
    text
}

/// Appends a value of `cookie` to that field.
fn add_cookies(text: &mut Vec<u8>, value: &[u8]) {
    // The last byte ends the name, or there is none.
    if !matches!(text.last(), None | Some(0)) {
        text.extend_from_slice(BETWEEN_COOKIES);
    }
    text.extend_from_slice(value);
}

/// Fields from JavaScript, without those of the connection; `None` when they are too many.
///
/// The `Headers` class has checked names and values. If code has bypassed the check, the channel
/// refuses the head.
pub(crate) fn from_script(text: &[u8]) -> Option<Fields> {
    if text.len() > MAX_HEAD_BYTES {
        return None;
    }
    let mut fields = Fields::with_capacity(USUAL_FIELDS, text.len() + ADDED_BYTES);
    let mut cookies = None::<Vec<u8>>;
    let mut parts = text.split(|byte| *byte == 0);
    while let (Some(name), Some(value)) = (parts.next(), parts.next()) {
        let name = lower(std::str::from_utf8(name).ok()?);
        if name.starts_with(':') || fields.len() == MAX_FIELDS {
            return None;
        }
        if &*name == COOKIE {
            add_cookies(cookies.get_or_insert_default(), value);
        } else if !OF_THE_CONNECTION.contains(&&*name) {
            fields.push(&name, value);
        }
    }
    if let Some(cookies) = cookies {
        fields.push(COOKIE, cookies);
    }
    Some(fields)
}

/// In lower case, in which `Headers` keeps names already.
fn lower(name: &str) -> Cow<'_, str> {
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(name.to_ascii_lowercase())
    } else {
        Cow::Borrowed(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_go_there_and_back_without_ours_and_the_connections() {
        let own = Fields::default()
            .with("accept", "*/*")
            .with("x-latin", b"caf\xe9")
            .with("x-empty", "");
        let fields = own.iter().collect::<Fields>().with(":request", "r1");
        assert_eq!(
            to_script(&fields),
            b"accept\0*/*\0x-latin\0caf\xe9\0x-empty\0"
        );
        let back = from_script(b"Accept\0*/*\0X-Latin\0caf\xe9\0Transfer-Encoding\0chunked\0Content-Length\x0099\0X-Empty\0").unwrap();
        assert_eq!(back, own);
        assert_eq!(from_script(b"").unwrap(), Fields::default());
    }

    #[test]
    fn cookies_are_one_field_both_ways_and_answers_keep_theirs_apart() {
        let crumbs = Fields::default()
            .with("cookie", "a=1")
            .with("x", "1")
            .with("cookie", "b=2; c=3")
            .with("x", "2")
            .with("cookie", "d=4");
        let whole = b"cookie\0a=1; b=2; c=3; d=4\0x\x001\0x\x002";
        assert_eq!(to_script(&crumbs), whole);
        let sent = from_script(b"cookie\0a=1\0x\x001\0Cookie\0b=2").unwrap();
        let expected = Fields::default().with("x", "1").with("cookie", "a=1; b=2");
        assert_eq!(sent, expected);
        let set = Fields::default()
            .with("set-cookie", "a=1; Path=/")
            .with("set-cookie", "b=2; Expires=Mon, 30 Nov 2026 00:00:00 GMT");
        assert_eq!(from_script(&to_script(&set)).unwrap(), set);
    }

    #[test]
    fn ours_cannot_be_forged_and_crowds_are_refused() {
        assert_eq!(from_script(b":binding\0stripe"), None);
        assert_eq!(from_script(&b"a\0b\0".repeat(MAX_FIELDS + 1)), None);
        assert_eq!(from_script(&vec![b'a'; MAX_HEAD_BYTES + 1]), None);
    }
}
