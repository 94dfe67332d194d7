//! The sources of the repository, as text and as Rust tokens.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, Group, Spacing, TokenStream, TokenTree};

/// Folders without sources of the repository.
const FOREIGN: &[&str] = &["target", "node_modules", "corpus", "artifacts"];

/// One source file.
pub(crate) struct Source {
    /// Path relative to the root, with `/`.
    pub(crate) path: String,
    pub(crate) text: String,
}

impl Source {
    /// A planted file, for the tests of a rule.
    pub(crate) fn planted(path: &str, text: &str) -> Self {
        Self {
            path: path.into(),
            text: text.into(),
        }
    }

    /// The file's tokens, without comments and without the contents of literals.
    pub(crate) fn rust(&self) -> Rust {
        Rust::read(&self.path, &self.text)
    }
}

pub(crate) fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("tests/ lies in the root").to_owned()
}

/// All source files with one of these endings.
pub(crate) fn sources(endings: &[&str]) -> Vec<Source> {
    let (root, mut found) = (root(), Vec::new());
    walk(&root, endings, &mut found);
    found.sort();
    let read = |path: &PathBuf| {
        let relative = path.strip_prefix(&root).expect("below the root");
        let text = fs::read_to_string(path).expect("a source that is UTF-8");
        Source::planted(&relative.to_string_lossy(), &text)
    };
    found.iter().map(read).collect()
}

fn walk(folder: &Path, endings: &[&str], found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a readable folder") {
        let entry = entry.expect("a readable entry");
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type().expect("the entry's type").is_dir() {
            if !FOREIGN.contains(&name.as_str()) && !name.starts_with('.') {
                walk(&entry.path(), endings, found);
            }
        } else if endings.iter().any(|ending| name.ends_with(ending)) {
            found.push(entry.path());
        }
    }
}

/// One token: an identifier, a sign, a bracket, or a literal without its contents.
pub(crate) struct Word {
    pub(crate) text: String,
    pub(crate) line: usize,
    /// Whether the token is inside an item that is compiled only for tests.
    pub(crate) is_test: bool,
}

/// One path, such as `std::fs::read`; a `use` with braces gives one path for each leaf.
pub(crate) struct RustPath {
    pub(crate) text: String,
    pub(crate) line: usize,
}

/// A file as tokens and paths.
#[derive(Default)]
pub(crate) struct Rust {
    pub(crate) words: Vec<Word>,
    pub(crate) paths: Vec<RustPath>,
    /// Modules in files of their own that are compiled only for tests.
    pub(crate) test_modules: BTreeSet<String>,
}

impl Rust {
    fn read(path: &str, text: &str) -> Self {
        let stream: TokenStream = text
            .parse()
            .unwrap_or_else(|error| panic!("{path} is not Rust: {error}"));
        let mut rust = Self::default();
        rust.take_words(stream.clone(), false);
        rust.take_paths(stream, "");
        rust
    }

    fn push(&mut self, text: &str, line: usize, is_test: bool) {
        let text = text.to_owned();
        self.words.push(Word {
            text,
            line,
            is_test,
        });
    }

    fn take_words(&mut self, stream: TokenStream, is_test: bool) {
        let trees: Vec<TokenTree> = stream.into_iter().collect();
        // An item behind an attribute for tests.
        let mut in_item = false;
        let mut at = 0;
        while let Some(tree) = trees.get(at) {
            at += 1;
            let line = tree.span().start().line;
            let is_test_here = is_test || in_item;
            match tree {
                TokenTree::Group(group) => {
                    let attribute = follows_hash(&trees, at - 1) && is_test_attribute(group);
                    self.take_group(group, is_test_here || attribute);
                    in_item |= attribute;
                    in_item &= group.delimiter() != Delimiter::Brace;
                }
                TokenTree::Ident(ident) => {
                    if is_test_here && *ident == "mod" {
                        self.take_module(&trees[at..]);
                    }
                    self.push(&ident.to_string(), line, is_test_here);
                }
                TokenTree::Punct(punct) => {
                    let is_path = punct.as_char() == ':' && punct.spacing() == Spacing::Joint;
                    at += usize::from(is_path);
                    let sign = punct.as_char().to_string();
                    self.push(if is_path { "::" } else { &sign }, line, is_test_here);
                    in_item &= !matches!(punct.as_char(), ';' | ',');
                }
                TokenTree::Literal(_) => self.push("\"\"", line, is_test_here),
            }
        }
    }

    fn take_group(&mut self, group: &Group, is_test: bool) {
        let (open, close) = match group.delimiter() {
            Delimiter::Parenthesis => ("(", ")"),
            Delimiter::Brace => ("{", "}"),
            Delimiter::Bracket => ("[", "]"),
            Delimiter::None => ("", ""),
        };
        self.push(open, group.span_open().start().line, is_test);
        self.take_words(group.stream(), is_test);
        self.push(close, group.span_close().start().line, is_test);
    }

    /// For `mod name;`, the tokens after `mod`.
    fn take_module(&mut self, rest: &[TokenTree]) {
        if let [TokenTree::Ident(name), TokenTree::Punct(end), ..] = rest
            && end.as_char() == ';'
        {
            self.test_modules.insert(name.to_string());
        }
    }

    fn take_paths(&mut self, stream: TokenStream, prefix: &str) {
        let mut current: Option<RustPath> = None;
        // Whether the path so far ends in `::`.
        let mut goes_on = false;
        let mut colons = 0;
        for tree in stream {
            let line = tree.span().start().line;
            if let TokenTree::Punct(punct) = &tree
                && punct.as_char() == ':'
            {
                colons += 1;
                goes_on = colons == 2;
                continue;
            }
            match tree {
                TokenTree::Ident(ident) => match current.as_mut().filter(|_| goes_on) {
                    Some(path) => path.text = format!("{}::{ident}", path.text),
                    None => {
                        self.paths.extend(current.take());
                        let text = if prefix.is_empty() {
                            ident.to_string()
                        } else {
                            format!("{prefix}::{ident}")
                        };
                        current = Some(RustPath { text, line });
                    }
                },
                TokenTree::Group(group) => {
                    let is_tree = goes_on && group.delimiter() == Delimiter::Brace;
                    let before = current.take();
                    let prefix = before.as_ref().filter(|_| is_tree);
                    let prefix = prefix.map_or(String::new(), |path| path.text.clone());
                    self.take_paths(group.stream(), &prefix);
                    self.paths.extend(before);
                }
                _ => self.paths.extend(current.take()),
            }
            (colons, goes_on) = (0, false);
        }
        self.paths.extend(current);
    }
}

fn follows_hash(trees: &[TokenTree], at: usize) -> bool {
    let before = at.checked_sub(1).and_then(|before| trees.get(before));
    matches!(before, Some(TokenTree::Punct(punct)) if punct.as_char() == '#')
}

/// Whether an attribute's brackets hold `cfg(test)`, `test` or `tokio::test`, with or without
/// arguments.
fn is_test_attribute(group: &Group) -> bool {
    let text = group.stream().to_string().replace(' ', "");
    let inside = text.strip_prefix("cfg(").unwrap_or(&text);
    let names = ["test", "tokio::test", "all(test"];
    names.iter().any(|name| {
        let rest = inside.strip_prefix(name);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with([')', ',', '(']))
    })
}

/// The Rust sources with their tokens, and whether a whole file is for tests only: a file in a
/// folder `tests`, or of a module that is declared so.
pub(crate) fn rust_sources() -> Vec<(Source, Rust, bool)> {
    let read: Vec<_> = sources(&[".rs"])
        .into_iter()
        .map(|source| {
            let rust = source.rust();
            (source, rust)
        })
        .collect();
    let mut test_places = Vec::new();
    for (source, rust) in &read {
        let folder = folder_of_modules(&source.path);
        let declared = rust.test_modules.iter();
        test_places.extend(declared.map(|name| format!("{folder}/{name}")));
    }
    let is_test = |path: &str| {
        let below = |place: &String| {
            path.strip_prefix(place.as_str())
                .is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
        };
        path.starts_with("tests/") || path.contains("/tests/") || test_places.iter().any(below)
    };
    read.into_iter()
        .map(|(source, rust)| {
            let is_test = is_test(&source.path);
            (source, rust, is_test)
        })
        .collect()
}

/// The folder with the files of a file's modules.
fn folder_of_modules(path: &str) -> String {
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    match name {
        "lib.rs" | "main.rs" | "mod.rs" => folder.to_owned(),
        name => format!("{folder}/{}", name.trim_end_matches(".rs")),
    }
}

#[test]
fn comments_and_literals_are_left_out_and_what_follows_a_test_is_not() {
    let text = r#"
        #[cfg(test)]
        mod tests;
        //! unsafe
        fn shown() { let text = "unsafe"; call(); }
        #[cfg(test)]
        fn hidden() { only_in_tests(); }
        fn after() { still_read(); }
    "#;
    let rust = Source::planted("a.rs", text).rust();
    let found = |wanted: &str| {
        let word = rust.words.iter().find(|word| word.text == wanted);
        word.map(|word| (word.line, word.is_test))
    };
    assert_eq!(found("unsafe"), None);
    assert_eq!(found("call"), Some((5, false)));
    assert_eq!(found("only_in_tests"), Some((7, true)));
    assert_eq!(found("still_read"), Some((8, false)));
    assert!(rust.test_modules.contains("tests"));
}

#[test]
fn a_use_with_braces_is_as_many_paths_as_it_has_leaves() {
    let text = "use std::{fs, time::{Duration, Instant}}; fn f() { std :: env :: var(\"A\"); }";
    let rust = Source::planted("a.rs", text).rust();
    let paths: Vec<_> = rust.paths.iter().map(|path| path.text.as_str()).collect();
    for path in [
        "std::fs",
        "std::time::Duration",
        "std::time::Instant",
        "std::env::var",
    ] {
        assert!(paths.contains(&path), "{path} is not in {paths:?}");
    }
}
