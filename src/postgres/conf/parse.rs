//! Reading configuration files by PostgreSQL's own rules (`guc-file.l` of its source).
//!
//! What the rules accept is accepted and nothing else, so that a file which reads back here is one the server
//! will read, and with the same values. Included files are reported, not opened.

use thiserror::Error;

/// One line that says something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Number of the line, from 1.
    pub line: usize,
    /// Name of the setting as written; the server ignores its case.
    pub name: String,
    /// Its value without quotes and escapes.
    pub value: String,
}

impl Entry {
    /// Whether the line includes other files (`include`, `include_if_exists`, `include_dir`) instead of
    /// setting something.
    pub fn is_include(&self) -> bool {
        is_include(&self.name)
    }
}

/// A line the server would not read.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("line {line}: {fault}")]
pub struct SyntaxError {
    /// Number of the line, from 1.
    pub line: usize,
    /// What is wrong.
    pub fault: Fault,
}

/// What is wrong with a line.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Fault {
    /// It does not begin with the name of a setting.
    #[error("the name of a setting is missing or malformed")]
    Name,
    /// There is no value, or not of a form that may stand without quotes.
    #[error("the value is missing or malformed")]
    Value,
    /// Something follows the value.
    #[error("something follows the value")]
    Rest,
    /// Octal escapes make up something that is no text.
    #[error("the value is not UTF-8")]
    Encoding,
}

/// Reads a whole file.
///
/// # Errors
/// The first line which the server would refuse.
pub fn parse(text: &str) -> Result<Vec<Entry>, SyntaxError> {
    let mut entries = Vec::new();
    // No token contains a line feed, so each line stands alone.
    for (index, content) in text.split('\n').enumerate() {
        let line = index + 1;
        if let Some((name, value)) = parse_line(content).map_err(|fault| SyntaxError { line, fault })? {
            entries.push(Entry { line, name: name.to_owned(), value });
        }
    }
    Ok(entries)
}

/// Whether a value may stand in the file as it is, without further quoting. Quotes of its own must not escape
/// bytes that make up no text.
pub(crate) fn is_value_token(text: &str) -> bool {
    value_token(text).is_some_and(|length| length == text.len())
        && (!text.starts_with('\'') || unquote(text).is_ok())
}

/// Whether this can be the name of a setting, plain or with one dot. A directive to include files is none, though
/// its line looks like one.
pub(crate) fn is_name(text: &str) -> bool {
    name_token(text).is_some_and(|length| length == text.len()) && !is_include(text)
}

fn is_include(name: &str) -> bool {
    ["include", "include_if_exists", "include_dir"]
        .iter()
        .any(|directive| name.eq_ignore_ascii_case(directive))
}

fn parse_line(line: &str) -> Result<Option<(&str, String)>, Fault> {
    let line = skip_space(line);
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let (name, rest) = line.split_at(name_token(line).ok_or(Fault::Name)?);
    let rest = skip_space(rest);
    let rest = skip_space(rest.strip_prefix('=').unwrap_or(rest));
    let (token, rest) = rest.split_at(value_token(rest).ok_or(Fault::Value)?);
    let rest = skip_space(rest);
    if !rest.is_empty() && !rest.starts_with('#') {
        return Err(Fault::Rest);
    }
    let value = if token.starts_with('\'') { unquote(token)? } else { token.to_owned() };
    Ok(Some((name, value)))
}

fn skip_space(text: &str) -> &str {
    text.trim_start_matches([' ', '\t', '\r'])
}

fn is_letter(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

fn is_letter_or_digit(byte: u8) -> bool {
    is_letter(byte) || byte.is_ascii_digit()
}

fn run(bytes: &[u8], accept: impl Fn(u8) -> bool) -> usize {
    bytes.iter().take_while(|byte| accept(**byte)).count()
}

/// `ID` or `QUALIFIED_ID`, provided that no longer token begins with it: the scanner takes the longest.
fn name_token(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let identifier = |from: usize| {
        let letters = bytes.get(from).copied().is_some_and(is_letter);
        letters.then(|| from + run(&bytes[from..], is_letter_or_digit))
    };
    let mut length = identifier(0)?;
    if bytes.get(length) == Some(&b'.')
        && let Some(qualified) = identifier(length + 1)
    {
        length = qualified;
    }
    (unquoted_string(bytes) <= length).then_some(length)
}

/// Length of the longest value at the start of the text.
fn value_token(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    if bytes.first() == Some(&b'\'') {
        return quoted_string(bytes);
    }
    let unquoted = unquoted_string(bytes);
    // Two identifiers with a dot are a name to the scanner, and a name with a dot is no value.
    if name_token(text) == Some(unquoted) && bytes[..unquoted].contains(&b'.') {
        return None;
    }
    let length = unquoted.max(integer(bytes)).max(real(bytes));
    (length > 0).then_some(length)
}

/// `UNQUOTED_STRING`, which covers the plain and the qualified identifier too.
fn unquoted_string(bytes: &[u8]) -> usize {
    if !bytes.first().copied().is_some_and(is_letter) {
        return 0;
    }
    run(bytes, |byte| is_letter_or_digit(byte) || b"-._:/".contains(&byte))
}

fn sign(bytes: &[u8]) -> usize {
    usize::from(matches!(bytes.first(), Some(b'-' | b'+')))
}

/// `INTEGER`: decimal or hexadecimal, with any letters as a unit.
fn integer(bytes: &[u8]) -> usize {
    let start = sign(bytes);
    let hexadecimal = match bytes.get(start..start + 2) {
        Some(b"0x") => match run(&bytes[start + 2..], |byte| byte.is_ascii_hexdigit()) {
            0 => 0,
            digits => start + 2 + digits,
        },
        _ => 0,
    };
    let decimal = match run(&bytes[start..], |byte| byte.is_ascii_digit()) {
        0 => 0,
        digits => start + digits,
    };
    let with_unit =
        |end: usize| if end == 0 { 0 } else { end + run(&bytes[end..], |b| b.is_ascii_alphabetic()) };
    with_unit(hexadecimal).max(with_unit(decimal))
}

/// `REAL`: a point is required, digits are not, an exponent may follow.
fn real(bytes: &[u8]) -> usize {
    let digits = |from: usize| from + run(&bytes[from..], |byte| byte.is_ascii_digit());
    let point = digits(sign(bytes));
    if bytes.get(point) != Some(&b'.') {
        return 0;
    }
    let end = digits(point + 1);
    if matches!(bytes.get(end), Some(b'e' | b'E')) {
        let start = end + 1 + sign(&bytes[end + 1..]);
        let exponent = digits(start);
        if exponent > start {
            return exponent;
        }
    }
    end
}

/// `STRING`: up to the closing quote, over doubled quotes and escaped characters.
fn quoted_string(bytes: &[u8]) -> Option<usize> {
    let mut at = 1;
    loop {
        match bytes.get(at)? {
            b'\\' => at += 2,
            b'\'' if bytes.get(at + 1) == Some(&b'\'') => at += 2,
            b'\'' => return Some(at + 1),
            _ => at += 1,
        }
    }
}

/// Takes the quotes off and the escapes apart, as `DeescapeQuotedString` does.
fn unquote(token: &str) -> Result<String, Fault> {
    let bytes = &token.as_bytes()[1..token.len() - 1];
    let mut value = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        at += 1;
        match byte {
            b'\\' => {
                let escaped = bytes.get(at).copied().unwrap_or(b'\\');
                let octal = run(&bytes[at..(at + 3).min(bytes.len())], |b| (b'0'..=b'7').contains(&b));
                if octal > 0 {
                    let code = bytes[at..at + octal].iter().fold(0_u32, |n, b| n * 8 + u32::from(b - b'0'));
                    // The server keeps the low byte.
                    value.push((code & 0xff) as u8);
                    at += octal;
                    continue;
                }
                at += 1;
                value.push(match escaped {
                    b'b' => 0x08,
                    b'f' => 0x0c,
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    other => other,
                });
            }
            b'\'' => {
                // The scanner let only pairs through.
                value.push(b'\'');
                at += 1;
            }
            other => value.push(*other),
        }
    }
    // To the server a value is a C string, which an escape such as `\000` ends.
    value.truncate(value.iter().position(|byte| *byte == 0).unwrap_or(value.len()));
    String::from_utf8(value).map_err(|_| Fault::Encoding)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn values(text: &str) -> Vec<(String, String)> {
        parse(text).unwrap().into_iter().map(|entry| (entry.name, entry.value)).collect()
    }

    fn one(text: &str) -> (String, String) {
        values(text).pop().unwrap()
    }

    #[test]
    fn forms_of_a_line() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(one("port = 5432"), pair("port", "5432"));
        assert_eq!(one("  port=5432 # why"), pair("port", "5432"));
        assert_eq!(one("port 5432\r"), pair("port", "5432"));
        assert_eq!(one("shared_buffers 128MB"), pair("shared_buffers", "128MB"));
        assert_eq!(one("a = -1"), pair("a", "-1"));
        assert_eq!(one("a = 0x1Fkb"), pair("a", "0x1Fkb"));
        assert_eq!(one("a = .5e-3"), pair("a", ".5e-3"));
        assert_eq!(one("a = pg_catalog.1-x/y:z"), pair("a", "pg_catalog.1-x/y:z"));
        assert_eq!(one("neon.stripe_size = 8"), pair("neon.stripe_size", "8"));
        assert_eq!(one("a = ''"), pair("a", ""));
        assert_eq!(one("a='it''s # no comment' # one"), pair("a", "it's # no comment"));
        assert_eq!(one(r"a='\\ \' \n \t \101 \q'"), pair("a", "\\ ' \n \t A q"));
        assert_eq!(one(r"a='x\000y'"), pair("a", "x"));
        assert!(values("# nothing\n\n  \t\n").is_empty());
        assert!(parse("include_if_exists 'x'").unwrap()[0].is_include());
        assert!(!parse("includes = 'x'").unwrap()[0].is_include());
    }

    #[test]
    fn what_the_server_refuses() {
        let fault = |text: &str| parse(text).unwrap_err();
        assert_eq!(fault("\nport"), SyntaxError { line: 2, fault: Fault::Value });
        assert_eq!(fault("port ="), SyntaxError { line: 1, fault: Fault::Value });
        assert_eq!(fault("= 1").fault, Fault::Name);
        assert_eq!(fault("1a = 1").fault, Fault::Name);
        assert_eq!(fault("a-b = 1").fault, Fault::Name);
        assert_eq!(fault("a.b.c = 1").fault, Fault::Name);
        assert_eq!(fault("a = 1 2").fault, Fault::Rest);
        assert_eq!(fault("a = 1e5").fault, Fault::Rest);
        assert_eq!(fault("a = *").fault, Fault::Value);
        assert_eq!(fault("a = pg_catalog.simple").fault, Fault::Value);
        assert_eq!(fault("a = 'x").fault, Fault::Value);
        assert_eq!(fault("a = 'x\\'").fault, Fault::Value);
        assert_eq!(fault("a = 'x'y").fault, Fault::Rest);
        assert_eq!(fault("a == 1").fault, Fault::Value);
        assert_eq!(fault("a = '\\377'").fault, Fault::Encoding);
        assert!(is_value_token("'\\101'") && !is_value_token("'\\377'"));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "([a-z.=' \\\\#0-9\n-]|\\PC){0,60}") {
            let _ = parse(&text);
        }

        #[test]
        fn a_token_for_a_value_reads_back_as_itself(token in "[a-zA-Z0-9_.+:/-]{1,12}") {
            if is_value_token(&token) {
                let text = format!("a = {token}");
                prop_assert_eq!(one(&text).1, token);
            }
        }
    }
}
