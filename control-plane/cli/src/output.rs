//! Output of the program: results on standard output, everything else on standard error.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use owo_colors::OwoColorize as _;
use serde::Serialize;
use serde_json::Value;

use crate::error::{Code, Error};
use crate::machine::{moves_a_terminal, printable, printable_lines};

/// How often a spinner moves.
const TICK: Duration = Duration::from_millis(120);
/// The only escape sequences that this program prints: its own colours. Every other text may come
/// from the control plane or, through it, from a node.
const STYLES: &[&str] = &[
    "\u{1b}[0m",
    "\u{1b}[1m",
    "\u{1b}[2m",
    "\u{1b}[31m",
    "\u{1b}[32m",
    "\u{1b}[33m",
    "\u{1b}[36m",
    "\u{1b}[39m",
];

/// The only way to the terminal. Colours and spinners appear only on a terminal.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    json: bool,
    quiet: bool,
}

impl Output {
    /// `json`: results are JSON. `quiet`: only results and errors are printed.
    pub fn new(json: bool, quiet: bool) -> Self {
        Self { json, quiet }
    }

    /// Whether results are JSON.
    pub fn is_json(self) -> bool {
        self.json
    }

    /// Prints a result: `value` with `--json`, else the text.
    ///
    /// # Errors
    /// Standard output is closed or full.
    pub fn result(
        self,
        value: &impl Serialize,
        text: impl FnOnce() -> String,
    ) -> Result<(), Error> {
        let text = if self.json {
            let json = serde_json::to_string_pretty(value);
            escaped(&json.map_err(|error| Error::internal("a result has no JSON").source(error))?)
        } else {
            shown(&text())
        };
        write_out(&text)
    }

    /// Prints one record of a continuous stream: a line of JSON, or the text.
    ///
    /// # Errors
    /// Standard output is closed or full.
    pub fn record(
        self,
        value: &impl Serialize,
        text: impl FnOnce() -> String,
    ) -> Result<(), Error> {
        let text = if self.json {
            let json = serde_json::to_string(value);
            escaped(&json.map_err(|error| Error::internal("a record has no JSON").source(error))?)
        } else {
            shown(&text())
        };
        write_out(&text)
    }

    /// Prints a text of this program unchanged: a shell's completions.
    ///
    /// # Errors
    /// Standard output is closed or full.
    pub fn text(self, text: &str) -> Result<(), Error> {
        write_out(text.trim_end_matches('\n'))
    }

    /// Reports a finished step, for people who watch.
    pub fn done(self, text: &str) {
        if !self.quiet && !self.json {
            note(&format!("{} {}", "✓".green(), printable_lines(text)));
        }
    }

    /// Prints a warning.
    pub fn warn(self, text: &str) {
        if self.json {
            note(&escaped(
                &serde_json::json!({ "warning": text }).to_string(),
            ));
        } else {
            let text = printable_lines(text);
            note(&format!("{} {text}", "warning:".yellow().bold()));
        }
    }

    /// Prints optional advice.
    pub fn hint(self, text: &str) {
        if !self.quiet && !self.json {
            note(&format!("{}", printable_lines(text).dimmed()));
        }
    }

    /// Prints the error that ends the program.
    pub fn error(self, error: &Error) {
        if self.json {
            note(&escaped(&error.to_json().to_string()));
            return;
        }
        let text = error.to_text();
        let (first, rest) = text.split_once('\n').unwrap_or((&text, ""));
        let first = first.strip_prefix("error: ").unwrap_or(first);
        let mut lines = vec![format!("{} {}", "error:".red().bold(), first.bold())];
        for line in rest.lines() {
            match line.strip_prefix(" next: ") {
                Some(step) => lines.push(format!(" {} {step}", "next:".cyan().bold())),
                None => lines.push(line.to_owned()),
            }
        }
        note(&lines.join("\n"));
    }

    /// A spinner with a text, for work that may take over two seconds.
    pub fn progress(self, text: impl Into<String>) -> Progress {
        let moving = !self.quiet && !self.json && std::io::stderr().is_terminal();
        let bar = ProgressBar::with_draw_target(
            None,
            if moving {
                ProgressDrawTarget::stderr()
            } else {
                ProgressDrawTarget::hidden()
            },
        );
        if let Ok(style) = ProgressStyle::with_template("{spinner:.cyan} {msg} {elapsed:.dim}") {
            bar.set_style(style);
        }
        let progress = Progress {
            bar,
            lines: !moving && !self.quiet && !self.json,
        };
        progress.say(text);
        progress.bar.enable_steady_tick(TICK);
        progress
    }
}

/// Work in progress. The spinner ends when this is dropped.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    lines: bool,
}

impl Progress {
    /// Changes the text of the spinner. Without a terminal each new text is a line.
    pub fn say(&self, text: impl Into<String>) {
        let text = printable(&text.into());
        if self.lines && self.bar.message() != text {
            note(&format!("… {text}"));
        }
        self.bar.set_message(text);
    }

    /// Shows how many bytes are done, from the first call on. Without a terminal each tenth is a
    /// line.
    pub fn bytes(&self, text: &str, done: u64, total: u64) {
        let tenth = |done: u64| done.saturating_mul(10) / total.max(1);
        if self.lines
            && (self.bar.length() != Some(total) || tenth(done) > tenth(self.bar.position()))
        {
            note(&format!("… {}, {} %", printable(text), tenth(done) * 10));
        }
        if self.bar.length() != Some(total) {
            self.bar.set_length(total);
            let template = "{spinner:.cyan} {msg} [{bar:30}] {bytes} of {total_bytes} {eta:.dim}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                self.bar.set_style(style);
            }
        }
        self.bar.set_message(printable(text));
        self.bar.set_position(done);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// A table for people: columns as wide as their widest cell, two blanks between. A cell's text
/// cannot leave its cell.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let printable_row = |row: &Vec<String>| row.iter().map(|cell| printable(cell)).collect();
    let rows: Vec<Vec<String>> = rows.iter().map(printable_row).collect();
    let mut widths: Vec<usize> = head.iter().map(|cell| cell.chars().count()).collect();
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &[String]| {
        let mut line = String::new();
        for (cell, width) in cells.iter().zip(&widths) {
            line += &format!("{cell:width$}  ");
        }
        line.trim_end().to_owned()
    };
    let head: Vec<String> = head.iter().map(|cell| (*cell).to_owned()).collect();
    let mut lines = vec![line(&head).dimmed().to_string()];
    lines.extend(rows.iter().map(|row| line(row)));
    lines.join("\n")
}

/// Any JSON for people: a line for each value, indented by depth; a list of plain values, or an
/// object of them in a list, is one line.
pub fn outline(value: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    branch(&mut lines, 1, value);
    lines
}

fn branch(lines: &mut Vec<String>, depth: usize, value: &Value) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(members) => {
            for (key, value) in members {
                let key = printable(&key.replace('_', " "));
                match flat(value) {
                    Some(text) => lines.push(format!("{indent}{key}: {text}")),
                    None => {
                        lines.push(format!("{indent}{key}"));
                        branch(lines, depth + 1, value);
                    }
                }
            }
        }
        Value::Array(items) => {
            for item in items {
                match in_one_line(item) {
                    Some(text) => lines.push(format!("{indent}- {text}")),
                    None => {
                        lines.push(format!("{indent}-"));
                        branch(lines, depth + 1, item);
                    }
                }
            }
        }
        plain => lines.extend(flat(plain).map(|text| format!("{indent}{text}"))),
    }
}

/// A plain value or a list of plain values.
fn flat(value: &Value) -> Option<String> {
    match value {
        Value::Null => Some("-".to_owned()),
        Value::Bool(yes) => Some(if *yes { "yes" } else { "no" }.to_owned()),
        Value::Number(number) => Some(number.to_string()),
        Value::String(text) => Some(printable(text)),
        Value::Array(items) if items.is_empty() => Some("-".to_owned()),
        Value::Object(members) if members.is_empty() => Some("-".to_owned()),
        Value::Array(items) if items.iter().all(|item| !item.is_array()) => {
            let texts: Option<Vec<_>> = items.iter().map(flat).collect();
            texts.map(|texts| texts.join(", "))
        }
        Value::Array(_) | Value::Object(_) => None,
    }
}

fn in_one_line(item: &Value) -> Option<String> {
    let members = match item {
        Value::Object(members) if !members.is_empty() => members,
        other => return flat(other),
    };
    let member = |(key, value): (&String, &Value)| {
        flat(value).map(|text| format!("{} {text}", printable(&key.replace('_', " "))))
    };
    let members: Option<Vec<_>> = members.iter().map(member).collect();
    members.map(|members| members.join(", "))
}

fn write_out(text: &str) -> Result<(), Error> {
    let mut out = anstream::stdout().lock();
    let written = out
        .write_all(text.as_bytes())
        .and_then(|()| out.write_all(b"\n"))
        .and_then(|()| out.flush());
    match written {
        // `casemate logs --follow | head` is not a failure.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(closed()),
        Err(error) => Err(Error::new(
            Code::Io,
            "cannot write to standard output",
            "check the file or program that receives it",
        )
        .source(error)),
        Ok(()) => Ok(()),
    }
}

/// A text for a terminal: line breaks and this program's own colours pass, other control characters
/// do not.
fn shown(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let style = STYLES.iter().find(|style| rest.starts_with(**style));
        let length = style.map_or(c.len_utf8(), |style| style.len());
        match style {
            Some(style) => safe += style,
            None if c != '\n' && moves_a_terminal(c) => safe.push('\u{fffd}'),
            None => safe.push(c),
        }
        rest = &rest[length..];
    }
    safe
}

/// JSON for a terminal: a character of a string that a terminal would obey becomes an escape of
/// JSON, so nothing is lost.
fn escaped(json: &str) -> String {
    let mut safe = String::with_capacity(json.len());
    for c in json.chars() {
        if c != '\n' && moves_a_terminal(c) {
            safe += &format!("\\u{:04x}", u32::from(c));
        } else {
            safe.push(c);
        }
    }
    safe
}

/// The reader of standard output closed it: the program ends without a message.
fn closed() -> Error {
    Error::new(
        Code::Closed,
        "standard output is closed",
        "none: the reader has closed it",
    )
}

fn note(text: &str) {
    let mut err = anstream::stderr().lock();
    // There is no other place to report that standard error cannot be written.
    let _ = writeln!(err, "{}", shown(text));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_colours_pass_and_no_other_escape() {
        let styled = format!(
            "{} {}\n{}",
            "error:".red().bold(),
            "x".cyan().bold(),
            "y".dimmed()
        );
        assert_eq!(shown(&styled), styled);
        for style in ["✓".green().to_string(), "!".yellow().to_string()] {
            assert_eq!(shown(&style), style);
        }
        assert_eq!(
            shown("\u{1b}[2Ja\u{1b}]0;b\u{7}\r\u{9b}1A\n\u{1b}[8m"),
            "\u{fffd}[2Ja\u{fffd}]0;b\u{fffd}\u{fffd}\u{fffd}1A\n\u{fffd}[8m"
        );
        let cells = [vec!["\u{1b}[32mok\n".to_owned()]];
        assert!(table(&["A"], &cells).ends_with("\u{fffd}[32mok\u{fffd}"));
    }

    #[test]
    fn json_keeps_what_it_escapes() {
        let value = serde_json::json!("\u{1b}[2J\u{7f}\u{9b}\u{202e}\n");
        let text = escaped(&value.to_string());
        assert!(!text.chars().any(moves_a_terminal), "{text}");
        let read: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(read, value);
    }

    #[test]
    fn any_json_has_an_outline() {
        let function = serde_json::json!({ "error": null, "function": "a\u{1b}", "workers": {} });
        let value = serde_json::json!({
            "connected": true,
            "listening": ["127.0.0.1:80", "[::1]:80"],
            "odd": [[1, [2]], {}],
            "state": { "functions": [function], "lost_logs": 0 },
        });
        insta::assert_snapshot!(outline(&value).join("\n"), @r"
          connected: yes
          listening: 127.0.0.1:80, [::1]:80
          odd
            -
              - 1
              - 2
            - -
          state
            functions
              - error -, function a�, workers -
            lost logs: 0
        ");
        assert_eq!(outline(&serde_json::json!("x")), ["  x"]);
    }

    #[test]
    fn columns_line_up() {
        let rows = [
            vec!["edge-1".to_owned(), "default".to_owned()],
            vec!["a".to_owned(), "b".to_owned()],
        ];
        let text = anstream::adapter::strip_str(&table(&["NODE", "POOL"], &rows)).to_string();
        assert_eq!(text, "NODE    POOL\nedge-1  default\na       b");
    }
}
