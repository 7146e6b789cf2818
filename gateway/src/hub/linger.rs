//! The end of a socket after its close frame.
//!
//! Closing a socket while bytes of the peer lie unread makes the kernel send a reset, and a reset may overtake and
//! erase the close frame: the client then sees 1006 instead of the code that would have told it what to do. So the
//! write side is shut down, which tells the peer that nothing follows, and what it still sends is read and thrown
//! away for a moment. Bounded in time and bytes: a peer that keeps talking gets its reset after all.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;

use super::conn::Conn;

/// How long a peer may go on talking.
pub(super) const LINGER_TIME: Duration = Duration::from_secs(1);
/// How much a peer may go on talking, in bytes.
pub(super) const LINGER_BYTES_MAX: usize = 256 * 1024;
/// Read at once.
const SCRATCH_BYTES: usize = 2048;

/// Discards what the peer of `conn` sends until it closes, or one of the bounds is reached.
pub(super) async fn linger(conn: Arc<Conn>) {
    // Which bound ended it does not matter.
    let _ = tokio::time::timeout(LINGER_TIME, discard(conn.stream())).await;
}

async fn discard(stream: &TcpStream) {
    let mut scratch = [0; SCRATCH_BYTES];
    let mut discarded = 0;
    while discarded < LINGER_BYTES_MAX {
        if stream.readable().await.is_err() {
            return;
        }
        match stream.try_read(&mut scratch) {
            Ok(0) => return,
            Ok(n) => discarded += n,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}
