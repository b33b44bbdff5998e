//! The files in `diagrams/` and the diagram in the README are what the code draws.
//!
//! `UPDATE_DIAGRAMS=1 cargo test --package compute-states --test diagrams` writes them again.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use compute_states::diagram::{self, Format, Slice, lists};
use compute_states::explore::{self, Walk};
use compute_states::{Cause, ComputeStatus, EventKind, Refusal, Verdict};

static WALK: LazyLock<Walk> = LazyLock::new(explore::walk);

const BEGIN: &str = "<!-- diagram:begin -->";
const END: &str = "<!-- diagram:end -->";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace").to_owned()
}

fn updating() -> bool {
    std::env::var_os("UPDATE_DIAGRAMS").is_some()
}

/// Compares a file with what it should be, or writes it.
fn check(path: &Path, drawn: &str) {
    if updating() {
        fs::create_dir_all(path.parent().expect("a file lies somewhere")).expect("the directory can be made");
        fs::write(path, drawn).expect("the file can be written");
    }
    let found = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(found == drawn, "{} is not what the code draws; `make diagrams` writes it", path.display());
}

#[test]
fn files_are_what_the_code_draws() {
    let directory = root().join("diagrams");
    let mut expected = BTreeSet::from(["transitions.md".to_owned(), "overview.json".to_owned()]);
    for slice in Slice::ALL {
        let name = format!("{slice}.mmd");
        check(&directory.join(&name), &diagram::draw(&WALK, slice, Format::Mermaid));
        expected.insert(name);
    }
    check(&directory.join("transitions.md"), &diagram::draw(&WALK, Slice::Overview, Format::Table));
    // Served by `GET /fsm`, so that a compute need not walk its machine.
    check(&directory.join("overview.json"), &diagram::draw(&WALK, Slice::Overview, Format::Json));
    let found: BTreeSet<String> = fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| {
            Path::new(name).extension().is_some_and(|kind| kind == "mmd" || kind == "md" || kind == "json")
        })
        .collect();
    assert_eq!(found, expected, "a diagram that nothing draws");
}

#[test]
fn the_readme_shows_the_overview() {
    let path = root().join("README.md");
    let Ok(readme) = fs::read_to_string(&path) else {
        // Nothing can differ from a file that is not there. Only its absence may excuse.
        assert!(!path.exists(), "{} cannot be read", path.display());
        return;
    };
    let (before, rest) = readme.split_once(BEGIN).expect("the README marks where its diagram begins");
    let (_, after) = rest.split_once(END).expect("the README marks where its diagram ends");
    let overview = diagram::draw(&WALK, Slice::Overview, Format::Mermaid);
    check(&path, &format!("{before}{BEGIN}\n```mermaid\n{overview}```\n{END}{after}"));
}

#[test]
fn every_edge_of_the_brief_exists_and_every_other_has_its_reason() {
    let walked: BTreeSet<_> = WALK.arrows.keys().copied().filter(|(from, to)| from != to).collect();
    let brief: BTreeSet<_> = lists::BRIEF.iter().copied().collect();
    let beyond: BTreeSet<_> = lists::BEYOND.iter().map(|edge| (edge.from, edge.to)).collect();
    assert_eq!(brief.difference(&walked).collect::<Vec<_>>(), Vec::<&_>::new(), "edges of the brief missing");
    assert_eq!(beyond, walked.difference(&brief).copied().collect());
    assert_eq!(beyond.len(), lists::BEYOND.len(), "an edge is listed twice");
    assert_eq!(WALK.ends, lists::BRIEF_ENDS.iter().copied().collect());
}

/// What the original accepts and acts upon (states, section 4).
const HONOURED: &[(ComputeStatus, EventKind)] = &[
    (ComputeStatus::Empty, EventKind::ConfigureRequested),
    (ComputeStatus::Running, EventKind::ConfigureRequested),
    (ComputeStatus::Running, EventKind::TerminateRequested),
    (ComputeStatus::Terminated, EventKind::TerminateRequested),
    (ComputeStatus::Running, EventKind::RefreshRequested),
    (ComputeStatus::RefreshConfigurationPending, EventKind::RefreshRequested),
];

#[test]
fn every_request_that_does_more_than_in_the_original_is_listed() {
    let requests =
        [EventKind::ConfigureRequested, EventKind::TerminateRequested, EventKind::RefreshRequested];
    let acted_upon: BTreeSet<_> = WALK
        .cells
        .iter()
        .filter(|((_, event), _)| requests.contains(event))
        .filter(|(_, outcomes)| outcomes.iter().any(|it| !matches!(it.verdict, Verdict::Refused(_))))
        .map(|(cell, _)| *cell)
        .collect();
    let honoured: BTreeSet<_> = HONOURED.iter().copied().collect();
    let listed: BTreeSet<_> = lists::ACCEPTED.iter().map(|cell| (cell.status, cell.event)).collect();
    assert_eq!(
        honoured.difference(&acted_upon).collect::<Vec<_>>(),
        Vec::<&_>::new(),
        "less than the original"
    );
    assert_eq!(listed, acted_upon.difference(&honoured).copied().collect());
    assert_eq!(listed.len(), lists::ACCEPTED.len(), "a cell is listed twice");
}

#[test]
fn every_request_that_a_promotion_keeps_waiting_is_listed() {
    let requests = [EventKind::ConfigureRequested, EventKind::RefreshRequested];
    let kept_waiting = |verdict: &Verdict| {
        matches!(verdict, Verdict::Refused(Refusal::Promoting))
            || matches!(verdict, Verdict::Latched { cause: Cause::RefreshLatched, .. })
    };
    // Elsewhere a refresh waits for other work.
    let walked: BTreeSet<_> = WALK
        .cells
        .iter()
        .filter(|((status, event), outcomes)| {
            *status == ComputeStatus::Running
                && requests.contains(event)
                && outcomes.iter().any(|it| kept_waiting(&it.verdict))
        })
        .map(|(cell, _)| *cell)
        .collect();
    let listed: BTreeSet<_> = lists::DURING_PROMOTION.iter().map(|cell| (cell.status, cell.event)).collect();
    assert_eq!(listed, walked);
}

#[test]
fn json_is_json_and_says_what_the_walk_saw() {
    for slice in Slice::ALL {
        let text = diagram::draw(&WALK, slice, Format::Json);
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["slice"], slice.name());
        let states: Vec<&str> =
            json["states"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
        for transition in json["transitions"].as_array().unwrap() {
            assert!(states.contains(&transition["from"].as_str().unwrap()));
            assert!(states.contains(&transition["to"].as_str().unwrap()));
        }
        if slice == Slice::Overview {
            assert_eq!(states, ComputeStatus::ALL.map(ComputeStatus::name));
            let arrows = WALK.arrows.iter().filter(|((from, to), _)| from != to);
            let expected: usize = arrows.map(|(_, reasons)| reasons.len()).sum();
            assert_eq!(json["transitions"].as_array().unwrap().len(), expected);
        }
    }
}

#[test]
fn dot_has_every_arrow_of_mermaid() {
    for slice in Slice::ALL {
        let arrows = |text: &str, arrow: &str| text.lines().filter(|line| line.contains(arrow)).count();
        let mermaid = diagram::draw(&WALK, slice, Format::Mermaid);
        let dot = diagram::draw(&WALK, slice, Format::Dot);
        assert!(arrows(&mermaid, "-->") > 3, "{slice} is empty");
        assert_eq!(arrows(&mermaid, "-->"), arrows(&dot, " -> "), "{slice}");
    }
}

#[test]
fn names_read_back() {
    for slice in Slice::ALL {
        assert_eq!(slice.to_string().parse(), Ok(slice));
    }
    for format in Format::ALL {
        assert_eq!(format.to_string().parse(), Ok(format));
    }
    assert!("everything".parse::<Slice>().is_err());
    assert!("svg".parse::<Format>().is_err());
}
