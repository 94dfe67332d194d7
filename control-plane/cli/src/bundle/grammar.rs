//! Checks that the nodes' V8 can parse the bundler's output. The bundler passes on syntax that it
//! does not lower (decorators of the newer proposal, JSX that `tsconfig.json` preserves), and turns
//! sloppy scripts into strict modules: such a bundle would be a `SyntaxError` at its first request.

use oxc::allocator::Allocator;
use oxc::ast::ast::{
    AccessorProperty, Decorator, ImportDeclaration, ImportExpression, JSXElement, JSXFragment,
    WithClauseKeyword,
};
use oxc::ast_visit::{Visit, walk};
use oxc::diagnostics::{OxcDiagnostic, Severity};
use oxc::parser::{ParseOptions, Parser};
use oxc::semantic::SemanticBuilder;
use oxc::span::SourceType;
use rolldown_common::OutputChunk;

use crate::error::{Code, Error};

/// How many places are shown.
const MAX_SHOWN: usize = 10;

/// Syntax that V8 does not parse.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Decorator,
    Accessor,
    Jsx,
    ImportPhase,
    /// A violation of the ECMAScript grammar or of one of its early errors, in the parser's words.
    Early(String),
}

/// One place in a module that V8 does not parse.
#[derive(Debug)]
struct Finding {
    /// In the bundled module, bytes.
    offset: usize,
    kind: Kind,
}

/// The same place in the author's source.
struct Place {
    file: String,
    /// From 1.
    line: usize,
    /// From 1, characters.
    column: usize,
    text: Option<String>,
}

/// Refuses a module that V8 cannot parse.
///
/// # Errors
/// V8 cannot parse the module. The error lists the places with file, line, column and the line
/// itself, and the next step for the first of them.
pub(super) fn check(chunk: &OutputChunk) -> Result<(), Error> {
    let findings = findings(&chunk.code);
    let Some(first) = findings.first() else {
        return Ok(());
    };
    let place = place(chunk, first.offset);
    let mut lines = Vec::new();
    let mut last = String::new();
    for finding in &findings {
        let shown = show(chunk, finding);
        // A finding that occurs twice on a line, or that the bundler copied, is shown once.
        if lines.len() < 2 * MAX_SHOWN && shown[0] != last {
            last.clone_from(&shown[0]);
            lines.extend(shown);
        }
    }
    if findings.len() > MAX_SHOWN {
        lines.push(format!("{} places in total", findings.len()));
    }
    let next = next_step(&first.kind, &place.file);
    Err(Error::new(
        Code::Bundle,
        "the function has syntax that its nodes cannot run",
        next,
    )
    .lines(lines))
}

fn show(chunk: &OutputChunk, finding: &Finding) -> Vec<String> {
    let place = place(chunk, finding.offset);
    let what = message(&finding.kind);
    let mut lines = vec![format!(
        "{}:{}:{}: {what}",
        place.file, place.line, place.column
    )];
    lines.extend(place.text.map(|text| format!("  {} │ {text}", place.line)));
    lines
}

fn message(kind: &Kind) -> String {
    match kind {
        Kind::Decorator => "a decorator, which V8 does not have".to_owned(),
        Kind::Accessor => "an `accessor` property, which V8 does not have".to_owned(),
        Kind::Jsx => "JSX, which is not JavaScript".to_owned(),
        Kind::ImportPhase => "an import with a phase (`source` or `defer`)".to_owned(),
        Kind::Early(text) => text.clone(),
    }
}

fn next_step(kind: &Kind, file: &str) -> String {
    let is_package = file.split('/').any(|part| part == "node_modules");
    let is_typescript = [".ts", ".tsx", ".mts", ".cts"]
        .iter()
        .any(|end| file.ends_with(end));
    match kind {
        _ if is_package => format!(
            "use a version of the package that is built for browsers or workers: {file} is not an \
             ES module that runs"
        ),
        Kind::Decorator if is_typescript => {
            "set `\"experimentalDecorators\": true` under `compilerOptions` in tsconfig.json, \
             which compiles TypeScript's own decorators; compile decorators of the newer proposal \
             with `tsc` before you deploy"
                .to_owned()
        }
        Kind::Decorator => {
            "move the class into a .ts file and set `\"experimentalDecorators\": true` under \
             `compilerOptions` in tsconfig.json, or compile the file before you deploy"
                .to_owned()
        }
        Kind::Accessor => "write a getter and a setter over a private field".to_owned(),
        Kind::Jsx => {
            "set `\"jsx\": \"react-jsx\"` under `compilerOptions` in tsconfig.json: nothing after \
             `casemate deploy` compiles JSX that is preserved"
                .to_owned()
        }
        Kind::ImportPhase => "import the module without `source` or `defer`".to_owned(),
        Kind::Early(_) => {
            "correct this: a bundle is an ES module, which is always in strict mode".to_owned()
        }
    }
}

/// The place in the author's source that a place of the bundled module comes from, by the module's
/// source map.
fn place(chunk: &OutputChunk, offset: usize) -> Place {
    let before = chunk.code.get(..offset).unwrap_or(&chunk.code);
    let line = before.matches('\n').count();
    let start = before.rfind('\n').map_or(0, |at| at + 1);
    let column = before[start..].encode_utf16().count();
    let mapped = chunk.map.as_ref().and_then(|map| {
        let (line, column) = (u32::try_from(line).ok()?, u32::try_from(column).ok()?);
        let token =
            map.lookup_source_view_token_approx(&map.generate_lookup_table(), line, column)?;
        let (file, content) = token.get_source_and_content()?;
        let line = token.get_src_line() as usize;
        Some(Place {
            file: file.to_owned(),
            line: line + 1,
            column: token.get_src_col() as usize + 1,
            text: content.lines().nth(line).map(str::to_owned),
        })
    });
    mapped.unwrap_or_else(|| Place {
        file: chunk.filename.to_string(),
        line: line + 1,
        column: column + 1,
        text: chunk.code.lines().nth(line).map(str::to_owned),
    })
}

/// Everything in an ES module that V8 would not parse, in the order of the text.
fn findings(code: &str) -> Vec<Finding> {
    let allocator = Allocator::default();
    // The parser knows JSX, so that its position is reported instead of a syntax error at `<`.
    let kind = SourceType::mjs().with_jsx(true);
    let options = ParseOptions {
        parse_regular_expression: true,
        ..ParseOptions::default()
    };
    let parsed = Parser::new(&allocator, code, kind)
        .with_options(options)
        .parse();
    let mut found: Vec<_> = parsed.diagnostics.iter().filter_map(early).collect();
    if !parsed.panicked {
        let semantic = SemanticBuilder::new()
            .with_check_syntax_error(true)
            .build(&parsed.program);
        found.extend(semantic.diagnostics.iter().filter_map(early));
        let mut proposals = Proposals::default();
        proposals.visit_program(&parsed.program);
        found.extend(proposals.found);
    }
    found.sort_by_key(|finding| finding.offset);
    found
}

fn early(diagnostic: &OxcDiagnostic) -> Option<Finding> {
    (diagnostic.severity == Severity::Error).then(|| Finding {
        offset: diagnostic
            .labels
            .first()
            .map_or(0, |label| label.offset() as usize),
        kind: Kind::Early(diagnostic.message.to_string()),
    })
}

/// Syntax that the parser knows and V8 does not.
#[derive(Default)]
struct Proposals {
    found: Vec<Finding>,
}

impl Proposals {
    fn add(&mut self, offset: u32, kind: Kind) {
        let offset = offset as usize;
        self.found.push(Finding { offset, kind });
    }
}

impl<'a> Visit<'a> for Proposals {
    fn visit_decorator(&mut self, it: &Decorator<'a>) {
        self.add(it.span.start, Kind::Decorator);
        walk::walk_decorator(self, it);
    }

    fn visit_accessor_property(&mut self, it: &AccessorProperty<'a>) {
        self.add(it.span.start, Kind::Accessor);
        walk::walk_accessor_property(self, it);
    }

    fn visit_jsx_element(&mut self, it: &JSXElement<'a>) {
        // Nested elements belong to this one.
        self.add(it.span.start, Kind::Jsx);
    }

    fn visit_jsx_fragment(&mut self, it: &JSXFragment<'a>) {
        self.add(it.span.start, Kind::Jsx);
    }

    fn visit_import_declaration(&mut self, it: &ImportDeclaration<'a>) {
        if it.phase.is_some() {
            self.add(it.span.start, Kind::ImportPhase);
        }
        let attributes = it.with_clause.as_ref();
        if attributes.is_some_and(|clause| clause.keyword == WithClauseKeyword::Assert) {
            let text = "import assertions were renamed: write `with` in the place of `assert`";
            self.add(it.span.start, Kind::Early(text.to_owned()));
        }
        walk::walk_import_declaration(self, it);
    }

    fn visit_import_expression(&mut self, it: &ImportExpression<'a>) {
        if it.phase.is_some() {
            self.add(it.span.start, Kind::ImportPhase);
        }
        walk::walk_import_expression(self, it);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(code: &str) -> Vec<Kind> {
        findings(code).into_iter().map(|found| found.kind).collect()
    }

    #[test]
    fn what_v8_parses_passes() {
        for code in [
            "class A { static #p = 1; static { this.#p++ } static has(o) { return #p in o } \
             }\nexport default A;",
            "{ using held = open() }\nawait using later = open();",
            "export default /(?<year>\\d{4})|(?<year>\\d{2})/v;\nlet big = 1_000n ** 2n;",
            "import data from './a.json' with { type: 'json' };\nconst a = b?.c ?? (d ||= await \
             import('./e.js'));",
            "label: for await (const x of y) continue label;\nexport { a as 'any name' };\nlet a;",
        ] {
            assert_eq!(kinds(code), [], "{code}");
        }
    }

    #[test]
    fn syntax_of_proposals_is_found() {
        assert_eq!(
            kinds("@a class A { @b method() {} @c field; accessor d = 1 }"),
            [
                Kind::Decorator,
                Kind::Decorator,
                Kind::Decorator,
                Kind::Accessor
            ]
        );
        assert_eq!(kinds("export default <p><b/></p>;"), [Kind::Jsx]);
        assert_eq!(
            kinds("import source a from './a.wasm';\nimport.defer('./b.js');"),
            [Kind::ImportPhase, Kind::ImportPhase]
        );
    }

    #[test]
    fn early_errors_of_strict_modules_are_found() {
        for code in [
            "let a = 1;\nlet a = 2;",
            "with (a) b;",
            "let mode = 0777;",
            "delete a;",
            "function f(a, a) {}",
            "return 1;",
            "let a = /(?<n>a)(?<n>b)/;",
            "let a = /[b-a]/;",
            "class A { b() { return this.#c } }",
            "let await = 1;",
            "break;",
            "export { missing };",
            "%DebugPrint(1);",
            "type A = string;",
            "import assert from './a' assert { type: 'json' };",
        ] {
            let found = kinds(code);
            assert!(
                matches!(found.as_slice(), [Kind::Early(_), ..]),
                "{code}: {found:?}"
            );
        }
    }
}
