//! Names, values and whole statements, read back by a reader of our own which knows PostgreSQL's lexical rules
//! (manual, 4.1) and nothing of the code that quoted them.
//!
//! The input is text in parts, separated by U+001F: the first part begins with a letter that chooses a
//! statement, and the rest of it and the other parts are the strings which go into it.

#![no_main]

use std::collections::BTreeSet;

use compute_ctl::catalog::Step;
use compute_ctl::catalog::attributes::RoleAttributes;
use compute_ctl::catalog::quote::{self, QuoteError};
use compute_ctl::catalog::step::Password;
use compute_ctl::secret::Secret;
use compute_ctl::spec::document::GenericOption;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((kind, rest)) = data.split_first() else { return };
    let text = String::from_utf8_lossy(rest);
    let parts: Vec<&str> = text.split('\u{1f}').collect();
    for part in &parts {
        name(part);
        value(part);
        raw(part);
    }
    statements(*kind, &parts);
});

/// An identifier is one token, and stands for the name it was made from.
fn name(name: &str) {
    match quote::identifier(name) {
        Ok(quoted) => assert_eq!(tokens(&quoted), [Token::Name(name.to_owned())], "{name:?}"),
        Err(error) => assert_eq!(
            error,
            match name {
                "" => QuoteError::Empty,
                name if name.len() > 63 => QuoteError::TooLong,
                _ => QuoteError::Nul,
            }
        ),
    }
}

/// A literal is one token, and stands for the value it was made from.
fn value(value: &str) {
    match quote::literal(value) {
        Ok(quoted) => assert_eq!(tokens(&quoted), [Token::Text(value.to_owned())], "{value:?}"),
        Err(error) => assert!(error == QuoteError::Nul && value.contains('\0')),
    }
}

/// What passes unquoted is one token (a number may have its sign), or plain words for the name of an option.
fn raw(text: &str) {
    if quote::raw_value(text).is_ok() {
        let tokens = tokens(text);
        let one = matches!(
            tokens.as_slice(),
            [Token::Word(_) | Token::Number(_) | Token::Name(_) | Token::Text(_)]
                | [Token::Other('+' | '-'), Token::Number(_)]
        );
        assert!(one, "{text:?} is {tokens:?}");
    }
    if quote::option_name(text).is_ok() {
        let words = tokens(text).iter().all(|token| matches!(token, Token::Word(_)));
        assert!(words && !text.contains(['\n', '\t']), "{text:?}");
    }
}

/// The statements of a step are as many as the step makes, whatever the strings in it, and hold exactly the
/// names and values of the step.
fn statements(kind: u8, parts: &[&str]) {
    let part = |at: usize| (*parts.get(at).unwrap_or(&"x")).to_owned();
    let options = || {
        let option = |triple: &[&str]| GenericOption {
            name: triple[0].to_owned(),
            value: triple.get(1).map(|value| (*value).to_owned()),
            vartype: if triple.get(2) == Some(&"s") { "string" } else { "enum" }.to_owned(),
        };
        parts.get(3..).unwrap_or_default().chunks(3).map(option).collect::<Vec<_>>()
    };
    let (first, second, third) = (part(0), part(1), part(2));
    let verifier = (!third.is_empty()).then(|| Secret::new(third.clone()));
    let names = |names: &[&String]| names.iter().map(|name| (*name).clone()).collect::<Vec<_>>();
    let (step, expected, count) = match kind.to_ascii_lowercase() {
        b'p' => (Step::CreatePrivilegedRole { name: first.clone() }, names(&[&first]), 1),
        b'r' => {
            let step = Step::RenameRole { from: first.clone(), to: second.clone() };
            (step, names(&[&first, &second]), 1)
        }
        b'c' => {
            let Ok(mut attributes) = RoleAttributes::parse(&options()) else { return };
            attributes.member_of.insert(second.clone());
            let step = Step::CreateRole { name: first.clone(), attributes, verifier };
            (step, names(&[&first, &second]), 1)
        }
        b'a' => {
            let Ok(attributes) = RoleAttributes::parse(&options()) else { return };
            let step = Step::AlterRole { name: first.clone(), attributes, password: Password::Set(verifier) };
            (step, names(&[&first]), 1)
        }
        b's' => {
            let subscriptions = BTreeSet::from([second.clone()]);
            let step = Step::DropSubscriptions { database: first.clone(), names: subscriptions };
            (step, names(&[&second, &second, &second]), 3)
        }
        b'd' => {
            let is_template = second == "t";
            let step = Step::DropDatabase { name: first.clone(), is_template };
            let count = if is_template { 3 } else { 2 };
            (step, vec![first.clone(); count - 1], count)
        }
        b'm' => {
            let step = Step::RenameDatabase { from: first.clone(), to: second.clone() };
            (step, names(&[&first, &second]), 1)
        }
        b'n' => {
            let (name, owner, options) = (first.clone(), second.clone(), options());
            (Step::CreateDatabase { name, owner, options }, names(&[&first, &second]), 1)
        }
        b'o' => {
            let step = Step::AlterDatabaseOwner { name: first.clone(), owner: second.clone() };
            (step, names(&[&first, &second]), 1)
        }
        b'g' => {
            let step = Step::GrantDatabase { name: first.clone(), role: second.clone() };
            (step, names(&[&first, &second]), 1)
        }
        b'h' => {
            let (role, database, heir) = (first.clone(), third.clone(), second.clone());
            (Step::ReleaseOwned { role, database, heir }, names(&[&first, &second, &first]), 4)
        }
        b'k' => {
            let step = Step::GrantRole { role: first.clone(), member: second.clone() };
            (step, names(&[&first, &second]), 1)
        }
        b'e' => {
            let (database, owner, privileged) = (third.clone(), first.clone(), second.clone());
            (Step::PrepareDatabase { database, owner, privileged, web_access: true }, Vec::new(), 4)
        }
        b't' => (Step::RecordSubscriptionsDropped { timeline: first.clone() }, Vec::new(), 2),
        b'u' => (Step::SilenceAudit { database: first.clone() }, names(&[&first]), 1),
        b'q' => {
            let databases = BTreeSet::from([first.clone(), second.clone()]);
            (Step::MarkPrepared { databases, privileged: third.clone() }, Vec::new(), 2)
        }
        b'x' => (Step::DropRole { name: first.clone() }, names(&[&first]), 1),
        _ => return,
    };
    // Whatever the strings are, naming the step must not fail, and must not show a password.
    assert!(!step.to_string().is_empty());
    let (Ok(statements), Ok(masked)) = (step.sql(), step.masked_sql()) else { return };
    assert_eq!((statements.len(), masked.len()), (count, count), "{statements:?}");
    let tokens: Vec<Vec<Token>> = statements.iter().map(|statement| tokens(statement)).collect();
    for (statement, tokens) in statements.iter().zip(&tokens) {
        let separator = tokens.iter().any(|token| matches!(token, Token::Other(';')));
        assert!(!separator && !tokens.is_empty(), "more than one statement: {statement:?}");
    }
    // Names which were given unquoted, as values of options, may stand between the expected ones.
    let mut found = tokens.iter().flatten().filter_map(|token| match token {
        Token::Name(name) => Some(name),
        _ => None,
    });
    for name in &expected {
        assert!(found.any(|found| found == name), "{name:?} is not in {statements:?}");
    }
    if let Step::CreateRole { verifier: Some(verifier), .. }
    | Step::AlterRole { password: Password::Set(Some(verifier)), .. } = &step
    {
        let last = tokens.last().and_then(|tokens| tokens.last());
        assert_eq!(last, Some(&Token::Text(verifier.reveal().to_owned())), "the verifier ends the statement");
        let masked = masked.last().map(|statement| self::tokens(statement)).unwrap_or_default();
        assert_eq!(masked.last(), Some(&Token::Text("<secret>".to_owned())));
    }
}

/// A token as PostgreSQL's scanner sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    /// A keyword or an identifier without quotes.
    Word(String),
    /// A delimited identifier.
    Name(String),
    /// A string constant, of any of the three forms.
    Text(String),
    Number(String),
    /// Punctuation, character by character.
    Other(char),
}

/// Splits SQL into tokens by the rules of the manual's chapter 4.1, with `standard_conforming_strings` on. An
/// unterminated token or a form which we never write panics: no statement of ours may have one.
fn tokens(sql: &str) -> Vec<Token> {
    let chars: Vec<char> = sql.chars().collect();
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(&c) = chars.get(at) {
        let next = chars.get(at + 1).copied();
        match c {
            ' ' | '\t' | '\n' | '\r' | '\u{b}' | '\u{c}' => at += 1,
            '-' if next == Some('-') => panic!("a comment in {sql:?}"),
            '/' if next == Some('*') => panic!("a comment in {sql:?}"),
            '"' => tokens.push(Token::Name(quoted(&chars, &mut at, '"', false, sql))),
            '\'' => tokens.push(Token::Text(quoted(&chars, &mut at, '\'', false, sql))),
            'e' | 'E' if next == Some('\'') => {
                at += 1;
                tokens.push(Token::Text(quoted(&chars, &mut at, '\'', true, sql)));
            }
            'b' | 'B' | 'x' | 'X' | 'n' | 'N' if next == Some('\'') => panic!("a typed constant in {sql:?}"),
            'u' | 'U' if next == Some('&') => panic!("a Unicode escape in {sql:?}"),
            '$' => tokens.push(Token::Text(dollar_quoted(&chars, &mut at, sql))),
            c if c.is_ascii_alphabetic() || c == '_' || !c.is_ascii() => {
                let word = take(&chars, &mut at, |c| {
                    c.is_ascii_alphanumeric() || c == '_' || c == '$' || !c.is_ascii()
                });
                tokens.push(Token::Word(word));
            }
            c if c.is_ascii_digit() => {
                let mut number = take(&chars, &mut at, |c| c.is_ascii_digit());
                if chars.get(at) == Some(&'.') {
                    at += 1;
                    number = format!("{number}.{}", take(&chars, &mut at, |c| c.is_ascii_digit()));
                }
                let junk = chars.get(at).is_some_and(|c| c.is_alphanumeric() || *c == '_');
                assert!(!junk, "a number runs into a word in {sql:?}");
                tokens.push(Token::Number(number));
            }
            other => {
                at += 1;
                tokens.push(Token::Other(other));
            }
        }
        assert!(!tokens.contains(&Token::Other('\0')), "a NUL byte in {sql:?}");
    }
    tokens
}

fn take(chars: &[char], at: &mut usize, accept: impl Fn(char) -> bool) -> String {
    let start = *at;
    while chars.get(*at).copied().is_some_and(&accept) {
        *at += 1;
    }
    chars[start..*at].iter().collect()
}

/// From the opening quote past the closing one. Two quotes stand for one; a backslash means something only in
/// the escape form.
fn quoted(chars: &[char], at: &mut usize, quote: char, escapes: bool, sql: &str) -> String {
    let mut value = String::new();
    *at += 1;
    loop {
        let c = *chars.get(*at).unwrap_or_else(|| panic!("an open quote in {sql:?}"));
        let next = chars.get(*at + 1).copied();
        match c {
            c if c == quote && next == Some(quote) => {
                value.push(quote);
                *at += 2;
            }
            c if c == quote => {
                *at += 1;
                break;
            }
            '\\' if escapes => {
                // `\n`, `\101`, `\u00e9` and the like mean other characters; we write none of them.
                let escaped = next.filter(|next| !next.is_ascii_alphanumeric());
                value.push(escaped.unwrap_or_else(|| panic!("an escape in {sql:?}")));
                *at += 2;
            }
            c => {
                value.push(c);
                *at += 1;
            }
        }
    }
    // Two constants with a line feed between them are one: none may follow another.
    let blanks = chars[*at..].iter().take_while(|c| c.is_ascii_whitespace());
    let (count, line_feed) = blanks.fold((0, false), |(n, feed), c| (n + 1, feed || *c == '\n'));
    let continued = quote == '\'' && line_feed && chars.get(*at + count) == Some(&'\'');
    assert!(!continued, "a continued constant in {sql:?}");
    value
}

/// `$tag$ … $tag$`, which only our constant procedural blocks use.
fn dollar_quoted(chars: &[char], at: &mut usize, sql: &str) -> String {
    *at += 1;
    let tag = take(chars, at, |c| c.is_ascii_alphanumeric() || c == '_');
    assert_eq!(chars.get(*at), Some(&'$'), "a lone dollar in {sql:?}");
    *at += 1;
    let rest: String = chars[*at..].iter().collect();
    let end = format!("${tag}$");
    let Some((inner, _)) = rest.split_once(&end) else { panic!("an open dollar quote in {sql:?}") };
    *at += inner.chars().count() + end.len();
    inner.to_owned()
}
