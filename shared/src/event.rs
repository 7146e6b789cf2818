//! Events as producers send them, and the allow-list that turns them into public messages.
//!
//! An event may carry anything: query strings with names in them, visitor ids, e-mail addresses. Anonymous viewers
//! watch the other end. So nothing is passed through: each field that may be public has a type which refuses what
//! does not fit ([`crate::field`]), and what has none is gone before it reaches a viewer or Redis (Inv. ANON).
//!
//! One event becomes one public message: `cv_theme_change` a `theme_stats`, `letter_generate` a
//! `letter_generated`, every other type a `new_event`. Counts, shares and times are Redis's, not the producer's.

use simd_json::BorrowedValue;

use crate::field::{EventError, Name, PagePath, VisitorId};
use crate::message::{MessageKind, PublicMessage};

/// The most events that one request may bring.
pub const EVENTS_MAX: usize = 500;
/// The most themes that are counted by name; views of further ones are counted as [`OTHER_THEME`].
pub const THEMES_MAX: usize = 200;
/// The name under which themes beyond [`THEMES_MAX`] are counted.
pub const OTHER_THEME: &str = "other";

/// What happened, reduced to what may be public. Times and counts are added by the backplane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Becomes a `new_event`.
    Page {
        /// What happened.
        event_type: Name,
        /// Where.
        page_url: PagePath,
    },
    /// Becomes a `theme_stats`.
    ThemeChange {
        /// The theme that was viewed.
        theme: Name,
    },
    /// Becomes a `letter_generated`.
    LetterGenerate {
        /// The kind of letter.
        letter_type: Name,
    },
}

/// An event and who caused it, if the producer said so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IncomingEvent {
    /// What happened.
    pub event: Event,
    /// Who, in the producer's words.
    pub visitor: Option<VisitorId>,
}

/// What a producer published on the legacy channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LegacyMessage {
    /// A public message, ready to be shown.
    Public(PublicMessage),
    /// A raw event, mapped like one that is POSTed.
    Event(IncomingEvent),
}

/// Why a request body was refused as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// Not JSON, or neither an object nor an array.
    #[error("body: not a JSON object or array of objects")]
    Malformed,
    /// An array without elements.
    #[error("body: no events")]
    Empty,
    /// More than [`EVENTS_MAX`] events.
    #[error("body: more than 500 events")]
    TooMany,
}

/// Reads the body of `POST /api/v1/events`: one event or an array of them, each judged by itself. `body` is used as
/// scratch space and is garbage afterwards.
///
/// # Errors
/// [`BatchError`] when there is nothing to judge one by one.
pub fn parse_batch(body: &mut [u8]) -> Result<Vec<Result<IncomingEvent, EventError>>, BatchError> {
    let value = simd_json::to_borrowed_value(body).map_err(|_| BatchError::Malformed)?;
    match &value {
        BorrowedValue::Object(_) => Ok(vec![parse_event(&value, "event_type")]),
        BorrowedValue::Array(events) if events.is_empty() => Err(BatchError::Empty),
        BorrowedValue::Array(events) if events.len() > EVENTS_MAX => Err(BatchError::TooMany),
        BorrowedValue::Array(events) => Ok(events.iter().map(|event| parse_event(event, "event_type")).collect()),
        _ => Err(BatchError::Malformed),
    }
}

/// Reads a message of the legacy channel: a public message, or a raw event whose kind stands in `type` and whose
/// theme or letter type may stand in `data`. `payload` is used as scratch space.
///
/// # Errors
/// [`EventError`] naming the first field that does not fit.
pub fn parse_legacy(payload: &mut [u8]) -> Result<LegacyMessage, EventError> {
    let value = simd_json::to_borrowed_value(payload).map_err(|_| EventError::new("message", "not JSON"))?;
    let kind = text(&value, "type")?.ok_or(EventError::new("type", "missing"))?;
    let wire_kind = MessageKind::ALL.into_iter().find(|known| known.as_str() == kind);
    match wire_kind {
        None => parse_event(&value, "type").map(LegacyMessage::Event),
        Some(MessageKind::NewEvent | MessageKind::ThemeStats | MessageKind::LetterGenerated) => {
            let data = member(&value, "data").ok_or(EventError::new("data", "missing"))?;
            let mut data = serde_json::to_vec(data).map_err(|_| EventError::new("data", "malformed"))?;
            PublicMessage::decode(kind, &mut data).map(LegacyMessage::Public)
        }
        // A snapshot belongs to a slot and an epoch, which only the ticker has; the rest is made per socket.
        Some(_) => Err(EventError::new("type", "reserved")),
    }
}

/// Reads one event whose kind stands in the field `kind_field`.
fn parse_event(value: &BorrowedValue<'_>, kind_field: &'static str) -> Result<IncomingEvent, EventError> {
    if !matches!(value, BorrowedValue::Object(_)) {
        return Err(EventError::new("event", "not an object"));
    }
    let visitor = match text(value, "visitor_id")? {
        Some(id) => Some(VisitorId::parse("visitor_id", id)?),
        None => None,
    };
    let kind = Name::parse(kind_field, text(value, kind_field)?)?;
    let event = match kind.as_str() {
        "cv_theme_change" => Event::ThemeChange { theme: Name::parse("theme", nested_text(value, "theme")?)? },
        "letter_generate" => {
            Event::LetterGenerate { letter_type: Name::parse("letter_type", nested_text(value, "letter_type")?)? }
        }
        _ => Event::Page { event_type: kind, page_url: PagePath::parse("page_url", text(value, "page_url")?)? },
    };
    Ok(IncomingEvent { event, visitor })
}

/// The text in `field` of the event itself or, as older producers write it, of its `data`.
fn nested_text<'v>(value: &'v BorrowedValue<'_>, field: &'static str) -> Result<Option<&'v str>, EventError> {
    match (text(value, field)?, member(value, "data")) {
        (None, Some(data)) => text(data, field),
        (found, _) => Ok(found),
    }
}

/// The text in `field`; `null` counts as absent.
fn text<'v>(value: &'v BorrowedValue<'_>, field: &'static str) -> Result<Option<&'v str>, EventError> {
    match member(value, field) {
        None | Some(BorrowedValue::Static(simd_json::StaticNode::Null)) => Ok(None),
        Some(BorrowedValue::String(text)) => Ok(Some(text)),
        Some(_) => Err(EventError::new(field, "not a string")),
    }
}

fn member<'v, 'i>(value: &'v BorrowedValue<'i>, field: &str) -> Option<&'v BorrowedValue<'i>> {
    match value {
        BorrowedValue::Object(object) => object.get(field),
        _ => None,
    }
}
