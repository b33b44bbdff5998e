//! The face of the machine, and its wiring to `statig`.
//!
//! Wired by hand: `statig`'s attribute macro wants every handler in one `impl` block, its traits let each
//! state be a struct in a file of its own. The matches below are exhaustive, so a new state must be handled
//! to compile.

use core::hash::{Hash, Hasher};

use serde::{Deserialize, Serialize};
use statig::Outcome;
use statig::blocking::{self, IntoStateMachine, StateExt};

use crate::effect::Reply;
use crate::event::Event;
use crate::idle_check;
use crate::policy::Policy;
use crate::promotion;
use crate::state::superstate::Superstate;
use crate::state::{Compute, Empty, Fault, State};
use crate::status::ComputeStatus;
use crate::verdict::Step;

/// The machine: one state, and what is common to all states.
///
/// It can be cloned, compared, hashed, and written to a journal and read back, and goes on exactly where it
/// was: nothing else steers it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Machine {
    state: State,
    compute: Compute,
}

impl Machine {
    /// A machine that waits for [`Event::Booted`].
    pub fn new(policy: Policy) -> Self {
        Machine { state: Empty::spawned(), compute: Compute::new(policy) }
    }

    /// Handles one event. The machine is then ready for the next, whatever this one was.
    pub fn handle(&mut self, event: &Event) -> Step {
        let mut step = Step::default();
        self.handle_into(event, &mut step);
        step
    }

    /// As [`Machine::handle`], into a step that is used again and again.
    pub fn handle_into(&mut self, event: &Event, step: &mut Step) {
        step.clear();
        let outcome = match promotion::before(&mut self.state, &mut self.compute, event, step) {
            Outcome::Super => match idle_check::before(&mut self.state, &mut self.compute, event, step) {
                Outcome::Super => StateExt::handle(&mut self.state, &mut self.compute, event, step),
                outcome => outcome,
            },
            outcome => outcome,
        };
        if let Outcome::Transition(mut target) = outcome {
            let (exits, enters) = self.state.transition_path(&mut target);
            self.state.exit(&mut self.compute, step, exits);
            target.enter(&mut self.compute, step, enters);
            self.state = target;
            promotion::after(&mut self.state, &mut self.compute, step);
            idle_check::after(&mut self.state, &mut self.compute, step);
        }
    }

    /// The state.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// What is common to all states.
    pub fn compute(&self) -> &Compute {
        &self.compute
    }

    /// The public status.
    pub fn status(&self) -> ComputeStatus {
        self.state.status()
    }

    /// What went wrong last, until something went right.
    pub fn fault(&self) -> Option<Fault> {
        self.compute.fault
    }

    /// A number that two machines share when they are equal but for their policy, the same on every machine
    /// of one word size and in every run. A journal holds it to prove that a replay came by the same states.
    pub fn fingerprint(&self) -> u64 {
        let mut hasher = Fnv(0xcbf2_9ce4_8422_2325);
        self.state.hash(&mut hasher);
        let Compute { policy: _, last_epoch, postmaster, restarts, served, fault, promotion, idle_check } =
            &self.compute;
        (last_epoch, postmaster, restarts, served, fault, promotion).hash(&mut hasher);
        // Left out where there is none, so that journals of older programs still replay.
        if let Some(idle_check) = idle_check {
            idle_check.hash(&mut hasher);
        }
        hasher.finish()
    }

    pub(crate) fn parts_mut(&mut self) -> (&mut State, &mut Compute) {
        (&mut self.state, &mut self.compute)
    }
}

/// FNV-1a, a word at a time: the standard library's hasher is neither stable between releases nor here.
struct Fnv(u64);

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0 ^ word).wrapping_mul(0x0000_0100_0000_01b3);
        // A plain multiplication never moves high bits down; without this a large word would lose them.
        self.0 ^= self.0 >> 29;
    }

    fn write_u8(&mut self, word: u8) {
        self.write_u64(u64::from(word));
    }

    fn write_u32(&mut self, word: u32) {
        self.write_u64(u64::from(word));
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }

    fn write_isize(&mut self, word: isize) {
        self.write_u64(word as u64);
    }

    fn write_i32(&mut self, word: i32) {
        self.write_u64(word as u64);
    }
}

impl IntoStateMachine for Compute {
    type Event<'evt> = Event;
    type Context<'ctx> = Step;
    type State = State;
    type Superstate<'sub> = Superstate<'sub>;

    fn initial() -> State {
        Empty::spawned()
    }
}

impl blocking::State<Compute> for State {
    fn call_handler(&mut self, compute: &mut Compute, event: &Event, step: &mut Step) -> Outcome<State> {
        match self {
            State::Empty(state) => state.on(compute, event, step),
            State::ConfigurationPending(state) => state.on(compute, event, step),
            State::Init(state) => state.on(compute, event, step),
            State::Configuration(state) => state.on(compute, event, step),
            State::Running(state) => state.on(compute, event, step),
            State::RefreshConfigurationPending(state) => state.on(compute, event, step),
            State::RefreshConfiguration(state) => state.on(compute, event, step),
            State::Failed(state) => state.on(compute, event, step),
            State::TerminationPendingFast(state) => state.on(compute, event, step),
            State::TerminationPendingImmediate(state) => state.on(compute, event, step),
            State::Terminated(state) => state.on(event, step),
        }
    }

    /// Answers whoever is still waiting for a state that is being left. A handler that moves a request on
    /// takes it out first, so no request can be lost or answered twice.
    fn call_exit_action(&mut self, _: &mut Compute, step: &mut Step) {
        if let Some(request) = self.take_configure_request() {
            step.reply(request, Reply::ConfigureSuperseded);
        }
    }

    fn superstate(&mut self) -> Option<Superstate<'_>> {
        Some(Superstate::of(self))
    }
}

impl blocking::Superstate<Compute> for Superstate<'_> {
    fn call_handler(&mut self, compute: &mut Compute, event: &Event, step: &mut Step) -> Outcome<State> {
        self.on(compute, event, step)
    }

    fn superstate(&mut self) -> Option<Superstate<'_>>
    where
        Self: Sized,
    {
        self.parent()
    }
}
