//! Which crate may depend on which.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};

use crate::none;
use crate::source::root;

/// The crate that opens secrets.
const OPENS: &str = "casemate-vault-core";

/// The crates that may link the crate that opens secrets; no other crate may.
const MAY_OPEN: &[&str] = &[OPENS, "casemate-vault"];

/// Crates that may name it as a development dependency; their tests and benchmarks are never
/// shipped.
const MAY_TEST_OPENING: &[&str] = &["casemate-vault", "casemate-benches"];

/// Packages that a program must not link, directly or indirectly.
const NOT_LINKED: &[(&str, &[&str])] = &[
    (
        "casemate-worker",
        &[
            "casemate-trust",
            "quinn",
            "sled",
            "redb",
            "hickory-resolver",
            "hyper",
            "rustls",
            "deno_fetch",
            "deno_net",
            "deno_tls",
        ],
    ),
    (
        "casemate-gateway",
        &[
            "casemate-trust",
            "quinn",
            "sled",
            "redb",
            "hickory-resolver",
        ],
    ),
];

/// The crates that may name each heavy or dangerous dependency.
const NAMED_BY: &[(&str, &[&str])] = &[
    ("sled", &["casemate-vault-store"]),
    ("redb", &["casemate-control-store"]),
    (
        "quinn",
        &[
            "casemate-node",
            "casemate-control",
            "casemate-control-testing",
        ],
    ),
    ("deno_core", &["casemate-worker"]),
    ("deno_web", &["casemate-worker"]),
    ("deno_crypto", &["casemate-worker"]),
    ("deno_fetch", &["casemate-worker"]),
    ("deno_webidl", &["casemate-worker"]),
    ("v8", &[]),
    ("hpke", &["casemate-trust", "casemate-vault-core"]),
    ("seccompiler", &["casemate-sandbox"]),
    ("landlock", &["casemate-sandbox"]),
    ("rolldown", &["casemate"]),
];

/// Words that mark a crate as a collection of leftovers, and that no crate's name may contain.
const LEFTOVERS: &[&str] = &[
    "common", "utils", "util", "types", "helpers", "misc", "shared",
];

/// The packages that each package links, by name.
type Graph = BTreeMap<String, BTreeSet<String>>;

pub(crate) fn metadata() -> Metadata {
    MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .exec()
        .expect("cargo metadata")
}

fn graph(metadata: &Metadata, kinds: &[DependencyKind]) -> Graph {
    let resolve = metadata.resolve.as_ref().expect("cargo metadata resolves");
    let mut graph = Graph::new();
    for node in &resolve.nodes {
        let links = node.deps.iter().filter(|dependency| {
            let mut its = dependency.dep_kinds.iter();
            its.any(|kind| kinds.contains(&kind.kind))
        });
        let links = links.map(|dependency| metadata[&dependency.pkg].name.to_string());
        let name = metadata[&node.id].name.to_string();
        // All versions of a package share one entry, which links the dependencies of each.
        graph.entry(name).or_default().extend(links);
    }
    graph
}

/// All packages that `package` links, directly or indirectly.
fn reach<'a>(graph: &'a Graph, package: &str) -> BTreeSet<&'a str> {
    let mut seen = BTreeSet::new();
    let mut todo: Vec<&'a str> = Vec::new();
    let start = graph.get(package);
    let start = start.unwrap_or_else(|| panic!("no package {package}"));
    todo.extend(start.iter().map(String::as_str));
    while let Some(name) = todo.pop() {
        if seen.insert(name) {
            todo.extend(graph[name].iter().map(String::as_str));
        }
    }
    seen
}

fn ours(metadata: &Metadata) -> Vec<String> {
    let packages = metadata.workspace_packages().into_iter();
    packages.map(|package| package.name.to_string()).collect()
}

fn openers(graph: &Graph, ours: &[String]) -> Vec<String> {
    let others = ours
        .iter()
        .filter(|name| !MAY_OPEN.contains(&name.as_str()));
    let openers = others.filter(|name| reach(graph, name).contains(OPENS));
    openers
        .map(|name| format!("{name} reaches {OPENS}"))
        .collect()
}

fn linked_against_the_rules(graph: &Graph) -> Vec<String> {
    let mut mistakes = Vec::new();
    for (package, absent) in NOT_LINKED {
        let reached = reach(graph, package);
        let there = absent.iter().filter(|name| reached.contains(*name));
        mistakes.extend(there.map(|name| format!("{package} reaches {name}")));
    }
    mistakes
}

/// Checks the dependencies: each entry is a package, the dependency that it names, and the kind of
/// the dependency.
fn named_wrongly(named: &[(String, String, DependencyKind)]) -> Vec<String> {
    let mut mistakes = Vec::new();
    for (package, name, kind) in named {
        let is_shipped = *kind == DependencyKind::Normal && package != "casemate-tests";
        let allowed = NAMED_BY.iter().find(|(restricted, _)| restricted == name);
        let allowed = allowed.map(|(_, allowed)| *allowed).filter(|_| is_shipped);
        let allowed = if name == OPENS && *kind == DependencyKind::Development {
            Some(MAY_TEST_OPENING)
        } else {
            allowed
        };
        if allowed.is_some_and(|allowed| !allowed.contains(&package.as_str())) {
            mistakes.push(format!("{package} names {name}; only {allowed:?} may"));
        }
    }
    mistakes
}

fn leftovers(names: &[String]) -> Vec<String> {
    let is_leftover = |name: &&String| name.split('-').any(|part| LEFTOVERS.contains(&part));
    names.iter().filter(is_leftover).cloned().collect()
}

#[test]
fn only_the_vault_can_open_a_secret() {
    let metadata = metadata();
    // Code that a build script links can end up in the script's output.
    let graph = graph(&metadata, &[DependencyKind::Normal, DependencyKind::Build]);
    none(&openers(&graph, &ours(&metadata)));
    assert!(
        reach(&graph, "casemate-vault").contains(OPENS),
        "the vault must link the crate, or this test proves nothing"
    );
}

#[test]
fn a_package_that_nobody_has_thought_of_cannot_open_a_secret() {
    let links = |names: &[&str]| names.iter().map(ToString::to_string).collect();
    let graph = Graph::from([
        (OPENS.into(), links(&[])),
        ("casemate-vault".into(), links(&[OPENS])),
        ("between".into(), links(&[OPENS])),
        ("casemate-new".into(), links(&["between"])),
    ]);
    let ours = [OPENS, "casemate-vault", "casemate-new"].map(String::from);
    assert_eq!(
        openers(&graph, &ours),
        ["casemate-new reaches casemate-vault-core"]
    );
}

#[test]
fn worker_and_gateway_carry_no_trust_code_and_no_network_client() {
    none(&linked_against_the_rules(&graph(
        &metadata(),
        &[DependencyKind::Normal],
    )));
}

#[test]
fn a_network_client_behind_another_crate_is_found() {
    let mut graph = graph(&metadata(), &[DependencyKind::Normal]);
    let worker = graph.get_mut("casemate-worker").expect("the worker");
    worker.insert("casemate-control".into());
    let found = linked_against_the_rules(&graph);
    for name in ["casemate-trust", "quinn", "rustls"] {
        let mistake = format!("casemate-worker reaches {name}");
        assert!(found.contains(&mistake), "{mistake} is not in {found:?}");
    }
}

#[test]
fn restricted_dependencies_are_named_by_few() {
    let mut named = Vec::new();
    for package in metadata().workspace_packages() {
        let dependencies = package.dependencies.iter();
        named.extend(dependencies.map(|dependency| {
            let name = dependency.name.clone();
            (package.name.to_string(), name, dependency.kind)
        }));
    }
    none(&named_wrongly(&named));
}

#[test]
fn a_second_user_of_a_restricted_dependency_is_found() {
    let name = |package: &str, name: &str, kind| (package.into(), name.into(), kind);
    let named = [
        name("casemate-vault", "sled", DependencyKind::Normal),
        name("casemate-worker", "v8", DependencyKind::Normal),
        name("casemate", OPENS, DependencyKind::Development),
        name("casemate-benches", OPENS, DependencyKind::Development),
        name("casemate-vault-store", "sled", DependencyKind::Normal),
    ];
    assert_eq!(named_wrongly(&named).len(), 3);
}

#[test]
fn no_crate_of_leftovers() {
    none(&leftovers(&ours(&metadata())));
    let planted = ["casemate-utils", "casemate-wire", "types"].map(String::from);
    assert_eq!(leftovers(&planted), ["casemate-utils", "types"]);
}
