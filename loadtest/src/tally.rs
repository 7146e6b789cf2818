//! What is counted while the test runs: by each thread for itself, added in the end.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::audit::{Finding, Meaning};
use crate::latency::Waits;
use crate::socket::End;

/// Findings that are quoted; all are counted.
const EXAMPLES_MAX: usize = 10;
/// How much of a message is quoted.
const EXAMPLE_BYTES_MAX: usize = 160;

/// Messages by kind.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub(crate) struct Messages {
    pub(crate) init: u64,
    pub(crate) realtime_update: u64,
    pub(crate) stale: u64,
    pub(crate) new_event: u64,
    pub(crate) theme_stats: u64,
    pub(crate) letter_generated: u64,
    pub(crate) ping: u64,
    pub(crate) gap: u64,
    pub(crate) malformed: u64,
    /// Of all of them, without framing.
    pub(crate) payload_bytes: u64,
}

impl Messages {
    /// All of them.
    pub(crate) fn total(&self) -> u64 {
        let states = self.init + self.realtime_update + self.ping + self.gap;
        states + self.new_event + self.theme_stats + self.letter_generated + self.malformed
    }

    /// A message came.
    pub(crate) fn add(&mut self, meaning: Meaning, bytes: usize) {
        self.payload_bytes += bytes as u64;
        let kind = match meaning {
            Meaning::Init { .. } => &mut self.init,
            Meaning::Update { stale, .. } => {
                self.stale += u64::from(stale);
                &mut self.realtime_update
            }
            Meaning::Event { .. } => &mut self.new_event,
            Meaning::Theme => &mut self.theme_stats,
            Meaning::Letter => &mut self.letter_generated,
            Meaning::Ping => &mut self.ping,
            Meaning::Gap => &mut self.gap,
            Meaning::Malformed => &mut self.malformed,
        };
        *kind += 1;
    }

    /// Events came, so many bytes together.
    pub(crate) fn add_events(&mut self, count: u64, payload_bytes: u64) {
        self.new_event += count;
        self.payload_bytes += payload_bytes;
    }

    fn merge(&mut self, other: &Self) {
        let Self { init, realtime_update, stale, new_event, theme_stats, letter_generated, ping, gap, .. } = other;
        self.init += init;
        self.realtime_update += realtime_update;
        self.stale += stale;
        self.new_event += new_event;
        self.theme_stats += theme_stats;
        self.letter_generated += letter_generated;
        self.ping += ping;
        self.gap += gap;
        self.malformed += other.malformed;
        self.payload_bytes += other.payload_bytes;
    }
}

/// Whether an end was to be expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expected {
    Yes,
    No,
}

/// Everything that is counted over all sockets.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Tally {
    pub(crate) messages: Messages,
    pub(crate) pongs: u64,
    /// From publishing an event to each of its deliveries.
    pub(crate) event: Waits,
    /// From the begin of connecting to the 101.
    pub(crate) upgrade: Waits,
    /// From the begin of connecting to `init`.
    pub(crate) begin: Waits,
    /// From the moment when all dropped to the `init` of each that came back.
    pub(crate) back: Waits,
    /// From one new state to the next, per client.
    pub(crate) state_gap: Waits,
    /// How many clients were open when the time was over.
    pub(crate) open_at_end: u64,
    pub(crate) findings: BTreeMap<String, u64>,
    pub(crate) examples: Vec<String>,
    pub(crate) refused: BTreeMap<u16, u64>,
    pub(crate) failed: BTreeMap<String, u64>,
    pub(crate) closed: BTreeMap<String, u64>,
    pub(crate) expected_closes: u64,
    /// When all dropped, if they did.
    #[serde(skip)]
    pub(crate) scattered: Option<std::time::Instant>,
}

impl Tally {
    /// A server has answered 101.
    pub(crate) fn opened(&mut self, after: Duration) {
        self.upgrade.record_duration(after);
    }

    /// A socket got its `init`.
    pub(crate) fn began(&mut self, after: Duration) {
        self.begin.record_duration(after);
        if let Some(scattered) = self.scattered {
            self.back.record_duration(scattered.elapsed());
        }
    }

    /// The audit found something in a message.
    pub(crate) fn found(&mut self, finding: Finding, text: &[u8]) {
        self.count(finding.text(), 1);
        if self.examples.len() < EXAMPLES_MAX {
            let text = String::from_utf8_lossy(&text[..text.len().min(EXAMPLE_BYTES_MAX)]).into_owned();
            self.examples.push(format!("{}: {text}", finding.text()));
        }
    }

    /// Counts findings of one sort.
    pub(crate) fn count(&mut self, what: &str, times: u64) {
        count(&mut self.findings, what, times);
    }

    /// Counts the sockets that opened and never got `init`.
    pub(crate) fn count_silent(&mut self) {
        self.count("socket without init", self.upgrade.count().saturating_sub(self.begin.count()));
    }

    /// A socket ended.
    pub(crate) fn ended(&mut self, end: End, expected: Expected) {
        match (end, expected) {
            (End::Refused(status), _) => *self.refused.entry(status).or_default() += 1,
            (End::Failed(why), _) => count(&mut self.failed, why, 1),
            (_, Expected::Yes) => self.expected_closes += 1,
            (End::Closed(code, reason), Expected::No) => count(&mut self.closed, &close_label(code, &reason), 1),
            (End::Lost(why), Expected::No) => count(&mut self.closed, &format!("without close frame: {why}"), 1),
            (End::Broke(why), Expected::No) => {
                self.count("framing violated", 1);
                count(&mut self.closed, &format!("by us, after {why}"), 1);
            }
        }
    }

    /// Adds what another thread or process has counted.
    pub(crate) fn merge(&mut self, other: Self) {
        self.messages.merge(&other.messages);
        self.pongs += other.pongs;
        for (waits, others) in [
            (&mut self.event, &other.event),
            (&mut self.upgrade, &other.upgrade),
            (&mut self.begin, &other.begin),
            (&mut self.back, &other.back),
            (&mut self.state_gap, &other.state_gap),
        ] {
            waits.add(others);
        }
        self.open_at_end += other.open_at_end;
        self.expected_closes += other.expected_closes;
        other.findings.iter().for_each(|(what, times)| count(&mut self.findings, what, *times));
        other.failed.iter().for_each(|(what, times)| count(&mut self.failed, what, *times));
        other.closed.iter().for_each(|(what, times)| count(&mut self.closed, what, *times));
        other.refused.iter().for_each(|(status, times)| *self.refused.entry(*status).or_default() += times);
        self.examples.extend(other.examples);
        self.examples.truncate(EXAMPLES_MAX);
    }
}

fn count(counts: &mut BTreeMap<String, u64>, what: &str, times: u64) {
    match counts.get_mut(what) {
        _ if times == 0 => {}
        Some(count) => *count += times,
        None => {
            counts.insert(what.to_owned(), times);
        }
    }
}

/// Code and reason, with numbers in the reason left out: each drained socket is told another time to come back, and
/// is the same sort of close all the same.
fn close_label(code: u16, reason: &str) -> String {
    let mut label = code.to_string();
    let words: Vec<&str> = reason.split(|c: char| c.is_ascii_digit()).filter(|word| !word.is_empty()).collect();
    if !words.is_empty() {
        label.push(' ');
        label.push_str(&words.join("N"));
    }
    label
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_add_up_also_through_json() {
        let part = |ms: u64| {
            let mut tally = Tally::default();
            tally.opened(Duration::from_millis(ms));
            tally.messages.add(Meaning::Ping, 50);
            tally.messages.add_events(3, 300);
            tally.found(Finding::DuplicateEvent, b"x");
            tally.ended(End::Refused(429), Expected::No);
            tally.ended(End::Failed("timed out"), Expected::No);
            tally.ended(End::Closed(1000, String::new()), Expected::Yes);
            tally
        };
        let mut all = part(1);
        let told = serde_json::to_string(&part(3)).expect("JSON");
        all.merge(serde_json::from_str(&told).expect("JSON"));
        assert_eq!((all.messages.total(), all.messages.payload_bytes), (8, 700));
        assert_eq!((all.upgrade.count(), all.upgrade.longest()), (2, Some(Duration::from_micros(3001))));
        assert_eq!((all.refused[&429], all.failed["timed out"], all.expected_closes), (2, 2, 2));
        assert_eq!((all.findings[Finding::DuplicateEvent.text()], all.examples.len()), (2, 2));
        all.count_silent();
        assert_eq!(all.findings["socket without init"], 2);
    }

    #[test]
    fn a_drain_is_one_sort_of_close() {
        let mut tally = Tally::default();
        for ms in [17, 2500] {
            tally.ended(End::Closed(1012, format!("{{\"retry_after_ms\":{ms}}}")), Expected::No);
        }
        assert_eq!(tally.closed["1012 {\"retry_after_ms\":N}"], 2);
    }
}
