//! Packages beside the project.

use super::*;

const PACKAGE: &str =
    "import { deep } from 'deep';\nexport const shared: string = `shared with ${deep}`;\n";

/// A workspace with a function, a package `lib` beside it that has a dependency of its own, a
/// package that no link leads to, and a file that belongs to no package.
fn workspace(manifest: (&str, &str)) -> tempfile::TempDir {
    let dir = project(&[
        manifest,
        ("private.json", "\"hunter2\""),
        (
            "apps/web/src/index.ts",
            "import { shared } from '@org/lib';\nexport default \
             { fetch: () => new Response(shared) };\n",
        ),
        (
            "packages/lib/package.json",
            r#"{ "name": "@org/lib", "main": "index.ts" }"#,
        ),
        ("packages/lib/index.ts", PACKAGE),
        ("packages/lib/data.json", "\"the data\""),
        (
            "packages/other/index.ts",
            "export const other = 'hunter2';\n",
        ),
        (
            "node_modules/.pnpm/deep@1/node_modules/deep/package.json",
            r#"{ "name": "deep", "main": "index.js" }"#,
        ),
        (
            "node_modules/.pnpm/deep@1/node_modules/deep/index.js",
            "exports.deep = 'the deep';\n",
        ),
    ]);
    link(
        dir.path(),
        "node_modules/.pnpm/deep@1/node_modules/deep",
        "packages/lib/node_modules/deep",
    );
    dir
}

fn link(folder: &Path, to: &str, at: &str) {
    let at = folder.join(at);
    fs::create_dir_all(at.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink(folder.join(to), at).unwrap();
}

const NPM: (&str, &str) = (
    "package.json",
    r#"{ "private": true, "workspaces": ["apps/*", "packages/*"] }"#,
);
const PNPM: (&str, &str) = (
    "pnpm-workspace.yaml",
    "packages:\n  - apps/*\n  - packages/*\n",
);

async fn text_of(folder: &Path) -> String {
    let bundle = make(folder, Path::new(""))
        .await
        .unwrap_or_else(|error| panic!("{}", error.to_text()));
    String::from_utf8_lossy(&bundle.bytes).into_owned()
}

#[tokio::test]
async fn linked_packages_of_the_workspace_are_packed_and_named() {
    // npm and Yarn link every package at the root, pnpm only those that a package names, beside
    // that package.
    for (manifest, at) in [
        (NPM, "node_modules/@org/lib"),
        (PNPM, "apps/web/node_modules/@org/lib"),
    ] {
        let dir = workspace(manifest);
        link(dir.path(), "packages/lib", at);
        let folder = dir.path().join("apps/web");
        let bundle = make(&folder, Path::new("")).await.unwrap();
        let text = String::from_utf8_lossy(&bundle.bytes).into_owned();
        assert!(
            text.contains("shared with") && text.contains("the deep"),
            "{text}"
        );
        let beside = Beside {
            folder: "../../packages/lib".to_owned(),
            files: 1,
        };
        assert_eq!(bundle.beside, [beside]);
    }
}

#[tokio::test]
async fn a_package_that_a_linked_package_links_is_packed() {
    let dir = workspace(PNPM);
    link(dir.path(), "packages/lib", "apps/web/node_modules/@org/lib");
    link(
        dir.path(),
        "packages/other",
        "packages/lib/node_modules/other",
    );
    write(
        dir.path(),
        &[
            (
                "packages/lib/index.ts",
                "export { other as shared } from 'other';\n",
            ),
            (
                "packages/other/package.json",
                r#"{ "name": "other", "main": "index.ts" }"#,
            ),
        ],
    );
    assert!(
        text_of(&dir.path().join("apps/web"))
            .await
            .contains("hunter2")
    );
}

#[tokio::test]
async fn what_no_link_names_is_refused_in_a_workspace_too() {
    for import in ["../../../private.json", "../../../packages/other/index.ts"] {
        let dir = workspace(NPM);
        link(dir.path(), "packages/lib", "node_modules/@org/lib");
        let source =
            format!("import * as all from '{import}';\nexport default {{ fetch: () => all }};\n");
        let folder = dir.path().join("apps/web");
        write(&folder, &[("src/index.ts", &source)]);
        must_be_outside(&folder, Path::new(""), "workspace").await;
        // A package of the workspace must not import it either.
        let inner = import.replacen("../", "", 1);
        write(
            dir.path(),
            &[
                (
                    "apps/web/src/index.ts",
                    "import { shared } from '@org/lib';\nexport default { fetch: () => shared };\n",
                ),
                (
                    "packages/lib/index.ts",
                    &format!("import * as all from '{inner}';\nexport const shared = all;\n"),
                ),
            ],
        );
        must_be_outside(&folder, Path::new(""), "workspace").await;
    }
}

#[tokio::test]
async fn a_link_out_of_the_workspace_is_refused_until_it_is_named() {
    let elsewhere = project(&[
        (
            "package.json",
            r#"{ "name": "@org/lib", "main": "index.ts" }"#,
        ),
        ("index.ts", "export const shared = 'from elsewhere';\n"),
    ]);
    let dir = workspace(NPM);
    let at = dir.path().join("node_modules/@org/lib");
    fs::create_dir_all(at.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink(elsewhere.path(), at).unwrap();
    let folder = dir.path().join("apps/web");
    must_be_outside(&folder, Path::new(""), "include = ").await;
    let include = [elsewhere.path().to_owned()];
    let sources = Sources {
        folder: &folder,
        main: "src/index.ts",
        include: &include,
        home: Path::new(""),
    };
    let bundle = bundle(sources).await.unwrap();
    assert!(String::from_utf8_lossy(&bundle.bytes).contains("from elsewhere"));
    assert_eq!(bundle.beside.len(), 1);
}

#[tokio::test]
async fn the_home_in_a_workspace_is_never_packed() {
    let dir = workspace(NPM);
    link(dir.path(), "packages/lib", "node_modules/@org/lib");
    write(
        dir.path(),
        &[(
            "packages/lib/index.ts",
            "export { default as shared } from './data.json';\n",
        )],
    );
    let folder = dir.path().join("apps/web");
    assert!(text_of(&folder).await.contains("the data"));
    must_be_outside(&folder, &dir.path().join("packages/lib"), "packages/lib").await;
}

#[tokio::test]
async fn a_workspace_shares_its_configuration_and_folders_above_are_ignored() {
    let dir = workspace(NPM);
    link(dir.path(), "packages/lib", "node_modules/@org/lib");
    let paths = r#"{ "compilerOptions": { "paths": { "shared": ["./packages/lib/index.ts"] } } }"#;
    write(
        dir.path(),
        &[
            (
                "config/base.json",
                r#"{ "compilerOptions": { "experimentalDecorators": true } }"#,
            ),
            (
                "tsconfig.json",
                &paths.replacen('{', r#"{ "extends": "./config/base.json", "#, 1),
            ),
            (
                "apps/web/src/index.ts",
                "import { shared } from 'shared';\nexport default { fetch: () => shared };\n",
            ),
        ],
    );
    assert!(
        text_of(&dir.path().join("apps/web"))
            .await
            .contains("shared with")
    );
    // The same folder without the workspace's manifest is a project alone.
    fs::remove_file(dir.path().join("package.json")).unwrap();
    let error = make(&dir.path().join("apps/web"), Path::new(""))
        .await
        .unwrap_err();
    assert!(
        error
            .to_text()
            .contains("the package `shared` is not installed"),
        "{}",
        error.to_text()
    );
}
