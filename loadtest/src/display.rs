//! Progress on a terminal; nothing where there is none.

use std::time::Duration;

use indicatif::{HumanCount, ProgressBar, ProgressStyle};

use crate::control::Progress;

/// What is shown while a test runs. Gone when dropped.
#[derive(Debug)]
pub(crate) struct Display {
    bar: ProgressBar,
    messages: u64,
    since: std::time::Instant,
}

impl Display {
    /// Counts sockets that open, or come back.
    pub(crate) fn sockets(what: &'static str, wanted: u32) -> Self {
        Self::new(what, u64::from(wanted), "{prefix:>10} {wide_bar} {human_pos}/{human_len} {msg}")
    }

    /// Counts the seconds of a test.
    pub(crate) fn seconds(what: &'static str, duration: Duration) -> Self {
        Self::new(what, duration.as_secs(), "{prefix:>10} {wide_bar} {pos}/{len} s {msg}")
    }

    fn new(what: &'static str, length: u64, template: &str) -> Self {
        let bar = ProgressBar::new(length).with_prefix(what);
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self { bar, messages: 0, since: std::time::Instant::now() }
    }

    /// Shows how far it has got.
    pub(crate) fn show(&mut self, position: u64, progress: &Progress) {
        self.bar.set_position(position);
        let elapsed = self.since.elapsed();
        if elapsed >= Duration::from_secs(1) {
            #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let rate = (progress.messages.saturating_sub(self.messages) as f64 / elapsed.as_secs_f64()) as u64;
            self.bar.set_message(format!("{} open, {} messages/s", progress.alive, HumanCount(rate)));
            (self.messages, self.since) = (progress.messages, std::time::Instant::now());
        }
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
