//! Where the process is in its life: starting, ready, draining, stopped; forward only.
//!
//! Everyone who must act on a change (the listener, probes, tasks) watches one value instead of a flag each. The
//! order of the states is the order of the enum, and [`Lifecycle::advance`] refuses to go back: once draining, no late
//! success of some start-up step can make the node ready again (Inv. DRAIN).

use tokio::sync::watch;

/// A state of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Listening, but the backplane, the registry or a first snapshot is missing: upgrades get 503.
    Starting,
    /// Serving.
    Ready,
    /// Told to stop: `/readyz` says no; upgrades are still taken until the listener closes.
    Draining,
    /// The listener is closed and sockets are being sent away.
    Closing,
    /// Every task must end now.
    Stopped,
}

/// How the process's work ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Told to stop, and done.
    Drained,
    /// Told twice: ended at once.
    Interrupted,
    /// The named part failed.
    Failed(&'static str),
}

/// The process's phase; clones share it.
#[derive(Debug, Clone)]
pub struct Lifecycle(watch::Sender<Phase>);

impl Default for Lifecycle {
    fn default() -> Self {
        Self(watch::Sender::new(Phase::Starting))
    }
}

impl Lifecycle {
    /// Moves to `phase` if that lies ahead; a phase that is reached or passed stays.
    // Inv. DRAIN: the phase never goes back.
    pub fn advance(&self, phase: Phase) {
        self.0.send_if_modified(|now| {
            let ahead = phase > *now;
            if ahead {
                *now = phase;
            }
            ahead
        });
    }

    /// The phase now.
    #[must_use]
    pub fn phase(&self) -> Phase {
        *self.0.borrow()
    }

    /// Waits until `phase` is reached or passed. Cancel safe.
    pub async fn reached(&self, phase: Phase) {
        let mut phases = self.0.subscribe();
        // The sender lives as long as `self`, so waiting cannot fail.
        let _ = phases.wait_for(|now| *now >= phase).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Inv. DRAIN
    #[tokio::test]
    async fn never_goes_back() {
        let life = Lifecycle::default();
        life.advance(Phase::Draining);
        life.advance(Phase::Ready);
        assert_eq!(life.phase(), Phase::Draining);
        life.reached(Phase::Ready).await;
        life.advance(Phase::Stopped);
        life.reached(Phase::Closing).await;
        assert_eq!(life.phase(), Phase::Stopped);
    }
}
