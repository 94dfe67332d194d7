//! The URL of a request, as the function sees it: parsed and serialised by the WHATWG URL standard.
//! Pure.

use std::ops::Range;

use url::Url;

use crate::answer::Code;
use crate::host::Host;
use crate::route::is_unambiguous;

/// The serialised URL, and the position of its path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    text: String,
    path: Range<usize>,
}

impl Target {
    /// Makes the URL from the host and the rest of a request's target.
    ///
    /// # Errors
    /// The parser would change the path (dot segments, backslashes), or it has bytes that a URL
    /// cannot have.
    pub fn new(is_tls: bool, host: &Host<'_>, path_and_query: &str) -> Result<Self, Code> {
        let path = path_and_query.split('?').next().unwrap_or_default();
        if !path_and_query.bytes().all(|byte| byte.is_ascii_graphic()) || !is_unambiguous(path) {
            return Err(Code::BadPath);
        }
        let (scheme, default_port) = if is_tls {
            ("https://", 443)
        } else {
            ("http://", 80)
        };
        let mut text = String::with_capacity(16 + host.name.len() + path_and_query.len());
        text.push_str(scheme);
        let shown = Host {
            name: host.name.clone(),
            port: host.port.filter(|port| *port != default_port),
        };
        shown.write(&mut text);
        let starts = text.len();
        text.push_str(path_and_query);
        if is_serialised(&shown, path, &path_and_query[path.len()..]) {
            let path = starts..starts + path.len();
            return Ok(Self { text, path });
        }
        let url = Url::parse(&text).map_err(|_| Code::BadHost)?;
        let starts = url[..url::Position::BeforePath].len();
        let path = starts..starts + url.path().len();
        let text = String::from(url);
        Ok(Self { text, path })
    }

    /// The path.
    pub fn path(&self) -> &str {
        &self.text[self.path.clone()]
    }

    /// The whole URL.
    pub fn into_text(self) -> String {
        self.text
    }
}

/// Whether the parser would change nothing. This holds for most requests.
fn is_serialised(host: &Host<'_>, path: &str, query: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&()*+,;=:@/%".contains(&byte);
    // The standard treats a host whose last label is a number as an address.
    let last_label = host.name.rsplit('.').next().unwrap_or_default();
    last_label.starts_with(|first: char| first.is_ascii_alphabetic())
        && !host.name.starts_with("xn--")
        && !host.name.contains(".xn--")
        && path.bytes().all(|byte| plain(byte) || byte == b'\'')
        && query.bytes().all(|byte| plain(byte) || byte == b'?')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn target(is_tls: bool, host: &str, rest: &str) -> Result<(String, String), Code> {
        let target = Target::new(is_tls, &Host::parse(host).unwrap(), rest)?;
        let path = target.path().to_owned();
        Ok((target.into_text(), path))
    }

    #[test]
    fn the_function_sees_the_serialised_url() {
        let cases = [
            (false, "a.test", "/x?y=1", "http://a.test/x?y=1"),
            (false, "a.test:80", "/", "http://a.test/"),
            (true, "a.test:443", "/", "https://a.test/"),
            (true, "a.test:80", "/", "https://a.test:80/"),
            (
                false,
                "a.test",
                "/a\"b|c{d}",
                "http://a.test/a%22b|c%7Bd%7D",
            ),
            (false, "a.test", "/'?'", "http://a.test/'?%27"),
            (false, "a.test", "/%zz%2f?%", "http://a.test/%zz%2f?%"),
            (false, "a.test", "/?a\"b<>", "http://a.test/?a%22b%3C%3E"),
            (false, "127.0.0.1:8080", "/x", "http://127.0.0.1:8080/x"),
            (false, "[0:0::1]", "/x", "http://[::1]/x"),
            (false, "a.test", "//x//", "http://a.test//x//"),
        ];
        for (is_tls, host, rest, expected) in cases {
            assert_eq!(target(is_tls, host, rest).unwrap().0, expected, "{rest}");
        }
        let (_, path) = target(false, "a.test", "/a\"b?c").unwrap();
        assert_eq!(path, "/a%22b");
    }

    #[test]
    fn bytes_beyond_ascii_and_dot_segments_are_a_bad_path() {
        for rest in [
            "/ä", "/?ä", "/a\u{7f}", "/a b", "/../x", "/.", "\\", "*", "",
        ] {
            assert_eq!(target(false, "a.test", rest), Err(Code::BadPath), "{rest}");
        }
    }

    proptest! {
        /// A serialised URL parses to itself, on the fast and the slow way.
        #[test]
        fn serialising_is_stable(rest in "/[!-~]{0,30}", tls: bool, port in proptest::option::of(1u16..1000)) {
            prop_assume!(!rest.contains('#'));
            let port = port.map(|port| format!(":{port}")).unwrap_or_default();
            if let Ok((text, path)) = target(tls, &format!("a.test{port}"), &rest) {
                let url = Url::parse(&text).unwrap();
                prop_assert_eq!(url.as_str(), &text);
                prop_assert_eq!(url.path(), path);
            }
        }
    }
}
