//! A plan for people at a terminal.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::escape::visible;
use super::{Change, PlanDocument, PlannedChange, Profile, Skipped, version};
use crate::limits;

const GREEN: &str = "\u{1b}[32m";
const YELLOW: &str = "\u{1b}[33m";
const RED: &str = "\u{1b}[31m";
const BOLD_RED: &str = "\u{1b}[1;31m";
const BOLD: &str = "\u{1b}[1m";
const PLAIN: &str = "\u{1b}[0m";

/// How to show a plan.
#[derive(Clone, Copy, Debug, Default)]
pub struct Style {
    /// With colours. What they say is said without them too.
    pub color: bool,
    /// Every step, however many there are.
    pub all: bool,
}

impl PlanDocument {
    /// The plan in words, one line a step, in the order of execution: what fails leaves standing what is above
    /// it. Of a long plan the first [`limits::PLAN_LINES`] steps are listed, and of the rest as many destructive
    /// ones; the others are counted.
    pub fn for_people(&self, style: Style) -> String {
        let mut page = Page { text: String::new(), style };
        if let Some(reason) = self.skipped {
            page.line(&skipped(reason, self.profile));
            return page.text;
        }
        if self.is_empty() {
            page.line(&page.painted(GREEN, "No changes. Roles and databases are what the spec says."));
            return page.text;
        }
        let place = self.database.as_deref().map(|name| format!("database {name:?}")).unwrap_or_default();
        let server = self.server_version.map(version).unwrap_or_default();
        page.line(&visible(&format!("PostgreSQL {server}, {place}:")));
        page.line("");
        page.steps(&self.changes);
        if !self.migrations.is_empty() {
            if !self.changes.is_empty() {
                page.line("");
            }
            page.line("Afterwards, while the server serves:");
            page.line("");
            page.steps(&self.migrations);
        }
        page.line("");
        if self.summary.destructive > 0 {
            page.line("`!` marks what nobody can bring back: data, or who was allowed what.");
        }
        page.line(&page.painted(BOLD, &self.summary_line()));
        page.text
    }

    /// The plan in one line of numbers.
    pub(super) fn summary_line(&self) -> String {
        let super::Summary { add, change, remove, destructive } = self.summary;
        let mut line = format!("Plan: {add} to add, {change} to change, {remove} to remove");
        // Writing to a String cannot fail.
        if destructive > 0 {
            let _ = write!(line, " ({destructive} destructive)");
        }
        match self.migrations.len() {
            0 => {}
            1 => line.push_str(", then 1 migration"),
            many => {
                let _ = write!(line, ", then {many} migrations");
            }
        }
        line.push('.');
        line
    }
}

fn skipped(reason: Skipped, profile: Profile) -> String {
    let why = match reason {
        Skipped::SkipPgCatalogUpdates => "the spec has `skip_pg_catalog_updates`",
        Skipped::NotPrimary => "the spec is not one of a primary",
    };
    let but = match (reason, profile) {
        (Skipped::SkipPgCatalogUpdates, Profile::Neon) => {
            " Only the extension neon would be brought to its newest version."
        }
        _ => "",
    };
    format!("No changes. Roles and databases were not compared: {why}, and leaves them as they are.{but}")
}

struct Page {
    text: String,
    style: Style,
}

impl Page {
    fn line(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }

    fn painted(&self, color: &str, text: &str) -> String {
        if self.style.color { format!("{color}{text}{PLAIN}") } else { text.to_owned() }
    }

    fn steps(&mut self, changes: &[PlannedChange]) {
        let bound = if self.style.all { changes.len() } else { limits::PLAN_LINES.min(changes.len()) };
        let (listed, rest) = changes.split_at(bound);
        for change in listed {
            self.step(change);
        }
        if rest.is_empty() {
            return;
        }
        // What cannot be undone must not drown in what can.
        let destructive: Vec<_> = rest.iter().filter(|change| change.destructive).collect();
        let shown = destructive.len().min(limits::PLAN_LINES);
        if shown > 0 {
            self.line(&format!("  … further down, {} destructive:", destructive.len()));
            for change in &destructive[..shown] {
                self.step(change);
            }
        }
        let mut counts: BTreeMap<(&str, bool), usize> = BTreeMap::new();
        let unlisted = rest.iter().filter(|change| !change.destructive);
        for change in unlisted.chain(destructive[shown..].iter().copied()) {
            *counts.entry((&change.action, change.destructive)).or_default() += 1;
        }
        let total: usize = counts.values().sum();
        if total == 0 {
            return;
        }
        let mark = |destructive| if destructive { " (!)" } else { "" };
        let counts: Vec<String> = counts
            .iter()
            .map(|((action, destructive), count)| {
                format!("{count} × {}{}", visible(action), mark(*destructive))
            })
            .collect();
        self.line(&format!("  … and {total} more: {} (--all lists them)", counts.join(", ")));
    }

    fn step(&mut self, change: &PlannedChange) {
        let (symbol, color) = match change.change {
            Change::Add => ('+', GREEN),
            Change::Alter => ('~', YELLOW),
            Change::Remove => ('-', RED),
        };
        let (mark, color) = if change.destructive { ('!', BOLD_RED) } else { (' ', color) };
        let mut text = visible(&change.text).into_owned();
        // What is made has its options in the spec; what is changed or goes is what one has to look at.
        if let (Some(detail), Change::Alter | Change::Remove) = (&change.detail, change.change) {
            // Writing to a String cannot fail.
            let _ = write!(text, ": {}", visible(detail));
        }
        let line = match change.destructive {
            true => self.painted(color, &format!("{symbol}{mark} {text}")),
            false => format!("{}{mark} {text}", self.painted(color, &symbol.to_string())),
        };
        self.line(&format!("  {line}"));
    }
}
