//! Which web pages may read from here.
//!
//! A browser says in `Origin` whose page it acts for, and pages cannot forge it. Clients without it (`wscat`, k6,
//! servers) are no browsers and are accepted: this protects visitors of other sites, not the data, which is public.
//! Allowed are the configured origins and the gateway's own: a page whose origin names the host that was asked.

use std::collections::BTreeSet;

use ::http::HeaderMap;
use ::http::header::{HOST, HeaderValue, ORIGIN};

use crate::config::AllowedOrigins;

/// What a request says about its origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict<'a> {
    /// Nothing: no browser, or a page of the same origin that reads plainly.
    Absent,
    /// This one, and it is allowed.
    Allowed(&'a HeaderValue),
    /// One that is not allowed, or none that can be read.
    Refused,
}

/// The allowed origins.
#[derive(Debug)]
pub(super) enum Origins {
    Any,
    /// In canonical form, so that comparing is looking up.
    Only(BTreeSet<String>),
}

impl Origins {
    pub(super) fn new(allowed: &AllowedOrigins) -> Self {
        match allowed {
            AllowedOrigins::Any => Self::Any,
            AllowedOrigins::Only(origins) => Self::Only(origins.iter().map(|origin| canonical(origin)).collect()),
        }
    }

    /// Judges a request's `Origin`.
    pub(super) fn judge<'h>(&self, headers: &'h HeaderMap) -> Verdict<'h> {
        let mut lines = headers.get_all(ORIGIN).iter();
        let Some(line) = lines.next() else { return Verdict::Absent };
        // Two origins are none: a proxy may have looked at the other one.
        let (Ok(origin), None) = (line.to_str(), lines.next()) else { return Verdict::Refused };
        let origin = canonical(origin);
        let listed = match self {
            Self::Any => true,
            Self::Only(origins) => origins.contains(&origin),
        };
        let host = || headers.get(HOST).and_then(|host| host.to_str().ok());
        if listed || host().is_some_and(|host| is_own(&origin, host)) {
            Verdict::Allowed(line)
        } else {
            Verdict::Refused
        }
    }
}

/// Whether `origin`, which is canonical, is the page of the host that was asked. The schemes cannot be compared:
/// where TLS ends at a proxy, the gateway is asked over plain HTTP.
fn is_own(origin: &str, host: &str) -> bool {
    let own = |scheme: &str| !host.is_empty() && canonical(&format!("{scheme}://{host}")) == origin;
    own("https") || own("http")
}

/// Lower case, without the scheme's own port: browsers write it so, configurations and `Host` lines may not.
fn canonical(origin: &str) -> String {
    let mut origin = origin.to_ascii_lowercase();
    let default_port = match origin.split_once("://") {
        Some(("https", _)) => ":443",
        Some(("http", _)) => ":80",
        _ => return origin,
    };
    if origin.ends_with(default_port) {
        origin.truncate(origin.len() - default_port.len());
    }
    origin
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn only(origins: &[&str]) -> Origins {
        Origins::new(&AllowedOrigins::Only(origins.iter().map(|origin| (*origin).to_owned()).collect()))
    }

    #[track_caller]
    fn check(allowed: &Origins, origins: &[&str], host: &str, ok: bool) {
        let mut headers = HeaderMap::new();
        for origin in origins {
            headers.append(ORIGIN, origin.parse().unwrap());
        }
        headers.insert(HOST, host.parse().unwrap());
        assert_eq!(allowed.judge(&headers) != Verdict::Refused, ok, "{origins:?} {host}");
    }

    #[test]
    fn listed_own_and_absent_origins_are_allowed() {
        let listed = only(&["http://localhost:3000", "https://example.org:443", "https://b.example"]);
        check(&listed, &[], "gateway:5000", true);
        check(&listed, &["http://localhost:3000"], "gateway:5000", true);
        check(&listed, &["https://example.org"], "gateway:5000", true);
        check(&listed, &["HTTPS://B.example"], "gateway:5000", true);
        check(&listed, &["http://gateway:5000"], "gateway:5000", true);
        check(&listed, &["https://gateway"], "gateway", true);
        check(&listed, &["https://gateway"], "Gateway:443", true);
        check(&listed, &["http://[::1]:5000"], "[::1]:5000", true);
    }

    #[test]
    fn everything_else_is_refused() {
        let listed = only(&["http://localhost:3000", "https://b.example"]);
        for origin in [
            "http://localhost",
            "https://localhost:3000",
            "http://localhost:3000/",
            "http://localhost:3000.evil.example",
            "http://b.example",
            "https://evil.example",
            "null",
            "",
            "*",
            "https://",
            "gateway:5000",
            "http://gateway:5001",
            "https://gateway",
        ] {
            check(&listed, &[origin], "gateway:5000", false);
        }
        check(&listed, &["https://b.example", "https://b.example"], "gateway", false);
        check(&listed, &["https://gateway"], "gateway:80", false);
    }

    #[test]
    fn any_is_any_one() {
        check(&Origins::Any, &["https://evil.example"], "gateway", true);
        check(&Origins::Any, &["null"], "gateway", true);
        check(&Origins::Any, &["https://a.example", "https://b.example"], "gateway", false);
    }

    proptest! {
        #[test]
        fn no_text_is_allowed_by_accident(origin in "[ -~]{0,40}") {
            let mut headers = HeaderMap::new();
            headers.insert(ORIGIN, origin.parse().unwrap());
            headers.insert(HOST, "gateway:5000".parse().unwrap());
            let expected = ["http://gateway:5000", "https://gateway:5000", "https://b.example"]
                .contains(&canonical(&origin).as_str());
            prop_assert_eq!(only(&["https://b.example"]).judge(&headers) != Verdict::Refused, expected);
        }
    }
}
