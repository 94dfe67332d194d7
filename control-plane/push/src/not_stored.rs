//! Why a node does not run a manifest that it has accepted: codes and texts that both ends know.

/// [`NotStored::code`](crate::NotStored::code) of a release that cannot be loaded: the text holds
/// the tenant's stack.
pub const LOAD_FAILED: &str = "load_failed";
/// [`NotStored::code`](crate::NotStored::code) of releases that an earlier manifest brought, that
/// could not be loaded then, and that this manifest still wants. The report precedes
/// [`ToControl::Stored`](crate::ToControl::Stored), which such releases do not prevent.
pub const LOAD_FAILED_EARLIER: &str = "load_failed_earlier";
/// The words that follow the names of functions in the text of both codes.
const CANNOT_BE_LOADED: &str = " cannot be loaded";
/// Most functions that such a text names.
const MAX_NAMED: usize = 20;

/// Builds the text that names functions whose releases cannot be loaded, and appends `why`.
pub fn cannot_be_loaded(functions: &[&str], why: &str) -> String {
    let named = functions.iter().take(MAX_NAMED);
    let mut names: Vec<String> = named.map(|name| format!("`{name}`")).collect();
    if let Some(more @ 1..) = functions.len().checked_sub(MAX_NAMED) {
        names.push(format!("{more} more"));
    }
    format!("{}{CANNOT_BE_LOADED}{why}", names.join(", "))
}

/// Whether a refusal's code and text report that the release of `function` cannot be loaded.
pub fn is_not_loaded(code: &str, text: &str, function: &str) -> bool {
    let names = text
        .split_once(CANNOT_BE_LOADED)
        .map_or("", |(names, _)| names);
    [LOAD_FAILED, LOAD_FAILED_EARLIER].contains(&code)
        && names.split(", ").any(|name| {
            name.strip_prefix('`')
                .and_then(|name| name.strip_suffix('`'))
                == Some(function)
        })
}

/// [`NotStored::code`](crate::NotStored::code) of a release that waits for a worker to be loaded
/// in.
pub const NO_PLACE: &str = "no_place";
/// Codes of a node's refusals that pass by themselves: the node retries with pauses.
const TRANSIENT: [&str; 3] = [NO_PLACE, "storage_full", "storage_failed"];

/// Whether the node that reports this code retries by itself.
pub fn is_transient(code: &str) -> bool {
    TRANSIENT.contains(&code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_functions_that_a_text_names_are_found_in_it_and_no_others() {
        let text = cannot_be_loaded(&["api", "web"], ": Error: `mine` cannot be loaded");
        let fails = |code: &str, function| is_not_loaded(code, &text, function);
        for code in [LOAD_FAILED, LOAD_FAILED_EARLIER] {
            assert!(fails(code, "api") && fails(code, "web"));
            assert!(!fails(code, "mine") && !fails(code, "we") && !fails(code, ""));
        }
        assert!(!fails(NO_PLACE, "api"), "another refusal");
        assert!(!is_not_loaded(LOAD_FAILED, "no name", "api"));
        let many: Vec<String> = (0..30).map(|number| format!("f{number}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let text = cannot_be_loaded(&many, "");
        assert!(text.ends_with("`f19`, 10 more cannot be loaded"), "{text}");
    }
}
