//! A tenant's ceilings: read from the options, and shown as text.

use casemate_trust::statement::{Ceilings, EgressCeiling};

use crate::args::{Ceilings as CeilingOptions, EgressLimits};

/// The ceilings: each given value replaces the earlier one.
pub(super) fn ceilings(args: &CeilingOptions, default: Ceilings) -> Ceilings {
    Ceilings {
        functions: args.max_functions.unwrap_or(default.functions),
        cpu_time_ms: args.max_cpu_time_ms.unwrap_or(default.cpu_time_ms),
        wall_time_ms: args.max_wall_time_ms.unwrap_or(default.wall_time_ms),
        heap_mib: args.max_heap_mib.unwrap_or(default.heap_mib),
        subrequests: args.max_subrequests.unwrap_or(default.subrequests),
        concurrency: args.max_concurrency.unwrap_or(default.concurrency),
        call_time_ms: args.max_call_time_ms.unwrap_or(default.call_time_ms),
        memory_mib: args.max_memory_mib.unwrap_or(default.memory_mib),
    }
}

/// The egress ceiling: each given list replaces the earlier list of its kind.
pub(super) fn egress(args: &EgressLimits, before: Option<EgressCeiling>) -> Option<EgressCeiling> {
    let named = !args.egress_hosts.is_empty()
        || !args.egress_ports.is_empty()
        || !args.private_networks.is_empty();
    if !named {
        return before;
    }
    let mut ceiling = before.unwrap_or_default();
    if !args.egress_hosts.is_empty() {
        ceiling.hosts.clone_from(&args.egress_hosts);
    }
    if !args.egress_ports.is_empty() {
        ceiling.ports.clone_from(&args.egress_ports);
    }
    if !args.private_networks.is_empty() {
        ceiling.private_networks.clone_from(&args.private_networks);
    }
    Some(ceiling)
}

/// The egress ceiling as one line of text.
pub(super) fn egress_text(egress: Option<&EgressCeiling>) -> String {
    match egress {
        Some(ceiling) => format!("calls      {ceiling}"),
        None => "calls      wherever its functions declare, the node's private addresses included"
            .into(),
    }
}

/// The ceilings as one line of text.
pub(super) fn ceilings_text(most: &Ceilings) -> String {
    format!(
        "at most    {} functions, {} MiB on a node; {} ms CPU, {} ms, {} MiB of heap, {} calls of \
         {} ms, {} at a time",
        most.functions,
        most.memory_mib,
        most.cpu_time_ms,
        most.wall_time_ms,
        most.heap_mib,
        most.subrequests,
        most.call_time_ms,
        most.concurrency
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ceiling_that_is_named_replaces_its_own_list_only() {
        let args = |hosts: &[&str], ports: &[u16]| EgressLimits {
            egress_hosts: hosts.iter().map(|host| host.parse().unwrap()).collect(),
            egress_ports: ports.to_vec(),
            private_networks: vec![],
        };
        assert_eq!(egress(&args(&[], &[]), None), None);
        let first = egress(&args(&["a.test"], &[443]), None);
        let next = egress(&args(&[], &[8443]), first).unwrap();
        assert_eq!(next.ports, [8443]);
        assert_eq!(next.hosts, ["a.test".parse().unwrap()]);
    }
}
