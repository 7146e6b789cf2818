//! The fields that may be public, each a type which refuses what does not fit.
//!
//! A field stands in two places: in what producers send ([`crate::event`]) and in what viewers read
//! ([`crate::message`]). Were it checked in one of them alone, whoever writes to the stream directly would go
//! around the check; so both build the same types, and there is no other way to make one (Inv. ANON).
//!
//! [`VisitorId`] is here because it is read like the others, but it is never public: it has no `Serialize`, and its
//! `Debug` shows nothing (Inv. PRIVATE).

use std::fmt;

use serde::Serialize;

/// The longest page path, in bytes.
pub const PAGE_PATH_BYTES_MAX: usize = 512;
/// The longest visitor id that a producer or a socket may name, in bytes.
pub const VISITOR_BYTES_MAX: usize = 64;

/// Which field of an event does not fit, and why. Both parts are fixed texts: nothing that came from outside is
/// repeated, so an error may be logged and answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct EventError {
    /// The field's name.
    pub field: &'static str,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl EventError {
    /// An error about `field`.
    #[must_use]
    pub const fn new(field: &'static str, reason: &'static str) -> Self {
        Self { field, reason }
    }
}

/// A short name of a closed alphabet: `[a-z0-9_.-]{1,64}`. Types of events, themes and letters are such names.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Name(Box<str>);

impl Name {
    /// # Errors
    /// [`EventError`] naming `field` when the text is absent or not a name.
    pub fn parse(field: &'static str, text: Option<&str>) -> Result<Self, EventError> {
        let text = text.ok_or(EventError::new(field, "missing"))?;
        let plain =
            text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'.' | b'-'));
        if plain && (1..=64).contains(&text.len()) {
            Ok(Self(text.into()))
        } else {
            Err(EventError::new(field, "not 1 to 64 of a-z 0-9 _ . -"))
        }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The path of a page, without query, fragment or origin; at most [`PAGE_PATH_BYTES_MAX`] bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PagePath(Box<str>);

impl PagePath {
    /// Takes a path (`/cv?x=1`) or a whole URL (`https://example.org/cv#top`, `//example.org/cv`) and keeps the path.
    ///
    /// # Errors
    /// [`EventError`] naming `field` when there is no such path, or it is too long, or holds control characters.
    // Inv. ANON: the query is where names and tokens hide; it ends here.
    pub fn parse(field: &'static str, text: Option<&str>) -> Result<Self, EventError> {
        let text = text.ok_or(EventError::new(field, "missing"))?;
        let no_query = text.split(['?', '#']).next().unwrap_or_default();
        // `//host/path` is a URL too, without its scheme (RFC 3986 section 4.2).
        let origins = ["https://", "http://", "//"];
        let path = match origins.iter().find_map(|origin| no_query.strip_prefix(origin)) {
            Some(rest) => rest.find('/').map_or("/", |slash| &rest[slash..]),
            None => no_query,
        };
        let Some(below_root) = path.strip_prefix('/') else {
            return Err(EventError::new(field, "neither a path nor an http URL"));
        };
        // One slash: a page that links to the path must not be led to another host by it.
        let path = format!("/{}", below_root.trim_start_matches('/'));
        if path.len() > PAGE_PATH_BYTES_MAX {
            return Err(EventError::new(field, "longer than 512 bytes"));
        }
        if path.chars().any(char::is_control) {
            return Err(EventError::new(field, "holds control characters"));
        }
        Ok(Self(path.into_boxed_str()))
    }

    /// The path.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A producer's or socket's own name for a visitor: opaque, 1 to [`VISITOR_BYTES_MAX`] bytes. It is hashed before it
/// leaves the node, and its `Debug` does not show it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct VisitorId(Box<str>);

impl VisitorId {
    /// # Errors
    /// [`EventError`] naming `field` when the text is empty or too long.
    pub fn parse(field: &'static str, text: &str) -> Result<Self, EventError> {
        if (1..=VISITOR_BYTES_MAX).contains(&text.len()) {
            Ok(Self(text.into()))
        } else {
            Err(EventError::new(field, "not 1 to 64 bytes"))
        }
    }

    /// The id, to be hashed.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

// Inv. PRIVATE: a visitor id cannot be printed by accident.
impl fmt::Debug for VisitorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VisitorId(…)")
    }
}
