//! What must happen in the end, in a world that is fair: work that was asked for ends, timers run out, a
//! postmaster becomes ready or ends, and one that was told to go goes.
//!
//! A run that avoids the end for ever must stay in one strongly connected component of the graph. So each
//! component is asked for something that the world owes in every shape of it, that no step inside takes away,
//! and whose every outcome leads out. Where there is such a thing, no fair run can stay. (Ready-made checkers
//! look for a path without an end and are blind to cycles.)

use std::collections::BTreeSet;
use std::sync::LazyLock;

use compute_states::explore::{self, Next, Node, Walk};
use compute_states::state::{Phase, Shutdown, Stage};
use compute_states::{ComputeStatus, EffectKind, Epoch, Event, EventKind, State};

/// One possible step between two shapes.
struct Edge {
    to: Option<usize>,
    event: Event,
    /// The epochs held before and still held after, as numbered before and after.
    kept: Vec<(Epoch, Epoch)>,
}

struct Graph {
    nodes: Vec<Node>,
    edges: Vec<Vec<Edge>>,
}

static GRAPH: LazyLock<Graph> = LazyLock::new(|| {
    let mut edges: Vec<Vec<Edge>> = Vec::new();
    let Walk { nodes, .. } = explore::walk_with(&explore::policies(), |seen| {
        if edges.len() <= seen.from {
            edges.resize_with(seen.from + 1, Vec::new);
        }
        let to = match seen.to {
            Next::Node(to) => Some(to),
            Next::End => None,
            Next::Impossible => return,
        };
        // Late results lead nowhere, and whether there are any must not matter.
        if to == Some(seen.from) && seen.after == &seen.before.machine && seen.step.effects().is_empty() {
            return;
        }
        let held = explore::held(&seen.before.machine);
        // A shape numbers what the machine holds from 1, in this order.
        let kept = (1..)
            .zip(explore::held(seen.after))
            .filter(|(_, own)| held.contains(own))
            .map(|(number, own)| (own, Epoch(number)))
            .collect();
        edges[seen.from].push(Edge { to, event: *seen.event, kept });
    });
    edges.resize_with(nodes.len(), Vec::new);
    Graph { nodes, edges }
});

/// What the world is trusted with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum World {
    /// Everything that was asked for happens.
    Answering,
    /// Only timers run out. Work hangs, and Postgres ignores signals.
    Hanging,
}

/// What the world owes in a shape: it happens unless it ceases to be owed.
fn owed_by(world: World, node: &Node) -> Vec<Epoch> {
    let fair = |epoch: &Epoch| {
        let Some(origin) = node.origin(*epoch) else { return false };
        match (world, origin.kind) {
            (_, EffectKind::ArmTimer) => true,
            (World::Answering, EffectKind::StartPostmaster) => starts_or_stops(node, *epoch),
            (World::Answering, _) => true,
            (World::Hanging, _) => false,
        }
    };
    explore::held(&node.machine).into_iter().filter(fair).collect()
}

/// Whether something is bound to become of this postmaster: it has just been spawned, or was told to go. One
/// that serves may do so for ever.
fn starts_or_stops(node: &Node, epoch: Epoch) -> bool {
    match node.machine.state() {
        State::Init(state) => match state.phase {
            Phase::Starting { postmaster, .. } | Phase::Abandoning { postmaster, .. } => postmaster == epoch,
            Phase::Preparing { .. } | Phase::Retrying { .. } | Phase::Applying { .. } => false,
        },
        State::TerminationPendingFast(state) => stops(&state.0, epoch),
        State::TerminationPendingImmediate(state) => stops(&state.0, epoch),
        _ => false,
    }
}

fn stops(shutdown: &Shutdown, epoch: Epoch) -> bool {
    matches!(shutdown.stage, Stage::Stopping { postmaster: Some(postmaster), .. } if postmaster == epoch)
}

/// Whether this event is the owed thing happening. That a postmaster makes progress is no outcome: it may
/// replay its log for long, and does not do so for ever.
fn happens(event: &Event, owed: Epoch) -> bool {
    explore::epoch_of(event) == Some(owed)
        && !matches!(event.kind(), EventKind::PostmasterProgressed | EventKind::ActivityObserved)
}

/// Every strongly connected component of the part of the graph in which `inside` holds (Tarjan's algorithm,
/// with a stack of its own).
fn components(graph: &Graph, inside: &dyn Fn(&Node) -> bool) -> Vec<Vec<usize>> {
    const NEW: usize = usize::MAX;
    let count = graph.nodes.len();
    let (mut order, mut low, mut on_stack) = (vec![NEW; count], vec![NEW; count], vec![false; count]);
    let (mut next, mut stack, mut found) = (0, Vec::new(), Vec::new());
    for root in 0..count {
        if order[root] != NEW || !inside(&graph.nodes[root]) {
            continue;
        }
        let mut calls = vec![(root, 0)];
        while let Some(&mut (node, ref mut edge)) = calls.last_mut() {
            if *edge == 0 {
                (order[node], low[node]) = (next, next);
                next += 1;
                stack.push(node);
                on_stack[node] = true;
            }
            if let Some(taken) = graph.edges[node].get(*edge) {
                *edge += 1;
                let Some(to) = taken.to.filter(|to| inside(&graph.nodes[*to])) else { continue };
                if order[to] == NEW {
                    calls.push((to, 0));
                } else if on_stack[to] {
                    low[node] = low[node].min(order[to]);
                }
                continue;
            }
            calls.pop();
            if let Some(&(parent, _)) = calls.last() {
                low[parent] = low[parent].min(low[node]);
            }
            if low[node] == order[node] {
                let mut component = Vec::new();
                while let Some(member) = stack.pop() {
                    on_stack[member] = false;
                    component.push(member);
                    if member == node {
                        break;
                    }
                }
                found.push(component);
            }
        }
    }
    found
}

/// Components in which a fair run can stay for ever.
fn traps(graph: &Graph, world: World, inside: &dyn Fn(&Node) -> bool) -> Vec<Vec<usize>> {
    let mut components = components(graph, inside);
    components.retain(|component| {
        let members: BTreeSet<usize> = component.iter().copied().collect();
        let first = component[0];
        !owed_by(world, &graph.nodes[first])
            .into_iter()
            .any(|owed| leads_out(graph, world, &members, first, owed))
    });
    components
}

/// Whether this thing is owed all over a component, and leads out of it when it happens.
fn leads_out(graph: &Graph, world: World, members: &BTreeSet<usize>, first: usize, owed: Epoch) -> bool {
    // The thing has another number in another shape. One that came to have two in one shape would be two.
    let mut todo = vec![(first, owed)];
    let mut known = std::collections::BTreeMap::from([(first, owed)]);
    while let Some((node, owed)) = todo.pop() {
        if !owed_by(world, &graph.nodes[node]).contains(&owed) {
            return false;
        }
        let mut happened = false;
        for edge in &graph.edges[node] {
            let happens = happens(&edge.event, owed);
            happened |= happens;
            let Some(to) = edge.to.filter(|to| members.contains(to)) else { continue };
            let Some(&(_, renamed)) = edge.kept.iter().find(|(own, _)| *own == owed) else { return false };
            if happens {
                return false;
            }
            match known.insert(to, renamed) {
                None => todo.push((to, renamed)),
                Some(before) if before != renamed => return false,
                Some(_) => {}
            }
        }
        if !happened {
            return false;
        }
    }
    known.len() == members.len()
}

fn terminating(node: &Node) -> bool {
    matches!(
        node.machine.status(),
        ComputeStatus::TerminationPendingFast
            | ComputeStatus::TerminationPendingImmediate
            | ComputeStatus::Terminated
    )
}

fn assert_no_trap(graph: &Graph, world: World, inside: &dyn Fn(&Node) -> bool) {
    let number = graph.nodes.iter().filter(|node| inside(node)).count();
    assert!(number > 0, "nothing to look at");
    let traps = traps(graph, world, inside);
    if let Some(trap) = traps.first() {
        let first = &graph.nodes[trap[0]];
        let events: Vec<_> = graph.edges[trap[0]].iter().map(|edge| (edge.event, edge.to)).collect();
        panic!("{} traps, one of {} shapes: {first:#?}\n{events:#?}", traps.len(), trap.len());
    }
}

#[test]
fn a_termination_ends_in_a_world_that_answers() {
    assert_no_trap(&GRAPH, World::Answering, &terminating);
}

/// The deadlines alone are enough, so the bound on a termination is the sum of a few of them.
#[test]
fn a_termination_ends_though_nothing_ever_answers() {
    assert_no_trap(&GRAPH, World::Hanging, &terminating);
}

#[test]
fn every_configure_request_is_answered_in_a_world_that_answers() {
    let waits = |node: &Node| match node.machine.state() {
        State::ConfigurationPending(state) => state.request.is_some(),
        State::Init(state) => state.request.is_some(),
        State::Configuration(state) => state.request.is_some(),
        _ => false,
    };
    assert_no_trap(&GRAPH, World::Answering, &waits);
}

#[test]
fn every_promotion_is_answered_in_a_world_that_answers() {
    assert_no_trap(&GRAPH, World::Answering, &awaits_promotion);
}

fn awaits_promotion(node: &Node) -> bool {
    !node.machine.compute().promotion.waiting.is_empty()
}

/// The control plane may be away for as long as it likes: it is asked once, and the promotion goes first or is given
/// up.
#[test]
fn one_failed_fetch_settles_whether_a_promotion_begins() {
    let (mut begun, mut given_up) = (0, 0);
    for (node, edges) in GRAPH.nodes.iter().zip(&GRAPH.edges).filter(|(node, _)| awaits_promotion(node)) {
        let held = explore::held(&node.machine);
        let fails = |edge: &&Edge| {
            edge.event.kind() == EventKind::FetchFailed
                && explore::epoch_of(&edge.event).is_some_and(|epoch| held.contains(&epoch))
        };
        for to in edges.iter().filter(fails).filter_map(|edge| edge.to) {
            let after = &GRAPH.nodes[to];
            let begins = after.machine.compute().promotion.work().is_some();
            assert!(begins || !awaits_promotion(after), "waits on: {node:#?}\n{after:#?}");
            *(if begins { &mut begun } else { &mut given_up }) += 1;
        }
    }
    assert!(begun > 0 && given_up > 0, "{begun} begun, {given_up} given up");
}

#[test]
fn a_failure_without_a_postgres_does_not_last() {
    use compute_states::state::Remains;
    let gone = |node: &Node| match node.machine.state() {
        State::Failed(failed) => matches!(failed.remains, Remains::Gone(_)),
        _ => false,
    };
    for world in [World::Answering, World::Hanging] {
        assert_no_trap(&GRAPH, world, &gone);
    }
}

/// The check itself must be able to find something: a refresh that is never answered well goes on for ever,
/// and so does a Postgres that serves.
#[test]
fn traps_are_found_where_there_are_some() {
    let refreshing = |node: &Node| node.machine.status() == ComputeStatus::RefreshConfigurationPending;
    assert!(!traps(&GRAPH, World::Answering, &refreshing).is_empty());
    let running = |node: &Node| node.machine.status() == ComputeStatus::Running;
    assert!(!traps(&GRAPH, World::Answering, &running).is_empty());
    // Without deadlines a hanging world would hold up a start for ever.
    let preparing = |node: &Node| node.machine.status() == ComputeStatus::Init;
    assert!(!traps(&GRAPH, World::Hanging, &preparing).is_empty());
}

/// `Terminated`, or the end of the process, can be reached from every shape.
#[test]
fn there_is_no_dead_end() {
    let mut before: Vec<Vec<usize>> = vec![Vec::new(); GRAPH.nodes.len()];
    let mut todo: Vec<usize> = Vec::new();
    for (from, edges) in GRAPH.edges.iter().enumerate() {
        assert!(!edges.is_empty(), "nothing can happen: {:#?}", GRAPH.nodes[from]);
        for to in edges.iter().filter_map(|edge| edge.to) {
            before[to].push(from);
        }
        // Exit is emitted on the way into `Terminated` unless it lingers there.
        let ends = |edge: &Edge| edge.to.is_none() && terminating(&GRAPH.nodes[from]);
        if GRAPH.nodes[from].machine.status() == ComputeStatus::Terminated || edges.iter().any(ends) {
            todo.push(from);
        }
    }
    let mut reaches = vec![false; GRAPH.nodes.len()];
    while let Some(node) = todo.pop() {
        if !std::mem::replace(&mut reaches[node], true) {
            todo.extend(&before[node]);
        }
    }
    let stuck = reaches.iter().position(|reaches| !reaches);
    assert_eq!(stuck.map(|node| &GRAPH.nodes[node]), None);
}

/// Steps from a terminate request to `Terminated`, at most: two ends to await or three deadlines of the ladder
/// with the end of the cancelled work in between, the sweep, the sync.
const LONGEST: usize = 6;

/// Every combination of answers, from every shape: success, failure, deadline, in any order.
#[test]
fn a_termination_takes_few_steps() {
    let mut longest = vec![None; GRAPH.nodes.len()];
    let mut worst = 0;
    for edges in &GRAPH.edges {
        for edge in edges.iter().filter(|edge| edge.event.kind() == EventKind::TerminateRequested) {
            let Some(to) = edge.to else { continue };
            worst = worst.max(steps_to_terminated(to, &mut longest));
        }
    }
    assert_eq!(worst, LONGEST);
}

/// The longest way on which only owed things happen. A way around in circles has no length.
fn steps_to_terminated(node: usize, longest: &mut Vec<Option<usize>>) -> usize {
    if GRAPH.nodes[node].machine.status() == ComputeStatus::Terminated {
        return 0;
    }
    if let Some(known) = longest[node] {
        assert_ne!(known, usize::MAX, "goes round in circles: {:#?}", GRAPH.nodes[node]);
        return known;
    }
    longest[node] = Some(usize::MAX);
    let owed = owed_by(World::Answering, &GRAPH.nodes[node]);
    let mut most = 0;
    for edge in &GRAPH.edges[node] {
        if !owed.iter().any(|owed| happens(&edge.event, *owed)) || forgives(node, edge) {
            continue;
        }
        let further = edge.to.map_or(0, |to| steps_to_terminated(to, longest));
        most = most.max(1 + further);
    }
    assert!(most > 0, "nothing is owed: {:#?}", GRAPH.nodes[node]);
    longest[node] = Some(most);
    most
}

/// Whether this is the end of the window in which a restart counts, which has no part in a termination.
fn forgives(node: usize, edge: &Edge) -> bool {
    let restarts = &GRAPH.nodes[node].machine.compute().restarts;
    explore::epoch_of(&edge.event).is_some_and(|epoch| restarts.contains(&epoch))
}
