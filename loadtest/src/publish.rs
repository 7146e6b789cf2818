//! The producer: posts numbered events at a steady rate, one request at a time, from a thread of its own.
//!
//! A request that fails may have been carried out all the same. It is not repeated (that would be a duplicate of our
//! own making); its numbers are given up, and the audit holds nobody responsible for them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::Deserialize;
use shared::event::EVENTS_MAX;

use crate::args::Target;
use crate::audit::Numbers;
use crate::latency::Sends;

/// The longest wait for an answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// The longest answer that is read.
const ANSWER_BYTES_MAX: u64 = 1 << 20;
/// Pause after a failure: the server may be starting again.
const AFTER_FAILURE: Duration = Duration::from_millis(200);
/// The longest sleep between two looks at the clock.
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// What to publish where.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub(crate) target: Target,
    pub(crate) token: String,
    pub(crate) per_second: f64,
    pub(crate) first_number: u64,
}

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Events that the server accepted.
    pub(crate) accepted: u64,
    /// Number of the last event that it accepted.
    pub(crate) last: Option<u64>,
    /// Numbers of which nobody knows.
    pub(crate) given_up: Numbers,
    /// Requests by what came of them: a status, or what went wrong.
    pub(crate) answers: BTreeMap<String, u64>,
}

/// A running producer. Dropping it stops it too, without waiting.
#[derive(Debug)]
pub(crate) struct Publisher {
    stop: Arc<AtomicBool>,
    sends: Arc<Sends>,
    thread: JoinHandle<Outcome>,
}

impl Publisher {
    /// Starts to publish.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub(crate) fn start(job: Job) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let sends = Arc::new(Sends::new());
        let (told, notes) = (stop.clone(), sends.clone());
        let named = std::thread::Builder::new().name("publisher".to_owned());
        let thread = named.spawn(move || run(&job, &told, &notes))?;
        Ok(Self { stop, sends, thread })
    }

    /// When each event was sent.
    pub(crate) fn sends(&self) -> Arc<Sends> {
        self.sends.clone()
    }

    /// Asks it to stop after the request that is under way.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Whether it has stopped, so that [`Self::outcome`] does not wait.
    pub(crate) fn is_stopped(&self) -> bool {
        self.thread.is_finished()
    }

    /// What came of it; `None` when it panicked.
    pub(crate) fn outcome(self) -> Option<Outcome> {
        self.thread.join().ok()
    }
}

fn run(job: &Job, stop: &AtomicBool, sends: &Sends) -> Outcome {
    let mut outcome = Outcome::default();
    let mut connection = None;
    let (began, mut sent) = (Instant::now(), 0u64);
    while !stop.load(Ordering::Relaxed) {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a count of events, far below 2^53"
        )]
        let due = (began.elapsed().as_secs_f64() * job.per_second) as u64;
        let count = due.saturating_sub(sent).min(EVENTS_MAX as u64);
        if count == 0 {
            std::thread::sleep(Duration::from_secs_f64(1.0 / job.per_second).min(PAUSE_MAX));
            continue;
        }
        let numbers = job.first_number + sent..=job.first_number + sent + count - 1;
        sent += count;
        numbers.clone().for_each(|number| sends.note(number));
        let answer = post(&mut connection, job, numbers.clone());
        let label = match &answer {
            Ok(answer) => answer.status.to_string(),
            Err(error) => error.kind().to_string(),
        };
        *outcome.answers.entry(label).or_default() += 1;
        if answer.is_ok_and(|answer| answer.accepted == count) {
            outcome.accepted += count;
            outcome.last = Some(*numbers.end());
        } else {
            outcome.given_up.add(numbers);
            std::thread::sleep(AFTER_FAILURE);
        }
    }
    outcome
}

/// A status, and how many events were accepted.
#[derive(Debug)]
struct Answer {
    status: u16,
    accepted: u64,
}

/// Posts these numbers over the connection, or a new one.
fn post(
    connection: &mut Option<BufReader<TcpStream>>,
    job: &Job,
    numbers: std::ops::RangeInclusive<u64>,
) -> io::Result<Answer> {
    let mut stream = match connection.take() {
        Some(stream) => stream,
        None => connect(job)?,
    };
    stream.get_mut().write_all(&request(job, numbers))?;
    let answer = answer(&mut stream)?;
    // Only now: after a failure, what is left in it belongs to nobody.
    *connection = Some(stream);
    Ok(answer)
}

fn connect(job: &Job) -> io::Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect_timeout(&job.target.address, ANSWER_WITHIN)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(ANSWER_WITHIN))?;
    stream.set_write_timeout(Some(ANSWER_WITHIN))?;
    Ok(BufReader::new(stream))
}

fn request(job: &Job, numbers: std::ops::RangeInclusive<u64>) -> Vec<u8> {
    let mut body = String::from("[");
    for number in numbers {
        let comma = if body.len() > 1 { "," } else { "" };
        // Writing to a String cannot fail.
        let _ = write!(body, r#"{comma}{{"event_type":"page_view","page_url":"/n/{number}"}}"#);
    }
    body.push(']');
    let Target { host, path, .. } = &job.target;
    format!(
        "POST {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {}\r\nContent-Type: \
         application/json\r\nContent-Length: {}\r\n\r\n{body}",
        job.token,
        body.len()
    )
    .into_bytes()
}

fn answer(stream: &mut impl BufRead) -> io::Result<Answer> {
    let malformed = || io::Error::from(io::ErrorKind::InvalidData);
    let mut stream = stream.take(ANSWER_BYTES_MAX);
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        // The server has closed an idle connection, as it may.
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let status = line.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).and_then(|code| code.parse().ok());
    let status = status.ok_or_else(malformed)?;
    let mut length = 0;
    loop {
        line.clear();
        if stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let field = line.trim_end();
        if field.is_empty() {
            break;
        }
        match field.split_once(':') {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.trim().parse().map_err(|_| malformed())?;
            }
            Some(_) => {}
            None => return Err(malformed()),
        }
    }
    let mut body = Vec::new();
    stream.take(length).read_to_end(&mut body)?;
    #[derive(Deserialize)]
    struct Body {
        accepted: u64,
    }
    let accepted = serde_json::from_slice::<Body>(&body).map_or(0, |body| body.accepted);
    Ok(Answer { status, accepted })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> Job {
        let target = Target::resolve("http://127.0.0.1:9/api/v1/events", "http").expect("a URL");
        Job { target, token: "t".to_owned(), per_second: 1.0, first_number: 1 }
    }

    #[test]
    fn a_request_is_what_the_server_reads() {
        let request = String::from_utf8(request(&job(), 7..=8)).expect("text");
        let (head, body) = request.split_once("\r\n\r\n").expect("a head and a body");
        assert!(head.starts_with("POST /api/v1/events HTTP/1.1\r\nHost: 127.0.0.1:9\r\nAuthorization: Bearer t\r\n"));
        assert!(head.ends_with(&format!("Content-Length: {}", body.len())), "{head}");
        let events = shared::event::parse_batch(&mut body.as_bytes().to_vec()).expect("an array");
        assert_eq!(events.len(), 2);
        assert!(events.iter().all(Result::is_ok));
    }

    #[test]
    fn answers() {
        let check = |text: &str, want: Option<(u16, u64)>| {
            let got = answer(&mut text.as_bytes()).ok().map(|answer| (answer.status, answer.accepted));
            assert_eq!(got, want, "{text}");
        };
        let body = r#"{"accepted":2,"results":[]}"#;
        check(&format!("HTTP/1.1 202 Accepted\r\ncontent-length: {}\r\n\r\n{body}more", body.len()), Some((202, 2)));
        check("HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n\r\n", Some((503, 0)));
        check("HTTP/1.1 202 Accepted\r\ncontent-len", None);
        check("HTTP/1.1 202 Accepted\r\ncontent-length: x\r\n\r\n", None);
        check("", None);
    }
}
