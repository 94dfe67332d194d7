//! Checks that no error of an operation reaches a function as `undefined`: the snapshot builds an
//! error for every class that the sources of the extensions name.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use cargo_metadata::MetadataCommand;
use deno_core::{JsRuntime, RuntimeOptions, v8};

use super::{SNAPSHOT, extensions};

/// The crates whose operations the worker links, and the crate that names the classes of
/// `std::io::Error`.
const CRATES: &[&str] = &[
    "deno_core",
    "deno_crypto",
    "deno_crypto_provider",
    "deno_error",
    "deno_web",
    "deno_webidl",
];

/// Text in front of a class in the sources: an attribute, a boxed error, and an arm of deno_error's
/// table.
const BEFORE: &[&str] = &["class(", "JsErrorBox::new(", "=>"];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder)
        .expect("a folder of cargo's")
        .flatten()
    {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
}

/// Every class that the sources name. Other strings after an arrow count as classes too, which does
/// no harm.
fn named_classes() -> BTreeSet<String> {
    let metadata = MetadataCommand::new()
        .other_options(["--locked".to_owned(), "--offline".to_owned()])
        .exec()
        .expect("cargo knows the dependencies");
    let mut classes = BTreeSet::new();
    for name in CRATES {
        let package = metadata
            .packages
            .iter()
            .find(|package| package.name.as_str() == *name);
        let manifest = &package.expect("a dependency of the worker").manifest_path;
        let mut files = Vec::new();
        sources(
            manifest.parent().expect("a folder").as_std_path(),
            &mut files,
        );
        for file in files {
            let text = std::fs::read_to_string(file).expect("a source file");
            for before in BEFORE {
                for after in text.split(before).skip(1) {
                    let literal = after.trim_start().strip_prefix('"');
                    let class = literal.and_then(|text| text.split('"').next());
                    let is_name = |class: &&str| {
                        !class.is_empty() && class.bytes().all(|byte| byte.is_ascii_alphanumeric())
                    };
                    classes.extend(class.filter(is_name).map(str::to_owned));
                }
            }
        }
    }
    classes
}

/// Shows the error that the platform builds for a class: constructor, name and message.
const BUILD: &str = r#"(name) => {
    const error = Deno.core.buildCustomError(name, "why");
    if (!(error instanceof Error)) return `not an error: ${error}`;
    const kind = error instanceof DOMException ? "DOMException" : "Error";
    return `${kind} ${error.name} ${error.message}`;
}"#;

#[test]
fn every_class_that_an_operation_names_becomes_an_error() {
    let mut classes = named_classes();
    let dom: Vec<&String> = classes
        .iter()
        .filter(|name| name.starts_with("DOM"))
        .collect();
    assert!(dom.len() >= 10, "the sources name DOMExceptions: {dom:?}");
    for known in ["DOMExceptionOperationError", "InvalidData", "Busy"] {
        assert!(classes.contains(known), "the sources name {known}");
    }
    classes.insert("DOMExceptionOfTomorrow".into());
    classes.insert("NamedNowhere".into());

    let _platform = super::initialize();
    let mut runtime = JsRuntime::try_new(RuntimeOptions {
        extensions: extensions::all(Vec::new()),
        startup_snapshot: Some(SNAPSHOT),
        ..Default::default()
    })
    .expect("the snapshot is ours");
    let build = runtime.execute_script("test", BUILD).expect("a function");
    deno_core::scope!(scope, &mut runtime);
    let build = v8::Local::new(scope, build).cast::<v8::Function>();
    for class in classes {
        let this = v8::undefined(scope).into();
        let name = v8::String::new(scope, &class)
            .expect("a short string")
            .into();
        let built = build.call(scope, this, &[name]).expect("it does not throw");
        let built = built.to_rust_string_lossy(scope);
        let expected = match class.strip_prefix("DOMException") {
            Some(name) => format!("DOMException {name} why"),
            None => format!("Error {class} why"),
        };
        assert_eq!(built, expected);
    }
}
