//! URLs from a function: what the policy judged is what would be sent.
#![no_main]

use casemate_vault_core::scrub::Scrubber;
use casemate_vault_core::target::Target;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&str, &[u8], &[u8])| {
    let (url, secret, value) = input;
    if let Ok(target) = Target::parse(url) {
        let sent = format!("{}://{}{}", target.scheme.as_str(), target.authority(), target.path_and_query());
        assert_eq!(Target::parse(&sent), Ok(target));
    }
    if let Some(scrubber) = Scrubber::new(secret) {
        let scrubbed = scrubber.head().scrub(bytes::Bytes::copy_from_slice(value));
        let leaks = scrubbed.windows(secret.len()).any(|window| window == secret);
        assert!(!leaks || scrubbed == casemate_vault_core::scrub::SCRUBBED);
    }
});
