//! What the operator lets each tenant occupy on the node: the limits of a tenant's workers are admitted against its ceiling
//! as those of all workers are against the machine's memory, and launch holds the tenant's workers together to it.

use std::collections::BTreeSet;
use std::num::NonZeroU32;

use casemate_wire::control::gateway::ToGateway;
use casemate_wire::control::{Digest, Failure, FunctionKey, WorkerId};

use super::memory::tenant_of;
use super::share::RESERVED_ONE_IN;
use super::turns::Waiting;
use super::{Effect, Millis, Stage, Supervision};

/// What a worker occupies before it has a tenant, MiB; 9.2 were measured. The kernel goes on charging it to all workers
/// together, since charges do not move with a process (cgroup version 2).
const SPARE_MIB: u32 = 10;

impl Supervision {
    /// What launch limits the workers of a tenant to, all together: the tenant's ceiling less what its workers, of which
    /// `more` are about to come, occupied as spares. That is half of the ceiling at most, and as with places one tenant
    /// cannot have everything.
    pub(super) fn tenant_memory_mib(&self, tenant: &Digest, more: usize) -> NonZeroU32 {
        let all = self.bounds.memory_mib;
        let most = all - all / RESERVED_ONE_IN as u32;
        let own = self.workers.values().filter_map(tenant_of);
        let workers = more + own.filter(|other| *other == tenant).count();
        let workers = u32::try_from(workers).unwrap_or(u32::MAX);
        let ceiling_mib = self.ceiling_mib(tenant);
        let left_mib = ceiling_mib.saturating_sub(workers.saturating_mul(SPARE_MIB));
        let limit_mib = most.min(left_mib.max(ceiling_mib / 2));
        NonZeroU32::new(limit_mib).unwrap_or(NonZeroU32::MIN)
    }

    /// What the limits of a tenant's workers may come to: so many times its ceiling as those of all workers may come to
    /// the memory for workers.
    pub(super) fn admitted_of_mib(&self, tenant: &Digest) -> u64 {
        u64::from(self.ceiling_mib(tenant)) * u64::from(self.bounds.overcommit)
    }

    /// Whether one more worker with this limit may be the tenant's now.
    pub(super) fn fits_tenant(&self, tenant: &Digest, memory_mib: u32) -> bool {
        let given = self.given_mib(tenant, |_| true);
        given + u64::from(memory_mib) <= self.admitted_of_mib(tenant)
    }

    /// Takes a tenant's ceiling from its plan. One that has changed counts for the workers that are there: those that are
    /// too many finish, and launch is told the new limit.
    pub(super) fn set_ceiling(&mut self, tenant: Digest, memory_mib: u32, now_ms: Millis) {
        let before = self.ceilings_mib.insert(tenant, memory_mib);
        if before.is_none_or(|before| before == memory_mib) {
            return;
        }
        while self.given_mib(&tenant, is_kept) > self.admitted_of_mib(&tenant) {
            let idle = self.longest_idle(&tenant, |_| true);
            let Some(worker) = idle.or_else(|| self.oldest(&tenant)) else {
                break;
            };
            self.retire(worker, now_ms);
        }
        let tenant_memory_mib = self.tenant_memory_mib(&tenant, 0);
        // To each worker: where the kernel refuses a limit that is below what is in use, launch ends the worker in whose
        // name it came, and the next one finds room.
        let assigned = self.workers.iter().filter_map(|(id, worker)| {
            tenant_of(worker).filter(|other| **other == tenant)?;
            Some(Effect::Assign {
                worker: *id,
                memory_mib: NonZeroU32::new(worker.memory_mib)?,
                tenant: worker.tenant_number?,
                tenant_memory_mib,
            })
        });
        self.effects.extend(assigned);
    }

    /// Whether so much more fits into the tenant's ceiling once those that leave have ended. Idle workers of the tenant's
    /// other functions make room, and for a new release the workers of the one before: otherwise a function that fills its
    /// tenant's ceiling would never change.
    pub(super) fn make_room_in_tenant(
        &mut self,
        waiting: &Waiting,
        release: Digest,
        wanted_mib: u64,
        now_ms: Millis,
    ) -> bool {
        let key = &waiting.key;
        let admitted = self.admitted_of_mib(&key.tenant);
        if wanted_mib > admitted {
            return false;
        }
        while self.given_mib(&key.tenant, is_kept) + wanted_mib > admitted {
            let earlier = || {
                let own = self.workers_of(key, None).into_iter();
                own.filter(|_| waiting.is_trial())
                    .find(|id| self.workers[id].release() != Some(release))
            };
            let idle = self.longest_idle(&key.tenant, |owner| owner != key);
            let Some(worker) = idle.or_else(earlier) else {
                return false;
            };
            self.retire(worker, now_ms);
        }
        true
    }

    pub(super) fn refuse_beyond_ceiling(&mut self, key: FunctionKey) {
        let ceiling_mib = self.ceiling_mib(&key.tenant);
        self.effects.push(Effect::Gateway(ToGateway::Refuse {
            key,
            failure: Failure::Unavailable,
            message: format!(
                "the tenant's workers on this node have as much memory as the operator lets them have: {ceiling_mib} MiB"
            ),
        }));
    }

    /// For the status page: the memory of each tenant that has workers.
    pub(super) fn describe_tenants(&self) -> Vec<serde_json::Value> {
        let tenants: BTreeSet<&Digest> = self.workers.values().filter_map(tenant_of).collect();
        let described = tenants.into_iter().map(|tenant| {
            let first = FunctionKey {
                tenant: *tenant,
                function: String::new(),
            };
            let own = self.functions.range(first..).next();
            let own = own.filter(|(key, _)| key.tenant == *tenant);
            serde_json::json!({
                "tenant": own.map(|(_, function)| &function.tenant_name),
                "ceiling_mib": self.ceiling_mib(tenant),
                "admitted_mib": self.admitted_of_mib(tenant),
                "workers_mib": self.given_mib(tenant, |_| true),
            })
        });
        described.collect()
    }

    fn ceiling_mib(&self, tenant: &Digest) -> u32 {
        self.ceilings_mib.get(tenant).copied().unwrap_or(0)
    }

    /// Limits of a tenant's workers together, of those in such a stage.
    fn given_mib(&self, tenant: &Digest, counts: impl Fn(&Stage) -> bool) -> u64 {
        let workers = self.workers.values();
        workers
            .filter(|worker| tenant_of(worker) == Some(tenant) && counts(&worker.stage))
            .map(|worker| u64::from(worker.memory_mib))
            .sum()
    }

    /// The tenant's worker that has been idle for longest, of these functions.
    fn longest_idle(&self, tenant: &Digest, of: impl Fn(&FunctionKey) -> bool) -> Option<WorkerId> {
        let is_one = |stage: &Stage| matches!(stage, Stage::Serving(owner, _) if owner.tenant == *tenant && of(owner));
        let idle = self
            .workers
            .iter()
            .filter(|(_, worker)| is_one(&worker.stage));
        idle.filter_map(|(id, worker)| Some((worker.idle_since_ms?, *id)))
            .min()
            .map(|(_, id)| id)
    }

    fn oldest(&self, tenant: &Digest) -> Option<WorkerId> {
        let kept = self
            .workers
            .iter()
            .filter(|(_, worker)| tenant_of(worker) == Some(tenant) && is_kept(&worker.stage));
        kept.min_by_key(|(_, worker)| worker.since_ms)
            .map(|(id, _)| *id)
    }
}

/// Whether a worker with a tenant stays, as far as is known.
fn is_kept(stage: &Stage) -> bool {
    !matches!(stage, Stage::Retired(..))
}

#[cfg(test)]
mod tests {
    use casemate_trust::statement::MIN_MEMORY_MIB;
    use casemate_wire::control::WORKER_OVERHEAD_MIB;

    use super::super::Input;
    use super::super::memory::tests::{Node, WORKER_MIB, key};
    use super::super::tests::{fallback, function, plan_with_memory};
    use super::*;

    /// The effects of a tenant's plan with this ceiling, for a node whose limits may come to twice the memory.
    fn limit(node: &mut Node, tenant: u8, ceiling_mib: u32) -> Vec<Effect> {
        node.effects.clear();
        let functions = vec![function("web", tenant)];
        node.take(plan_with_memory([tenant; 32], ceiling_mib, functions));
        std::mem::take(&mut node.effects)
    }

    fn workers(node: &Node, tenant: u8) -> usize {
        let workers = node.state.workers.values();
        workers
            .filter(|worker| tenant_of(worker) == Some(&[tenant; 32]) && is_kept(&worker.stage))
            .count()
    }

    /// Limits of the tenant's group, as launch is told, in order.
    fn told(effects: &[Effect]) -> Vec<u32> {
        let told = effects.iter().filter_map(|effect| match effect {
            Effect::Assign {
                tenant_memory_mib, ..
            } => Some(tenant_memory_mib.get()),
            _ => None,
        });
        told.collect()
    }

    fn refused(effects: &[Effect]) -> Vec<&str> {
        let refused = effects.iter().filter_map(|effect| match effect {
            Effect::Gateway(ToGateway::Refuse { message, .. }) => Some(message.as_str()),
            _ => None,
        });
        refused.collect()
    }

    #[test]
    fn the_least_ceiling_holds_a_worker_of_the_default_size() {
        assert_eq!(WORKER_OVERHEAD_MIB + 64, MIN_MEMORY_MIB);
    }

    #[test]
    fn a_greedy_tenant_stays_below_its_ceiling_and_a_modest_one_does_not_notice() {
        let mut node = Node::new(20, &[1, 2]);
        limit(&mut node, 1, 2 * WORKER_MIB);
        for _ in 0..20 {
            node.need(1, 1000);
        }
        assert_eq!(
            workers(&node, 1),
            4,
            "twice the ceiling, as for all workers"
        );
        // Less what each of them occupied as a spare.
        let limits = [10, 20, 30, 40].map(|spares_mib| 2 * WORKER_MIB - spares_mib);
        assert_eq!(told(&node.effects), limits);
        let said = refused(&node.effects);
        assert_eq!(said.len(), 16, "what would not fit is refused: {said:?}");
        assert!(said[0].contains("the operator lets"), "{said:?}");
        node.effects.clear();
        node.need(2, 1);
        assert_eq!(workers(&node, 2), 1);
        let described = node.state.describe()["tenants"][0].clone();
        assert_eq!(described["ceiling_mib"], 2 * WORKER_MIB);
        assert_eq!(described["workers_mib"], 4 * WORKER_MIB);
        // Without a ceiling of its own, a tenant is limited to seven eighths of the memory for workers.
        let all = 10 * WORKER_MIB;
        assert_eq!(told(&node.effects), [all - all / 8]);
    }

    #[test]
    fn a_lower_ceiling_ends_workers_and_a_higher_one_lets_more_start() {
        let mut node = Node::new(20, &[1]);
        limit(&mut node, 1, 2 * WORKER_MIB);
        for _ in 0..4 {
            node.need(1, 1000);
        }
        let lowered = limit(&mut node, 1, WORKER_MIB);
        assert_eq!(workers(&node, 1), 2);
        assert_eq!(
            told(&lowered),
            [WORKER_MIB - 40; 4],
            "those that leave are in it"
        );
        let is_retire = |one: &&Effect| matches!(one, Effect::Gateway(ToGateway::Retire { .. }));
        assert_eq!(lowered.iter().filter(is_retire).count(), 2);
        assert!(told(&limit(&mut node, 1, WORKER_MIB)).is_empty());
        let raised = limit(&mut node, 1, 3 * WORKER_MIB);
        assert_eq!(told(&raised), [3 * WORKER_MIB - 40; 4]);
        node.need(1, 1000);
        assert_eq!(workers(&node, 1), 3);
    }

    #[test]
    fn a_function_that_can_never_fit_is_refused_with_the_reason_and_gets_no_spare() {
        let mut node = Node::new(20, &[1]);
        let mut large = function("web", 1);
        large.limits.heap_mib = 2 * WORKER_MIB;
        node.take(plan_with_memory([1; 32], WORKER_MIB, vec![large]));
        assert_eq!(node.state.largest_heap_mib(), 64);
        node.effects.clear();
        node.need(1, 1);
        let said = refused(&node.effects);
        assert!(said[0].contains("the operator lets"), "{said:?}");
        assert_eq!(workers(&node, 1), 0);
    }

    #[test]
    fn an_idle_worker_of_the_same_tenant_makes_room_and_nobody_elses() {
        let mut node = Node::new(20, &[1, 2]);
        let functions = || vec![function("web", 1), function("more", 3)];
        node.take(plan_with_memory([1; 32], WORKER_MIB / 2, functions()));
        node.take(Input::BundleHere([3; 32]));
        for tenant in [1, 2] {
            node.need(tenant, 1);
        }
        let idle: Vec<WorkerId> = node.assigned().into_iter().map(|(id, _)| id).collect();
        let more = FunctionKey {
            function: "more".into(),
            ..key(1)
        };
        let need = || Input::Need {
            key: more.clone(),
            waiting: 1,
        };
        node.effects.clear();
        node.take(need());
        assert!(refused(&node.effects)[0].contains("the operator lets"));
        for worker in &idle {
            let (worker, idle_ms) = (*worker, 1);
            node.take(Input::Idle { worker, idle_ms });
        }
        node.effects.clear();
        node.take(need());
        let retired = Effect::Gateway(ToGateway::Retire { worker: idle[0] });
        assert!(node.effects.contains(&retired), "{:?}", node.effects);
        assert_eq!((workers(&node, 1), workers(&node, 2)), (0, 1));
        node.take(Input::Ended {
            child: idle[0].0,
            failure: Failure::WorkerLost,
        });
        assert_eq!(node.state.workers_of(&more, None).len(), 1);
    }

    #[test]
    fn a_new_release_takes_the_place_of_the_one_before_where_both_do_not_fit() {
        let mut node = Node::new(20, &[]);
        node.take(plan_with_memory(
            [1; 32],
            WORKER_MIB / 2,
            vec![function("web", 1)],
        ));
        node.take(Input::BundleHere([1; 32]));
        node.need(1, 1);
        let first = node.assigned()[0].0;
        let next = vec![function("web", 2), fallback(function("web", 1))];
        node.take(plan_with_memory([1; 32], WORKER_MIB / 2, next));
        node.effects.clear();
        node.take(Input::BundleHere([2; 32]));
        let retired = Effect::Gateway(ToGateway::Retire { worker: first });
        assert!(node.effects.contains(&retired), "{:?}", node.effects);
        let next = node.state.workers_of(&key(1), Some([2; 32]));
        assert!(next.is_empty(), "not before the first has ended");
        node.take(Input::Ended {
            child: first.0,
            failure: Failure::WorkerLost,
        });
        assert_eq!(node.state.workers_of(&key(1), Some([2; 32])).len(), 1);
    }
}
