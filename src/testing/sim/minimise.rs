//! Makes a failing plan small: fewer kinds of faults, fewer faults, less time, as long as it fails.

use super::check::told;
use super::plan::{FAULTS, Knob, Plan};
use super::report::{Failure, Report};
use super::run_traced;
use super::subject::{Subject, mixed};
use super::trace::Trace;

/// Runs that a minimisation may take.
const MOST_RUNS: u64 = 400;

/// A smaller plan that fails as well, and how, with everything that happened in its trace; None
/// when this plan does not fail.
pub fn minimise(plan: &Plan) -> Option<Box<Failure>> {
    smallest(plan, mixed)
}

/// The same with a Store and workload of one's own. A call that hangs is not made smaller: each
/// run would take as long.
pub fn minimise_with(plan: &Plan, subject: impl Fn() -> Subject) -> Option<Box<Failure>> {
    smallest(plan, |_| subject())
}

fn smallest(plan: &Plan, subject: impl Fn(&Plan) -> Subject) -> Option<Box<Failure>> {
    let run = |plan: &Plan| run_traced(plan, subject(plan), Trace::default());
    let first = run(plan).err()?;
    if first.hung {
        return Some(first);
    }
    let smallest = smaller(first, run);
    let plan = smallest.plan.clone();
    Some(told(smallest, || subject(&plan)))
}

fn smaller(
    mut smallest: Box<Failure>,
    run: impl Fn(&Plan) -> Result<Report, Box<Failure>>,
) -> Box<Failure> {
    let mut runs = 1;
    let mut attempt = |plan: &Plan, smallest: &mut Box<Failure>| {
        if runs >= MOST_RUNS {
            return false;
        }
        runs += 1;
        let Err(failure) = run(plan) else { return false };
        if failure.hung {
            return false;
        }
        *smallest = failure;
        true
    };
    loop {
        let before = smallest.plan.clone();
        for candidate in simpler(&before) {
            // What a change of one knob left may be changed further.
            let mut plan = smallest.plan.clone();
            candidate.apply(&mut plan);
            if plan != smallest.plan {
                attempt(&plan, &mut smallest);
            }
        }
        if smallest.plan == before {
            break;
        }
    }
    leave_out_faults(&mut smallest, &mut attempt);
    smallest
}

/// One step towards a simpler plan.
struct Step {
    knob: Knob,
    value: u64,
}

impl Step {
    fn apply(&self, plan: &mut Plan) {
        plan.set(self.knob, self.value);
    }
}

/// What is tried in halves.
const SIZES: [Knob; 4] = [Knob::Seconds, Knob::Clients, Knob::Nodes, Knob::Spares];

fn simpler(plan: &Plan) -> Vec<Step> {
    let on = FAULTS.iter().copied().filter(|k| plan.get(*k) > 0);
    let mut steps: Vec<Step> = on.map(|knob| Step { knob, value: 0 }).collect();
    for knob in SIZES {
        let value = plan.get(knob);
        if value > 1 {
            steps.push(Step { knob, value: value / 2 });
            steps.push(Step { knob, value: value - 1 });
        }
    }
    for &knob in Knob::ALL.iter().filter(|k| !FAULTS.contains(k)) {
        // A size only ever shrinks; what is calm of anything else may be more.
        let grows = SIZES.contains(&knob) && knob.calm() > plan.get(knob);
        if plan.get(knob) != knob.calm() && !grows {
            steps.push(Step { knob, value: knob.calm() });
        }
    }
    steps
}

/// Leaves single faults out, many at a time first.
fn leave_out_faults(
    smallest: &mut Box<Failure>,
    attempt: &mut impl FnMut(&Plan, &mut Box<Failure>) -> bool,
) {
    let mut width = 64;
    while width > 0 {
        let mut first = 1;
        while first < 512 {
            let mut plan = smallest.plan.clone();
            plan.left_out.extend(first..first + width);
            plan.left_out.sort_unstable();
            plan.left_out.dedup();
            if plan != smallest.plan {
                attempt(&plan, smallest);
            }
            first += width;
        }
        width /= 4;
    }
}
