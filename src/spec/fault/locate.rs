//! From a path to a place in the text.
//!
//! A decoded document no longer knows where its values stood, and keeping that beside every value would make
//! all of them larger for the sake of the rare bad one. So the text is walked again, along one path.

use super::{JsonPath, Position, Step};

/// Place of the value at `path`, or of the innermost value on the way which exists. `None` only when the text
/// ends before any value.
pub(super) fn locate(text: &str, path: &JsonPath) -> Option<Position> {
    let mut walk = Walk { text: text.as_bytes(), at: 0 };
    walk.blanks();
    let mut start = walk.at;
    for step in &path.0 {
        if !walk.enter(step) {
            break;
        }
        start = walk.at;
    }
    let before = text.get(..start).filter(|_| start < text.len())?;
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    Some(Position {
        line: before.matches('\n').count() + 1,
        column: before[line_start..].chars().count() + 1,
    })
}

/// A cursor over JSON text. It trusts that the text is JSON as far as it goes; on other text it ends up
/// somewhere inside it, and never panics or loops.
struct Walk<'a> {
    text: &'a [u8],
    at: usize,
}

impl Walk<'_> {
    /// From the start of a value to the start of the value one step inside; `false` if there is none.
    fn enter(&mut self, step: &Step) -> bool {
        match step {
            Step::Key(key) if self.take(b'{') => {
                while self.peek() == Some(b'"') {
                    let found = self.string();
                    let found = std::str::from_utf8(&self.text[found]).ok();
                    // Escapes can spell one key in several ways, so keys are compared decoded.
                    let same = found
                        .and_then(|raw| serde_json::from_str::<String>(raw).ok())
                        .is_some_and(|found| found == *key);
                    self.take(b':');
                    if same {
                        return true;
                    }
                    self.value();
                    self.take(b',');
                }
                false
            }
            Step::Index(index) if self.take(b'[') => {
                for _ in 0..*index {
                    self.value();
                    if !self.take(b',') {
                        return false;
                    }
                }
                self.peek().is_some_and(|byte| byte != b']')
            }
            _ => false,
        }
    }

    /// Past one value, however deep, without recursion: the depth is in the hands of the document's author.
    fn value(&mut self) {
        let mut depth = 0usize;
        while let Some(byte) = self.peek() {
            match byte {
                b'"' => {
                    self.string();
                }
                b'{' | b'[' => {
                    depth += 1;
                    self.at += 1;
                }
                b'}' | b']' if depth == 0 => return,
                b'}' | b']' => {
                    depth -= 1;
                    self.at += 1;
                }
                b',' | b':' if depth > 0 => self.at += 1,
                b',' | b':' => return,
                _ => self.scalar(),
            }
            self.blanks();
            if depth == 0 {
                return;
            }
        }
    }

    fn scalar(&mut self) {
        while self.peek().is_some_and(|b| !b.is_ascii_whitespace() && !b",:[]{}\"".contains(&b)) {
            self.at += 1;
        }
    }

    /// Past a string; its range, quotes included.
    fn string(&mut self) -> std::ops::Range<usize> {
        let start = self.at;
        self.at += 1;
        while let Some(byte) = self.peek() {
            self.at += if byte == b'\\' { 2 } else { 1 };
            if byte == b'"' {
                break;
            }
        }
        self.at = self.at.min(self.text.len());
        let range = start..self.at;
        self.blanks();
        range
    }

    /// Past one punctuation mark and the blanks behind it, if it stands here.
    fn take(&mut self, mark: u8) -> bool {
        let here = self.peek() == Some(mark);
        if here {
            self.at += 1;
            self.blanks();
        }
        here
    }

    fn blanks(&mut self) {
        while self.peek().is_some_and(|byte| byte.is_ascii_whitespace()) {
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        "{\n  \"a\": [1, {\"x\\u0079\": \"ü\", \"b\" : [true,\n null]}, \"\\\"]}\"],\n  \"c\": 5\n}";

    fn at(path: JsonPath) -> (usize, usize) {
        let position = locate(TEXT, &path).unwrap();
        (position.line, position.column)
    }

    #[test]
    fn a_path_leads_to_the_value() {
        let root = JsonPath::root();
        assert_eq!(at(root.clone()), (1, 1));
        assert_eq!(at(root.key("a")), (2, 8));
        assert_eq!(at(root.key("a").index(0)), (2, 9));
        assert_eq!(at(root.key("a").index(1)), (2, 12));
        assert_eq!(at(root.key("a").index(1).key("xy")), (2, 24));
        assert_eq!(at(root.key("a").index(1).key("b").index(0)), (2, 36));
        assert_eq!(at(root.key("a").index(1).key("b").index(1)), (3, 2));
        assert_eq!(at(root.key("a").index(2)), (3, 10));
        assert_eq!(at(root.key("c")), (4, 8));
    }

    #[test]
    fn a_missing_value_is_placed_at_what_would_hold_it() {
        let root = JsonPath::root();
        assert_eq!(at(root.key("nothing")), (1, 1));
        assert_eq!(at(root.key("a").index(3)), (2, 8));
        assert_eq!(at(root.key("a").index(1).key("z").key("deeper")), (2, 12));
        assert_eq!(at(root.key("c").index(0)), (4, 8));
    }

    #[test]
    fn text_which_is_no_json_ends_the_walk() {
        let path = JsonPath::root().key("a").index(2).key("b");
        for cut in 0..TEXT.len() {
            if let Some(text) = TEXT.get(..cut) {
                locate(text, &path);
            }
        }
        for text in [
            "",
            "{",
            "{\"",
            "{\"a",
            "{\"a\\",
            "{\"a\":[",
            "{\"a\":[1",
            "[[[[",
            "]]",
            "{\"a\":[}]}",
            "{\"a\" \"b\"}",
        ] {
            locate(text, &path);
        }
        assert_eq!(locate("", &path), None);
    }
}
