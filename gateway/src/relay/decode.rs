//! What of the stream may be shown: pure decisions.
//!
//! Anybody who may write to Redis can put anything into the stream. An entry becomes a message only by passing the
//! allow-list ([`PublicMessage::decode`], Inv. ANON), and a snapshot only with the slot and the epoch that a tick
//! gave it. [`SlotGate`] lets each slot pass once (Inv. SLOT): the tick script sees to that as long as the backplane
//! keeps its memory, the gate also when it was restored to a moment before the last tick.

use std::time::Duration;

use shared::message::{MessageKind, PublicMessage};

use crate::backplane::{ENTRY_VALUE_BYTES_MAX, Entry, TickMark};
use crate::metrics::Relayed;

/// The largest `data` that is looked at, in bytes. A public message is below 1 KiB.
pub const DATA_BYTES_MAX: usize = 16 * 1024;
const _: () = assert!(ENTRY_VALUE_BYTES_MAX > DATA_BYTES_MAX, "what was cut must be seen to be too long");

/// Reads an entry.
///
/// # Errors
/// Under which name it is counted when it cannot be shown.
pub fn decode(entry: &Entry) -> Result<PublicMessage, Relayed> {
    let known = MessageKind::ALL.into_iter().find(|kind| kind.as_str() == entry.kind);
    match known {
        Some(MessageKind::RealtimeUpdate) if entry.tick.is_none() => return Err(Relayed::Unfenced),
        Some(
            MessageKind::RealtimeUpdate
            | MessageKind::NewEvent
            | MessageKind::ThemeStats
            | MessageKind::LetterGenerated,
        ) => {}
        _ => return Err(Relayed::UnknownType),
    }
    if entry.data.len() > DATA_BYTES_MAX {
        return Err(Relayed::Malformed);
    }
    // Inv. ANON: what comes out has no room for anything but the documented fields.
    PublicMessage::decode(&entry.kind, &mut entry.data.to_vec()).map_err(|_| Relayed::Malformed)
}

/// Lets the snapshot of each slot pass once, in order.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SlotGate {
    interval: Duration,
    last: Option<TickMark>,
}

impl SlotGate {
    /// A gate that nothing has passed; `interval` is the length of a slot.
    #[must_use]
    pub fn new(interval: Duration) -> Self {
        Self { interval, last: None }
    }

    /// Whether a snapshot with this mark may pass; if so, it has.
    ///
    /// A later slot passes, if no earlier reign claims it. An earlier slot passes only under a later reign and from
    /// more than two intervals back: that is how a ticker follows a backplane whose clock was set back. A slot that is
    /// closer is one that the backplane has forgotten and ticked again.
    // Inv. SLOT
    pub fn admit(&mut self, mark: TickMark) -> bool {
        let Some(last) = self.last else {
            self.last = Some(mark);
            return true;
        };
        let two_intervals_ms = u64::try_from(self.interval.as_millis()).unwrap_or(u64::MAX).saturating_mul(2);
        let later = mark.epoch >= last.epoch && mark.slot > last.slot;
        let clock_went_back = mark.epoch > last.epoch && mark.slot.0.saturating_add(two_intervals_ms) < last.slot.0;
        let passes = later || clock_went_back;
        if passes {
            self.last = Some(mark);
        }
        passes
    }

    /// Forgets what passed: no snapshot has come for so long that whatever comes is better. Without this, a backplane
    /// that lost a reign and whose clock is behind would be ignored until it has caught up.
    pub fn forget(&mut self) {
        self.last = None;
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;
    use shared::ids::{Epoch, Slot, StreamId};

    use super::*;

    fn mark(epoch: u64, slot: u64) -> TickMark {
        TickMark { epoch: Epoch(epoch), slot: Slot(slot), entries: 0 }
    }

    fn entry(kind: &str, data: &str, tick: Option<TickMark>) -> Entry {
        let data = Bytes::copy_from_slice(data.as_bytes());
        Entry { id: StreamId::ZERO, kind: kind.into(), data, visitor: None, tick, traceparent: None }
    }

    #[test]
    fn garbage_has_names() {
        let check = |kind: &str, data: &str, tick: Option<TickMark>, want: Relayed| {
            assert_eq!(decode(&entry(kind, data, tick)), Err(want), "{kind} {data}");
        };
        let snapshot = r#"{"active_visitors":5,"timestamp":"2025-12-08T10:30:00Z"}"#;
        check("", "{}", None, Relayed::UnknownType);
        check("init", snapshot, Some(mark(1, 1)), Relayed::UnknownType);
        check("gap", "{}", None, Relayed::UnknownType);
        check("realtime_update", snapshot, None, Relayed::Unfenced);
        check("realtime_update", r#"{"active_visitors":-5}"#, Some(mark(1, 1)), Relayed::Malformed);
        check("new_event", r#"{"event_type":"page_view"}"#, None, Relayed::Malformed);
        check("new_event", "\u{0}", None, Relayed::Malformed);
        check("theme_stats", &"[".repeat(DATA_BYTES_MAX), None, Relayed::Malformed);
        let long =
            format!(r#"{{"letter_type":"a","timestamp":"2025-12-08T10:30:00Z","x":"{}"}}"#, "y".repeat(DATA_BYTES_MAX));
        check("letter_generated", &long, None, Relayed::Malformed);
    }

    // Inv. ANON
    #[test]
    fn only_named_fields_survive() {
        let data = r#"{"event_type":"page_view","page_url":"/cv?token=s3cret","timestamp":"2025-12-08T10:30:00Z","email":"a@b"}"#;
        let message = decode(&entry("new_event", data, None)).expect("fits");
        let want = r#"{"type":"new_event","data":{"event_type":"page_view","page_url":"/cv","timestamp":"2025-12-08T10:30:00Z"}}"#;
        assert_eq!(message.encode(), want);
    }

    // Inv. SLOT
    #[test]
    fn each_slot_passes_once() {
        let check = |first: TickMark, second: TickMark, passes: bool| {
            let mut gate = SlotGate::new(Duration::from_secs(5));
            assert!(gate.admit(first));
            assert_eq!(gate.admit(second), passes, "{first:?} {second:?}");
        };
        check(mark(1, 100_000), mark(1, 105_000), true);
        check(mark(1, 100_000), mark(1, 100_000), false);
        check(mark(1, 100_000), mark(1, 95_000), false);
        check(mark(1, 100_000), mark(2, 105_000), true);
        // The backplane forgot the slot and ticked it again under a new reign.
        check(mark(1, 100_000), mark(2, 100_000), false);
        check(mark(1, 100_000), mark(2, 90_000), false);
        // Its clock was set back.
        check(mark(1, 100_000), mark(2, 89_999), true);
        check(mark(1, 100_000), mark(1, 5_000), false);
        // What a former reign writes is not news.
        check(mark(2, 100_000), mark(1, 105_000), false);
    }

    #[test]
    fn after_a_long_silence_anything_passes() {
        let mut gate = SlotGate::new(Duration::from_secs(5));
        assert!(gate.admit(mark(9, 100_000)));
        gate.forget();
        assert!(gate.admit(mark(3, 95_000)));
    }

    proptest! {
        // Inv. ANON: no entry makes the decoder panic, and what passes is what it says again.
        #[test]
        fn no_entry_breaks_it(kind in "(new_event|theme_stats|letter_generated|realtime_update|.{0,8})", data: Vec<u8>) {
            let mut entry = entry(&kind, "", Some(mark(1, 1)));
            entry.data = Bytes::from(data);
            if let Ok(message) = decode(&entry) {
                prop_assert_eq!(message.kind().as_str(), kind);
            }
        }
    }
}
