//! All features of TypeScript, in a workspace, from the sources to the answers of a node's V8.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::path::Path;
use std::time::Instant;

use casemate_tests::caller;
use casemate_tests::fleet::{Fleet, SOON};
use tokio::task::block_in_place;

const MAIN: &str = r#"
const seen: string[] = [];
function mark(name: string) {
  return (target: unknown, key?: string): any => { seen.push(`${name}:${key ?? (target as { name: string }).name}`); };
}
@mark("class")
class Foo {
  static first = `${Foo.name}!`;
  static second = Foo.first;
  #secret = 41;
  @mark("field") field = 1;
  constructor(private readonly given: number = 1) {}
  @mark("method") read() { return this.#secret + this.given; }
  static { seen.push("static"); }
  get is() { return #secret in this; }
}
class Base { value = this.make(); make() { return "base"; } }
class Sub extends Base { declare value: string; override make() { return "sub"; } }
enum Colour { Red = 1, Green }
const enum Small { A = 1 << 3, B }
namespace Space { export const inside = "inside"; }
const resource = () => ({ [Symbol.dispose]() { seen.push("disposed"); } });
import { helped } from "@app/helper";
import { shared } from "@org/lib";
import { view } from "./view";
export default {
  fetch() {
    let used = "";
    { using r = resource(); used = typeof r; }
    const out = {
      first: Foo.first, second: Foo.second, read: new Foo().read(), is: new Foo().is, sub: new Sub().value,
      colour: Colour[2], small: Small.B, inside: Space.inside, used, helped, shared, view: view(), seen: [...new Set(seen)].join(),
    };
    return Response.json(out satisfies Record<string, unknown>);
  },
};
"#;

const FILES: &[(&str, &str)] = &[
    (
        "package.json",
        r#"{ "private": true, "workspaces": ["apps/*", "packages/*"] }"#,
    ),
    (
        "tsconfig.base.json",
        r#"{ "compilerOptions": { "target": "es2022", "experimentalDecorators": true, "jsx": "react-jsx" } }"#,
    ),
    (
        "packages/lib/package.json",
        r#"{ "name": "@org/lib", "type": "module", "exports": "./index.ts" }"#,
    ),
    (
        "packages/lib/index.ts",
        "export const shared: string = 'from the workspace';\n",
    ),
    (
        "apps/web/tsconfig.json",
        r#"{
            // Both the workspace and the project have a configuration.
            "extends": "../../tsconfig.base.json",
            "compilerOptions": { "jsxImportSource": "@app/tiny", "paths": { "@app/*": ["./lib/*"] }, },
        }"#,
    ),
    (
        "apps/web/casemate.toml",
        "name = \"web\"\nmain = \"src/main.ts\"\nhosts = [\"web.apps.demo.test\"]\n[limits]\ncpu_time_ms = 1000\n",
    ),
    ("apps/web/src/main.ts", MAIN),
    (
        "apps/web/src/view.tsx",
        "const Item = ({ name }: { name: string }) => <li>{name}</li>;\n\
         export const view = () => <><ul><Item name=\"a\" /><Item name=\"b\" /></ul></>;\n",
    ),
    (
        "apps/web/lib/helper.ts",
        "export const helped = 'helped';\n",
    ),
    (
        "apps/web/lib/tiny/jsx-runtime.ts",
        "export const Fragment = \"\";\n\
         export function jsx(tag: string | ((p: unknown) => string), props: { children?: unknown }): string {\n\
         \x20 if (typeof tag === \"function\") return tag(props);\n\
         \x20 const children = [props.children ?? []].flat(9).join(\"\");\n\
         \x20 return tag ? `<${tag}>${children}</${tag}>` : children;\n\
         }\n\
         export const jsxs = jsx;\n",
    ),
];

fn write(folder: &Path) {
    for (name, text) in FILES {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let link = folder.join("node_modules/@org/lib");
    std::fs::create_dir_all(link.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink("../../packages/lib", link).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn typescript_of_a_workspace_runs_as_its_author_means_it() {
    let fleet = block_in_place(Fleet::start).unwrap();
    let workspace = fleet.folder.join("workspace");
    write(&workspace);
    block_in_place(|| fleet.deploy(&workspace.join("apps/web"))).unwrap();
    let end = Instant::now() + SOON;
    let answer = loop {
        let answer = caller::get(fleet.node.gateway, "web.apps.demo.test", "/")
            .await
            .unwrap();
        if answer.status == 200 {
            break answer.text();
        }
        assert!(Instant::now() < end, "{} {}", answer.status, answer.text());
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    };
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    let expected = serde_json::json!({
        "first": "Foo!", "second": "Foo!", "read": 42, "is": true, "sub": "sub", "colour": "Green", "small": 9,
        "inside": "inside", "used": "object", "helped": "helped", "shared": "from the workspace",
        "view": "<ul><li>a</li><li>b</li></ul>", "seen": "static,field:field,method:read,class:Foo,disposed",
    });
    assert_eq!(answer, expected);
}
