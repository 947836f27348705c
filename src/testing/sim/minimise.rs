//! Makes a failing plan small: fewer kinds of faults, fewer faults, less time, as long as it fails.

use super::plan::{FAULTS, Knob, Plan};
use super::report::{Failure, Report};

/// Runs that a minimisation may take.
const MOST_RUNS: u64 = 400;

/// A smaller plan that fails as well, and how; None when this plan does not fail. `run` is
/// [`super::run`], or [`super::run_with`] a subject of one's own.
pub fn minimise(
    plan: &Plan,
    run: impl Fn(&Plan) -> Result<Report, Box<Failure>>,
) -> Option<Box<Failure>> {
    let mut smallest = run(plan).err()?;
    let mut runs = 1;
    let mut attempt = |plan: &Plan, smallest: &mut Box<Failure>| {
        if runs >= MOST_RUNS {
            return false;
        }
        runs += 1;
        let Err(failure) = run(plan) else { return false };
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
    Some(smallest)
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

fn simpler(plan: &Plan) -> Vec<Step> {
    let on = FAULTS.iter().copied().filter(|k| plan.get(*k) > 0);
    let mut steps: Vec<Step> = on.map(|knob| Step { knob, value: 0 }).collect();
    for knob in [Knob::Seconds, Knob::Clients, Knob::Nodes, Knob::Spares] {
        let value = plan.get(knob);
        if value > 1 {
            steps.push(Step { knob, value: value / 2 });
            steps.push(Step { knob, value: value - 1 });
        }
    }
    for &knob in Knob::ALL.iter().filter(|k| !FAULTS.contains(k)) {
        if plan.get(knob) != knob.calm() {
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
