//! A plan as a script for `psql`, which does what an apply would do: the same statements in the same order, the
//! same transactions, in sessions with the same guard.
//!
//! A masked secret becomes a variable of `psql`. One that nobody has set is a syntax error, so that a script
//! with its secrets not filled in stops, instead of giving a role a password that everybody knows.

use std::fmt::Write;

use thiserror::Error;

use super::escape::{is_misleading, visible};
use super::{Change, PlanDocument, PlannedChange, version};
use crate::catalog::connect::guard_sql;
use crate::catalog::step::MASKED_LOGIN;

/// A statement of a document cannot be put into a script.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("the statements of the step `{step}` are none of this program's: they hold {what}")]
pub struct ScriptError {
    /// The step, in words.
    pub step: String,
    /// What would mean something to `psql`, or to a terminal.
    pub what: &'static str,
}

impl PlanDocument {
    /// The plan as a script for `psql`.
    ///
    /// # Errors
    /// [`ScriptError`] for a document whose statements would be commands to `psql`; none of ours is one.
    pub fn script(&self) -> Result<String, ScriptError> {
        let mut script = Script { text: String::new(), database: self.database.clone(), secrets: 0 };
        let Some(database) = self.database.as_deref().filter(|_| !self.is_empty()) else {
            script.comment(self.for_people(super::Style::default()).trim_end());
            return Ok(script.text);
        };
        let mut body = Script { text: String::new(), ..script };
        let mut changes = self.changes.iter().chain(&self.migrations).peekable();
        while let Some(change) = changes.next() {
            body.connect(change.database.as_deref().unwrap_or(database));
            if change.transaction.is_some() {
                body.line("BEGIN;");
            }
            body.step(change)?;
            while let Some(next) =
                changes.next_if(|next| next.transaction.is_some() && next.transaction == change.transaction)
            {
                body.step(next)?;
            }
            if change.transaction.is_some() {
                body.line("COMMIT;");
            }
            body.line("");
        }
        let mut head = Script { text: String::new(), database: None, secrets: 0 };
        head.comment(&self.summary_line());
        let server = self.server_version.map(version).unwrap_or_default();
        head.comment(&format!(
            "For PostgreSQL {server}, to be run in database {database:?} as the superuser of compute_ctl:"
        ));
        head.comment("  psql -X -f FILE");
        if body.secrets > 0 {
            head.comment(&format!(
                "{} secret(s) are masked. Fill in what the comments name with",
                body.secrets
            ));
            head.comment(
                "-v secret_1=…: the password's verifier as it stands in the spec, an MD5 digest with md5 in",
            );
            head.comment("front. psql stops where one is missing.");
        }
        head.line("\\set ON_ERROR_STOP on");
        head.line("\\set AUTOCOMMIT on");
        head.line("\\o /dev/null");
        let guard = guard_sql(self.profile, self.server_version.unwrap_or_default()).join("; ");
        head.line(&format!("\\set guard '{};'", guard.replace('\'', "''")));
        head.line(":guard");
        head.line("");
        Ok(head.text + &body.text + "\\o\n")
    }
}

struct Script {
    text: String,
    /// Where the session is.
    database: Option<String>,
    secrets: usize,
}

impl Script {
    fn line(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }

    fn comment(&mut self, text: &str) {
        let line = format!("-- {}", visible(text));
        self.line(&line);
    }

    fn connect(&mut self, database: &str) {
        if self.database.as_deref() != Some(database) {
            self.line(&format!("\\connect {}", connect_argument(database)));
            self.line(":guard");
            self.database = Some(database.to_owned());
        }
    }

    fn step(&mut self, change: &PlannedChange) -> Result<(), ScriptError> {
        let symbol = match change.change {
            Change::Add => '+',
            Change::Alter => '~',
            Change::Remove => '-',
        };
        let mark = if change.destructive { "!" } else { "" };
        self.comment(&format!("{symbol}{mark} {}", change.text));
        for sql in &change.sql {
            let (sql, secret) = match sql.strip_suffix(MASKED_LOGIN) {
                Some(rest) => (rest, true),
                None => (sql.as_str(), false),
            };
            let mut statement = statement(sql)
                .map_err(|what| ScriptError { step: visible(&change.text).into_owned(), what })?;
            if secret {
                self.secrets += 1;
                self.comment(&format!("  secret_{}: the verifier of its password", self.secrets));
                // Writing to a String cannot fail.
                let _ = write!(statement, " LOGIN PASSWORD :'secret_{}'", self.secrets);
            }
            self.line(&format!("{statement};"));
        }
        Ok(())
    }
}

/// A name as `psql` takes it: as it stands if it is plain, otherwise within a connection string, because a name with
/// `=` in it would be taken for one. In single quotes `psql` reads escapes as in C (PostgreSQL manual, psql), and
/// what comes of that as an identifier, so that there is a third kind of quotes.
fn connect_argument(database: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if database.bytes().all(plain) {
        return database.to_owned();
    }
    let value = database.replace('\\', "\\\\").replace('\'', "\\'");
    let mut argument = String::from("-reuse-previous=on '");
    for c in format!("\"dbname='{}'\"", value.replace('"', "\"\"")).chars() {
        match c {
            '\\' | '\'' => argument.extend(['\\', c]),
            c if is_misleading(c) => {
                for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                    // Writing to a String cannot fail.
                    let _ = write!(argument, "\\{byte:03o}");
                }
            }
            c => argument.push(c),
        }
    }
    argument.push('\'');
    argument
}

/// A statement which means the same to the server, with misleading characters in names and literals in the escaped
/// forms of SQL, `U&"…"` and `E'…'`. Outside of quotes they have no place in a statement of ours, nor has what
/// `psql` would take for a command. Or what it holds of that.
fn statement(sql: &str) -> Result<String, &'static str> {
    let mut out = String::with_capacity(sql.len());
    let mut rest = sql;
    while let Some(at) =
        rest.find(['"', '\'', '$', '\\', ';']).or(Some(rest.len())).filter(|_| !rest.is_empty())
    {
        let (bare, from) = rest.split_at(at);
        if bare.contains(|c| is_misleading(c) && c != '\n') {
            return Err("control characters");
        }
        out.push_str(bare);
        rest = match from.chars().next() {
            None => "",
            Some('"') => {
                let (inner, after) = quoted(&from[1..], '"', false)?;
                identifier(inner, &mut out);
                after
            }
            Some('\'') => {
                let escapes = bare.ends_with('E') && !bare[..bare.len() - 1].ends_with(char::is_alphanumeric);
                let (inner, after) = quoted(&from[1..], '\'', escapes)?;
                literal(inner, escapes, &mut out);
                after
            }
            Some('$') => {
                let (body, after) = dollar_quoted(from)?;
                if body.contains(|c| is_misleading(c) && c != '\n') {
                    return Err("control characters");
                }
                out.push_str(body);
                after
            }
            Some(';') => return Err("several statements"),
            Some(_) => return Err("a backslash"),
        };
    }
    Ok(out)
}

/// What is between quotes, as it is written there, and what follows them.
fn quoted(text: &str, quote: char, escapes: bool) -> Result<(&str, &str), &'static str> {
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        if c == '\\' && escapes {
            chars.next();
        } else if c == quote && chars.next_if(|(_, next)| *next == quote).is_none() {
            return Ok((&text[..at], &text[at + 1..]));
        }
    }
    Err("a quote without its end")
}

fn dollar_quoted(text: &str) -> Result<(&str, &str), &'static str> {
    let unclosed = "a quote without its end";
    let tag_end = text[1..].find('$').ok_or(unclosed)? + 2;
    let (tag, body) = text.split_at(tag_end);
    let end = tag_end + body.find(tag).ok_or(unclosed)? + tag.len();
    Ok(text.split_at(end))
}

fn identifier(inner: &str, out: &mut String) {
    if !inner.contains(is_misleading) {
        out.extend(["\"", inner, "\""]);
        return;
    }
    out.push_str("U&\"");
    for c in inner.chars() {
        // Writing to a String cannot fail, here and below.
        match c {
            '\\' => out.push_str("\\\\"),
            c if is_misleading(c) => drop(write!(out, "\\+{:06X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
}

fn literal(inner: &str, escapes: bool, out: &mut String) {
    if !inner.contains(is_misleading) {
        out.extend(["'", inner, "'"]);
        return;
    }
    // The `E` of the escape form is in front already.
    out.push_str(if escapes { "'" } else { "E'" });
    for c in inner.chars() {
        match c {
            '\\' if !escapes => out.push_str("\\\\"),
            c if is_misleading(c) => drop(write!(out, "\\U{:08X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('\'');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::catalog::quote;

    /// Reads an identifier as PostgreSQL does, in either form.
    fn read_back(text: &str) -> Option<String> {
        let (unicode, text) = match text.strip_prefix("U&") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let inner = text.strip_prefix('"')?.strip_suffix('"')?.replace("\"\"", "\"");
        if !unicode {
            return Some(inner);
        }
        let mut parts = inner.split('\\');
        let mut name = parts.next()?.to_owned();
        while let Some(part) = parts.next() {
            match part.strip_prefix('+') {
                Some(code) => {
                    name.push(char::from_u32(u32::from_str_radix(code.get(..6)?, 16).ok()?)?);
                    name.push_str(&code[6..]);
                }
                // Two in a row are one.
                None if part.is_empty() => {
                    name.push('\\');
                    name.push_str(parts.next()?);
                }
                None => return None,
            }
        }
        Some(name)
    }

    proptest! {
        #[test]
        fn every_name_stays_what_it_is(name in "([^\0]|[\"\\\\\u{1b}\u{9b}\u{202e}]){1,12}") {
            let quoted = quote::identifier(&name).expect("it is short");
            let shown = statement(&quoted).expect("it is a statement's part");
            prop_assert!(!shown.contains(is_misleading), "{shown:?}");
            prop_assert_eq!(read_back(&shown), Some(name));
        }

        #[test]
        fn every_literal_stays_in_its_quotes(value in "([^\0]|['\\\\\u{1b}\n]){0,12}") {
            let shown = statement(&quote::literal(&value).expect("it has no NUL")).expect("it is one");
            prop_assert!(!shown.contains(is_misleading), "{shown:?}");
            prop_assert_eq!(statement(&shown), Ok(shown.clone()), "it is read again as one literal");
        }
    }

    #[test]
    fn what_is_quoted_means_the_same_and_shows_no_control() {
        for (sql, shown) in [
            ("DROP ROLE \"a\"", "DROP ROLE \"a\""),
            ("DROP ROLE \"a\"\"\u{1b}[2J\\\"", "DROP ROLE U&\"a\"\"\\+00001B[2J\\\\\""),
            ("SELECT 'a''\u{9b}'", "SELECT E'a''\\U0000009B'"),
            ("SELECT E'\\\\\n', 'it''s'", "SELECT E'\\\\\\U0000000A', 'it''s'"),
            ("SELECT E'\\'\u{202e}'", "SELECT E'\\'\\U0000202E'"),
            ("DO $x$\nBEGIN ';\\' END\n$x$", "DO $x$\nBEGIN ';\\' END\n$x$"),
            ("", ""),
        ] {
            assert_eq!(statement(sql).as_deref(), Ok(shown), "{sql:?}");
        }
    }

    #[test]
    fn what_would_be_a_command_to_psql_is_refused() {
        for (sql, what) in [
            ("SELECT 1 \\! id", "a backslash"),
            ("SELECT 1; SELECT 2", "several statements"),
            ("SELECT \u{1b}[2J", "control characters"),
            ("DO $x$ \u{1b} $x$", "control characters"),
            ("SELECT 'a", "a quote without its end"),
            ("SELECT \"a\"\"", "a quote without its end"),
            ("DO $x$ a $y$", "a quote without its end"),
            ("DO $", "a quote without its end"),
        ] {
            assert_eq!(statement(sql), Err(what), "{sql:?}");
        }
    }

    #[test]
    fn databases_are_named_to_psql_whatever_they_are_called() {
        assert_eq!(connect_argument("App_1"), "App_1");
        assert_eq!(connect_argument("a=b"), "-reuse-previous=on '\"dbname=\\'a=b\\'\"'");
        assert_eq!(connect_argument("it's\""), "-reuse-previous=on '\"dbname=\\'it\\\\\\'s\"\"\\'\"'");
        assert_eq!(connect_argument("a\nb"), "-reuse-previous=on '\"dbname=\\'a\\012b\\'\"'");
    }
}
