//! Long random histories: the machine beside the reference table, with a world that answers late, repeatedly, out of
//! order, about things long over, or not at all.
//!
//! `PROPTEST_CASES` and `HISTORY_STEPS` make it longer; a failing history is shrunk and its inputs printed.

use std::collections::BTreeMap;

use compute_states::{ComputeStatus, EventKind, Machine, Policy};
use proptest::prelude::*;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest};

mod harness;
mod reference;

use harness::{Numbers, Real, Run, menu, pick, policy};
use reference::{Input, Node};

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number of steps or cases"))
}

struct Table;

impl ReferenceStateMachine for Table {
    type State = Node;
    type Transition = Input;

    fn init_state() -> BoxedStrategy<Node> {
        Just(Node::new(policy(false))).boxed()
    }

    fn transitions(node: &Node) -> BoxedStrategy<Input> {
        let menu = menu(node);
        any::<u64>().prop_map(move |number| pick(&menu, number)).boxed()
    }

    fn apply(mut node: Node, input: &Input) -> Node {
        if let Input::NewProcess { restart } = *input {
            return Node::new(policy(restart));
        }
        node.row(input);
        node
    }

    fn preconditions(node: &Node, input: &Input) -> bool {
        harness::possible(node, input)
    }
}

struct Both;

impl StateMachineTest for Both {
    type SystemUnderTest = Run<Real>;
    type Reference = Table;

    fn init_test(_: &Node) -> Run<Real> {
        Run::new(Real(Machine::new(Policy::default())), false)
    }

    fn apply(mut run: Run<Real>, _: &Node, input: Input) -> Run<Real> {
        if let Err(complaint) = run.step(&input) {
            panic!("{:?}: {}", complaint.by, complaint.text);
        }
        run
    }
}

#[test]
fn long_histories_follow_the_table() {
    let steps = setting("HISTORY_STEPS", 2_000);
    let config = ProptestConfig {
        cases: setting("PROPTEST_CASES", 64) as u32,
        failure_persistence: None,
        max_shrink_iters: 20_000,
        ..ProptestConfig::default()
    };
    let histories = <Table as ReferenceStateMachine>::sequential_strategy(steps / 2..steps);
    let check = |(initial, inputs, seen)| {
        Both::test_sequential(ProptestConfig::default(), initial, inputs, seen);
        Ok(())
    };
    if let Err(failure) = proptest::test_runner::TestRunner::new(config).run(&histories, check) {
        panic!("{failure}");
    }
}

/// Much longer walks without the cost of shrinking, which also show that the generator reaches everything: a
/// generator that never leaves a corner would make the property above worthless.
#[test]
fn seeded_walks_reach_every_cell_there_is() {
    let steps = setting("HISTORY_STEPS", 2_000) * 5;
    let mut cells: BTreeMap<(ComputeStatus, EventKind), BTreeMap<&'static str, usize>> = BTreeMap::new();
    let mut causes = BTreeMap::new();
    for seed in 0..20 {
        let mut numbers = Numbers(seed);
        let mut run = Run::new(Real(Machine::new(Policy::default())), seed % 2 == 0);
        for _ in 0..steps {
            let input = pick(&menu(&run.node), numbers.next());
            let before = run.clone();
            if let Err(complaint) = run.step(&input) {
                panic!("seed {seed}, {:?}: {}", complaint.by, complaint.text);
            }
            if !matches!(input, Input::NewProcess { .. }) {
                let mut machine = before.subject.0.clone();
                let event = before.clone().event(&input);
                let verdict = machine.handle(&event).verdict();
                let cell = cells.entry((before.subject.0.status(), event.kind())).or_default();
                *cell.entry(verdict.name()).or_default() += 1;
                if let Some(cause) = verdict.cause() {
                    *causes.entry(cause).or_insert(0_usize) += 1;
                }
            }
        }
    }
    // Every cause there is, counted by hand when one is added: the generator has to reach that, too.
    assert_eq!(causes.len(), 72, "{causes:?}");
    let all = ComputeStatus::ALL.len() * EventKind::ALL.len();
    println!("{} steps, {} of {all} cells, {} causes", 20 * steps, cells.len(), causes.len());
    for status in ComputeStatus::ALL {
        for kind in EventKind::ALL {
            assert!(cells.contains_key(&(status, *kind)), "{status} x {} was never tried", kind.name());
        }
    }
}
