//! How TypeScript and `tsconfig.json` are compiled.

use super::*;

/// The text of the bundle's main module.
async fn bundled(files: &[(&str, &str)]) -> String {
    let dir = project(files);
    let bundle = make(dir.path(), Path::new(""))
        .await
        .unwrap_or_else(|error| panic!("{}", error.to_text()));
    String::from_utf8(unpack(&bundle)[ENTRY].clone()).unwrap()
}

const DECORATED: &str = "const seen: string[] = [];\n\
    const mark = (target: unknown, key?: string) => { seen.push(String(key)) };\n\
    @mark\n\
    class Thing {\n\
    \x20 static first = `${Thing.name}!`;\n\
    \x20 #secret = 41;\n\
    \x20 @mark field = 1;\n\
    \x20 constructor(private readonly given: number = 1) {}\n\
    \x20 @mark read() { return this.#secret + this.given }\n\
    }\n\
    export default { fetch: () => Response.json([new Thing().read(), Thing.first, seen]) };\n";

#[tokio::test]
async fn decorators_are_refused_with_file_line_and_what_to_do() {
    insta::assert_snapshot!(failure(&[("src/index.ts", DECORATED)]).await);
}

#[tokio::test]
async fn experimental_decorators_of_tsconfig_are_compiled() {
    let config = r#"{ "compilerOptions": { "target": "es2022", "experimentalDecorators": true } }"#;
    let main = bundled(&[("src/index.ts", DECORATED), ("tsconfig.json", config)]).await;
    assert!(!main.contains("@mark"), "{main}");
    assert!(main.contains("#secret = 41"), "{main}");
    // The setting is for TypeScript: a JavaScript file has no decorators.
    let text = failure(&[
        (
            "src/index.ts",
            "import { Thing } from './thing.js';\nexport default { fetch: () => new Thing() };\n",
        ),
        (
            "src/thing.js",
            "const mark = () => {};\nexport class Thing {\n  @mark field = 1;\n}\n",
        ),
        ("tsconfig.json", config),
    ])
    .await;
    insta::assert_snapshot!(text);
}

#[tokio::test]
async fn accessors_and_preserved_jsx_are_refused() {
    let accessor = failure(&[(
        "src/index.ts",
        "class Thing {\n  accessor size = 1;\n}\nexport default { fetch: () => new Thing() };\n",
    )])
    .await;
    insta::assert_snapshot!(accessor);
    let jsx = failure(&[
        (
            "src/index.ts",
            "import { view } from './view';\nexport default { fetch: () => view };\n",
        ),
        ("src/view.tsx", "export const view = <p>hello</p>;\n"),
        (
            "tsconfig.json",
            r#"{ "compilerOptions": { "jsx": "preserve" } }"#,
        ),
    ])
    .await;
    insta::assert_snapshot!(jsx);
}

#[tokio::test]
async fn a_sloppy_script_of_a_package_is_refused_by_name() {
    let text = failure(&[
        (
            "src/index.ts",
            "import old from 'old';\nexport default { fetch: () => old() };\n",
        ),
        (
            "node_modules/old/package.json",
            r#"{ "name": "old", "main": "index.js" }"#,
        ),
        (
            "node_modules/old/index.js",
            "module.exports = function () {\n  with (arguments[0]) { return value }\n};\n",
        ),
    ])
    .await;
    insta::assert_snapshot!(text);
}

/// Types, enums, namespaces, parameter properties and `using`, without any tsconfig.
#[tokio::test]
async fn what_typescript_adds_is_compiled() {
    let main = bundled(&[(
        "src/index.ts",
        "enum Colour { Red = 1 }\nconst enum Small { A = 1 << 3, B }\nnamespace Space \
         { export const inside = 'inside' }\n\
         class Base { constructor(protected readonly held = 2) {} }\n\
         class Sub extends Base \
         { declare extra: string; override toString() { return `${this.held}` } }\n\
         const open = () => ({ [Symbol.dispose]() {} });\n\
         export default \
         { fetch() { using it = open(); return Response.json([Colour[1], Small.B, Space.inside, `${new Sub()}`, it] satisfies unknown[]) } };\n",
    )])
    .await;
    for gone in ["enum ", "namespace ", "declare ", "override ", "satisfies"] {
        assert!(!main.contains(gone), "{gone} is in {main}");
    }
    assert!(main.contains("this.held = held"), "{main}");
}

const JSX: &[(&str, &str)] = &[
    (
        "src/index.ts",
        "import { view } from './view';\nexport default { fetch: () => new Response(view()) };\n",
    ),
    (
        "src/view.tsx",
        "export const view = () => <><p>hello</p></>;\n",
    ),
    (
        "lib/tiny/jsx-runtime.ts",
        "export const Fragment = '';\nexport const jsx = (tag: string, props: object): string => \
         `tiny ${tag}`;\n",
    ),
    ("lib/helper.ts", "export const helped = 'the helper';\n"),
];

#[tokio::test]
async fn jsx_and_paths_come_from_tsconfig_with_what_it_extends() {
    let alone = failure(JSX).await;
    assert!(alone.contains("jsxImportSource"), "{alone}");
    let base = r#"{
        // The file has comments and trailing commas, as many projects write it.
        "compilerOptions": { "jsx": "react-jsx", "jsxImportSource": "@lib/tiny", "baseUrl": ".", "paths": { "@lib/*": ["./lib/*"] }, },
    }"#;
    let mut files = JSX.to_vec();
    files.extend([
        ("tsconfig.base.json", base),
        ("tsconfig.json", r#"{ "extends": "./tsconfig.base.json" }"#),
    ]);
    let main = bundled(&files).await;
    assert!(
        main.contains("tiny ${tag}") && main.contains("jsx(\"p\""),
        "{main}"
    );
    files[0].1 = "import { helped } from '@lib/helper';\nexport default \
         { fetch: () => new Response(helped) };\n";
    assert!(bundled(&files).await.contains("the helper"));
    // A package can hold the shared configuration too.
    files.pop();
    files.extend([
        ("tsconfig.json", r#"{ "extends": "@org/config/base" }"#),
        (
            "node_modules/@org/config/package.json",
            r#"{ "name": "@org/config" }"#,
        ),
        (
            "node_modules/@org/config/base.json",
            r#"{ "compilerOptions": { "paths": { "@lib/*": ["../../../lib/*"] } } }"#,
        ),
    ]);
    assert!(bundled(&files).await.contains("the helper"));
}

#[tokio::test]
async fn a_package_keeps_its_own_meaning_of_names() {
    let files = [
        (
            "src/index.ts",
            "import { a } from 'dep';\nexport default { fetch: () => a };\n",
        ),
        (
            "tsconfig.json",
            r#"{ "compilerOptions": { "paths": { "inner": ["./src/mine"] } } }"#,
        ),
        ("src/mine.ts", "export const a = 'mine';\n"),
        (
            "node_modules/dep/package.json",
            r#"{ "name": "dep", "main": "index.js" }"#,
        ),
        ("node_modules/dep/index.js", "export * from 'inner';\n"),
        (
            "node_modules/inner/package.json",
            r#"{ "name": "inner", "main": "index.js" }"#,
        ),
        (
            "node_modules/inner/index.js",
            "export const a = 'its own';\n",
        ),
    ];
    let main = bundled(&files).await;
    assert!(main.contains("its own") && !main.contains("mine"), "{main}");
}

#[tokio::test]
async fn a_tsconfig_that_is_damaged_or_leads_outside_is_refused() {
    let source = ("src/index.ts", "export default { fetch: () => 1 };\n");
    for config in [
        "{ \"compilerOptions\": { \"jsx\": 1 } }",
        "{ \"compilerOptions\":",
        "{ \"extends\": \"./missing.json\" }",
        "{ \"extends\": \"./tsconfig.json\" }",
    ] {
        let text = failure(&[source, ("tsconfig.json", config)]).await;
        assert!(text.contains("tsconfig.json"), "{config}: {text}");
        assert!(
            text.contains("error: tsconfig.json cannot be read"),
            "{config}: {text}"
        );
    }
    let outer = project(&[("private.json", "\"hunter2\"")]);
    let private = outer.path().join("private.json");
    for chain in [
        private.display().to_string(),
        "../private.json".to_owned(),
        "./linked.json".to_owned(),
        "evil/base.json".to_owned(),
    ] {
        let folder = outer.path().join("project");
        let _ = fs::remove_dir_all(&folder);
        let config = format!("{{ \"extends\": \"{chain}\" }}");
        write(
            &folder,
            &[
                source,
                ("tsconfig.json", &config),
                ("node_modules/evil/package.json", r#"{ "name": "evil" }"#),
                (
                    "node_modules/evil/base.json",
                    r#"{ "extends": "../../../private.json" }"#,
                ),
            ],
        );
        std::os::unix::fs::symlink(&private, folder.join("linked.json")).unwrap();
        must_be_outside(&folder, Path::new(""), ".json").await;
    }
}
