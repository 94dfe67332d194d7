//! A node's health, computed from the status that it sends. The node writes the status in a format
//! that may be newer or older than this program: a missing field is not reported, and a field of
//! another type counts as missing.

use casemate_api::node::{CheckView, HealthView};
use casemate_api::tenant::Refused;
use casemate_push::{LOAD_FAILED, LOAD_FAILED_EARLIER};
use casemate_trust::Seconds;
use serde_json::Value;

use super::last::Last;

/// Layers that some machines lack; their detail describes what is unprotected without them.
const OPTIONAL_LAYERS: [&str; 3] = ["speculation", "core_scheduling", "memory_lock"];
/// Largest tolerated difference between a node's clock and the control plane's, seconds.
const MAX_SKEW_SECS: u64 = 5 * 60;
/// A shorter remaining lease is reported, seconds.
const SHORT_LEASE_SECS: u64 = 60 * 60;
/// Longest detail, characters.
const MAX_DETAIL_CHARS: usize = 240;
/// Deepest level at which certificates are looked for in a status.
const MAX_DEPTH: usize = 4;
/// How long a duplicate key is reported after two machines used it, seconds.
const DUPLICATE_SECS: Seconds = 24 * 60 * 60;

/// A node's health; `None` if it has not sent a status.
pub(super) fn of(last: &Last, now: Seconds) -> Option<HealthView> {
    let status = &last.status;
    let is_silent = !status.is_object() && last.refused.is_empty();
    if is_silent && last.duplicate.is_none() && last.apart.is_none() {
        return None;
    }
    let checks = [
        protocol(last),
        identity(last, now),
        walls(status),
        vault(status),
        up(status, "gateway"),
        workers(status),
        disk(status),
        lease(status),
        image(status),
        certificates(status),
        clock(last),
        refusal(last),
    ];
    let checks = checks.into_iter().flatten();
    let checks = checks.map(|mut check| {
        check.detail = shortened(&check.detail);
        check
    });
    Some(HealthView {
        checks: checks.collect(),
        certificate_expires: certificate_expires(status),
    })
}

/// A detail for display: on one line, and marked if it was cut.
fn shortened(detail: &str) -> String {
    let mut letters = detail.chars().filter(|letter| !letter.is_control());
    let mut shown: String = letters.by_ref().take(MAX_DETAIL_CHARS).collect();
    if letters.next().is_some() {
        shown += "...";
    }
    shown
}

fn check(name: &str, ok: bool, detail: impl Into<String>) -> CheckView {
    CheckView {
        name: name.to_owned(),
        ok,
        detail: detail.into(),
    }
}

/// Whether node and control plane have a common protocol version.
fn protocol(last: &Last) -> Option<CheckView> {
    let apart = last.apart.as_ref()?;
    Some(check("protocol", false, apart))
}

fn identity(last: &Last, now: Seconds) -> Option<CheckView> {
    let seen = last.duplicate?;
    let is_recent = now.saturating_sub(seen) < DUPLICATE_SECS;
    let detail = "two machines have this node's key: its disk was copied";
    is_recent.then(|| check("identity", false, detail))
}

fn walls(status: &Value) -> Option<CheckView> {
    let programs = status["sandbox"].as_object()?;
    let missing = |is_optional: bool| {
        let mut found: Vec<String> = Vec::new();
        for (program, layers) in programs {
            for layer in layers.as_array().into_iter().flatten() {
                let Some(name) = layer["layer"].as_str() else {
                    continue;
                };
                let is_missing = layer["in_force"] == false && is_asked_for(program, name);
                if is_missing && OPTIONAL_LAYERS.contains(&name) == is_optional {
                    found.push(format!("{name} of {program}"));
                }
            }
        }
        found.join(", ")
    };
    let (needed, optional) = (missing(false), missing(true));
    let also = match optional.as_str() {
        "" => String::new(),
        optional => format!("; this machine lacks {optional}"),
    };
    Some(match needed.as_str() {
        "" => check("walls", true, format!("in force{also}")),
        needed => check("walls", false, format!("not in force: {needed}{also}")),
    })
}

/// Whether a program has a layer at all. A node reports every layer for every program: only a
/// worker is in namespaces of its own, only the vault locks its memory, and only these two keep
/// other processes off their processor core.
fn is_asked_for(program: &str, layer: &str) -> bool {
    match layer {
        "user" | "pid" | "mount" | "network" | "ipc" | "uts" => program == "worker",
        "core_scheduling" => ["worker", "vault"].contains(&program),
        "memory_lock" => program == "vault",
        _ => true,
    }
}

/// Whether a program of the node runs.
fn up(status: &Value, program: &str) -> Option<CheckView> {
    let state = &status["state"][program];
    let is_up = state["up"].as_bool()?;
    let detail = match (is_up, state["failures"].as_u64().unwrap_or(0)) {
        (true, 0) => "runs".to_owned(),
        (true, failures) => format!("runs, after {failures} failures"),
        (false, failures) => format!("does not run, {failures} failures"),
    };
    Some(check(program, is_up, detail))
}

fn vault(status: &Value) -> Option<CheckView> {
    let vault = &status["vault"];
    if let Some(error) = vault["error"].as_str() {
        return Some(check("vault", false, error));
    }
    if vault["revoked"] == true {
        return Some(check("vault", false, "the node is revoked"));
    }
    if vault["member"] == false {
        return Some(check("vault", false, "the node holds no pool key"));
    }
    up(status, "vault")
}

fn workers(status: &Value) -> Option<CheckView> {
    let stages = status["state"]["workers"].as_object()?;
    let count = |stage: &str| stages.get(stage).and_then(Value::as_u64).unwrap_or(0);
    let (serving, spare) = (count("serving"), count("spare"));
    let failures = status["state"]["worker_failures"].as_u64().unwrap_or(0);
    let mut detail = format!("{serving} serving, {spare} spare");
    if failures > 0 {
        detail += &format!("; the last {failures} that were started have failed");
    }
    let starts = serving + spare + count("starting") + count("loading") > 0;
    Some(check("workers", failures == 0 && starts, detail))
}

fn disk(status: &Value) -> Option<CheckView> {
    let reserve = &status["vault"]["reserve"];
    let (held, wanted) = (
        reserve["held_bytes"].as_u64()?,
        reserve["wanted_bytes"].as_u64()?,
    );
    let mib = |bytes: u64| bytes.div_ceil(1024 * 1024);
    Some(if held >= wanted {
        check("disk", true, "has room")
    } else {
        let (held, wanted) = (mib(held), mib(wanted));
        let detail = format!("full: {held} of {wanted} MiB are reserved for withdrawals");
        check("disk", false, detail)
    })
}

fn lease(status: &Value) -> Option<CheckView> {
    let vault = status["vault"].as_object()?;
    let left = vault.get("lease_left_secs")?.as_u64().unwrap_or(0);
    let detail = match left {
        0 => "expired: credentials are not used".to_owned(),
        short @ 1..SHORT_LEASE_SECS => format!("{} minutes left", short.div_ceil(60)),
        long => format!("{} hours left", long / 3600),
    };
    Some(check("lease", left > 0, detail))
}

fn image(status: &Value) -> Option<CheckView> {
    let machine = status["machine"].as_object()?;
    let of = |name: &str| machine.get(name).and_then(Value::as_str);
    let state = status["image"]["state"].as_str();
    let failed = [of("update"), state].into_iter().flatten().find(|text| {
        ["fail", "refus", "reject"]
            .iter()
            .any(|word| text.contains(word))
    });
    let version = of("version").unwrap_or("unknown version");
    Some(match failed {
        Some(failed) => check("image", false, format!("{version}; the next: {failed}")),
        None => check("image", true, version),
    })
}

fn clock(last: &Last) -> Option<CheckView> {
    let ahead = last.clock_ahead_secs?;
    let off = ahead.unsigned_abs();
    if off <= MAX_SKEW_SECS {
        return None;
    }
    let side = if ahead > 0 { "ahead of" } else { "behind" };
    let detail = format!(
        "the node's clock is {} minutes {side} the control plane's",
        off / 60
    );
    Some(check("clock", false, detail))
}

fn refusal(last: &Last) -> Option<CheckView> {
    // A release that cannot be loaded is its tenant's fault; the node itself is healthy.
    let is_of_node = |(_, refused): &&(_, Refused)| {
        ![LOAD_FAILED, LOAD_FAILED_EARLIER].contains(&refused.code.as_str())
    };
    let refused = last.refused.iter().filter(is_of_node);
    let (_, newest) = refused.max_by_key(|(_, refused)| refused.at)?;
    let detail = format!("{}: {}", newest.code, newest.what);
    Some(check("refusal", false, detail))
}

/// Whether the newest files of every certificate are served.
fn certificates(status: &Value) -> Option<CheckView> {
    let listed = listed_certificates(status, 0);
    let refused: Vec<_> = listed
        .iter()
        .filter_map(|certificate| certificate["refused"].as_str())
        .collect();
    match (listed.len(), refused.first()) {
        (0, _) => None,
        (_, Some(first)) => {
            let detail = format!("{} are not served from their files: {first}", refused.len());
            Some(check("certificates", false, detail))
        }
        (count, None) => Some(check("certificates", true, format!("{count} served"))),
    }
}

/// The earliest end of any certificate.
fn certificate_expires(status: &Value) -> Option<Seconds> {
    let listed = listed_certificates(status, 0);
    let ends = listed.iter().filter_map(|certificate| {
        let names = ["expires", "not_after", "expires_at"];
        names.iter().find_map(|name| certificate[name].as_u64())
    });
    ends.min()
}

/// The certificates that a status lists, at any level.
fn listed_certificates(status: &Value, depth: usize) -> Vec<&Value> {
    let members = status.as_object().filter(|_| depth <= MAX_DEPTH);
    let Some(members) = members else {
        return Vec::new();
    };
    let own = members.get("certificates").and_then(Value::as_array);
    let own = own.into_iter().flatten();
    let below = members
        .values()
        .flat_map(|value| listed_certificates(value, depth + 1));
    own.chain(below).collect()
}

#[cfg(test)]
mod tests {
    use casemate_push::StatementId;
    use serde_json::json;

    use super::*;

    fn last(status: Value) -> Last {
        let mut last = Last::new("edge-1".parse().unwrap());
        last.status = status;
        last
    }

    /// The failing checks.
    fn failing(last: &Last) -> Vec<String> {
        let health = of(last, 1000).unwrap();
        let failing = health.checks.into_iter().filter(|check| !check.ok);
        failing
            .map(|check| format!("{}: {}", check.name, check.detail))
            .collect()
    }

    fn healthy() -> Value {
        json!({
            "sandbox": {
                "worker": [
                    { "layer": "seccomp", "in_force": true },
                    { "layer": "network", "in_force": true },
                    { "layer": "core_scheduling", "in_force": false },
                    { "layer": "memory_lock", "in_force": false },
                ],
                "gateway": [
                    { "layer": "seccomp", "in_force": true },
                    { "layer": "network", "in_force": false },
                    { "layer": "core_scheduling", "in_force": false },
                ],
                "vault": [
                    { "layer": "user", "in_force": false },
                    { "layer": "memory_lock", "in_force": true },
                ],
            },
            "state": {
                "vault": { "up": true, "failures": 0 }, "gateway": { "up": true, "failures": 0 },
                "workers": { "spare": 2 }, "worker_failures": 0,
            },
            "vault": {
                "member": true, "revoked": false, "lease_left_secs": 80_000,
                "reserve": { "held_bytes": 4, "wanted_bytes": 4 },
            },
            "machine": { "version": "1.0.0" },
            "gateway": { "certificates": [{ "names": ["a.test"], "expires": 900 }, { "expires": 800 }] },
        })
    }

    #[test]
    fn a_healthy_node_has_no_failing_checks() {
        assert_eq!(of(&last(Value::Null), 1000), None);
        let health = of(&last(healthy()), 1000).unwrap();
        assert_eq!(failing(&last(healthy())), [] as [String; 0]);
        assert_eq!(health.certificate_expires, Some(800));
        let names: Vec<_> = health
            .checks
            .iter()
            .map(|check| check.name.as_str())
            .collect();
        let expected = [
            "walls",
            "vault",
            "gateway",
            "workers",
            "disk",
            "lease",
            "image",
            "certificates",
        ];
        assert_eq!(names, expected);
        assert_eq!(
            health.checks[0].detail,
            "in force; this machine lacks core_scheduling of worker"
        );
    }

    #[test]
    fn every_problem_is_named() {
        let wrong = |pointer: &str, value: Value| {
            let mut status = healthy();
            *status.pointer_mut(pointer).unwrap() = value;
            failing(&last(status)).join("; ")
        };
        let cases = [
            (
                "/sandbox/worker/0/in_force",
                json!(false),
                "walls: not in force: seccomp of worker; this machine lacks core_scheduling of worker",
            ),
            (
                "/sandbox/worker/1/in_force",
                json!(false),
                "walls: not in force: network of worker; this machine lacks core_scheduling of worker",
            ),
            (
                "/sandbox/gateway/0/in_force",
                json!(false),
                "walls: not in force: seccomp of gateway; this machine lacks core_scheduling of worker",
            ),
            (
                "/vault",
                json!({ "error": "no\u{1b} memory" }),
                "vault: no memory",
            ),
            ("/vault/revoked", json!(true), "vault: the node is revoked"),
            (
                "/vault/member",
                json!(false),
                "vault: the node holds no pool key",
            ),
            ("/state/gateway/up", json!(false), "gateway: does not run"),
            (
                "/state/worker_failures",
                json!(3),
                "the last 3 that were started have failed",
            ),
            ("/state/workers", json!({}), "workers: 0 serving, 0 spare"),
            ("/vault/reserve/held_bytes", json!(0), "disk: full"),
            (
                "/vault/lease_left_secs",
                Value::Null,
                "lease: expired: credentials are not used",
            ),
            (
                "/gateway/certificates/1",
                json!({ "expires": 800, "refused": "key and chain do not fit" }),
                "certificates: 1 are not served from their files: key and chain do not fit",
            ),
            (
                "/machine",
                json!({ "version": "1", "update": "1.1 failed" }),
                "image: 1; the next: 1.1 failed",
            ),
        ];
        for (pointer, value, expected) in cases {
            let found = wrong(pointer, value);
            assert!(found.contains(expected), "{pointer}: {found}");
        }
    }

    #[test]
    fn problems_that_a_node_does_not_report_itself_are_named() {
        let mut node = last(healthy());
        node.duplicate = Some(900);
        node.apart = Some("no common push protocol".into());
        node.clock_ahead_secs = Some(-3 * 24 * 60 * 60);
        let refused = Refused {
            what: "pool main".into(),
            code: "pool_expired".into(),
            message: String::new(),
            at: 1,
        };
        node.refused = vec![(StatementId::Root { version: 1 }, refused)];
        let expected = [
            "protocol: no common push protocol",
            "identity: two machines have this node's key: its disk was copied",
            "clock: the node's clock is 4320 minutes behind the control plane's",
            "refusal: pool_expired: pool main",
        ];
        assert_eq!(failing(&node), expected);
    }

    #[test]
    fn a_status_of_another_format_is_ignored() {
        for odd in [
            json!({}),
            json!({ "sandbox": 7, "state": [], "vault": "x", "machine": null }),
        ] {
            assert_eq!(of(&last(odd), 1000).unwrap().checks, []);
        }
        let mut deep = json!({ "certificates": [{ "expires": 1 }] });
        for _ in 0..10 {
            deep = json!({ "a": deep });
        }
        assert_eq!(certificate_expires(&deep), None);
    }
}
