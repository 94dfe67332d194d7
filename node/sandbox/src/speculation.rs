//! The speculation layer: the mitigations of processor, kernel and this process against speculative
//! side channels.
//!
//! Two sources are combined. `PR_GET_SPECULATION_CTRL` answers for this process, and
//! `/sys/devices/system/cpu/vulnerabilities` answers for the machine. Neither suffices alone: under
//! a hypervisor that hides the processor's control bits, the former reports speculation as enabled
//! without control, and only the latter shows whether the machine is vulnerable because of that.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use rustix::process::{
    self, SpeculationFeature, SpeculationFeatureControl, SpeculationFeatureState,
};

use crate::LayerReport;
use crate::layers::report;

/// Where the kernel describes the machine.
const VULNERABILITIES: &str = "/sys/devices/system/cpu/vulnerabilities";

/// The kinds of speculation that a process can control, with the kernel's file that describes each.
const FEATURES: [(&str, &str, SpeculationFeature); 2] = [
    (
        "store bypass",
        "spec_store_bypass",
        SpeculationFeature::SpeculativeStoreBypass,
    ),
    (
        "indirect branches",
        "spectre_v2",
        SpeculationFeature::IndirectBranchSpeculation,
    ),
];

/// How exposed this process is to one kind of speculative side channel, from the best to the worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Exposure {
    /// The processor does not have the fault.
    NotAffected,
    /// The speculation is off for this process.
    Mitigated,
    /// The kernel offers no control for a process, and does not report the machine as vulnerable.
    CannotBeControlled,
    /// The machine has the fault, and it is not mitigated for this process.
    Vulnerable,
}

/// The kernel's report about the machine: the first word of a file of `vulnerabilities`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Machine {
    NotAffected,
    Mitigation,
    Vulnerable,
    /// The file does not exist or is not readable, or its word is unknown to this version.
    Unknown,
}

/// The kernel's answer for this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Process {
    /// `PR_SPEC_NOT_AFFECTED`: no bit.
    NotAffected,
    /// `PR_SPEC_DISABLE`, `PR_SPEC_FORCE_DISABLE` or `PR_SPEC_DISABLE_NOEXEC`: the speculation is off.
    Off,
    /// `PR_SPEC_PRCTL | PR_SPEC_ENABLE`: the speculation is on, and this process could turn it off.
    OnWithControl,
    /// `PR_SPEC_ENABLE` alone: the processor has the fault, the speculation is on, and there is no control.
    OnWithoutControl,
    /// The kernel does not know the feature or the call, or answers with bits that are unknown to
    /// this version.
    Unknown,
}

impl Machine {
    fn parse(text: &str) -> Self {
        let text = text.trim();
        // `Mitigation: ...; SMT vulnerable` is a mitigation with a hole that another layer closes
        // (core scheduling).
        if text.starts_with("Not affected") {
            Self::NotAffected
        } else if text.starts_with("Mitigation") {
            Self::Mitigation
        } else if text.starts_with("Vulnerable") {
            Self::Vulnerable
        } else {
            Self::Unknown
        }
    }
}

impl Process {
    fn from_state(state: Option<SpeculationFeatureState>) -> Self {
        type State = SpeculationFeatureState;
        match state {
            None => Self::Unknown,
            Some(state) if state.is_empty() => Self::NotAffected,
            Some(state)
                if state
                    .intersects(State::DISABLE | State::FORCE_DISABLE | State::DISABLE_NOEXEC) =>
            {
                Self::Off
            }
            Some(state) if state == State::PRCTL | State::ENABLE => Self::OnWithControl,
            Some(state) if state == State::ENABLE => Self::OnWithoutControl,
            Some(_) => Self::Unknown,
        }
    }
}

/// Combines both answers. The worse answer counts: on a machine that the kernel calls vulnerable,
/// the kernel's own memory is exposed, whatever the process has turned off.
fn decide(machine: Machine, process: Process) -> Exposure {
    match (machine, process) {
        (Machine::Vulnerable, _) => Exposure::Vulnerable,
        (Machine::NotAffected, _) => Exposure::NotAffected,
        (Machine::Mitigation | Machine::Unknown, Process::NotAffected) => Exposure::NotAffected,
        (Machine::Mitigation | Machine::Unknown, Process::Off) => Exposure::Mitigated,
        (Machine::Mitigation | Machine::Unknown, Process::OnWithControl) => Exposure::Vulnerable,
        // The kernel mitigates by other means, or reports nothing about the fault.
        (Machine::Mitigation, Process::OnWithoutControl | Process::Unknown)
        | (Machine::Unknown, Process::Unknown) => Exposure::CannotBeControlled,
        // The processor is affected, the speculation is on, and no mitigation is reported.
        (Machine::Unknown, Process::OnWithoutControl) => Exposure::Vulnerable,
    }
}

impl Exposure {
    fn in_force(self) -> bool {
        matches!(self, Self::NotAffected | Self::Mitigated)
    }

    fn words(self) -> &'static str {
        match self {
            Self::NotAffected => "not affected",
            Self::Mitigated => "mitigated",
            Self::CannotBeControlled => "cannot be controlled here",
            Self::Vulnerable => "vulnerable, not controlled",
        }
    }
}

/// Turns the speculation off for good, as far as the processor and the kernel allow; [`status`]
/// reads the outcome.
pub(crate) fn mitigate() {
    for (_, _, feature) in FEATURES {
        if let Err(error) =
            process::control_speculative_feature(feature, SpeculationFeatureControl::FORCE_DISABLE)
        {
            tracing::debug!(?feature, %error, "the kernel does not control this speculation for a process");
        }
    }
}

/// The layer's report. The first call reads files below /sys, so make it before the sandbox closes;
/// later calls read none.
pub(crate) fn status() -> LayerReport {
    static MACHINE: OnceLock<[Machine; FEATURES.len()]> = OnceLock::new();
    let machine = MACHINE.get_or_init(|| machine(Path::new(VULNERABILITIES)));
    let processes = FEATURES.map(|(_, _, feature)| {
        Process::from_state(process::speculative_feature_state(feature).ok().flatten())
    });
    describe(*machine, processes)
}

fn machine(folder: &Path) -> [Machine; FEATURES.len()] {
    FEATURES.map(|(_, file, _)| {
        fs::read_to_string(folder.join(file)).map_or(Machine::Unknown, |text| Machine::parse(&text))
    })
}

fn describe(
    machine: [Machine; FEATURES.len()],
    processes: [Process; FEATURES.len()],
) -> LayerReport {
    let exposures = [0, 1].map(|at| decide(machine[at], processes[at]));
    let details = [0, 1].map(|at| format!("{}: {}", FEATURES[at].0, exposures[at].words()));
    report(
        "speculation",
        exposures.into_iter().all(Exposure::in_force),
        details.join("; "),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINES: [Machine; 4] = [
        Machine::NotAffected,
        Machine::Mitigation,
        Machine::Vulnerable,
        Machine::Unknown,
    ];

    /// Every combination of what the machine and the process can answer.
    #[test]
    fn each_combination_has_the_status_that_the_worse_answer_gives() {
        use Exposure::{
            CannotBeControlled as Cannot, Mitigated, NotAffected as Not, Vulnerable as Vuln,
        };
        // The columns are the values of `machine` above.
        let table = [
            (Process::NotAffected, [Not, Not, Vuln, Not]),
            (Process::Off, [Not, Mitigated, Vuln, Mitigated]),
            (Process::OnWithControl, [Not, Vuln, Vuln, Vuln]),
            (Process::OnWithoutControl, [Not, Cannot, Vuln, Vuln]),
            (Process::Unknown, [Not, Cannot, Vuln, Cannot]),
        ];
        for (process, row) in table {
            for (machine, expected) in MACHINES.into_iter().zip(row) {
                assert_eq!(
                    decide(machine, process),
                    expected,
                    "{machine:?} {process:?}"
                );
            }
        }
    }

    #[test]
    fn the_bits_of_the_kernel_are_read_as_its_documentation_says() {
        let cases = [
            (0, Process::NotAffected),
            (2, Process::OnWithoutControl),
            (3, Process::OnWithControl),
            (4, Process::Off),
            (5, Process::Off),
            (9, Process::Off),
            (17, Process::Off),
            (1, Process::Unknown),
        ];
        for (bits, expected) in cases {
            let state = SpeculationFeatureState::from_bits(bits);
            assert_eq!(Process::from_state(state), expected, "{bits}");
        }
        assert_eq!(Process::from_state(None), Process::Unknown);
    }

    #[test]
    fn the_words_of_the_kernel_are_read_as_it_writes_them() {
        let cases = [
            ("Not affected\n", Machine::NotAffected),
            ("Vulnerable\n", Machine::Vulnerable),
            (
                "Vulnerable: eIBRS with unprivileged eBPF\n",
                Machine::Vulnerable,
            ),
            (
                "Mitigation: Retpolines; STIBP: disabled; RSB filling\n",
                Machine::Mitigation,
            ),
            (
                "Unknown: Dependent on hypervisor status\n",
                Machine::Unknown,
            ),
            ("", Machine::Unknown),
        ];
        for (text, expected) in cases {
            assert_eq!(Machine::parse(text), expected, "{text}");
        }
    }

    /// A hypervisor hides the control bits of the processor.
    #[test]
    fn behind_a_hypervisor_without_the_bits_the_status_says_vulnerable() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name, text| fs::write(folder.path().join(name), text).unwrap();
        write("spec_store_bypass", "Vulnerable\n");
        write("spectre_v2", "Mitigation: Retpolines; STIBP: disabled\n");
        let report = describe(machine(folder.path()), [Process::OnWithoutControl; 2]);
        assert!(!report.in_force);
        assert_eq!(
            report.detail,
            "store bypass: vulnerable, not controlled; indirect branches: cannot be controlled here"
        );
    }

    #[test]
    fn without_the_folder_of_the_kernel_nothing_is_known_of_the_machine() {
        let folder = tempfile::tempdir().unwrap();
        let unknown = machine(&folder.path().join("absent"));
        assert_eq!(unknown, [Machine::Unknown; 2]);
        assert!(!describe(unknown, [Process::Unknown; 2]).in_force);
        assert!(describe(unknown, [Process::Off, Process::NotAffected]).in_force);
    }
}
