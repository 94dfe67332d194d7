//! Header fields between the channels and JavaScript, which has them as `name NUL value NUL ...` in Latin-1.

use bytes::Bytes;
use casemate_wire::Fields;

/// Fields about one connection, or about how a body travels on it: whoever makes the next connection says them anew.
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

/// Most bytes of fields in a head from the function, so that it fits in a frame with what we add.
pub(crate) const MAX_HEAD_BYTES: usize = 32 * 1024;
/// Most fields of the function in a head: `head::MAX_FIELDS` and room for ours.
const MAX_FIELDS: usize = 200;

/// Fields for JavaScript; ours stay out.
pub(crate) fn to_script(fields: &Fields) -> Vec<u8> {
    let mut text = Vec::with_capacity(512);
    for (name, value) in fields.0.iter().filter(|(name, _)| !name.starts_with(':')) {
        if !text.is_empty() {
            text.push(0);
        }
        text.extend_from_slice(name.as_bytes());
        text.push(0);
        text.extend_from_slice(value);
    }
    text
}

/// Fields from JavaScript, without those of the connection; `None` when they are too many.
///
/// Names and values were checked by the `Headers` class. Should that have been got round, the channel refuses the head.
pub(crate) fn from_script(text: &[u8]) -> Option<Fields> {
    if text.len() > MAX_HEAD_BYTES {
        return None;
    }
    let mut fields = Fields::default();
    let mut parts = text.split(|byte| *byte == 0);
    while let (Some(name), Some(value)) = (parts.next(), parts.next()) {
        let name = std::str::from_utf8(name).ok()?.to_ascii_lowercase();
        if name.starts_with(':') || fields.0.len() == MAX_FIELDS {
            return None;
        }
        if !OF_THE_CONNECTION.contains(&name.as_str()) {
            fields.push(name, Bytes::copy_from_slice(value));
        }
    }
    Some(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_go_there_and_back_without_ours_and_the_connections() {
        let fields = Fields(vec![
            (":request".into(), "r1".into()),
            ("accept".into(), "*/*".into()),
            ("x-latin".into(), Bytes::from_static(b"caf\xe9")),
            ("x-empty".into(), "".into()),
        ]);
        assert_eq!(
            to_script(&fields),
            b"accept\0*/*\0x-latin\0caf\xe9\0x-empty\0"
        );
        let back = from_script(b"Accept\0*/*\0X-Latin\0caf\xe9\0Transfer-Encoding\0chunked\0Content-Length\x0099\0X-Empty\0").unwrap();
        assert_eq!(back.0, fields.0[1..].to_vec());
        assert_eq!(from_script(b"").unwrap(), Fields::default());
    }

    #[test]
    fn ours_cannot_be_forged_and_crowds_are_refused() {
        assert_eq!(from_script(b":binding\0stripe"), None);
        assert_eq!(from_script(&b"a\0b\0".repeat(MAX_FIELDS + 1)), None);
        assert_eq!(from_script(&vec![b'a'; MAX_HEAD_BYTES + 1]), None);
    }
}
