//! What long work says of itself on stderr: a bar where somebody watches, else a line now and then.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::{Interval, MissedTickBehavior};

/// How often a bar is drawn again.
const BAR_INTERVAL: Duration = Duration::from_millis(100);

/// How often a line is written where no bar can be drawn.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// The progress of one piece of work.
pub(crate) struct Progress {
    started: Instant,
    bar: Option<ProgressBar>,
    interval: Interval,
}

impl Progress {
    /// Begins work whose end is `total` steps away, if that is known. Must be called within a
    /// tokio runtime.
    pub(crate) fn start(total: Option<u64>) -> Self {
        let bar = io::stderr().is_terminal().then(|| new_bar(total));
        let mut interval =
            tokio::time::interval(if bar.is_some() { BAR_INTERVAL } else { LINE_INTERVAL });
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        interval.reset();
        Self { started: Instant::now(), bar, interval }
    }

    /// Waits until progress should be shown again.
    pub(crate) async fn due(&mut self) {
        self.interval.tick().await;
    }

    /// Shows how far the work has come.
    pub(crate) fn show(&self, done: u64, text: &str) {
        match &self.bar {
            Some(bar) => {
                bar.set_position(done);
                bar.set_message(text.to_owned());
                bar.tick();
            }
            None => say(text),
        }
    }

    /// Writes a line on stderr that stays there.
    pub(crate) fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| say(text)),
            None => say(text),
        }
    }

    /// Returns how long the work has taken.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Takes the bar away.
    pub(crate) fn end(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Writes a line on stderr.
pub(crate) fn say(text: &str) {
    // There is nowhere left to say that stderr cannot be written.
    let _unwritten = writeln!(io::stderr(), "{text}");
}

/// Returns how many of something there were in a second.
pub(crate) fn per_second(count: u64, time: Duration) -> u64 {
    if time.is_zero() {
        return 0;
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a figure for people, far below where a float is inexact"
    )]
    let rate = (count as f64 / time.as_secs_f64()).round() as u64;
    rate
}

fn new_bar(total: Option<u64>) -> ProgressBar {
    let (bar, template) = match total {
        Some(total) => (ProgressBar::new(total), "{bar:30} {percent:>3}%  {msg}  {elapsed}"),
        None => (ProgressBar::new_spinner(), "{spinner} {msg}  {elapsed}"),
    };
    bar.with_style(ProgressStyle::with_template(template).expect("the template is well formed"))
}
