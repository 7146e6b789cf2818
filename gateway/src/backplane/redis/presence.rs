//! Salts, touches, and the secret of the address hashes.
//!
//! What is secret is made by a node's cryptographic random numbers, offered with SET NX, and read back: whichever
//! node was first, all use the same.

use fred::interfaces::KeysInterface;
use fred::types::{Expiration, SetOptions, Value};
use shared::ids::NodeId;

use super::reply::{ODD_REPLY, hex, parse_hex};
use super::{RedisBackplane, number, text};
use crate::backplane::{BackplaneError, Result, Salt, Salts, TOUCH_VISITORS_MAX, Touch, TouchReply};

const ODD_SALT: BackplaneError = BackplaneError::Corrupt("key salt: not a salt");
const ODD_SECRET: BackplaneError = BackplaneError::Corrupt("key secret: not 32 bytes in hex");
/// Guesses of the day: the first is wrong by design, the second right but for a midnight in between.
const DAY_GUESSES: usize = 3;

impl RedisBackplane {
    pub(super) async fn day_salts(&self, offer: &[(u64, Salt)]) -> Result<Salts> {
        let offered = |day: u64| {
            let held = offer.iter().find(|(of, _)| *of == day).map(|(_, salt)| salt.clone());
            encode_salt(&held.unwrap_or_else(|| Salt(rand::random())))
        };
        let mut day = offer.iter().map(|(day, _)| *day).max().unwrap_or_default();
        for _ in 0..DAY_GUESSES {
            let yesterday = day.saturating_sub(1);
            let keys = vec![self.keys.salt(day), self.keys.salt(yesterday)];
            let arguments = vec![number(day), text(&offered(day)), text(&offered(yesterday))];
            let mut reply = self.run(&self.scripts.salts, keys, arguments).await?;
            match reply.text()?.as_str() {
                "salts" => {
                    let today = parse_salt(&reply.text()?)?;
                    let yesterday = parse_salt(&reply.text()?)?;
                    return Ok(Salts { day, today, yesterday, now: reply.parse()? });
                }
                "turned" => day = reply.parse()?,
                _ => return Err(ODD_REPLY),
            }
        }
        Err(ODD_REPLY)
    }

    pub(super) async fn touch_visitors(&self, request: &Touch) -> Result<TouchReply> {
        let keys = vec![self.keys.visitors(), self.keys.touched(), self.keys.salt(request.day)];
        let mut reply = self.run(&self.scripts.touch, keys, touch_arguments(request)).await?;
        parse_touched(&reply.text()?)
    }

    pub(super) async fn address_secret(&self, held: Option<[u8; 32]>) -> Result<[u8; 32]> {
        let (key, offer) = (self.keys.secret(), hex(&held.unwrap_or_else(rand::random)));
        let made = self.command(|client| async move {
            let _: Value = client.set(&key, offer, None::<Expiration>, Some(SetOptions::NX), false).await?;
            client.get::<Option<String>, _>(&key).await
        });
        parse_hex(&made.await?.unwrap_or_default()).ok_or(ODD_SECRET)
    }
}

/// Day, fingerprint, round, then visitor and alias of each.
pub(super) fn touch_arguments(touch: &Touch) -> Vec<Value> {
    debug_assert!(touch.seen.len() <= TOUCH_VISITORS_MAX, "the caller cuts batches");
    let round_of = touch.round_of.as_ref().map(NodeId::to_string).unwrap_or_default();
    let mut arguments = vec![number(touch.day), text(&touch.fingerprint), text(&round_of)];
    for seen in &touch.seen {
        arguments.push(text(&seen.visitor));
        arguments.push(text(&seen.alias.map(|alias| alias.to_string()).unwrap_or_default()));
    }
    arguments
}

pub(super) fn parse_touched(word: &str) -> Result<TouchReply> {
    match word {
        "done" => Ok(TouchReply::Done),
        "refused" => Ok(TouchReply::Refused),
        _ => Err(ODD_REPLY),
    }
}

/// With its fingerprint, which touches name and Lua cannot compute.
fn encode_salt(salt: &Salt) -> String {
    format!("{}:{}", hex(&salt.0), salt.fingerprint())
}

fn parse_salt(stored: &str) -> Result<Salt> {
    let (bytes, fingerprint) = stored.split_once(':').ok_or(ODD_SALT)?;
    let salt = Salt(parse_hex(bytes).ok_or(ODD_SALT)?);
    if salt.fingerprint() == fingerprint { Ok(salt) } else { Err(ODD_SALT) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_salt_is_read_back_and_nothing_else_is_a_salt() {
        let salt = Salt([7; 16]);
        let stored = encode_salt(&salt);
        assert_eq!(parse_salt(&stored), Ok(salt));
        for bad in ["", ":", &stored[..stored.len() - 1], &stored[1..], "07:00", "salt"] {
            assert_eq!(parse_salt(bad), Err(ODD_SALT), "{bad:?}");
        }
    }
}
