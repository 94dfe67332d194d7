//! URLs from a function: the URL that is sent is the URL that the policy judged.
#![no_main]

use casemate_vault_core::target::Target;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|url: &str| {
    if let Ok(target) = Target::parse(url) {
        let sent = format!(
            "{}://{}{}",
            target.scheme.as_str(),
            target.authority(),
            target.path_and_query()
        );
        assert_eq!(Target::parse(&sent), Ok(target));
    }
});
