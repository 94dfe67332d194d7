//! The tables of codes in the tenants' guide match the codes in the sources.

use std::fmt::Write as _;
use std::path::Path;

use casemate_gateway::answer::Code;
use casemate_wire::CallCode;
use casemate_wire::control::Failure;

const GUIDE: &str = "docs/tenants/README.md";

/// The marks before and after a table that is generated from the sources.
fn marks(name: &str) -> (String, String) {
    (
        format!("<!-- {name}: written by tests/tests/codes.rs -->\n"),
        format!("<!-- end of {name} -->\n"),
    )
}

/// The codes that a function reads in `error.code`.
fn codes_of_calls() -> String {
    let mut table =
        "| code | kind | meaning | answer when your function does not catch it |\n|---|---|---|---|\n"
            .to_owned();
    for code in CallCode::ALL {
        let answer = Code::Failed(code.failure());
        let kind = if code.is_policy() {
            "policy"
        } else {
            "failure"
        };
        let row = format!(
            "| `{}` | {kind} | {} | {} `{}` |",
            code.name(),
            code.meaning(),
            answer.status().as_u16(),
            answer.name()
        );
        writeln!(table, "{row}").expect("a string takes everything");
    }
    table
}

/// The codes that a caller reads in `error.code`.
fn codes_of_answers() -> String {
    let mut table = "| status | code | meaning |\n|---|---|---|\n".to_owned();
    for code in Code::ALL {
        let row = format!(
            "| {} | `{}` | {} |",
            code.status().as_u16(),
            code.name(),
            code.message()
        );
        writeln!(table, "{row}").expect("a string takes everything");
    }
    table
}

#[test]
fn the_guide_has_every_code_that_a_function_or_a_caller_can_meet() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ lies in the root");
    let path = root.join(GUIDE);
    let mut guide = std::fs::read_to_string(&path).expect("the guide");
    let write = std::env::var("CASEMATE_GOLDEN").is_ok_and(|value| value == "write");
    for (name, table) in [
        ("codes of calls", codes_of_calls()),
        ("codes of answers", codes_of_answers()),
    ] {
        let (begin, end) = marks(name);
        let from = guide.find(&begin).expect("the mark before the table") + begin.len();
        let to = guide.find(&end).expect("the mark after the table");
        if write {
            guide.replace_range(from..to, &table);
        } else {
            assert_eq!(
                guide[from..to],
                table,
                "{GUIDE} is out of date: CASEMATE_GOLDEN=write cargo test -p casemate-tests --test codes"
            );
        }
    }
    if write {
        std::fs::write(path, guide).expect("the guide can be written");
    }
}

#[test]
fn every_failure_has_a_row_of_its_own() {
    let failures = CallCode::ALL.iter().map(|code| code.failure());
    for failure in failures.chain([
        Failure::LoadFailed,
        Failure::WorkerLost,
        Failure::ExceededWall,
    ]) {
        assert!(Code::ALL.contains(&Code::Failed(failure)), "{failure:?}");
    }
    let mut names: Vec<_> = Code::ALL.iter().map(|code| code.name()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), Code::ALL.len());
}
