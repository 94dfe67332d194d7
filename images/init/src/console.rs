//! The page on the machine's console: plain text, printed again when something on it has changed.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;

use crate::image::Image;

/// Columns for the names at the left.
const NAME_COLUMNS: usize = 10;

/// Longest line: a serial console is slow.
const MAX_COLUMNS: usize = 400;

/// A problem, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Problem {
    pub(crate) what: String,
    pub(crate) next: String,
}

impl Problem {
    pub(crate) fn new(what: impl Into<String>, next: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            next: next.into(),
        }
    }
}

/// The page on the machine's console: state, lines and problems. The node's loop owns it and calls
/// [`Page::show`] after changes.
#[derive(Debug)]
pub(crate) struct Page {
    title: String,
    state: String,
    lines: BTreeMap<&'static str, String>,
    /// Problems of this boot; those of the node are replaced at each poll.
    problems: Vec<Problem>,
    node: Vec<Problem>,
    clock: Option<Problem>,
    network: Option<Problem>,
    /// Why the storage key does not open, while it does not.
    sealed: Option<Problem>,
    image_time: u64,
    shown: String,
}

impl Page {
    pub(crate) fn new(image: &Image) -> Self {
        Self {
            title: format!("Casemate {} ({})", image.version, image.profile),
            state: "starting".to_owned(),
            lines: BTreeMap::new(),
            problems: Vec::new(),
            node: Vec::new(),
            clock: None,
            network: None,
            sealed: None,
            image_time: u64::from(image.time),
            shown: String::new(),
        }
    }

    /// Sets the state, in a word or two; returns whether it is new.
    pub(crate) fn state(&mut self, state: impl Into<String>) -> bool {
        let state = state.into();
        let is_new = state != self.state;
        self.state = state;
        is_new
    }

    /// Removes the line of this name.
    pub(crate) fn remove_line(&mut self, name: &'static str) {
        self.lines.remove(name);
    }

    /// Sets the text of the line of this name.
    pub(crate) fn line(&mut self, name: &'static str, text: impl Into<String>) {
        self.lines.insert(name, text.into());
    }

    /// Adds a problem that stays until the next boot.
    pub(crate) fn problem(&mut self, problem: Problem) {
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    /// Replaces the problems of the node.
    pub(crate) fn problems_of_node(&mut self, problems: Vec<Problem>) {
        self.node = problems;
    }

    /// Replaces the problem of the network.
    pub(crate) fn network(&mut self, problem: Option<Problem>) {
        self.network = problem;
    }

    /// Replaces the problem of the clock.
    pub(crate) fn clock(&mut self, problem: Option<Problem>) {
        self.clock = problem;
    }

    /// Shows that the storage key does not open, and that nothing is served until it does.
    pub(crate) fn sealed(&mut self, problem: Problem) {
        self.state("sealed; nothing is served");
        self.sealed = Some(problem);
    }

    /// Shows that the storage key is open.
    pub(crate) fn opened(&mut self) {
        self.state("starting");
        self.sealed = None;
    }

    /// The time at which the image was made, Unix seconds.
    pub(crate) fn image_time(&self) -> u64 {
        self.image_time
    }

    /// Prints the page if it has changed.
    pub(crate) fn show(&mut self) {
        let text = self.text();
        if text != self.shown {
            say(&text);
            self.shown = text;
        }
    }

    fn text(&self) -> String {
        let mut text = format!("\n== {}: {}\n", self.title, self.state);
        for (name, line) in &self.lines {
            let _ = writeln!(text, "{name:NAME_COLUMNS$}{}", printable(line));
        }
        let problems = self.problems.iter().chain(&self.node);
        let now = self.clock.iter().chain(&self.network).chain(&self.sealed);
        for problem in problems.chain(now) {
            let _ = writeln!(
                text,
                "{:NAME_COLUMNS$}{}",
                "wrong",
                printable(&problem.what)
            );
            let _ = writeln!(text, "{:NAME_COLUMNS$}{}", "do", printable(&problem.next));
        }
        text + "=="
    }
}

/// Makes foreign text printable: no cursor movement, no line breaks, a bounded length.
fn printable(text: &str) -> String {
    let shown = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    let mut line: String = text.chars().take(MAX_COLUMNS).map(shown).collect();
    if text.chars().nth(MAX_COLUMNS).is_some() {
        line.push('…');
    }
    line
}

/// Prints a line on the console.
pub(crate) fn say(text: &str) {
    // Standard error is the console; a failure to write to it cannot be reported anywhere.
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_says_what_is_wrong_and_what_to_do() {
        let image = Image {
            version: "1.2.3".parse().unwrap(),
            profile: "virtual-machine".into(),
            time: 0,
        };
        let mut page = Page::new(&image);
        page.state("serving");
        page.line("node", "edge-1 in pool main");
        page.line("addresses", "192.0.2.7/24 \u{1b}[2J");
        for _ in 0..2 {
            page.problem(Problem::new("no time server answers", "check the network"));
        }
        assert_eq!(
            page.text(),
            "\n== Casemate 1.2.3 (virtual-machine): serving\n\
             addresses 192.0.2.7/24 \u{fffd}[2J\n\
             node      edge-1 in pool main\n\
             wrong     no time server answers\n\
             do        check the network\n=="
        );
    }
}
