//! A busy address: fills its cap, leaves, and comes again, all the time.
//!
//! The crowded address of the viewers is full and stays so: a place of it that leaks shows only where a viewer happens to
//! come again. Here every place is taken and given back in each round, some properly and some by a reset, several at a
//! time and on several gateways; so whoever does not find all of them free has found a leak. A round proves something
//! where neither Redis nor a gateway was disturbed since the one before: the lab does not end before there was one.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use crate::evidence::Round;
use crate::plan::CROWD;
use crate::prng::Prng;
use crate::stage::Stage;
use crate::support::client::{Client, Incoming, Refusal, Upgrade};

const ADDRESS: &str = "203.0.113.201";
/// A gateway that does not answer a handshake within this is tried no longer.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(3);
/// How long the places are held, and read, and then left.
const HELD: Duration = Duration::from_millis(300);
const LEFT: Duration = Duration::from_secs(2);

/// Comes and goes until told to leave; the stage has its rounds.
pub(crate) async fn churn(stage: Arc<Stage>, mut prng: Prng) {
    // No further visitor.
    let upgrade = Upgrade::query("visitor=viewer-0").header("X-Forwarded-For", ADDRESS);
    while !stage.leave.is_cancelled() {
        let mut round = Round { from: stage.now(), to: 0, left: 0, granted: 0, lost: 0, refused: 0, failed: 0 };
        let mut sockets: Vec<Client> = Vec::new();
        for _ in 0..CROWD {
            let up = stage.up();
            if up.is_empty() {
                break;
            }
            match timeout(HANDSHAKE_WITHIN, upgrade.try_open(prng.pick(&up).public)).await {
                Ok(Ok(socket)) => sockets.push(socket),
                Ok(Err(Refusal::Answered(answer))) if answer.status() == 429 => round.refused += 1,
                // One that was going down; or it is a finding.
                _ => round.failed += 1,
            }
        }
        (round.to, round.granted) = (stage.now(), sockets.len());
        let until = Instant::now() + HELD;
        for socket in &mut sockets {
            round.lost += usize::from(ends_before(until, socket).await);
        }
        round.left = stage.now();
        for socket in sockets {
            if prng.between(0, 1) == 0 {
                socket.reset();
            } else {
                drop(socket);
            }
        }
        stage.rounds.lock().push(round);
        let _ = timeout(LEFT, stage.leave.cancelled()).await;
    }
}

/// Whether the socket ends until then: who is granted a place and told to go at once has not got it.
async fn ends_before(until: Instant, socket: &mut Client) -> bool {
    loop {
        match socket.next_before(until).await {
            Some(Incoming::End(_)) => return true,
            Some(_) => {}
            None => return false,
        }
    }
}
