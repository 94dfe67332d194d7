//! From a host to a function, and the perimeter: what is refused before a worker is woken. Pure.

use std::collections::HashMap;
use std::sync::Arc;

use casemate_wire::control::FunctionKey;
use casemate_wire::control::gateway::Perimeter;

use crate::answer::Code;

/// Methods let through where the perimeter names none.
const DEFAULT_METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

/// All routes. A new table for every change; readers keep the one that they took. `F` is what a host leads to.
#[derive(Debug)]
pub struct Table<F> {
    hosts: HashMap<Arc<str>, Arc<Site<F>>>,
}

/// A function as callers reach it.
#[derive(Debug)]
pub struct Site<F> {
    /// Which.
    pub key: FunctionKey,
    /// Where its workers are.
    pub function: F,
    /// Checked before a worker is woken.
    pub gate: Gate,
}

/// A perimeter, ready to be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gate {
    methods: Option<Vec<String>>,
    paths: Option<Vec<Pattern>>,
    allow: String,
    /// Largest body, bytes.
    pub max_body_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Pattern {
    Exact(String),
    /// With its last slash.
    Below(String),
}

impl<F> Default for Table<F> {
    fn default() -> Self {
        Self {
            hosts: HashMap::new(),
        }
    }
}

impl<F> Table<F> {
    /// Where this host leads; lower case, no port.
    pub fn find(&self, host: &str) -> Option<&Arc<Site<F>>> {
        self.hosts.get(host)
    }

    /// The table in which exactly these hosts lead to this function. A host that led elsewhere leads here now.
    #[must_use]
    pub fn with(&self, hosts: &[String], site: Site<F>) -> Self {
        let mut next = self.without(&site.key);
        let site = Arc::new(site);
        next.hosts.extend(
            hosts
                .iter()
                .map(|host| (Arc::from(host.as_str()), site.clone())),
        );
        next
    }

    /// The table in which no host leads to this function.
    #[must_use]
    pub fn without(&self, key: &FunctionKey) -> Self {
        let others = self.hosts.iter().filter(|(_, site)| site.key != *key);
        Self {
            hosts: others
                .map(|(host, site)| (host.clone(), site.clone()))
                .collect(),
        }
    }
}

impl From<Perimeter> for Gate {
    fn from(perimeter: Perimeter) -> Self {
        let pattern = |text: String| match text.strip_suffix('*') {
            Some(prefix) if prefix.ends_with('/') => Pattern::Below(prefix.to_owned()),
            _ => Pattern::Exact(text),
        };
        let (methods, paths) = (perimeter.methods, perimeter.paths);
        Self {
            allow: if methods.is_empty() {
                DEFAULT_METHODS.to_owned()
            } else {
                methods.join(", ")
            },
            methods: (!methods.is_empty()).then_some(methods),
            paths: (!paths.is_empty()).then(|| paths.into_iter().map(pattern).collect()),
            max_body_bytes: perimeter.max_body_bytes,
        }
    }
}

impl Gate {
    /// Lets a request through, or says why not. `length`: the body's, as far as it was declared.
    ///
    /// # Errors
    /// The method, the path, or the length is not let through.
    pub fn check(&self, method: &str, path: &str, length: Option<u64>) -> Result<(), Code> {
        let method_passes = match &self.methods {
            None => matches!(
                method,
                "GET" | "HEAD" | "POST" | "PUT" | "PATCH" | "DELETE" | "OPTIONS"
            ),
            Some(methods) => methods.iter().any(|allowed| allowed == method),
        };
        if !method_passes {
            return Err(Code::PerimeterMethod);
        }
        if !is_unambiguous(path) {
            return Err(Code::BadPath);
        }
        if let Some(paths) = &self.paths {
            // Behind a rule for paths a function may decode once more than the rule does.
            if may_lead_elsewhere(path) {
                return Err(Code::BadPath);
            }
            if !paths.iter().any(|pattern| pattern.matches(path)) {
                return Err(Code::PerimeterPath);
            }
        }
        if length.is_some_and(|length| length > self.max_body_bytes) {
            return Err(Code::BodyTooLarge);
        }
        Ok(())
    }

    /// The value of `Allow`.
    pub fn allow(&self) -> &str {
        &self.allow
    }
}

impl Pattern {
    fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => exact == path,
            Self::Below(prefix) => path.starts_with(prefix.as_str()),
        }
    }
}

/// Whether the worker's URL parser leaves this path as it is: it resolves dot segments, also encoded ones, and takes a
/// backslash for a slash (WHATWG URL, path state). What was judged here is what the function sees.
pub fn is_unambiguous(path: &str) -> bool {
    if !path.starts_with('/') || path.contains('\\') {
        return false;
    }
    // Most paths have no dot right after a slash, and are done here.
    let bytes = path.as_bytes();
    let suspicious = bytes
        .windows(2)
        .any(|pair| pair[0] == b'/' && matches!(pair[1], b'.' | b'%'));
    !suspicious || !path.split('/').any(is_dot_segment)
}

/// Times that a path is decoded to see where it may lead.
const MAX_DECODINGS: usize = 3;

/// Whether a program that decodes this path, takes backslashes for slashes, or leaves out what follows a semicolon in a
/// segment finds a dot segment in it.
fn may_lead_elsewhere(path: &str) -> bool {
    // Most paths have neither, and are done here.
    if !path.bytes().any(|byte| matches!(byte, b'%' | b';')) {
        return false;
    }
    let has_dot_segment = |path: &[u8]| {
        let mut segments = path.split(|byte| matches!(byte, b'/' | b'\\'));
        segments.any(|segment| {
            let name = segment.split(|byte| *byte == b';').next();
            matches!(name, Some(b"." | b".."))
        })
    };
    let mut decoded = path.as_bytes().to_vec();
    for _ in 0..MAX_DECODINGS {
        if has_dot_segment(&decoded) {
            return true;
        }
        decoded = decode(&decoded);
    }
    // Encoded more often than anybody decodes.
    has_dot_segment(&decoded) || decode(&decoded) != decoded
}

/// Percent-decodes once; what is no escape stays.
fn decode(text: &[u8]) -> Vec<u8> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, after @ ..] = rest {
        rest = after;
        let escape = match after {
            [high, low, ..] if *first == b'%' => digit(high).zip(digit(low)),
            _ => None,
        };
        match escape {
            Some((high, low)) => {
                out.push((high * 16 + low) as u8);
                rest = &after[2..];
            }
            None => out.push(*first),
        }
    }
    out
}

fn is_dot_segment(segment: &str) -> bool {
    let mut rest = segment.as_bytes();
    let mut dots = 0;
    while !rest.is_empty() {
        rest = match rest {
            [b'.', rest @ ..] | [b'%', b'2', b'e' | b'E', rest @ ..] => rest,
            _ => return false,
        };
        dots += 1;
    }
    dots == 1 || dots == 2
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(function: &str) -> FunctionKey {
        FunctionKey {
            tenant: [1; 32],
            function: function.into(),
        }
    }

    fn gate(methods: &[&str], paths: &[&str], max_body_bytes: u64) -> Gate {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        Perimeter {
            methods: owned(methods),
            paths: owned(paths),
            max_body_bytes,
        }
        .into()
    }

    fn site(function: &str, n: u32) -> Site<u32> {
        Site {
            key: key(function),
            function: n,
            gate: gate(&[], &[], 1),
        }
    }

    #[test]
    fn exactly_the_hosts_of_the_newest_route_lead_to_a_function() {
        let hosts = |hosts: &[&str]| {
            hosts
                .iter()
                .map(|host| (*host).to_owned())
                .collect::<Vec<_>>()
        };
        let find = |table: &Table<u32>, host: &str| table.find(host).map(|site| site.function);
        let table = Table::default().with(&hosts(&["a.test", "b.test"]), site("one", 1));
        let table = table.with(&hosts(&["b.test", "c.test"]), site("one", 2));
        assert_eq!(
            (
                find(&table, "a.test"),
                find(&table, "b.test"),
                find(&table, "c.test")
            ),
            (None, Some(2), Some(2))
        );
        let table = table.with(&hosts(&["c.test"]), site("two", 3));
        assert_eq!(
            (find(&table, "b.test"), find(&table, "c.test")),
            (Some(2), Some(3))
        );
        assert_eq!(find(&table.without(&key("one")), "b.test"), None);
        assert_eq!(find(&table.without(&key("one")), "c.test"), Some(3));
        assert_eq!(find(&table, "C.test"), None);
    }

    #[test]
    fn methods() {
        let open = gate(&[], &[], 1);
        for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
            assert_eq!(open.check(method, "/", None), Ok(()));
        }
        for method in ["CONNECT", "TRACE", "get", "PROPFIND", ""] {
            assert_eq!(open.check(method, "/", None), Err(Code::PerimeterMethod));
        }
        let narrow = gate(&["PROPFIND"], &[], 1);
        assert_eq!(narrow.check("PROPFIND", "/", None), Ok(()));
        assert_eq!(narrow.check("GET", "/", None), Err(Code::PerimeterMethod));
        assert_eq!(narrow.allow(), "PROPFIND");
    }

    #[test]
    fn paths_are_judged_byte_for_byte() {
        let gate = gate(&[], &["/exact", "/below/*"], 1);
        for path in [
            "/exact",
            "/below/",
            "/below/x",
            "/below/x%2fy",
            "/below/...",
            "/below/.well-known",
            "/below//x",
            "/below/;x",
        ] {
            assert_eq!(gate.check("GET", path, None), Ok(()), "{path}");
        }
        for path in [
            "/", "/exact/", "/Exact", "/exac", "/below", "/belowx", "/%65xact", "//exact",
            "/exact;x", "/exact*",
        ] {
            assert_eq!(
                gate.check("GET", path, None),
                Err(Code::PerimeterPath),
                "{path}"
            );
        }
    }

    #[test]
    fn dot_segments_and_backslashes_are_refused_everywhere() {
        let open = gate(&[], &[], 1);
        let paths = [
            "/below/../admin",
            "/below/..",
            "/./x",
            "/.",
            "/%2e%2e/admin",
            "/below/%2E./admin",
            "/below/.%2e",
            "/below\\..\\admin",
            "*",
            "",
            "below",
        ];
        for path in paths {
            assert_eq!(open.check("GET", path, None), Err(Code::BadPath), "{path}");
        }
        for path in ["/a..b", "/..a", "/a.", "/.a/b", "/%2ea", "/..."] {
            assert_eq!(open.check("GET", path, None), Ok(()), "{path}");
        }
    }

    #[test]
    fn behind_a_rule_for_paths_no_spelling_leads_elsewhere() {
        let (ruled, open) = (gate(&[], &["/api/*"], 1), gate(&[], &[], 1));
        for path in [
            "/api/..%2fprivate",
            "/api/..;/private",
            "/api/..;x=1/private",
            "/api/%252e%252e/private",
            "/api/%25252e%25252e/private",
            "/api/x%2f..%2f..%2fprivate",
            "/api/..%5cprivate",
            "/api/%2e%2e%2fprivate",
            "/api/.%252e/private",
            "/api/%2525252525",
        ] {
            assert_eq!(ruled.check("GET", path, None), Err(Code::BadPath), "{path}");
            assert_eq!(open.check("GET", path, None), Ok(()), "{path}");
        }
        for path in [
            "/api/a%2fb",
            "/api/a;x=..",
            "/api/..a%2f",
            "/api/%zz%",
            "/api/100%25",
            "/api/%E4%B8%AD",
        ] {
            assert_eq!(ruled.check("GET", path, None), Ok(()), "{path}");
        }
    }

    #[test]
    fn declared_lengths() {
        let gate = gate(&[], &[], 10);
        assert_eq!(gate.check("POST", "/", Some(10)), Ok(()));
        assert_eq!(gate.check("POST", "/", Some(11)), Err(Code::BodyTooLarge));
        assert_eq!(gate.check("POST", "/", None), Ok(()));
    }

    #[test]
    fn a_star_that_does_not_follow_a_slash_is_no_wildcard() {
        assert_eq!(
            gate(&[], &["/a*"], 1).check("GET", "/abc", None),
            Err(Code::PerimeterPath)
        );
        assert_eq!(gate(&[], &["/*"], 1).check("GET", "/abc", None), Ok(()));
    }
}
