//! The bill of materials of an image, with licence texts (CycloneDX 1.6).

use serde::Deserialize;
use serde_json::{Value, json};

use crate::package::Package;
use crate::plan::{PackageFile, Plan};

/// The crates that the build script found.
const CRATES: &str = include_str!(concat!(env!("OUT_DIR"), "/crates.json"));

#[derive(Deserialize)]
struct Crates {
    crates: Vec<Crate>,
    texts: Vec<String>,
}

#[derive(Deserialize)]
struct Crate {
    name: String,
    version: String,
    licence: Option<String>,
    sha256: Option<String>,
    /// File name, and the index of its text.
    texts: Vec<(String, usize)>,
}

/// The bill of materials of an image, as JSON; the same image gives the same text.
pub(crate) fn bill(plan: &Plan, packages: &[(&PackageFile, &Package)]) -> String {
    let mut components: Vec<Value> = packages
        .iter()
        .map(|(file, package)| debian(file, package))
        .collect();
    let crates: Crates = serde_json::from_str(CRATES).expect("our build script wrote it");
    let linked = crates.crates.iter();
    components.extend(linked.map(|linked| rust(linked, &crates.texts)));
    let time = jiff::Timestamp::from_second(plan.time.into()).expect("32 bits of seconds");
    let bill = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": time.to_string(),
            "component": { "type": "operating-system", "name": "casemate", "version": plan.version },
        },
        "components": components,
    });
    serde_json::to_string_pretty(&bill).expect("plain data is JSON") + "\n"
}

fn debian(file: &PackageFile, package: &Package) -> Value {
    let path = format!("usr/share/doc/{}/copyright", file.name);
    let text = package.file(&path).map(String::from_utf8_lossy);
    // A package of a family may keep its licence in another package of the family.
    let licences: Vec<_> = text.iter().map(|text| licence("copyright", text)).collect();
    json!({
        "type": "library",
        "name": file.name,
        "version": file.version,
        "purl": format!("pkg:deb/debian/{}@{}?arch=amd64", file.name, file.version.replace(':', "%3A")),
        "hashes": [{ "alg": "SHA-256", "content": file.sha256 }],
        "licenses": licences,
    })
}

fn rust(linked: &Crate, texts: &[String]) -> Value {
    let (name, version) = (&linked.name, &linked.version);
    let hashes = linked.sha256.iter();
    let hashes: Vec<_> = hashes
        .map(|sha256| json!({ "alg": "SHA-256", "content": sha256 }))
        .collect();
    let expression = linked.licence.iter();
    let expression: Vec<_> = expression
        .map(|licence| json!({ "expression": licence }))
        .collect();
    let found = linked.texts.iter();
    let found = found.filter_map(|(file, number)| Some(licence(file, texts.get(*number)?)));
    json!({
        "type": "library",
        "name": name,
        "version": version,
        "purl": format!("pkg:cargo/{name}@{version}"),
        "hashes": hashes,
        "licenses": expression,
        "evidence": { "licenses": found.collect::<Vec<_>>() },
    })
}

fn licence(file: &str, text: &str) -> Value {
    json!({ "license": { "name": file, "text": { "contentType": "text/plain", "content": text } } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_linked_crate_is_named_with_its_licence() {
        let crates: Crates = serde_json::from_str(CRATES).unwrap();
        let named = |name: &str| crates.crates.iter().any(|linked| linked.name == name);
        for name in [
            "deno_core",
            "v8",
            "sled",
            "rustls",
            "ring",
            "dhcproto",
            "casemate-vault-core",
        ] {
            assert!(named(name), "{name}");
        }
        // Crates that are not in the image are not listed.
        for name in ["rolldown", "redb", "proptest", "casemate-control"] {
            assert!(!named(name), "{name}");
        }
        for linked in crates
            .crates
            .iter()
            .filter(|linked| !linked.name.starts_with("casemate"))
        {
            assert!(
                linked.licence.is_some() && linked.sha256.is_some(),
                "{}",
                linked.name
            );
        }
        let with_text = crates
            .crates
            .iter()
            .filter(|linked| !linked.texts.is_empty())
            .count();
        assert!(
            with_text * 10 > crates.crates.len() * 8,
            "{with_text} of {}",
            crates.crates.len()
        );
    }
}
