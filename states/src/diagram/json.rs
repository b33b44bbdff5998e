//! The JSON form, by hand: a serialiser would be the crate's only use of one, and there are six fields.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write as _;

use super::{Drawing, line};
use crate::status::ComputeStatus;

pub(super) fn render(drawing: &Drawing) -> String {
    let names = |statuses: &[ComputeStatus]| {
        let quoted: Vec<String> = statuses.iter().map(|status| quote(status.name())).collect();
        quoted.join(", ")
    };
    let mut out = String::from("{\n");
    line(&mut out, format_args!("  \"slice\": {},", quote(drawing.slice.name())));
    line(&mut out, format_args!("  \"states\": [{}],", names(&drawing.statuses())));
    let initial = if drawing.starts { quote(ComputeStatus::Empty.name()) } else { String::from("null") };
    line(&mut out, format_args!("  \"initial\": {initial},"));
    line(&mut out, format_args!("  \"final\": [{}],", names(&drawing.ends)));
    out.push_str("  \"transitions\": [");
    let mut separator = "\n";
    for (&(from, to), reasons) in &drawing.arrows {
        for (event, cause) in reasons {
            let _ = write!(
                out,
                "{separator}    {{\"from\": {}, \"to\": {}, \"event\": {}, \"cause\": {}, \"label\": {}}}",
                quote(from.name()),
                quote(to.name()),
                quote(event.name()),
                quote(&alloc::format!("{cause:?}")),
                quote(&alloc::format!("{cause}")),
            );
            separator = ",\n";
        }
    }
    out.push_str("\n  ]\n}\n");
    out
}

/// A JSON string (RFC 8259, section 7).
fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for char in text.chars() {
        match char {
            '"' | '\\' => {
                out.push('\\');
                out.push(char);
            }
            '\u{0}'..='\u{1f}' => {
                let _ = write!(out, "\\u{:04x}", u32::from(char));
            }
            _ => out.push(char),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_escaped() {
        assert_eq!(quote("a\"b\\c\nd"), r#""a\"b\\c\u000ad""#);
    }
}
