//! Cookies that reach further than the function's own host. Pure.
//!
//! Functions of several tenants may be neighbours under one parent domain. A cookie with `Domain=` that parent would be
//! sent to all of them, and would replace theirs. The gateway knows the host of the request and no other bound that it
//! could rely on, so a cookie may name that host, or no host. A cookie that names its host goes to all hosts below it too,
//! so it may not where another tenant has one of them.

/// Where a cookie goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// To the host that sets it alone.
    Host,
    /// To that host and all below it.
    Below,
    /// Further.
    Wider,
}

/// Where a `Set-Cookie` value of `host` (lower case, no port, no last dot) goes.
///
/// Read as browsers do (RFC 6265, section 5.2): attributes come after the first semicolon, names in any case, one leading
/// dot is ignored, an attribute without a value too. Browsers obey the last of several; here none may be wider.
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

/// The domain, if this attribute is one that has a value.
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
