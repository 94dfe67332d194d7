//! For the status page.

use std::collections::BTreeMap;

use casemate_wire::control::FunctionKey;

use super::functions::Function;
use super::trials::LoadError;
use super::{Program, Stage, Supervision, Worker};

/// Hosts of a function that are listed: a tenant has a thousand functions.
const MAX_DESCRIBED_HOSTS: usize = 8;

impl Supervision {
    /// Programs, workers and functions.
    pub(crate) fn describe(&self) -> serde_json::Value {
        let program = |program: &Program| serde_json::json!({ "up": program.up, "failures": program.failures });
        let stage = |worker: &Worker| match &worker.stage {
            Stage::Starting => "starting",
            Stage::Spare => "spare",
            Stage::Loading(..) => "loading",
            Stage::Serving(..) => "serving",
            Stage::Retired(..) | Stage::Discarded => "retired",
            Stage::Adopted(_) => "adopted",
        };
        let mut stages = BTreeMap::<&str, usize>::new();
        self.workers
            .values()
            .for_each(|worker| *stages.entry(stage(worker)).or_default() += 1);
        let functions: Vec<_> = self
            .functions
            .iter()
            .map(|(key, function)| self.describe_function(key, function))
            .collect();
        serde_json::json!({
            "vault": program(&self.vault), "gateway": program(&self.gateway), "workers": stages, "functions": functions,
            "tenants": self.describe_tenants(),
            "draining": self.draining, "worker_failures": self.spare_failures,
        })
    }

    pub(super) fn describe_function(
        &self,
        key: &FunctionKey,
        function: &Function,
    ) -> serde_json::Value {
        let hex = |bytes: &[u8]| {
            bytes
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect::<String>()
        };
        let mut workers = BTreeMap::<&str, usize>::new();
        for id in self.workers_of(key, None) {
            let stage = if matches!(self.workers[&id].stage, Stage::Serving(..)) {
                "serving"
            } else {
                "loading"
            };
            *workers.entry(stage).or_default() += 1;
        }
        let hosts: Vec<_> = function
            .plan
            .hosts
            .iter()
            .take(MAX_DESCRIBED_HOSTS)
            .collect();
        let load_error = function.load_error().map(LoadError::describe);
        let last_error = || {
            function
                .last_error
                .as_ref()
                .map(|(_, message)| message.clone())
        };
        let error = load_error
            .or_else(last_error)
            .or_else(|| function.conflict.clone());
        let lost = function.plan.lost_hosts.iter().take(MAX_DESCRIBED_HOSTS);
        let lost: Vec<_> = lost
            .map(|lost| serde_json::json!({ "host": lost.host, "tenant": lost.owner }))
            .collect();
        serde_json::json!({
            "tenant": function.tenant_name, "tenant_id": hex(&key.tenant), "function": key.function,
            "release": hex(&function.plan.release), "routed": function.routed.map(|digest| hex(&digest)),
            "manifest": function.manifest_version, "hosts": hosts,
            "hosts_of_other_tenants": lost, "workers": workers,
            "bundle_here": function.is_here(&self.bundles),
            "loads": function.is_proven(&self.bundles),
            "bundle_refused": function.refused.get(&function.plan.bundle).map(|shortage| shortage.code()),
            "error": error,
        })
    }
}
