use std::fs;
use std::path::{Path, PathBuf};

use super::*;

/// A project of three TypeScript files, an npm package with an `exports` map and types, text, JSON
/// and WebAssembly.
const PROJECT: &[(&str, &str)] = &[
    (
        "src/index.ts",
        "import { Router } from 'tiny-router';\n\
         import { greet, type Greeting } from './greet.ts';\n\
         import terms from './terms.txt';\n\
         import limits from './limits.json';\n\
         import add from './add.wasm';\n\
         enum Kind { Plain, Loud }\n\
         const router = new Router<Greeting>();\n\
         router.get('/', () => greet({ name: 'world', loud: Kind.Loud as number }));\n\
         export default {\n\
         \x20 async fetch(request: Request): Promise<Response> {\n\
         \x20   const { later } = await import('./later');\n\
         \x20   return new Response(router.handle(request.url) + terms + limits.max + later + \
         typeof add);\n\
         \x20 },\n\
         } satisfies { fetch(request: Request): Promise<Response> };\n",
    ),
    (
        "src/greet.ts",
        "export interface Greeting { name: string; loud: number }\n\
         export const greet = (to: Greeting): string => `hello ${to.name}${to.loud ? '!' : ''}`;\n",
    ),
    (
        "src/later.ts",
        "export const later: string = process.env.NODE_ENV;\n",
    ),
    ("src/terms.txt", "terms"),
    ("src/limits.json", "{\"max\": 3}"),
    ("src/add.wasm", "\0asm\u{1}\0\0\0"),
    (
        "node_modules/tiny-router/package.json",
        r#"{"name":"tiny-router","version":"1.0.0","type":"module",
            "exports":{".":{"types":"./index.d.ts","worker":"./worker.js","default":"./node.cjs"}}}"#,
    ),
    (
        "node_modules/tiny-router/index.d.ts",
        "export declare class Router<T> { get(p: string, h: () => T): void }\n",
    ),
    (
        "node_modules/tiny-router/worker.js",
        "export class Router { routes = new Map(); get(p, h) { this.routes.set(p, h) }\n\
         handle(url) { return this.routes.get(new URL(url).pathname)?.() } }\n\
         export const unused = () => 'this must be shaken off';\n",
    ),
    (
        "node_modules/tiny-router/node.cjs",
        "module.exports = require('fs');\n",
    ),
];

fn project(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), files);
    dir
}

fn write(folder: &Path, files: &[(&str, &str)]) {
    for (name, content) in files {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

async fn make(folder: &Path, home: &Path) -> Result<Bundle, Error> {
    let sources = Sources {
        folder,
        main: "src/index.ts",
        include: &[],
        home,
    };
    bundle(sources).await
}

fn unpack(bundle: &Bundle) -> Files {
    let mut archive = tar::Archive::new(bundle.bytes.as_slice());
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut content).unwrap();
        (
            entry.path().unwrap().to_string_lossy().into_owned(),
            content,
        )
    });
    entries.collect()
}

async fn failure(files: &[(&str, &str)]) -> String {
    let dir = project(files);
    let folder = dir.path().canonicalize().unwrap();
    let text = make(dir.path(), Path::new("")).await.unwrap_err().to_text();
    text.replace(&folder.display().to_string(), "<project>")
}

#[tokio::test]
async fn typescript_of_several_files_and_an_npm_package_become_modules() {
    let dir = project(PROJECT);
    let bundle = make(dir.path(), Path::new("")).await.unwrap();
    let files = unpack(&bundle);
    let main = String::from_utf8(files[ENTRY].clone()).unwrap();
    for gone in [
        "interface",
        ": string",
        "satisfies",
        "shaken off",
        "require(",
        "tiny-router'",
    ] {
        assert!(!main.contains(gone), "{gone} is in {main}");
    }
    for there in [
        "Router = class",
        "hello ${to.name}",
        "\"terms\"",
        "as default",
    ] {
        assert!(main.contains(there), "{there} is not in {main}");
    }
    let suffix = |suffix: &str| files.keys().filter(|name| name.ends_with(suffix)).count();
    assert_eq!(
        (
            suffix(".wasm"),
            suffix(".js"),
            suffix(".js.map"),
            files.len()
        ),
        (1, 2, 2, 5)
    );
    assert_eq!(bundle.warnings, Vec::<String>::new());
    let map: serde_json::Value = serde_json::from_slice(&files["main.js.map"]).unwrap();
    assert!(
        map["sources"]
            .as_array()
            .unwrap()
            .iter()
            .any(|source| source == "src/index.ts"),
        "{map}"
    );
}

#[tokio::test]
async fn the_same_sources_in_another_folder_give_the_same_digest() {
    let (one, two) = (project(PROJECT), project(PROJECT));
    let nested = two.path().join("somewhere/else");
    write(&nested, PROJECT);
    let digest = make(one.path(), Path::new("")).await.unwrap().digest;
    assert_eq!(
        digest,
        make(one.path(), Path::new("")).await.unwrap().digest
    );
    assert_eq!(digest, make(&nested, Path::new("")).await.unwrap().digest);
}

#[tokio::test]
async fn files_above_the_project_change_nothing() {
    let dir = project(&[(
        "tsconfig.json",
        r#"{"compilerOptions":{"jsx":"preserve","paths":{"./greet.ts":["./x"]}}}"#,
    )]);
    let nested = dir.path().join("project");
    write(&nested, PROJECT);
    let alone = project(PROJECT);
    assert_eq!(
        make(&nested, Path::new("")).await.unwrap().digest,
        make(alone.path(), Path::new("")).await.unwrap().digest
    );
}

/// A project in a folder beside `private.*`, with a package that imports `import`.
fn beside_private(import: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    for name in ["private.json", "private.txt", "private.bin", "private"] {
        fs::write(dir.path().join(name), "\"hunter2\"").unwrap();
    }
    let folder = dir.path().join("project");
    let package = format!("import c from '{import}';\nexport default c;\n");
    write(
        &folder,
        &[
            (
                "src/index.ts",
                "import c from 'dep';\nexport default { c };\n",
            ),
            (
                "node_modules/dep/package.json",
                r#"{"name":"dep","main":"index.js"}"#,
            ),
            ("node_modules/dep/index.js", &package),
        ],
    );
    (dir, folder)
}

async fn must_be_outside(folder: &Path, home: &Path, named: &str) {
    let error = make(folder, home).await.unwrap_err();
    let text = error.to_text();
    assert_eq!(error.code(), Code::Bundle);
    assert!(text.contains("not the project's"), "{text}");
    assert!(text.contains(named) && !text.contains("hunter2"), "{text}");
}

#[tokio::test]
async fn no_file_outside_of_the_project_is_bundled() {
    for name in ["private.json", "private.txt", "private.bin", "private"] {
        let (_dir, folder) = beside_private(&format!("../../../{name}"));
        must_be_outside(&folder, Path::new(""), name).await;
    }
    // A link must not lead outside either, be it the main module, a file or a whole package.
    let link = std::os::unix::fs::symlink;
    let (dir, folder) = beside_private("./data.json");
    link(
        dir.path().join("private.json"),
        folder.join("node_modules/dep/data.json"),
    )
    .unwrap();
    must_be_outside(&folder, Path::new(""), "private.json").await;
    let (dir, folder) = beside_private("./index.js");
    fs::rename(folder.join("node_modules/dep"), dir.path().join("dep")).unwrap();
    link(dir.path().join("dep"), folder.join("node_modules/dep")).unwrap();
    must_be_outside(&folder, Path::new(""), "dep/index.js").await;
    let main = folder.join("src/index.ts");
    fs::remove_file(&main).unwrap();
    link(dir.path().join("private.json"), main).unwrap();
    must_be_outside(&folder, Path::new(""), "private.json").await;
}

#[tokio::test]
async fn the_home_is_never_bundled_and_packages_above_are() {
    let (_dir, folder) = beside_private("../../.home/connection.json");
    write(&folder, &[(".home/connection.json", "\"hunter2\"")]);
    let inside = make(&folder, Path::new("")).await.unwrap();
    assert!(String::from_utf8_lossy(&inside.bytes).contains("hunter2"));
    must_be_outside(&folder, &folder.join(".home"), "connection.json").await;
    // npm puts packages that several projects share there.
    let (dir, folder) = beside_private("./data.json");
    fs::write(folder.join("node_modules/dep/data.json"), "\"shared\"").unwrap();
    fs::rename(folder.join("node_modules"), dir.path().join("node_modules")).unwrap();
    let above = make(&folder, Path::new("")).await.unwrap();
    assert!(String::from_utf8_lossy(&above.bytes).contains("shared"));
}

#[tokio::test]
async fn a_syntax_error_has_file_line_column_and_the_line() {
    let text = failure(&[(
        "src/index.ts",
        "const one = 1;\nexport default { one two };\n",
    )])
    .await;
    insta::assert_snapshot!(text);
}

#[tokio::test]
async fn a_package_that_is_not_installed_is_named() {
    let source = "import { Hono } from '@scope/hono/tiny';\nexport default new Hono();\n";
    insta::assert_snapshot!(failure(&[("src/index.ts", source)]).await);
}

#[tokio::test]
async fn a_file_that_is_not_there_is_named() {
    insta::assert_snapshot!(
        failure(&[("src/index.ts", "import a from './a';\nexport default a;\n")]).await
    );
}

#[tokio::test]
async fn built_in_modules_of_node_are_named_as_such() {
    let source =
        "import fs from 'node:fs';\nimport path from 'path';\nexport default { fs, path };\n";
    insta::assert_snapshot!(failure(&[("src/index.ts", source)]).await);
}

#[tokio::test]
async fn an_entry_that_is_not_there_is_named() {
    insta::assert_snapshot!(failure(&[("src/other.ts", "")]).await);
}

#[tokio::test]
async fn an_entry_without_default_export_is_refused() {
    insta::assert_snapshot!(failure(&[("src/index.ts", "export const fetch = 1;\n")]).await);
}

#[tokio::test]
async fn a_bundle_over_its_size_names_the_largest_modules() {
    let data = |letter: &str, mib: usize| {
        format!("export const {letter} = '{}';\n", letter.repeat(mib << 20))
    };
    let text = failure(&[
        (
            "src/index.ts",
            "import { a } from './a';\nimport { b } from './b';\nexport default { a, b };\n",
        ),
        ("src/a.ts", &data("a", 2)),
        ("src/b.ts", &data("b", 4)),
    ])
    .await;
    let (first, rest) = text.split_once('\n').unwrap();
    assert!(first.starts_with("error: the bundle has 1"), "{first}");
    insta::assert_snapshot!(rest);
}

mod typescript;
mod workspaces;
