//! Cookies that are valid beyond the function's own host. Pure.
//!
//! Functions of several tenants may be neighbours under one parent domain. A cookie with that
//! parent as its `Domain=` would be sent to all of them, and would replace their cookies. The
//! gateway knows no reliable bound except the host of the request, so a cookie may name that host
//! or none. A cookie that names its host is sent to all hosts below it too, so it is refused where
//! another tenant has one of these.

/// The hosts to which a cookie is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// The host that sets it, alone.
    Host,
    /// That host and all hosts below it.
    Below,
    /// Other hosts.
    Wider,
}

/// The hosts to which a `Set-Cookie` value of `host` (lower case, no port, no last dot) applies.
///
/// Parsed as browsers do (RFC 6265, section 5.2): attributes follow the first semicolon, names are
/// case-insensitive, one leading dot is ignored, and so is an attribute without a value. Browsers
/// obey the last of several `Domain` attributes; here none of them may be wider.
pub fn reach(value: &[u8], host: &str) -> Reach {
    let attributes = value.split(|byte| *byte == b';').skip(1);
    let mut reach = Reach::Host;
    for domain in attributes.filter_map(domain) {
        if !domain.eq_ignore_ascii_case(host.as_bytes()) {
            return Reach::Wider;
        }
        reach = Reach::Below;
    }
    reach
}

/// The value of this attribute, if it is a `Domain` with one.
fn domain(attribute: &[u8]) -> Option<&[u8]> {
    let equals = attribute.iter().position(|byte| *byte == b'=')?;
    let name = attribute[..equals].trim_ascii();
    let value = attribute[equals + 1..].trim_ascii();
    let value = value.strip_prefix(b".").unwrap_or(value);
    (name.eq_ignore_ascii_case(b"domain") && !value.is_empty()).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_for_the_own_host_or_for_none_passes() {
        for value in [
            "a=1",
            "a=1; Path=/; Secure; HttpOnly; SameSite=Lax",
            "a=1; Domain=f.shared.test",
            "a=1; domain = F.Shared.Test ;Secure",
            "a=1;DOMAIN=.f.shared.test",
            "__Host-a=1; Path=/; Secure",
            "a=1; Domain=",
            "a=1; Domain",
            "a=1; Domain=.",
            "Domain=shared.test",
            "a=Domain=shared.test",
            "a=1; x-domain=shared.test",
            "",
        ] {
            let reach = reach(value.as_bytes(), "f.shared.test");
            let names_host = value.to_ascii_lowercase().contains("f.shared.test");
            let expected = if names_host {
                Reach::Below
            } else {
                Reach::Host
            };
            assert_eq!(reach, expected, "{value}");
        }
        assert_eq!(reach(b"a=1; Domain=127.0.0.1", "127.0.0.1"), Reach::Below);
    }

    #[test]
    fn a_cookie_for_a_parent_a_neighbour_or_something_else_does_not() {
        for value in [
            "a=1; Domain=shared.test",
            "a=1; Domain=.shared.test",
            "a=1; dOmAiN=SHARED.test; Path=/",
            "a=1;\tdomain\t=\tshared.test",
            "a=1; Domain=test",
            "a=1; Domain=g.shared.test",
            "a=1; Domain=x.f.shared.test",
            "a=1; Domain=f.shared.test.",
            "a=1; Domain=..f.shared.test",
            "a=1; Domain=f.shared.test:80",
            "a=1; Domain=f.shared.test; Domain=shared.test",
            "a=1; Domain=shared.test; Domain=f.shared.test",
            "; Domain=shared.test",
            "__Host-a=1; Domain=shared.test",
            "__Secure-a=1; Secure; Domain=shared.test",
            "a=\"x; Domain=shared.test\"",
            "a=1; Domain=f.shared.test,shared.test",
        ] {
            assert_eq!(
                reach(value.as_bytes(), "f.shared.test"),
                Reach::Wider,
                "{value}"
            );
        }
        let unicode = reach(b"a=1; Domain=\xc3\xa4.test", "xn--4ca.test");
        assert_eq!(unicode, Reach::Wider);
    }
}
