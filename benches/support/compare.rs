//! Measures things side by side: their runs take turns, so that whatever disturbs the machine disturbs all of
//! them, and what is reported is the ratio within a round as well as the figure.

use std::time::Duration;

/// Rounds that are not counted: caches, branch predictors and clocks get used to it.
const WARM_UP: usize = 3;

/// One thing to measure: a name, and a run which returns how long its `count` operations took.
pub(crate) struct Subject<'a> {
    pub(crate) name: &'static str,
    pub(crate) count: u64,
    pub(crate) run: Box<dyn FnMut() -> Duration + 'a>,
}

impl<'a> Subject<'a> {
    pub(crate) fn new(name: &'static str, count: u64, run: impl FnMut() -> Duration + 'a) -> Self {
        Subject { name, count, run: Box::new(run) }
    }
}

/// Prints a table. The first subject is the floor which the others are compared with.
pub(crate) fn compare(title: &str, rounds: usize, mut subjects: Vec<Subject<'_>>) {
    let mut samples = vec![Vec::with_capacity(rounds); subjects.len()];
    for round in 0..rounds + WARM_UP {
        for (subject, samples) in subjects.iter_mut().zip(&mut samples) {
            let took = (subject.run)().as_nanos() as f64 / subject.count as f64;
            if round >= WARM_UP {
                samples.push(took);
            }
        }
    }
    println!("\n{title} ({rounds} rounds, taking turns; ratio to the first line, within a round)");
    println!(
        "{:<44} {:>12} {:>12} {:>14} {:>9} {:>9}",
        "", "median ns", "p90 ns", "median 1/s", "ratio", "p90"
    );
    for (subject, own) in subjects.iter().zip(&samples) {
        let ratios: Vec<f64> = own.iter().zip(&samples[0]).map(|(own, floor)| own / floor).collect();
        let median = quantile(own, 0.5);
        println!(
            "{:<44} {:>12.1} {:>12.1} {:>14.0} {:>9.2} {:>9.2}",
            subject.name,
            median,
            quantile(own, 0.9),
            1e9 / median,
            quantile(&ratios, 0.5),
            quantile(&ratios, 0.9)
        );
    }
}

fn quantile(samples: &[f64], at: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let index = ((sorted.len() - 1) as f64 * at).round() as usize;
    sorted[index]
}
