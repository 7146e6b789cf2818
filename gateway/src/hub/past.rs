//! The stream's past, as those who know the backplane bring it into the hub.
//!
//! The relay begins the ring with what it found at its own start. When a client wants more, whoever runs
//! [`Hub::past_wanted`] fetches it, page by page ([`Hub::extend_past`]), one fetch at a time however many clients
//! wait; and says when that is over ([`Hub::past_fetched`]), whether or not it brought anything. Then those go on who
//! waited, with what there is and a gap before it.

use shared::ids::EventId;

use super::Hub;
use super::ring::{ITEMS_MAX, Recalled};

/// The most entries of the past that are of use.
pub const ENTRIES_MAX: usize = ITEMS_MAX;

impl Hub {
    /// Begins with these entries, the newest that stand in the stream, oldest first; `more` when it holds older ones.
    /// To be called before the first broadcast.
    pub fn begin_past(&self, entries: Vec<Recalled>, more: bool) {
        let mut stage = self.core.stage_mut();
        stage.ring.begin(entries, more);
        self.core.metrics.replay_size(stage.ring.size());
    }

    /// Waits until a client wants more of the past than there is. Cancel safe.
    pub async fn past_wanted(&self) {
        self.core.past_asked.notified().await;
    }

    /// The entry before which more is wanted; none when there is no more, or no room for it.
    #[must_use]
    pub fn past_begins(&self) -> Option<EventId> {
        self.core.stage().ring.extensible()
    }

    /// Puts entries (oldest first) before the one that [`Self::past_begins`] said, which is the last of them. `more` when
    /// there may be even older ones.
    pub fn extend_past(&self, entries: Vec<Recalled>, more: bool) {
        let mut stage = self.core.stage_mut();
        stage.ring.extend(entries, more);
        self.core.metrics.replay_size(stage.ring.size());
    }

    /// A fetch has ended.
    pub fn past_fetched(&self) {
        self.core.stage_mut().ring.fetched();
        if self.core.has_waiting() {
            self.for_each(|conn| conn.wake_waiting());
        }
    }

    /// The last number under which somebody wants the stream to be read to its end; 0 when nobody ever did. A read
    /// that was begun after this, and brought less than was asked for, has done so.
    #[must_use]
    pub fn end_asked(&self) -> u64 {
        self.core.end_asked()
    }

    /// Asks as a client does that is ahead of this node.
    #[cfg(test)]
    pub(crate) fn ask_end(&self) -> u64 {
        self.core.ask_end()
    }

    /// Asks as a client does that comes from before the past.
    #[cfg(test)]
    pub(crate) fn want_past(&self) {
        self.core.ask_past();
    }
}
