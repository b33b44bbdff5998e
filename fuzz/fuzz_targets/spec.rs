//! Config and spec documents: any bytes are judged without a panic, faults say where they are, and what is
//! accepted can be written, read again, resolved, planned and rendered.

#![no_main]

use compute_ctl::catalog::{Existing, Options, PlanError, Profile, plan};
use compute_ctl::postgres::conf::{self, Conf};
use compute_ctl::spec::document::ComputeSpec;
use compute_ctl::spec::fault::{self, Checked, DocumentError, Fault, Position, Severity, Shape};
use compute_ctl::spec::resolve::ResolvedSpec;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    for shape in [Shape::Config, Shape::ConfigOrSpec] {
        match fault::parse(&text, shape) {
            Ok(checked) => accepted(&text, &checked),
            Err(error) => refused(&text, &error),
        }
    }
});

fn refused(text: &str, error: &DocumentError) {
    assert!(!error.to_string().is_empty());
    match error {
        DocumentError::NotJson { position, problem } => {
            assert!(!problem.is_empty());
            inside(text, *position);
        }
        DocumentError::Faults(faults) => {
            assert!(!faults.is_empty(), "refused without a fault");
            findings(text, faults, Severity::Fault);
        }
    }
}

fn findings(text: &str, faults: &[Fault], severity: Severity) {
    assert!(faults.len() <= 100, "{} findings", faults.len());
    for fault in faults {
        assert_eq!(fault.severity, severity, "{fault}");
        assert!(!fault.found.is_empty() && !fault.expected.is_empty(), "{fault}");
        inside(text, fault.position.unwrap_or_else(|| panic!("{fault} is nowhere")));
    }
}

/// A place in the text, or just behind the last character of a line.
fn inside(text: &str, Position { line, column }: Position) {
    assert!(line >= 1 && column >= 1, "line {line}, column {column} of lines and columns from 1");
    let Some(content) = text.split('\n').nth(line - 1) else { panic!("line {line} of {text:?}") };
    assert!(column <= content.chars().count() + 1, "line {line}, column {column} of {text:?}");
}

fn accepted(text: &str, checked: &Checked) {
    findings(text, &checked.notes, Severity::Note);
    // What we keep or hand on is the same document. A bare spec is written as a config.
    let written = serde_json::to_value(&checked.config).expect("a document can be written");
    let again = fault::parse(&written.to_string(), Shape::Config);
    let again = again.unwrap_or_else(|error| panic!("{error}\n{written}"));
    let rewritten = serde_json::to_value(&again.config).expect("a document can be written");
    // Members of keys which nobody knows may go: they are the key set's own affair.
    for member in ["/spec", "/compute_ctl_config/tls"] {
        assert_eq!(written.pointer(member), rewritten.pointer(member));
    }
    if let Some(spec) = &checked.config.spec {
        assert!(!format!("{spec:?}").is_empty());
        // A placeholder passes as a note here, and is refused where it would be used.
        used(spec, checked.notes.iter().any(|note| note.found.contains("placeholder")));
    }
}

/// Whoever works with a spec may find it impossible, but what is legal was decided before.
fn used(spec: &ComputeSpec, has_placeholders: bool) {
    if let Ok(resolved) = ResolvedSpec::new(spec) {
        assert!(resolved.same_sources(&resolved.clone()));
    }
    let options =
        Options { privileged_role: "neon_superuser".to_owned(), profile: Profile::Standard, concurrency: 1 };
    let existing = Existing {
        current_user: "cloud_admin".to_owned(),
        current_database: "postgres".to_owned(),
        ..Existing::default()
    };
    match plan::plan(&existing, spec, &options) {
        Ok(plan) => {
            for step in plan.steps() {
                assert!(step.sql().is_ok_and(|statements| !statements.is_empty()), "{step}");
            }
        }
        Err(
            error @ (PlanError::Illegal(_)
            | PlanError::BadVerifier { .. }
            | PlanError::NoNewName { .. }
            | PlanError::Option { .. }),
        ) => {
            assert!(has_placeholders, "accepted, though {error}");
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    let rendered = conf::render(&Conf {
        spec,
        profile: Profile::Neon,
        privileged_role: &options.privileged_role,
        internal_http_port: 3081,
        tls: false,
        mmap_shared_memory: false,
        lakebase_port: None,
        extras: &[],
    });
    match rendered {
        Ok(text) => assert!(conf::parse(&text).is_ok(), "{text}"),
        Err(error) => assert!(has_placeholders, "accepted, though {error}"),
    }
}
