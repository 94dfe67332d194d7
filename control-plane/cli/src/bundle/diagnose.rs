//! The bundler's complaints as errors with file, line, column and code frame.

use std::path::{Path, PathBuf};

use rolldown_error::{BuildDiagnostic, DiagnosticOptions, EventKind};

use crate::error::{Code, Error};

/// Modules that Node.js has built in and a function does not have. Without the `node:` prefix these
/// may also be npm packages, so they are looked at only when no package of that name is installed.
#[rustfmt::skip]
const NODE_BUILT_INS: &[&str] = &[
    "assert", "async_hooks", "buffer", "child_process", "cluster", "console", "constants", "crypto", "dgram",
    "diagnostics_channel", "dns", "domain", "events", "fs", "http", "http2", "https", "inspector", "module", "net",
    "os", "path", "perf_hooks", "process", "punycode", "querystring", "readline", "repl", "stream", "string_decoder",
    "sys", "timers", "tls", "trace_events", "tty", "url", "util", "v8", "vm", "wasi", "worker_threads", "zlib",
];
/// How many complaints are shown.
const MAX_SHOWN: usize = 10;

/// Renders complaints with paths relative to the project's folder.
pub(super) struct Frames {
    options: DiagnosticOptions,
}

impl Frames {
    pub(super) fn new(folder: &Path) -> Self {
        Self {
            options: DiagnosticOptions {
                cwd: PathBuf::from(folder),
            },
        }
    }

    /// The error for a build that failed: its complaints, and what to do about the first.
    pub(super) fn failed<'a>(
        &self,
        complaints: impl IntoIterator<Item = &'a BuildDiagnostic>,
    ) -> Error {
        let complaints: Vec<&BuildDiagnostic> = complaints.into_iter().collect();
        let next = complaints
            .first()
            .map_or_else(String::new, |first| self.next_step(first));
        let mut lines = Vec::new();
        for complaint in complaints.iter().take(MAX_SHOWN) {
            lines.extend(self.render(complaint));
        }
        if complaints.len() > MAX_SHOWN {
            lines.push(format!("and {} more", complaints.len() - MAX_SHOWN));
        }
        Error::new(Code::Bundle, "the function cannot be bundled", next)
            .at(self.options.cwd.display())
            .lines(lines)
    }

    /// Complaints that do not stop the build. An import that was not found is not among them: it
    /// stops the build, because the module would be missing at run time.
    pub(super) fn warnings(&self, complaints: &[BuildDiagnostic]) -> Result<Vec<String>, Error> {
        let unresolved =
            |complaint: &&BuildDiagnostic| matches!(complaint.kind(), EventKind::UnresolvedImport);
        if complaints.iter().any(|complaint| unresolved(&complaint)) {
            return Err(self.failed(complaints.iter().filter(unresolved)));
        }
        let of_the_author = |complaint: &&BuildDiagnostic| {
            matches!(complaint.kind(), EventKind::Eval)
                || !complaint
                    .id()
                    .is_some_and(|id| id.contains("/node_modules/"))
        };
        Ok(complaints
            .iter()
            .filter(of_the_author)
            .map(|complaint| self.render(complaint).remove(0))
            .collect())
    }

    /// `file:line:column: message`, then the frame.
    fn render(&self, complaint: &BuildDiagnostic) -> Vec<String> {
        let message = self.message(complaint);
        let drawn = complaint.to_diagnostic_with(&self.options).to_string();
        let mut frame = drawn
            .lines()
            .skip_while(|line| !line.trim_start().starts_with("╭─["));
        let Some(place) = frame
            .next()
            .and_then(|line| line.split_once("[ ")?.1.rsplit_once(" ]"))
        else {
            return vec![message];
        };
        let mut lines = vec![format!("{}: {message}", place.0)];
        // A bundle has no external modules: an import that was not found is an error.
        let text = |line: &str| line.replace(", treating it as an external dependency", "");
        lines.extend(frame.filter(|line| !line.ends_with("─╯")).map(text));
        lines
    }

    fn message(&self, complaint: &BuildDiagnostic) -> String {
        let message = complaint.to_message_with(&self.options);
        match missing_import(complaint) {
            Some(Missing::NodeBuiltIn(name)) => {
                format!("`{name}` is part of Node.js; functions run without Node.js")
            }
            Some(Missing::Package(package) | Missing::Jsx(package)) => {
                format!("the package `{package}` is not installed")
            }
            Some(Missing::File(name)) => format!("there is no file `{name}`"),
            None => message,
        }
    }

    fn next_step(&self, complaint: &BuildDiagnostic) -> String {
        let folder = self.options.cwd.display();
        match missing_import(complaint) {
            Some(Missing::NodeBuiltIn(_)) => {
                "use web APIs (fetch, crypto.subtle, streams, URL), or a package that says it runs \
                 in browsers or workers"
                    .to_owned()
            }
            Some(Missing::Jsx(package)) => format!(
                "JSX calls that package: run `npm install {package}` in {folder}, or name the \
                 library that you use as `jsxImportSource` under `compilerOptions` in tsconfig.json"
            ),
            Some(Missing::Package(package)) => format!(
                "run `npm install` in {folder}, or `npm install {package}` if no package.json \
                 names it yet; if it is a name of your own, define it as `paths` under \
                 `compilerOptions` in tsconfig.json"
            ),
            Some(Missing::File(_)) => "correct the path of the import, relative to the file that \
                 it is in"
                .to_owned(),
            None if matches!(complaint.kind(), EventKind::UnresolvedEntry) => {
                "correct `main` in casemate.toml: a path relative to the project's \
                 folder"
                    .to_owned()
            }
            None => "correct this and run the command again".to_owned(),
        }
    }
}

/// An import that leads nowhere.
enum Missing {
    NodeBuiltIn(String),
    /// The import of the library whose functions JSX elements are compiled to.
    Jsx(String),
    Package(String),
    File(String),
}

fn missing_import(complaint: &BuildDiagnostic) -> Option<Missing> {
    if !matches!(
        complaint.kind(),
        EventKind::UnresolvedImport | EventKind::ResolveError
    ) {
        return None;
    }
    let specifier = complaint.exporter()?;
    if specifier.starts_with(['.', '/']) {
        return Some(Missing::File(specifier));
    }
    let mut parts = specifier.split('/');
    let first = parts.next()?;
    if specifier.starts_with("node:") || NODE_BUILT_INS.contains(&first) {
        return Some(Missing::NodeBuiltIn(specifier));
    }
    let package = match (first.starts_with('@'), parts.next()) {
        (true, Some(second)) => format!("{first}/{second}"),
        _ => first.to_owned(),
    };
    let rest = specifier.strip_prefix(&package);
    Some(match rest {
        Some("/jsx-runtime" | "/jsx-dev-runtime") => Missing::Jsx(package),
        _ => Missing::Package(package),
    })
}
