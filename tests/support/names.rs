//! Names that are legal and meant to break something.

use proptest::prelude::*;

use super::pg::ADMIN;
use super::specs::{ADMINS_TEMPLATE, PRIVILEGED};

/// An identifier, by a rule written down a second time.
pub(crate) fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Names that break careless quoting, keywords, what looks like an option, and the longest there are.
const HOSTILE: [&str; 44] = [
    "select",
    "user",
    "current_user",
    "session_user",
    "default",
    "null",
    "all",
    "PUBLIC",
    "Public",
    "None",
    "pg",
    "PG_x",
    "Mixed Case",
    "a\"b",
    "\"",
    "\"\"",
    "'",
    "it's",
    "back\\slash",
    "\\'",
    "E'x'",
    "$x$",
    "$$",
    "$revoke$",
    "$prepare$",
    "a;b",
    "--",
    "/*",
    "line\nfeed",
    "tab\there",
    " lead",
    "trail ",
    " ",
    "-c role=x",
    "--help",
    "-d postgres",
    "dbname=template1",
    "postgresql://h/d",
    "%I %s",
    "{privileged}",
    "\u{1}",
    "\r",
    "postgres'; DROP DATABASE postgres; --",
    "\u{feff}",
];

/// Names of the server's own and of ours, and those nobody may use.
fn is_taken(name: &str) -> bool {
    let taken = [ADMIN, PRIVILEGED, ADMINS_TEMPLATE, "postgres", "template0", "template1", "public", "none"];
    name.starts_with("pg_") || taken.contains(&name)
}

fn name() -> impl Strategy<Value = String> {
    let cut = |mut name: String| {
        while name.len() > 63 {
            name.pop();
        }
        name
    };
    prop_oneof![
        4 => "[a-z]{1,6}",
        6 => proptest::sample::select(&HOSTILE[..]).prop_map(str::to_owned),
        2 => "[^\0]{1,20}".prop_map(cut),
        1 => "[a-z]{63}",
        1 => "[äöü数🐘]{32}".prop_map(cut),
        2 => Just("web_access".to_owned()),
    ]
}

/// Different names, as many as a case can need.
pub(super) fn names() -> impl Strategy<Value = Vec<String>> {
    proptest::collection::vec(name(), 16).prop_map(|names| {
        let mut different: Vec<String> = Vec::new();
        for (at, name) in names.into_iter().enumerate() {
            let fresh = !is_taken(&name) && !different.contains(&name);
            different.push(if fresh { name } else { format!("n{at}") });
        }
        different
    })
}
