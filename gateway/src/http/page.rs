//! The live page: three files that are part of the program.
//!
//! The page loads nothing from anywhere else and runs no inline script, and the policy that it is sent with says so;
//! it is no place for anybody else's script even if some text were to slip through.

use std::sync::LazyLock;

use ::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, ETAG, HeaderMap, HeaderValue, IF_NONE_MATCH, REFERRER_POLICY,
};
use ::http::{Response, StatusCode};
use bytes::Bytes;
use http_body_util::Full;
use sha2::{Digest, Sha256};

use super::response::{self, Answer};

const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self' ws: wss:; img-src 'self' data:; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);

/// A file of the page.
#[derive(Debug)]
struct File {
    path: &'static str,
    content_type: &'static str,
    bytes: &'static [u8],
    etag: HeaderValue,
}

static FILES: LazyLock<[File; 3]> = LazyLock::new(|| {
    [
        file("/", "text/html; charset=utf-8", include_bytes!("../../assets/index.html")),
        file("/page.css", "text/css; charset=utf-8", include_bytes!("../../assets/page.css")),
        file("/page.js", "text/javascript; charset=utf-8", include_bytes!("../../assets/page.js")),
    ]
});

fn file(path: &'static str, content_type: &'static str, bytes: &'static [u8]) -> File {
    let digest: String = Sha256::digest(bytes).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let etag = HeaderValue::try_from(format!("\"{digest}\"")).unwrap_or(HeaderValue::from_static("\"\""));
    File { path, content_type, bytes, etag }
}

/// The file at `path`, if there is one; 304 when the browser has it already.
pub(super) fn answer(path: &str, headers: &HeaderMap) -> Option<Answer> {
    let file = FILES.iter().find(|file| file.path == path)?;
    let mut answer = if has_it(headers, file) {
        let mut answer = Response::new(Full::<Bytes>::default());
        *answer.status_mut() = StatusCode::NOT_MODIFIED;
        answer
    } else {
        response::answer(StatusCode::OK, HeaderValue::from_static(file.content_type), file.bytes)
    };
    let headers = answer.headers_mut();
    headers.insert(ETAG, file.etag.clone());
    // Kept, but asked about each time: a new version of the gateway shows its own page at once.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(CONTENT_SECURITY_POLICY, POLICY);
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    Some(answer)
}

/// Whether `If-None-Match` names the file as it is (RFC 9110 section 13.1.2: compared weakly).
fn has_it(headers: &HeaderMap, file: &File) -> bool {
    let lines = headers.get_all(IF_NONE_MATCH).iter();
    lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b',')).any(|tag| {
        let tag = tag.trim_ascii();
        tag == b"*" || tag.strip_prefix(b"W/").unwrap_or(tag) == file.etag.as_bytes()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_have_a_type_a_tag_and_the_policy() {
        for (path, content_type) in [
            ("/", "text/html; charset=utf-8"),
            ("/page.css", "text/css; charset=utf-8"),
            ("/page.js", "text/javascript; charset=utf-8"),
        ] {
            let fresh = answer(path, &HeaderMap::new()).expect("exists");
            assert_eq!(fresh.status(), StatusCode::OK);
            assert_eq!(fresh.headers()["content-type"], content_type);
            assert_eq!(fresh.headers()["x-content-type-options"], "nosniff");
            let etag = fresh.headers()[ETAG].clone();
            for (tags, status) in [
                (etag.to_str().expect("ASCII").to_owned(), 304),
                (format!("\"x\", W/{}", etag.to_str().expect("ASCII")), 304),
                ("*".to_owned(), 304),
                ("\"x\"".to_owned(), 200),
            ] {
                let mut headers = HeaderMap::new();
                headers.insert(IF_NONE_MATCH, tags.parse().expect("a header value"));
                assert_eq!(answer(path, &headers).expect("exists").status(), status, "{tags}");
            }
        }
        assert!(answer("/page.js.map", &HeaderMap::new()).is_none());
    }

    // What the policy forbids must not be in the page: it would not work.
    #[test]
    fn the_page_lives_by_its_policy() {
        let html = std::str::from_utf8(FILES[0].bytes).expect("UTF-8");
        for forbidden in
            ["<style", " style=", " onclick=", " onload=", "<script>", "javascript:", "src=\"http", "<iframe"]
        {
            assert!(!html.contains(forbidden), "{forbidden}");
        }
    }
}
