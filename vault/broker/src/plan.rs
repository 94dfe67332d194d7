//! What a tenant runs here, as the supervisor needs to know it.

use casemate_trust::judge::TenantState;
use casemate_trust::name::Name;
use casemate_trust::release::{Release, Scheme};
use casemate_wire::control::Limits;
use casemate_wire::control::gateway::Perimeter;
use casemate_wire::control::vault::{FunctionPlan, Plan};
use casemate_wire::control::worker::Binding;

/// The plan of a tenant for this pool.
pub(crate) fn plan(state: &TenantState, pool: &Name) -> Plan {
    let manifest = state.manifest.as_ref();
    Plan {
        tenant: state.tenant.id.0,
        name: state.tenant.name.to_string(),
        manifest_version: manifest.map_or(0, |accord| accord.manifest.version),
        manifest: manifest.map_or([0; 32], |accord| accord.digest.0),
        functions: state
            .running(pool)
            .map(|(function, digest, release)| function_plan(function, digest.0, release))
            .collect(),
    }
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
        release: digest,
        bundle: release.bundle.digest.0,
        bundle_bytes: release.bundle.bytes,
        entry: release.entry.clone(),
        hosts: release.hosts.iter().map(ToString::to_string).collect(),
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
