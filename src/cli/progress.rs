//! How far a long command is: one line on standard error, only where somebody looks at it.
//!
//! Nothing is drawn when standard error is no terminal, so logs and pipes stay clean.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};

/// A bar of so many steps.
#[derive(Debug)]
pub struct Bar {
    name: String,
    steps: u64,
    shown: bool,
    /// The last percent drawn, beyond 100 while none has been.
    drawn: AtomicU64,
}

/// Characters of the bar itself.
const WIDTH: u64 = 30;

impl Bar {
    /// A bar that is drawn if standard error is a terminal and there is more than one step.
    #[must_use]
    pub fn new(name: &str, steps: u64) -> Bar {
        Bar {
            name: name.to_owned(),
            steps,
            shown: steps > 1 && std::io::stderr().is_terminal(),
            drawn: AtomicU64::new(u64::MAX),
        }
    }

    /// So many steps are done.
    pub fn show(&self, done: u64) {
        let percent = 100 * done.min(self.steps) / self.steps.max(1);
        if self.shown && (self.drawn.swap(percent, Ordering::Relaxed) != percent || self.steps <= 1000) {
            // A terminal that is gone is no reason to stop.
            let _ = write!(std::io::stderr(), "\r{}", self.line(done));
        }
    }

    /// Takes the bar away again.
    pub fn clear(&self) {
        if self.shown {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }

    fn line(&self, done: u64) -> String {
        let filled = WIDTH * done.min(self.steps) / self.steps.max(1);
        let bar: String = (0..WIDTH).map(|at| if at < filled { '#' } else { '.' }).collect();
        format!("{:<28} [{bar}] {done}/{}", self.name, self.steps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_as_full_as_its_work_is_done() {
        let bar = Bar { name: "ray-healthy".to_owned(), steps: 200, shown: false, drawn: AtomicU64::new(0) };
        assert_eq!(bar.line(0).matches('#').count(), 0);
        assert_eq!(bar.line(100).matches('#').count(), 15);
        assert_eq!(bar.line(200).matches('#').count(), 30);
        assert!(bar.line(100).ends_with("100/200"));
    }
}
