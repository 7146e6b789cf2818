//! The one table of WebSocket close codes: name, code, reason, and whether the client should come back.
//!
//! A code that is decided in two places contradicts itself sooner or later, and browsers learn nothing from a
//! failed socket but this number. Codes below 4000 are those of RFC 6455 section 7.4.1 and its registry.

/// Why the gateway closes a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// The peer closed first; its close is answered.
    Normal,
    /// A frame that RFC 6455 forbids: unmasked, reserved bits, a bad fragment, a bad control frame.
    ProtocolViolation,
    /// A binary message: this protocol is JSON text.
    Binary,
    /// A text message that is not UTF-8, or not JSON.
    InvalidPayload,
    /// Over the message rate, persistently.
    MessageRate,
    /// A message above the limit (4 KiB).
    MessageTooBig,
    /// The gateway's own fault.
    Internal,
    /// The node is being shut down; the reason text carries when to come back.
    Draining,
    /// The node cannot carry this socket: its outbox memory is used up, or its address is over the cap after all.
    Overloaded,
    /// No `pong` within the seed's ten seconds.
    PongTimeout,
}

/// What a client should do after a close.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reconnect {
    /// Come back, with the backoff of any lost connection.
    Yes,
    /// Come back after the time that the close reason names.
    WhenTold,
    /// The client does something wrong; coming back unchanged fails again.
    No,
}

impl CloseReason {
    /// Every reason, in the order of the table in docs/PROTOCOL.md.
    pub const ALL: [Self; 10] = [
        Self::Normal,
        Self::ProtocolViolation,
        Self::Binary,
        Self::InvalidPayload,
        Self::MessageRate,
        Self::MessageTooBig,
        Self::Internal,
        Self::Draining,
        Self::Overloaded,
        Self::PongTimeout,
    ];

    /// The code on the wire.
    #[must_use]
    pub fn code(self) -> u16 {
        self.row().0
    }

    /// The label under which metrics count it: a closed set.
    #[must_use]
    pub fn label(self) -> &'static str {
        self.row().1
    }

    /// The reason text on the wire; at most 123 bytes (RFC 6455 section 5.5). For [`Self::Draining`] see [`draining_text`].
    #[must_use]
    pub fn text(self) -> &'static str {
        self.row().2
    }

    /// Whether the client should come back.
    #[must_use]
    pub fn reconnect(self) -> Reconnect {
        self.row().3
    }

    fn row(self) -> (u16, &'static str, &'static str, Reconnect) {
        match self {
            Self::Normal => (1000, "normal", "", Reconnect::Yes),
            Self::ProtocolViolation => (1002, "protocol", "protocol violation", Reconnect::No),
            Self::Binary => (1003, "binary", "binary messages are not accepted", Reconnect::No),
            Self::InvalidPayload => (1007, "invalid_payload", "message is not UTF-8 JSON", Reconnect::No),
            Self::MessageRate => (1008, "message_rate", "too many messages", Reconnect::No),
            Self::MessageTooBig => (1009, "too_big", "message above 4096 bytes", Reconnect::No),
            Self::Internal => (1011, "internal", "internal error", Reconnect::Yes),
            Self::Draining => (1012, "draining", "", Reconnect::WhenTold),
            Self::Overloaded => (1013, "overloaded", "try again later", Reconnect::Yes),
            Self::PongTimeout => (4408, "pong_timeout", "no pong in time", Reconnect::Yes),
        }
    }
}

/// The reason text of a [`CloseReason::Draining`] close.
#[must_use]
pub fn draining_text(retry_after_ms: u64) -> String {
    format!("{{\"retry_after_ms\":{retry_after_ms}}}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_labels_are_distinct_and_texts_fit_a_control_frame() {
        for (i, a) in CloseReason::ALL.iter().enumerate() {
            assert!(a.text().len() <= 123);
            for b in &CloseReason::ALL[i + 1..] {
                assert_ne!(a.code(), b.code());
                assert_ne!(a.label(), b.label());
            }
        }
        assert!(draining_text(u64::MAX).len() <= 123);
    }

    // Inv. WIRE: the codes are public; a change here is a change of the contract.
    #[test]
    fn codes_are_the_published_ones() {
        let codes: Vec<u16> = CloseReason::ALL.iter().map(|r| r.code()).collect();
        assert_eq!(codes, [1000, 1002, 1003, 1007, 1008, 1009, 1011, 1012, 1013, 4408]);
        assert_eq!(draining_text(1500), r#"{"retry_after_ms":1500}"#);
    }

    // Inv. WIRE: docs/PROTOCOL.md has this table, row by row, with the same advice.
    #[test]
    fn the_documented_table_is_this_table() {
        let protocol = include_str!("../../docs/PROTOCOL.md");
        let section = protocol.split_once("### Close codes").and_then(|(_, rest)| rest.split_once("\n### "));
        let rows = section.expect("there").0.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"));
        let documented: Vec<(u16, &str)> =
            rows.filter_map(|row| Some((row.split(" | ").next()?.parse().ok()?, row.rsplit(" | ").next()?))).collect();
        let advice = |reason: CloseReason| match reason.reconnect() {
            Reconnect::Yes => "yes",
            Reconnect::WhenTold => "after N ms",
            Reconnect::No => "no",
        };
        assert_eq!(documented.len(), CloseReason::ALL.len());
        for (reason, (code, text)) in CloseReason::ALL.into_iter().zip(documented) {
            assert_eq!(reason.code(), code);
            assert!(text == advice(reason) || text.starts_with(&format!("{},", advice(reason))), "{code}: {text}");
        }
    }
}
