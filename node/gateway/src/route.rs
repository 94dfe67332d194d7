//! From a host to a function, and the perimeter, which refuses requests before a worker is woken.
//! Pure.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, OnceLock};

use casemate_path::{CanonicalPath, PathPattern};
use casemate_wire::control::FunctionKey;
use casemate_wire::control::gateway::Perimeter;

use crate::answer::Code;

/// Methods that are allowed when the perimeter names none.
const DEFAULT_METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

/// All routes. Every change makes a new table; a reader keeps the table that it took. `F` is the
/// target of a host.
#[derive(Debug)]
pub struct Table<F> {
    hosts: HashMap<Arc<str>, Arc<Site<F>>>,
    /// Hosts below which another tenant has one; computed at the first query.
    parents: OnceLock<HashSet<Arc<str>>>,
}

/// A function, as callers reach it.
#[derive(Debug)]
pub struct Site<F> {
    /// Key of the function.
    pub key: FunctionKey,
    /// The function's workers.
    pub function: F,
    /// The perimeter, checked before a worker is woken.
    pub gate: Gate,
}

/// A perimeter, compiled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gate {
    methods: Option<Vec<String>>,
    /// The path patterns; a text that is not a valid pattern allows nothing.
    paths: Option<Vec<Option<PathPattern>>>,
    allow: String,
    /// Largest body, bytes.
    pub max_body_bytes: u64,
}

impl<F> Default for Table<F> {
    fn default() -> Self {
        Self {
            hosts: HashMap::new(),
            parents: OnceLock::new(),
        }
    }
}

impl<F> Table<F> {
    /// The target of this host (lower case, no port).
    pub fn find(&self, host: &str) -> Option<&Arc<Site<F>>> {
        self.hosts.get(host)
    }

    /// Whether another tenant has a host below this one.
    pub fn has_neighbours_below(&self, host: &str) -> bool {
        let parents = self.parents.get_or_init(|| self.parents_of_neighbours());
        parents.contains(host)
    }

    fn parents_of_neighbours(&self) -> HashSet<Arc<str>> {
        let mut parents = HashSet::new();
        for (host, site) in &self.hosts {
            let mut below: &str = host;
            while let Some((_, parent)) = below.split_once('.') {
                let above = self.hosts.get_key_value(parent);
                let is_neighbour = |above: &Site<F>| above.key.tenant != site.key.tenant;
                if let Some((name, _)) = above.filter(|(_, above)| is_neighbour(above)) {
                    parents.insert(name.clone());
                }
                below = parent;
            }
        }
        parents
    }

    /// A table in which exactly these hosts lead to this function. A host that led to another
    /// function leads to this one now.
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

    /// A table in which no host leads to this function.
    #[must_use]
    pub fn without(&self, key: &FunctionKey) -> Self {
        let others = self.hosts.iter().filter(|(_, site)| site.key != *key);
        Self {
            hosts: others
                .map(|(host, site)| (host.clone(), site.clone()))
                .collect(),
            parents: OnceLock::new(),
        }
    }
}

impl From<Perimeter> for Gate {
    fn from(perimeter: Perimeter) -> Self {
        let (methods, paths) = (perimeter.methods, perimeter.paths);
        Self {
            allow: if methods.is_empty() {
                DEFAULT_METHODS.to_owned()
            } else {
                methods.join(", ")
            },
            methods: (!methods.is_empty()).then_some(methods),
            paths: (!paths.is_empty())
                .then(|| paths.iter().map(|text| text.parse().ok()).collect()),
            max_body_bytes: perimeter.max_body_bytes,
        }
    }
}

impl Gate {
    /// Checks a request against the perimeter. `length`: of the body, as far as it was declared.
    ///
    /// # Errors
    /// The perimeter does not allow the method, the path or the length.
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
            // A function may decode a path once more than a rule for paths does.
            let path = CanonicalPath::new(path).map_err(|_| Code::BadPath)?;
            if !paths.iter().flatten().any(|pattern| pattern.matches(&path)) {
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

/// Whether the worker's URL parser keeps this path unchanged. The parser resolves dot segments,
/// also encoded ones, and treats a backslash as a slash (WHATWG URL, path state). So the function
/// sees the path that was judged.
pub fn is_unambiguous(path: &str) -> bool {
    if !path.starts_with('/') || path.contains('\\') {
        return false;
    }
    // Most paths have no dot right after a slash, and need no further check.
    let bytes = path.as_bytes();
    let suspicious = bytes
        .windows(2)
        .any(|pair| pair[0] == b'/' && matches!(pair[1], b'.' | b'%'));
    !suspicious || !path.split('/').any(is_dot_segment)
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
    use casemate_path::Verdict;

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
    fn a_host_has_neighbours_below_where_another_tenant_has_a_host_there() {
        let of_tenant = |tenant: u8, function: &str| {
            let mut site = site(function, 1);
            site.key.tenant = [tenant; 32];
            site
        };
        let hosts = |hosts: &[&str]| hosts.iter().map(|host| (*host).into()).collect::<Vec<_>>();
        let table = Table::default()
            .with(&hosts(&["a.test", "www.a.test"]), of_tenant(1, "one"))
            .with(&hosts(&["b.test", "xa.test"]), of_tenant(2, "two"));
        assert!(!table.has_neighbours_below("a.test"));
        let table = table.with(&hosts(&["x.y.a.test"]), of_tenant(2, "three"));
        for (host, expected) in [
            ("a.test", true),
            ("www.a.test", false),
            ("b.test", false),
            ("x.y.a.test", false),
        ] {
            assert_eq!(table.has_neighbours_below(host), expected, "{host}");
        }
        let mut gone = key("three");
        gone.tenant = [2; 32];
        assert!(!table.without(&gone).has_neighbours_below("a.test"));
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
    fn paths_are_judged_by_their_canonical_form() {
        let gate = gate(&[], &["/exact", "/below/*"], 1);
        for path in [
            "/exact",
            "/below/",
            "/below/x",
            "/%65xact",
            "/below/...",
            "/below/.well-known",
        ] {
            assert_eq!(gate.check("GET", path, None), Ok(()), "{path}");
        }
        for path in [
            "/", "/exact/", "/Exact", "/exac", "/below", "/belowx", "/exact*",
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

    /// The table that the rules for outgoing calls must pass too.
    #[test]
    fn behind_a_rule_for_paths_no_spelling_leads_elsewhere() {
        let (ruled, open) = (gate(&[], &["/v1/*"], 1), gate(&[], &[], 1));
        for (path, verdict) in casemate_path::TABLE {
            let expected = match verdict {
                Verdict::Matches => Ok(()),
                Verdict::Other => Err(Code::PerimeterPath),
                Verdict::Ambiguous => Err(Code::BadPath),
            };
            assert_eq!(ruled.check("GET", path, None), expected, "{path}");
            let is_resolved = !is_unambiguous(path);
            assert_eq!(
                open.check("GET", path, None).is_err(),
                is_resolved,
                "{path}"
            );
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
