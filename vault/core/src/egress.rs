//! Decides whether a call is permitted, and which credential goes with it. Deny unless declared.

use casemate_trust::authority::CaPem;
use casemate_trust::path::{CanonicalPath, Method, PathPattern};
use casemate_trust::release::{Credential, EgressRule, Release, Scheme};
use casemate_trust::statement::EgressCeiling;

use crate::target::{Target, TargetError};

/// A permitted call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allowed<'a> {
    /// The target.
    pub target: Target,
    /// The method.
    pub method: Method,
    /// The slot to fill, if any.
    pub credential: Option<&'a Credential>,
    /// PEM of the certificate authority to trust instead of the node's own.
    pub ca: Option<&'a str>,
    /// Whether the release limits the methods or the paths of such calls.
    pub limited: bool,
}

/// Why a call is denied. The function sees the text, and the code that the broker assigns to each
/// variant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// The URL has no single meaning.
    #[error("the URL is refused: {0}")]
    Target(#[from] TargetError),
    /// The method is not supported.
    #[error("expected an HTTP method in upper case, without CONNECT and TRACE")]
    Method,
    /// The release declares no such capability.
    #[error("the release declares no credential for the binding {0}")]
    Binding(String),
    /// The capability leads to another place.
    #[error("the binding {binding} goes to https://{declared}, not to {asked}")]
    Elsewhere {
        /// The binding.
        binding: String,
        /// The declared place.
        declared: String,
        /// The requested place.
        asked: String,
    },
    /// The operator's ceiling for the tenant does not allow it.
    #[error("the operator does not let this tenant call {host}:{port}")]
    Ceiling {
        /// Host.
        host: String,
        /// Port.
        port: u16,
    },
    /// Nothing in the release allows the place.
    #[error("the release declares no egress to {scheme}://{host}:{port}")]
    Host {
        /// Scheme.
        scheme: &'static str,
        /// Host.
        host: String,
        /// Port.
        port: u16,
    },
    /// The host is declared, but not with this method or path.
    #[error("the release declares egress to that host, but not {0} with that path")]
    MethodOrPath(Method),
    /// The path has several readings, and the release limits paths.
    #[error(
        "the path is not canonical: where the release limits paths, it must have no `//`, `.`, `..`, `;` or needless percent-encoding, \
         and percent-encoding in upper case"
    )]
    Path,
}

/// The host and port of a slot, in the form of a URL's authority.
fn declared(credential: &Credential) -> String {
    if credential.port == Scheme::Https.default_port() {
        credential.host.to_string()
    } else {
        format!("{}:{}", credential.host, credential.port)
    }
}

/// Decides one call of a function with this release; `binding` is the capability that it used, if
/// any, and `ceiling` the operator's limits for the tenant.
///
/// # Errors
/// See [`Denial`].
pub fn decide<'a>(
    release: &'a Release,
    ceiling: Option<&EgressCeiling>,
    binding: Option<&str>,
    method: &str,
    url: &str,
) -> Result<Allowed<'a>, Denial> {
    let method: Method = method.parse().map_err(|_| Denial::Method)?;
    let target = Target::parse(url)?;
    if ceiling.is_some_and(|ceiling| !ceiling.allows(&target.host, target.port)) {
        return Err(Denial::Ceiling {
            host: target.host.to_string(),
            port: target.port,
        });
    }
    match binding {
        Some(binding) => by_binding(release, binding, target, method),
        None => by_rules(release, target, method),
    }
}

/// Decides a call through a capability, which leads to the capability's slot or nowhere.
fn by_binding<'a>(
    release: &'a Release,
    binding: &str,
    target: Target,
    method: Method,
) -> Result<Allowed<'a>, Denial> {
    let mut slots = release.credentials.iter();
    let slot = slots.find(|credential| credential.binding.as_str() == binding);
    let slot = slot.ok_or_else(|| Denial::Binding(binding.chars().take(64).collect()))?;
    if target.scheme != Scheme::Https || target.host != slot.host || target.port != slot.port {
        return Err(Denial::Elsewhere {
            binding: binding.to_owned(),
            declared: declared(slot),
            asked: format!("{}://{}", target.scheme.as_str(), target.authority()),
        });
    }
    if fits(&slot.methods, &slot.paths, &method, &target.path)? {
        Ok(Rule::of_slot(slot).allow(target, method))
    } else {
        Err(Denial::MethodOrPath(method))
    }
}

/// Decides a plain call by the first slot, or else the first rule, that matches. If none does, the
/// last one with the same host supplies the reason.
fn by_rules(release: &Release, target: Target, method: Method) -> Result<Allowed<'_>, Denial> {
    let mut denial = Denial::Host {
        scheme: target.scheme.as_str(),
        host: target.host.to_string(),
        port: target.port,
    };
    let slots = release.credentials.iter().filter(|slot| {
        slot.auto
            && target.scheme == Scheme::Https
            && slot.host == target.host
            && slot.port == target.port
    });
    let rules = release.egress.iter().filter(|rule| {
        rule.scheme == target.scheme && rule.host == target.host && rule.port == target.port
    });
    for rule in slots.map(Rule::of_slot).chain(rules.map(Rule::of_egress)) {
        match fits(rule.methods, rule.paths, &method, &target.path) {
            Ok(true) => return Ok(rule.allow(target, method)),
            Ok(false) => denial = Denial::MethodOrPath(method.clone()),
            Err(other) => denial = other,
        }
    }
    Err(denial)
}

/// The common part of a slot and of a rule without a credential.
struct Rule<'a> {
    methods: &'a [Method],
    paths: &'a [PathPattern],
    ca: Option<&'a CaPem>,
    credential: Option<&'a Credential>,
}

impl<'a> Rule<'a> {
    fn of_slot(slot: &'a Credential) -> Self {
        Self {
            methods: &slot.methods,
            paths: &slot.paths,
            ca: slot.ca.as_ref(),
            credential: Some(slot),
        }
    }

    fn of_egress(rule: &'a EgressRule) -> Self {
        Self {
            methods: &rule.methods,
            paths: &rule.paths,
            ca: rule.ca.as_ref(),
            credential: None,
        }
    }

    fn allow(self, target: Target, method: Method) -> Allowed<'a> {
        Allowed {
            target,
            method,
            credential: self.credential,
            ca: self.ca.map(CaPem::as_str),
            limited: is_limited(self.methods, self.paths),
        }
    }
}

const fn is_limited(methods: &[Method], paths: &[PathPattern]) -> bool {
    !methods.is_empty() || !paths.is_empty()
}

/// Whether a call matches. Where the rule limits paths, the path must be canonical; otherwise its
/// reading is left to the upstream.
fn fits(
    methods: &[Method],
    paths: &[PathPattern],
    method: &Method,
    path: &str,
) -> Result<bool, Denial> {
    if !methods.is_empty() && !methods.contains(method) {
        return Ok(false);
    }
    if paths.is_empty() {
        return Ok(true);
    }
    let path = CanonicalPath::new(path).map_err(|_| Denial::Path)?;
    Ok(paths.iter().any(|pattern| pattern.matches(&path)))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use casemate_path::Verdict;
    use casemate_trust::id::{Digest, FleetId, TenantId};
    use casemate_trust::release::{BundleRef, EgressRule, Limits, Perimeter, Slot};

    pub(crate) fn release() -> Release {
        let slot = |binding: &str, host: &str, auto| Credential {
            binding: binding.parse().unwrap(),
            secret: "KEY".parse().unwrap(),
            host: host.parse().unwrap(),
            port: 443,
            methods: vec!["POST".parse().unwrap()],
            paths: vec!["/v1/*".parse().unwrap()],
            slot: Slot::Bearer,
            auto,
            ca: None,
            ranges: false,
        };
        let rule = |host: &str, paths: &[&str]| EgressRule {
            scheme: Scheme::Https,
            host: host.parse().unwrap(),
            port: 443,
            methods: vec![],
            paths: paths.iter().map(|path| path.parse().unwrap()).collect(),
            ca: None,
        };
        Release {
            fleet: FleetId([1; 32]),
            tenant: TenantId([2; 32]),
            function: "web".parse().unwrap(),
            bundle: BundleRef {
                digest: Digest([3; 32]),
                bytes: 1,
            },
            entry: "main.js".into(),
            hosts: vec![],
            perimeter: Perimeter::default(),
            limits: Limits::default(),
            vars: vec![],
            egress: vec![rule("open.test", &[]), rule("auto.test", &["/public/*"])],
            credentials: vec![
                slot("pay", "pay.test", false),
                slot("auto", "auto.test", true),
            ],
            dynamic_code: false,
            owner: String::new(),
        }
    }

    fn ask(binding: Option<&str>, method: &str, url: &str) -> Result<Option<String>, Denial> {
        let release = release();
        let allowed = decide(&release, None, binding, method, url)?;
        Ok(allowed.credential.map(|slot| slot.binding.to_string()))
    }

    #[test]
    fn a_binding_goes_where_it_was_declared_and_nowhere_else() {
        assert_eq!(
            ask(Some("pay"), "POST", "https://pay.test/v1/charges")
                .unwrap()
                .as_deref(),
            Some("pay")
        );
        let elsewhere = [
            "https://evil.test/v1/x",
            "https://pay.test.evil.test/v1/x",
            "https://pay.test:444/v1/x",
            "http://pay.test/v1/x",
            "http://pay.test:443/v1/x",
            "https://sub.pay.test/v1/x",
            "https://open.test/v1/x",
        ];
        for url in elsewhere {
            assert!(
                matches!(ask(Some("pay"), "POST", url), Err(Denial::Elsewhere { .. })),
                "{url}"
            );
        }
        assert!(matches!(
            ask(Some("pay"), "GET", "https://pay.test/v1/x"),
            Err(Denial::MethodOrPath(_))
        ));
        assert!(matches!(
            ask(Some("pay"), "POST", "https://pay.test/v2/x"),
            Err(Denial::MethodOrPath(_))
        ));
        for path in [
            "/v1/../admin",
            "/v1/%2e%2e/admin",
            "/v1//x",
            "/v1/a%2fb",
            "/v1/a;x",
            "/v1/%2E%2E/x",
        ] {
            assert_eq!(
                ask(Some("pay"), "POST", &format!("https://pay.test{path}")),
                Err(Denial::Path),
                "{path}"
            );
        }
        assert!(matches!(
            ask(Some("other"), "POST", "https://pay.test/v1/x"),
            Err(Denial::Binding(_))
        ));
        assert!(matches!(
            ask(Some("pay"), "CONNECT", "https://pay.test/v1/x"),
            Err(Denial::Method)
        ));
        assert!(matches!(
            ask(Some("pay"), "post", "https://pay.test/v1/x"),
            Err(Denial::Method)
        ));
    }

    #[test]
    fn the_table_that_the_perimeter_is_held_to_holds_for_calls() {
        for (path, verdict) in casemate_path::TABLE {
            let asked = ask(Some("pay"), "POST", &format!("https://pay.test{path}"));
            match verdict {
                Verdict::Matches => assert!(asked.is_ok(), "{path}: {asked:?}"),
                Verdict::Other => assert!(
                    matches!(asked, Err(Denial::MethodOrPath(_))),
                    "{path}: {asked:?}"
                ),
                Verdict::Ambiguous => assert_eq!(asked, Err(Denial::Path), "{path}"),
            }
        }
    }

    #[test]
    fn plain_fetch_gets_a_credential_only_where_it_is_automatic() {
        assert_eq!(
            ask(None, "POST", "https://auto.test/v1/x")
                .unwrap()
                .as_deref(),
            Some("auto")
        );
        assert_eq!(
            ask(None, "GET", "https://auto.test/public/x").unwrap(),
            None
        );
        assert!(matches!(
            ask(None, "GET", "https://auto.test/v1/x"),
            Err(Denial::MethodOrPath(_))
        ));
        assert!(matches!(
            ask(None, "POST", "https://pay.test/v1/x"),
            Err(Denial::Host { .. })
        ));
    }

    #[test]
    fn what_is_not_declared_is_denied() {
        assert_eq!(
            ask(None, "GET", "https://open.test/a/../b;c").unwrap(),
            None
        );
        assert!(matches!(
            ask(None, "GET", "http://open.test/"),
            Err(Denial::Host { .. })
        ));
        assert!(matches!(
            ask(None, "GET", "https://169.254.169.254/latest"),
            Err(Denial::Host { .. })
        ));
        assert!(matches!(
            ask(None, "GET", "https://user@open.test/"),
            Err(Denial::Target(_))
        ));
    }

    #[test]
    fn a_denial_by_the_release_differs_from_one_that_no_release_could_lift() {
        let release = release();
        let no_release_could = |binding, method, url| {
            let denied = decide(&release, None, binding, method, url).unwrap_err();
            matches!(denied, Denial::Target(_) | Denial::Method)
        };
        let pay = Some("pay");
        for (binding, method, url) in [
            (None, "GET", "https://elsewhere.test/"),
            (pay, "DELETE", "https://pay.test/v1/x"),
            (pay, "POST", "https://pay.test/v1//x"),
            (pay, "POST", "https://open.test/v1/x"),
            (Some("none"), "POST", "https://pay.test/v1/x"),
        ] {
            assert!(!no_release_could(binding, method, url), "{method} {url}");
        }
        for (method, url) in [
            ("CONNECT", "https://open.test/"),
            ("GET", "https://open.test./"),
            ("GET", "ftp://open.test/"),
        ] {
            assert!(no_release_could(None, method, url), "{method} {url}");
        }
    }

    #[test]
    fn no_release_goes_beyond_the_operators_ceiling() {
        let release = release();
        let ask = |(hosts, ports): (&[&str], &[u16]), binding: Option<&str>, url: &str| {
            let ceiling = EgressCeiling {
                hosts: hosts.iter().map(|host| host.parse().unwrap()).collect(),
                ports: ports.to_vec(),
                private_networks: vec![],
            };
            decide(&release, Some(&ceiling), binding, "POST", url).map(|allowed| allowed.limited)
        };
        let (pay, open) = ("https://pay.test/v1/x", "https://open.test/x");
        let only_pay: (&[&str], &[u16]) = (&["pay.test"], &[443]);
        assert_eq!(ask(only_pay, Some("pay"), pay), Ok(true));
        assert_eq!(ask((&[], &[]), None, open), Ok(false));
        let denied = ask(only_pay, None, open).unwrap_err();
        assert!(matches!(denied, Denial::Ceiling { .. }), "{denied}");
        let denied = ask((&[], &[8443]), Some("pay"), pay).unwrap_err();
        assert_eq!(
            denied.to_string(),
            "the operator does not let this tenant call pay.test:443"
        );
    }
}
