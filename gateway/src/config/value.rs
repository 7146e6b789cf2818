//! From words to values: each function reads one kind of value, or says in one line what it wanted.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use ipnet::IpNet;

use super::{AllowedOrigins, Secret};

/// The most entries of a comma list.
const LIST_ENTRIES_MAX: usize = 256;

pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "not an address like 0.0.0.0:5000 or [::]:5000".to_owned())
}

pub(super) fn number(text: &str, range: RangeInclusive<u32>) -> Result<u32, String> {
    let wanted = || format!("not a number from {} to {}", range.start(), range.end());
    text.trim().parse().ok().filter(|n| range.contains(n)).ok_or_else(wanted)
}

/// One of the words, in lower case.
pub(super) fn one_of<T: Copy>(text: &str, words: &[(&str, T)]) -> Result<T, String> {
    let found = words.iter().find(|(word, _)| *word == text.trim()).map(|(_, value)| *value);
    found.ok_or_else(|| format!("not one of {}", words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", ")))
}

/// `250ms`, `5s`, `1m 30s`; a bare `0` is zero. Bounds in milliseconds.
pub(super) fn duration(text: &str, min_ms: u64, max_ms: u64) -> Result<Duration, String> {
    let (min, max) = (Duration::from_millis(min_ms), Duration::from_millis(max_ms));
    let read = match text.trim() {
        "0" => Ok(Duration::ZERO),
        text => humantime::parse_duration(text),
    };
    match read {
        Ok(duration) if (min..=max).contains(&duration) => Ok(duration),
        Ok(_) => Err(format!("not within {} to {}", humantime::format_duration(min), humantime::format_duration(max))),
        Err(_) => Err("not a duration like 250ms, 5s or 5m".to_owned()),
    }
}

/// A duration of at least `min_ms` and at most a year, or `off`.
pub(super) fn duration_or_off(text: &str, min_ms: u64) -> Result<Option<Duration>, String> {
    match text.trim() {
        "off" | "0" => Ok(None),
        text => duration(text, min_ms, 365 * 24 * 3_600_000).map(Some),
    }
}

/// `65536`, `64KiB`, `64MiB`, `1GiB`. Bounds in bytes.
pub(super) fn size(text: &str, min: usize, max: usize) -> Result<usize, String> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let factor: usize = match unit.trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err("not a size like 65536, 64KiB or 64MiB".to_owned()),
    };
    let bytes = digits.parse::<usize>().ok().and_then(|n| n.checked_mul(factor));
    match bytes {
        Some(bytes) if (min..=max).contains(&bytes) => Ok(bytes),
        Some(_) => Err(format!("not within {min} to {max} bytes")),
        None => Err("not a size like 65536, 64KiB or 64MiB".to_owned()),
    }
}

/// The entries of a comma list; an empty text has none.
fn list(text: &str) -> Result<Vec<&str>, String> {
    let entries: Vec<&str> = text.split(',').map(str::trim).filter(|entry| !entry.is_empty()).collect();
    if entries.len() > LIST_ENTRIES_MAX { Err(format!("more than {LIST_ENTRIES_MAX} entries")) } else { Ok(entries) }
}

/// Addresses and CIDRs.
pub(super) fn networks(text: &str) -> Result<Vec<IpNet>, String> {
    let network = |entry: &str| {
        let host = entry.parse::<IpAddr>().map(IpNet::from);
        host.or_else(|_| entry.parse::<IpNet>()).map_err(|_| format!("not an address or CIDR: entry {entry:?}"))
    };
    list(text)?.into_iter().map(network).collect()
}

/// `scheme://host[:port]`, or `*`.
pub(super) fn origins(text: &str) -> Result<AllowedOrigins, String> {
    let entries = list(text)?;
    if entries == ["*"] {
        return Ok(AllowedOrigins::Any);
    }
    let origin = |entry: &str| {
        let entry = entry.to_ascii_lowercase();
        let host = entry.strip_prefix("https://").or_else(|| entry.strip_prefix("http://"));
        let plain = |host: &str| !host.is_empty() && !host.contains(['/', '?', '#', '@', ' ', '*']);
        if host.is_some_and(plain) {
            Ok(entry)
        } else {
            Err(format!("not an origin like https://example.org: entry {entry:?}"))
        }
    };
    entries.into_iter().map(origin).collect::<Result<BTreeSet<_>, _>>().map(AllowedOrigins::Only)
}

/// Bearer tokens; none when absent.
pub(super) fn tokens(text: Option<&str>) -> Result<Vec<Secret>, String> {
    let Some(text) = text else { return Ok(Vec::new()) };
    let entries = list(text)?;
    if entries.is_empty() {
        return Err("holds no token".to_owned());
    }
    let usable = |token: &&str| token.len() >= 8 && token.bytes().all(|b| b.is_ascii_graphic());
    if entries.iter().all(usable) {
        Ok(entries.into_iter().map(Secret::new).collect())
    } else {
        Err("a token is at least 8 visible ASCII characters".to_owned())
    }
}
