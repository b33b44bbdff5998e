use super::judge::{FileLine, Known, Remark};
use super::*;

fn line(name: &str, value: &str, error: Option<&str>) -> FileLine {
    FileLine {
        place: Some(("/data/postgresql.conf".to_owned(), 7)),
        name: (!name.is_empty()).then(|| name.to_owned()),
        value: (!name.is_empty()).then(|| value.to_owned()),
        error: error.map(str::to_owned),
    }
}

fn failed(name: &str, value: &str) -> FileLine {
    line(name, value, Some("setting could not be applied"))
}

fn known(name: &str, vartype: &str, pending_restart: bool) -> Known {
    let text = |text: &str| Some(text.to_owned());
    let (min, max) = if vartype == "integer" { (text("1"), text("9")) } else { (None, None) };
    Known {
        name: name.to_owned(),
        context: "postmaster".to_owned(),
        vartype: vartype.to_owned(),
        min,
        max,
        pending_restart,
        ..Known::default()
    }
}

fn remark(code: &str, message: &str, more: Option<&str>) -> Remark {
    let code = tokio_postgres::error::SqlState::from_code(code);
    Remark { code, message: message.to_owned(), more: more.map(str::to_owned) }
}

const RESTART: &str = "55P02";
const INVALID: &str = "22023";

fn refused(judgement: &Judgement) -> Vec<String> {
    judgement.refused.iter().map(ToString::to_string).collect()
}

/// The mark of an earlier change is inherited by every session, and says nothing about the value now on file.
#[test]
fn nonsense_is_refused_although_an_earlier_change_waits_for_a_restart() {
    let known = [known("max_connections", "integer", true)];
    let of = |remark| Judgement::of(vec![failed("max_connections", "abc")], &known, vec![remark]);
    let nonsense = of(remark(INVALID, "invalid value for parameter \"max_connections\": \"abc\"", None));
    assert_eq!(
        refused(&nonsense),
        ["max_connections = 'abc' (/data/postgresql.conf line 7): invalid value for parameter \
          \"max_connections\": \"abc\"; right is a whole number from 1 to 9"]
    );
    assert!(nonsense.needs_restart.is_empty());
    let right = of(remark(RESTART, "parameter \"max_connections\" cannot be changed without …", None));
    assert_eq!(
        (right.needs_restart.as_slice(), right.refused.len()),
        (&["max_connections".to_owned()][..], 0)
    );
}

#[test]
fn remarks_find_their_lines_by_name_and_the_rest_by_order() {
    let lines = vec![failed("a", "1"), line("b", "1", None), failed("role", "x"), failed("C", "3")];
    let known = [known("a", "enum", false), known("role", "bool", false), known("c", "enum", false)];
    let remarks = vec![
        remark(INVALID, "about \"a\"", Some("detail")),
        remark(INVALID, "about something", None),
        remark(INVALID, "about \"c\"", None),
    ];
    let reasons = |judgement: Judgement| -> Vec<String> {
        judgement.refused.into_iter().map(|refusal| refusal.reason).collect()
    };
    let judged = Judgement::of(lines.clone(), &known, remarks.clone());
    assert_eq!(reasons(judged), ["about \"a\" (detail)", "about something", "about \"c\""]);
    // With one more than there are lines, nobody knows whose the nameless one is.
    let more = [remarks, vec![remark(INVALID, "about something else", None)]].concat();
    let judged = Judgement::of(lines, &known, more);
    assert_eq!(reasons(judged), ["about \"a\" (detail)", "setting could not be applied", "about \"c\""]);
}

#[test]
fn a_value_that_may_be_a_secret_is_in_no_text() {
    for name in
        ["primary_conninfo", "archive_command", "neon.token", "ssl_key_file", "unknown.thing", "unknown"]
    {
        let known: Vec<_> =
            Some(known(name, "string", false)).filter(|_| !name.contains("unknown")).into_iter().collect();
        let message = format!("invalid value for parameter \"{name}\": \"hunter2\"");
        let remarks = vec![remark(INVALID, &message, Some("near \"hunter2\""))];
        let judged = Judgement::of(vec![failed(name, "hunter2")], &known, remarks);
        let error = SettingsError::Refused(judged.refused).to_string();
        assert!(error.contains(name) && !error.contains("hunter2"), "{error}");
    }
    let plain = [known("DateStyle", "string", false)];
    let remarks = vec![remark(INVALID, "invalid value for parameter \"DateStyle\": \"foo\"", None)];
    let judged = Judgement::of(vec![failed("datestyle", "foo")], &plain, remarks);
    assert!(refused(&judged)[0].starts_with("datestyle = 'foo'"), "{judged:?}");
}

#[test]
fn a_long_value_is_cut() {
    let known = [known("wal_level", "enum", false)];
    let long = "ü".repeat(10_000);
    let remarks =
        vec![remark(INVALID, &format!("invalid value for parameter \"wal_level\": \"{long}\""), None)];
    let text = refused(&Judgement::of(vec![failed("wal_level", &long)], &known, remarks)).concat();
    assert!(text.chars().count() < 1000 && text.contains("invalid value"), "{text}");
}

#[test]
fn lines_without_a_name() {
    let removed = FileLine {
        error: Some(
            "parameter \"max_connections\" cannot be changed without restarting the server".to_owned(),
        ),
        ..FileLine::default()
    };
    let lines = vec![line("", "", Some("syntax error")), removed.clone()];
    let judged = Judgement::of(lines, &[known("max_connections", "integer", true)], Vec::new());
    assert_eq!(judged.needs_restart, ["max_connections"]);
    assert_eq!(refused(&judged), ["a line (/data/postgresql.conf line 7): syntax error"]);
    // Nothing that is not understood passes for right.
    let judged = Judgement::of(vec![removed], &[], Vec::new());
    assert_eq!((judged.refused.len(), judged.needs_restart.len()), (1, 0));
}

#[test]
fn what_changed_is_what_decides() {
    let of = |lines: &[(&str, &str)]| {
        let lines = lines.iter().map(|(name, value)| line(name, value, None)).collect();
        Judgement::of(lines, &[], Vec::new())
    };
    let before = of(&[("a", "1"), ("b", "1"), ("b", "2"), ("gone", "1")]);
    let after = of(&[("A", "1"), ("b", "3"), ("b", "2"), ("new", "1")]);
    assert_eq!(after.changed_since(&before), ["gone", "new"]);
    assert_eq!(after.changed_since(&of(&[("a", "1"), ("b", "4"), ("new", "1")])), ["b"]);
}
