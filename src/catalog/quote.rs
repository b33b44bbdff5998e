//! Names and values on their way into SQL: the only place that makes SQL text out of foreign strings.
//!
//! Two functions quote, [`identifier`] and [`literal`]; what they return is safe whatever the session's
//! settings are. Two more check text which the format lets through unquoted, [`option_name`] and
//! [`raw_value`] for options of statements, and refuse everything that is not one plain token. Nothing
//! here needs dollar quoting: blocks of procedural code are constants, and names inside them are passed
//! as literals.

use std::fmt::Write;

use thiserror::Error;

/// Longest name PostgreSQL keeps, in bytes: `NAMEDATALEN` is 64, one byte of which ends the string. A longer
/// name is cut by the server with a mere notice, and would then stand for another object.
pub const MAX_NAME: usize = 63;

/// Why a string cannot be put into a statement. The texts complete a sentence that names the object.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum QuoteError {
    /// A NUL byte ends a statement early on the wire.
    #[error("contains a NUL byte")]
    Nul,
    /// There is no object without a name.
    #[error("is empty")]
    Empty,
    /// Longer than [`MAX_NAME`] bytes.
    #[error("is longer than {MAX_NAME} bytes")]
    TooLong,
    /// Something that must be one plain word, number or simple quoted string is not.
    #[error("is not a single word, number or simple quoted string")]
    NotAToken,
}

/// A name as a delimited identifier: always in double quotes, so that case, keywords and any character are
/// kept (PostgreSQL manual, 4.1.1).
///
/// # Errors
/// A name which no object can have: empty, longer than [`MAX_NAME`] bytes, or with a NUL byte.
pub fn identifier(name: &str) -> Result<String, QuoteError> {
    if name.is_empty() {
        return Err(QuoteError::Empty);
    }
    if name.len() > MAX_NAME {
        return Err(QuoteError::TooLong);
    }
    if name.contains('\0') {
        return Err(QuoteError::Nul);
    }
    Ok(enclose(name, '"'))
}

/// A value as a string literal. With a backslash in it, the escape form `E'…'` is used, which reads the same
/// under either setting of `standard_conforming_strings` (PostgreSQL manual, 4.1.2).
///
/// # Errors
/// A value with a NUL byte, which no text of PostgreSQL can hold.
pub fn literal(value: &str) -> Result<String, QuoteError> {
    if value.contains('\0') {
        return Err(QuoteError::Nul);
    }
    if value.contains('\\') {
        return Ok(format!("E{}", enclose(&value.replace('\\', "\\\\"), '\'')));
    }
    Ok(enclose(value, '\''))
}

/// The name of an option of `CREATE ROLE` or `CREATE DATABASE`: words of letters and underscores, with single
/// spaces between them (`CONNECTION LIMIT`). It is returned as it came.
///
/// # Errors
/// Anything else.
pub fn option_name(name: &str) -> Result<&str, QuoteError> {
    if name.is_empty() {
        return Err(QuoteError::Empty);
    }
    let word = |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphabetic() || b == b'_');
    if name.split(' ').all(word) { Ok(name) } else { Err(QuoteError::NotAToken) }
}

/// The value of an option which the spec wants unquoted: one word (`template0`), one number (`-1`, `0.5`), or
/// one string or identifier in plain quotes. It is returned as it came. Comments, separators and second
/// words cannot pass, and so neither can a second statement.
///
/// # Errors
/// Anything else.
pub fn raw_value(value: &str) -> Result<&str, QuoteError> {
    if value.is_empty() {
        return Err(QuoteError::Empty);
    }
    if is_word(value) || is_number(value) || is_plain_quoted(value, '\'') || is_plain_quoted(value, '"') {
        Ok(value)
    } else {
        Err(QuoteError::NotAToken)
    }
}

fn enclose(text: &str, quote: char) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push(quote);
    for c in text.chars() {
        if c == quote {
            quoted.push(quote);
        }
        quoted.push(c);
    }
    quoted.push(quote);
    quoted
}

fn is_word(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

fn is_number(text: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    match unsigned.split_once('.') {
        Some((whole, fraction)) => digits(whole) && digits(fraction),
        None => digits(unsigned),
    }
}

fn is_plain_quoted(text: &str, quote: char) -> bool {
    text.strip_prefix(quote)
        .and_then(|rest| rest.strip_suffix(quote))
        .is_some_and(|inner| !inner.contains([quote, '\\']) && !inner.contains(char::is_control))
}

/// Writes the options of a statement, each after a space: `NAME`, `NAME 'value'` or `NAME value`.
///
/// # Errors
/// The name of the first option that cannot be written, and why.
pub(super) fn options(
    options: &[crate::spec::document::GenericOption],
) -> Result<String, (String, QuoteError)> {
    let mut text = String::new();
    for option in options {
        let fault = |error| (option.name.clone(), error);
        let name = option_name(&option.name).map_err(fault)?;
        let value = match &option.value {
            None => String::new(),
            Some(value) if option.vartype == "string" => format!(" {}", literal(value).map_err(fault)?),
            Some(value) => format!(" {}", raw_value(value).map_err(fault)?),
        };
        // Writing to a String cannot fail.
        let _ = write!(text, " {name}{value}");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::spec::document::GenericOption;

    #[test]
    fn identifiers_are_always_quoted() {
        assert_eq!(identifier("select").as_deref(), Ok("\"select\""));
        assert_eq!(identifier("a\"b").as_deref(), Ok("\"a\"\"b\""));
        assert_eq!(identifier("\"\"").as_deref(), Ok("\"\"\"\"\"\""));
        assert_eq!(identifier(""), Err(QuoteError::Empty));
        assert_eq!(identifier("a\0b"), Err(QuoteError::Nul));
    }

    #[test]
    fn the_length_of_a_name_is_counted_in_bytes() {
        assert!(identifier(&"x".repeat(63)).is_ok());
        assert_eq!(identifier(&"x".repeat(64)), Err(QuoteError::TooLong));
        assert!(identifier(&"ä".repeat(31)).is_ok());
        assert_eq!(identifier(&"ä".repeat(32)), Err(QuoteError::TooLong));
    }

    #[test]
    fn literals_use_the_escape_form_only_for_backslashes() {
        assert_eq!(literal("it's").as_deref(), Ok("'it''s'"));
        assert_eq!(literal("").as_deref(), Ok("''"));
        assert_eq!(literal("a\\b'c").as_deref(), Ok("E'a\\\\b''c'"));
        assert_eq!(literal("\0"), Err(QuoteError::Nul));
    }

    #[test]
    fn raw_values_are_single_tokens() {
        for good in ["template0", "-1", "50", "0.5", "UTF8", "'2030-01-01'", "\"C.UTF-8\"", "true"] {
            assert_eq!(raw_value(good), Ok(good));
        }
        for bad in [
            "", " ", "a b", "a;b", "--", "-", "1-", "a--", "/*", "'", "''a'", "'a'b'", "'\\'", "'\n'", "$$",
            "a\0", "1.", ".5", "1..2", "ä", "'", "\"",
        ] {
            assert!(raw_value(bad).is_err(), "{bad:?} must be refused");
        }
    }

    #[test]
    fn option_names_are_words() {
        for good in ["LC_COLLATE", "CONNECTION LIMIT", "VALID UNTIL"] {
            assert_eq!(option_name(good), Ok(good));
        }
        for bad in ["", " ", "A  B", " A", "A ", "A;B", "A'B", "A1", "A\nB"] {
            assert!(option_name(bad).is_err(), "{bad:?} must be refused");
        }
    }

    #[test]
    fn options_render_as_in_the_format() {
        let option = |name: &str, value: Option<&str>, vartype: &str| GenericOption {
            name: name.to_owned(),
            value: value.map(str::to_owned),
            vartype: vartype.to_owned(),
        };
        let list = [
            option("LC_COLLATE", Some("C"), "string"),
            option("TEMPLATE", Some("template0"), "enum"),
            option("NOREPLICATION", None, "bool"),
            option("VALID UNTIL", Some("it's \\"), "string"),
        ];
        assert_eq!(
            options(&list).as_deref(),
            Ok(" LC_COLLATE 'C' TEMPLATE template0 NOREPLICATION VALID UNTIL E'it''s \\\\'")
        );
        let bad = [option("TEMPLATE", Some("x; DROP ROLE y"), "enum")];
        assert_eq!(options(&bad), Err(("TEMPLATE".to_owned(), QuoteError::NotAToken)));
    }

    /// Reads a quoted string as PostgreSQL's lexer does, with backslash escapes only in the escape form.
    fn unquote(text: &str, quote: char) -> Option<String> {
        let (escapes, text) = match text.strip_prefix('E') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let mut chars = text.strip_prefix(quote)?.chars();
        let mut value = String::new();
        loop {
            match chars.next()? {
                c if c == quote => match chars.next() {
                    None => return Some(value),
                    Some(next) if next == quote => value.push(quote),
                    Some(_) => return None,
                },
                '\\' if escapes => value.push(chars.next()?),
                c => value.push(c),
            }
        }
    }

    proptest! {
        #[test]
        fn every_name_reads_back(name in "[^\0]{1,15}") {
            let quoted = identifier(&name).unwrap();
            prop_assert_eq!(unquote(&quoted, '"'), Some(name));
        }

        #[test]
        fn every_value_reads_back(value in "([^\0]|['\\\\\"]){0,20}") {
            let quoted = literal(&value).unwrap();
            prop_assert_eq!(unquote(&quoted, '\''), Some(value));
        }

        #[test]
        fn a_raw_value_never_holds_a_separator(value in "[a-z0-9_ ;'\"\\\\/*.$()-]{0,8}") {
            if raw_value(&value).is_ok() && !value.starts_with(['\'', '"']) {
                prop_assert!(!value.contains([' ', ';', '\'', '"', '\\', '/', '*', '$', '(', ')']));
                prop_assert!(!value.contains("--"));
            }
        }
    }
}
