//! The Lua scripts: what must be atomic, decided where the data is.
//!
//! Each script is a file of its own that says what it takes, what it returns and why it is a script. What several
//! need is written once, in `prelude.lua`, and put in front of each; limits that Rust and Lua must agree on are
//! written once, in Rust, and put in front of that.
//!
//! A script runs by its hash. A server that does not know it (restarted, failed over, flushed) is given the text
//! with the same call, which also makes it known; there is no separate step that could be forgotten.

use fred::clients::Client;
use fred::interfaces::{ClientLike, FredResult, LuaInterface};
use fred::types::Value;
use fred::types::config::Options;
use fred::types::scripts::Script;
use shared::event::{OTHER_THEME, THEMES_MAX};
use shared::keys::SCHEMA_VERSION;

use crate::backplane::{HOLE_MS_MAX, STREAM_ENTRIES_MAX};
use crate::planted;

/// How long counts of an address outlive the last write to them. Nodes ask about all of them every 20 minutes, and have
/// the time prolonged when half of it is over.
const ADDRESS_TTL_SECONDS: u32 = 3600;
/// The most nodes, the dead among them, that have counts of one address; a larger hash is none of ours.
const ADDRESS_NODES_MAX: u32 = 1024;
/// A salt serves its own day and, for aliases, the one after.
const SALT_TTL_SECONDS: u32 = 48 * 3600;
/// The most visitors that one tick removes, and the most whose time it corrects: some 1 ms of Redis's one thread.
const TRIM_VISITORS_MAX: u32 = 1000;
/// Notes of publishers that are kept without asking how old they are.
const PUBLISHED_FIELDS_MAX: u32 = 64;
/// How many of them one publish looks at: it adds one at most, and one may hold 500 ids.
const PUBLISHED_LOOKS_MAX: u32 = 8;
/// Digits of a theme's count: what is below 2^53 and stays it when one is added.
const THEME_COUNT_DIGITS_MAX: u32 = 15;
/// How long the numbers of a process's newest statement, beat and publish are kept: what it sent before on a connection
/// that broke is not repeated by the kernel for longer (TCP's own retries end after some 15 minutes).
const TOLD_KEPT_MS: u32 = 3_600_000;
/// No node's lease is longer than this or, if that is more, than the asking node's.
const MEMBER_LEASE_MS_MAX: u32 = 60_000;

const PRELUDE: &str = include_str!("scripts/prelude.lua");

macro_rules! scripts {
    ($($name:ident),+ $(,)?) => {
        /// All scripts, by name.
        #[derive(Debug)]
        pub(super) struct Scripts { $(pub(super) $name: Script),+ }

        impl Scripts {
            pub(super) fn new() -> Self {
                let head = constants();
                let whole = |body: &str| Script::from_lua(planted::script(format!("{head}{PRELUDE}{body}")));
                Self { $($name: whole(include_str!(concat!("scripts/", stringify!($name), ".lua")))),+ }
            }
        }
    };
}

scripts!(admit, beat, claim, leave, publish, release, salts, set_counts, tick, touch);

fn constants() -> String {
    let numbers = [
        ("ADDRESS_NODES_MAX", u64::from(ADDRESS_NODES_MAX)),
        ("ADDRESS_TTL_SECONDS", u64::from(ADDRESS_TTL_SECONDS)),
        ("HOLE_MS_MAX", HOLE_MS_MAX),
        ("MEMBER_LEASE_MS_MAX", u64::from(MEMBER_LEASE_MS_MAX)),
        ("PUBLISHED_FIELDS_MAX", u64::from(PUBLISHED_FIELDS_MAX)),
        ("PUBLISHED_LOOKS_MAX", u64::from(PUBLISHED_LOOKS_MAX)),
        ("SALT_TTL_SECONDS", u64::from(SALT_TTL_SECONDS)),
        ("SCHEMA_VERSION", u64::from(SCHEMA_VERSION)),
        ("STREAM_ENTRIES_MAX", STREAM_ENTRIES_MAX as u64),
        ("THEME_COUNT_DIGITS_MAX", u64::from(THEME_COUNT_DIGITS_MAX)),
        ("THEMES_MAX", THEMES_MAX as u64),
        ("TOLD_KEPT_MS", u64::from(TOLD_KEPT_MS)),
        ("TRIM_VISITORS_MAX", u64::from(TRIM_VISITORS_MAX)),
    ];
    let lines: String = numbers.iter().map(|(name, number)| format!("local {name} = {number}\n")).collect();
    format!("{lines}local OTHER_THEME = '{OTHER_THEME}'\n")
}

/// Runs a script.
pub(super) async fn run(
    client: &Client,
    options: &Options,
    script: &Script,
    keys: Vec<String>,
    arguments: Vec<Value>,
) -> FredResult<Value> {
    let client = client.with_options(options);
    let known = client.evalsha(script.sha1().clone(), keys.clone(), arguments.clone()).await;
    match (known, script.lua()) {
        (Err(error), Some(text)) if error.details().starts_with("NOSCRIPT") => {
            client.eval(text.clone(), keys, arguments).await
        }
        (result, _) => result,
    }
}
