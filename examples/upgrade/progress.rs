//! What a run says while it works: bars with loss and remaining time on a terminal, one line per epoch elsewhere.

use std::cell::RefCell;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Lines or bars, on the standard error stream.
pub(crate) struct Progress {
    bars: Option<MultiProgress>,
    start: Instant,
}

impl Progress {
    /// Bars when the standard error stream is a terminal.
    pub(crate) fn new() -> Self {
        let bars = std::io::stderr()
            .is_terminal()
            .then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr()));
        Self { bars, start: Instant::now() }
    }

    /// One line that stays.
    pub(crate) fn say(&self, line: &str) {
        let line = format!("[{:>6.1} s] {line}", self.start.elapsed().as_secs_f64());
        match &self.bars {
            // The bars print above themselves; a failure to write to a terminal is nothing to stop for.
            Some(bars) => drop(bars.println(line)),
            None => eprintln!("{line}"),
        }
    }

    /// Follows one training.
    pub(crate) fn training(
        &self,
        name: &str,
        epochs: usize,
        batches: usize,
        first: usize,
    ) -> TrainingBar<'_> {
        let bar = self.bars.as_ref().map(|bars| {
            let bar = bars.add(ProgressBar::new((epochs * batches) as u64));
            let form = "{prefix:>28} {bar:30} epoch {msg}  {elapsed} of about {duration}";
            if let Ok(style) = ProgressStyle::with_template(form) {
                bar.set_style(style);
            }
            bar.set_prefix(name.to_owned());
            bar.set_position((first * batches) as u64);
            bar.reset_eta();
            bar
        });
        if first > 0 {
            self.say(&format!("{name}: continues after epoch {first} of {epochs}"));
        }
        let state = RefCell::new(Running { epoch: first, sum: 0.0, count: 0, last: f64::NAN });
        TrainingBar {
            progress: self,
            name: name.to_owned(),
            epochs,
            first,
            bar,
            start: Instant::now(),
            state,
        }
    }
}

struct Running {
    epoch: usize,
    sum: f64,
    count: usize,
    last: f64,
}

/// The progress of one training.
pub(crate) struct TrainingBar<'a> {
    progress: &'a Progress,
    name: String,
    epochs: usize,
    first: usize,
    bar: Option<ProgressBar>,
    start: Instant,
    state: RefCell<Running>,
}

impl TrainingBar<'_> {
    /// One step with its loss.
    pub(crate) fn step(&self, loss: f64) {
        let mut state = self.state.borrow_mut();
        state.sum += loss;
        state.count += 1;
        if let Some(bar) = &self.bar {
            bar.set_message(format!(
                "{}/{}  loss {:.3}",
                state.epoch + 1,
                self.epochs,
                state.sum / state.count as f64
            ));
            bar.inc(1);
        }
    }

    /// The end of an epoch.
    pub(crate) fn epoch(&self, epoch: usize) {
        let mut state = self.state.borrow_mut();
        state.last = state.sum / state.count.max(1) as f64;
        if self.bar.is_none() {
            let per_epoch = self.start.elapsed() / (epoch + 1 - self.first) as u32;
            let left: Duration = per_epoch * (self.epochs - epoch - 1) as u32;
            let (name, epochs, loss) = (&self.name, self.epochs, state.last);
            self.progress.say(&format!(
                "{name}: epoch {}/{epochs}, loss {loss:.3}, about {:.0} s left",
                epoch + 1,
                left.as_secs_f64()
            ));
        }
        (state.epoch, state.sum, state.count) = (epoch + 1, 0.0, 0);
    }

    /// The end of the training.
    pub(crate) fn finish(self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let (seconds, loss) = (self.start.elapsed().as_secs_f64(), self.state.borrow().last);
        if self.first < self.epochs {
            self.progress.say(&format!("{}: trained in {seconds:.1} s, last loss {loss:.3}", self.name));
        }
    }
}
