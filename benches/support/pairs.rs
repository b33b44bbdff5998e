//! Pairs of durations: what is measured, and the floor measured right before it.

use std::time::Duration;

#[derive(Default)]
pub(crate) struct Pairs {
    pub(crate) floor: Vec<Duration>,
    pub(crate) ours: Vec<Duration>,
}

impl Pairs {
    pub(crate) fn print(&mut self, title: &str, floor: &str, target: &str) {
        println!("{title} (target {target})");
        for percent in [50, 90] {
            let (below, above) = (percentile(&mut self.floor, percent), percentile(&mut self.ours, percent));
            println!(
                "  p{percent} {:.1} ms over {:.1} ms ({floor}): ratio {:.2}, {:+.1} ms",
                millis(above),
                millis(below),
                above.as_secs_f64() / below.as_secs_f64(),
                millis(above) - millis(below),
            );
        }
        println!();
    }
}

pub(crate) fn percentile(figures: &mut [Duration], percent: usize) -> Duration {
    figures.sort_unstable();
    figures[(figures.len() * percent / 100).min(figures.len() - 1)]
}

pub(crate) fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
