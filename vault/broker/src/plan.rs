//! The plan of a tenant: the functions that it runs here, in the form for the supervisor.

use casemate_trust::id::TenantId;
use casemate_trust::judge::Judge;
use casemate_trust::name::Name;
use casemate_trust::release::{Release, Scheme};
use casemate_wire::control::Limits;
use casemate_wire::control::gateway::Perimeter;
use casemate_wire::control::parts::size;
use casemate_wire::control::vault::{FunctionPlan, LostHost, Plan};
use casemate_wire::control::worker::Binding;

/// Most bytes of a tenant's fallback releases in its plan; the rest is left out.
const MAX_FALLBACK_BYTES: usize = 4 << 20;

/// The plan of a tenant for this pool. Hosts of another tenant are left out here and not when a
/// manifest is judged, so that the order in which statements came makes no difference.
pub(crate) fn plan(judge: &Judge, id: &TenantId, pool: &Name) -> Option<Plan> {
    let state = judge.tenant(id)?;
    let plan_of = |function: &Name, digest: [u8; 32], release: &Release| {
        let mut plan = function_plan(function, digest, release);
        for (host, owner) in judge.lost_hosts(id, &release.hosts) {
            plan.hosts.retain(|own| own != host.as_str());
            plan.lost_hosts.push(LostHost {
                host: host.to_string(),
                owner: owner.tenant.name.to_string(),
            });
        }
        plan
    };
    let manifest = state.manifest.as_ref();
    let mut functions = Vec::new();
    let mut fallback_bytes = 0;
    for (function, digest, release) in state.running(pool) {
        functions.push(plan_of(function, digest.0, release));
        for (digest, release) in state.fallbacks(function) {
            let plan = FunctionPlan {
                is_fallback: true,
                ..plan_of(function, digest.0, release)
            };
            fallback_bytes += size(&plan);
            if fallback_bytes <= MAX_FALLBACK_BYTES {
                functions.push(plan);
            }
        }
    }
    Some(Plan {
        tenant: state.tenant.id.0,
        name: state.tenant.name.to_string(),
        memory_mib: state.tenant.ceilings.memory_mib,
        manifest_version: manifest.map_or(0, |accord| accord.manifest.version),
        manifest: manifest.map_or([0; 32], |accord| accord.digest.0),
        functions,
    })
}

fn function_plan(function: &Name, digest: [u8; 32], release: &Release) -> FunctionPlan {
    let binding = |slot: &casemate_trust::release::Credential| {
        let port = if slot.port == Scheme::Https.default_port() {
            String::new()
        } else {
            format!(":{}", slot.port)
        };
        Binding {
            name: slot.binding.to_string(),
            origin: format!("https://{}{port}", slot.host),
        }
    };
    FunctionPlan {
        function: function.to_string(),
        is_fallback: false,
        release: digest,
        bundle: release.bundle.digest.0,
        bundle_bytes: release.bundle.bytes,
        entry: release.entry.clone(),
        hosts: release.hosts.iter().map(ToString::to_string).collect(),
        lost_hosts: Vec::new(),
        perimeter: Perimeter {
            methods: release
                .perimeter
                .methods
                .iter()
                .map(ToString::to_string)
                .collect(),
            paths: release
                .perimeter
                .paths
                .iter()
                .map(ToString::to_string)
                .collect(),
            max_body_bytes: release.perimeter.max_body_bytes,
        },
        limits: Limits {
            cpu_time_ms: release.limits.cpu_time_ms,
            wall_time_ms: release.limits.wall_time_ms,
            heap_mib: release.limits.heap_mib,
            subrequests: release.limits.subrequests,
            concurrency: release.limits.concurrency,
        },
        vars: release
            .vars
            .iter()
            .map(|var| (var.name.to_string(), var.value.clone()))
            .collect(),
        bindings: release.credentials.iter().map(binding).collect(),
        dynamic_code: release.dynamic_code,
    }
}

#[cfg(test)]
mod tests {
    use casemate_trust::id::{Digest, FleetId, TenantId};
    use casemate_trust::path::{MAX_METHOD_BYTES, MAX_PATTERN_BYTES};
    use casemate_trust::release::{
        BundleRef, Credential, MAX_BODY_BYTES, MAX_BUNDLE_BYTES, MAX_ENTRIES, MAX_HOSTS,
        MAX_PATTERNS, MAX_VARS_BYTES, Perimeter, Slot, Var,
    };
    use casemate_trust::statement::MAX_FUNCTIONS;
    use casemate_wire::control::parts::{Arriving, Part};
    use casemate_wire::control::vault::FromVault;
    use casemate_wire::control::worker::{Load, ToWorker};
    use casemate_wire::control::{decode, encode};

    use super::*;

    /// A release with the largest permitted amount of everything that a plan repeats.
    fn largest() -> Release {
        let name = |n: usize| format!("N{n:0>62}").parse().unwrap();
        let host = |n: usize| {
            format!("{n:0>61}.{0}.{0}.{0}", "h".repeat(63))
                .parse()
                .unwrap()
        };
        let method = |n: usize| {
            let last = char::from(b'A' + n as u8 % 26);
            format!("{}{last}", "M".repeat(MAX_METHOD_BYTES - 1))
        };
        let credential = |n: usize| Credential {
            binding: name(n + MAX_ENTRIES),
            secret: "S".parse().unwrap(),
            host: host(n),
            port: u16::MAX,
            methods: vec![],
            paths: vec![],
            slot: Slot::Bearer,
            auto: false,
            ca: None,
            ranges: false,
        };
        let release = Release {
            fleet: FleetId([1; 32]),
            tenant: TenantId([2; 32]),
            function: "f".repeat(63).parse().unwrap(),
            bundle: BundleRef {
                digest: Digest([3; 32]),
                bytes: MAX_BUNDLE_BYTES,
            },
            entry: "e".repeat(256),
            hosts: (0..MAX_HOSTS).map(host).collect(),
            perimeter: Perimeter {
                methods: (0..MAX_PATTERNS)
                    .map(|n| method(n).parse().unwrap())
                    .collect(),
                paths: (0..MAX_PATTERNS)
                    .map(|n| format!("/{n:0>0$}", MAX_PATTERN_BYTES - 1).parse().unwrap())
                    .collect(),
                max_body_bytes: MAX_BODY_BYTES,
            },
            limits: casemate_trust::release::Limits {
                cpu_time_ms: u32::MAX,
                wall_time_ms: u32::MAX,
                heap_mib: u32::MAX,
                subrequests: u32::MAX,
                concurrency: u32::MAX,
                call_time_ms: u32::MAX,
            },
            vars: (0..MAX_ENTRIES)
                .map(|n| Var {
                    name: name(n),
                    value: "v".repeat(MAX_VARS_BYTES / MAX_ENTRIES - 63),
                })
                .collect(),
            egress: vec![],
            credentials: (0..MAX_ENTRIES).map(credential).collect(),
            dynamic_code: true,
            owner: String::new(),
        };
        Release::parse(&release.to_bytes()).expect("the judge takes it")
    }

    #[test]
    fn the_largest_plan_that_the_judge_accepts_arrives_whole() {
        let release = largest();
        let name = |n: usize| format!("f{n:0>62}");
        let plan = |n: usize| function_plan(&name(n).parse().unwrap(), [4; 32], &release);
        let whole = Plan {
            tenant: [2; 32],
            name: "t".repeat(63),
            memory_mib: u32::MAX,
            manifest_version: casemate_trust::statement::MAX_VERSION,
            manifest: [5; 32],
            functions: (0..MAX_FUNCTIONS).map(plan).collect(),
        };
        let (mut arriving, mut arrived) = (Arriving::new(MAX_FUNCTIONS as u32), None);
        let mut bytes = 0;
        for part in Part::cut(whole) {
            assert_eq!(arrived, None);
            let packet = encode(&FromVault::Plan(Box::new(part))).expect("each part fits");
            bytes += packet.len();
            let FromVault::Plan(part) = decode(&packet).unwrap() else {
                panic!("the vault sent something other than a plan");
            };
            arrived = arriving.take(*part).unwrap();
        }
        assert!(bytes > 100 << 20, "{bytes}");
        let arrived = arrived.expect("the last part completes it").functions;
        assert_eq!(arrived.len(), MAX_FUNCTIONS);
        for (n, function) in arrived.into_iter().enumerate() {
            assert_eq!(function, plan(n));
        }
    }

    #[test]
    fn the_largest_function_fits_the_message_that_loads_it() {
        let plan = function_plan(&"f".repeat(63).parse().unwrap(), [4; 32], &largest());
        let load = Load {
            function: plan.function,
            entry: plan.entry,
            limits: plan.limits,
            vars: plan.vars,
            bindings: plan.bindings,
            dynamic_code: plan.dynamic_code,
        };
        encode(&ToWorker::Load(Box::new(load))).unwrap();
    }
}
