//! A real `redis-server` of the test's own.
//!
//! The product leans on what Redis really does: script atomicity, blocking reads, what is lost at kill -9. A fake
//! would prove the fake. So a missing `redis-server` fails the tests and says what to install; nothing is skipped.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::ports;
use super::process::{self, Process, Signal};

/// Longest wait for a server that starts; with data to load it takes a few tens of milliseconds.
const START_WITHIN: Duration = Duration::from_secs(20);
/// Pause between two questions whether it is up.
const POLL: Duration = Duration::from_millis(5);
/// A port can be taken by a stranger between choosing and binding.
const START_TRIES: usize = 5;

/// The program that is the server: `redis-server`, or what `REDIS_SERVER` names (`valkey-server`).
#[expect(clippy::disallowed_methods, reason = "an option of the tests, not of the product")]
pub(crate) fn name() -> String {
    let named = std::env::var("REDIS_SERVER").ok().filter(|name| !name.is_empty());
    named.unwrap_or_else(|| "redis-server".to_owned())
}

/// A command that runs the server.
pub(crate) fn program() -> Command {
    process::command(&name())
}

/// Where a server listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Listen {
    /// A port of its own on 127.0.0.1.
    Tcp,
    /// A socket in its directory.
    Unix,
}

/// What survives kill -9.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    /// Nothing: a restart is an empty Redis, as after the loss of a disk.
    Nothing,
    /// All but about the last second (`appendonly yes`, `appendfsync everysec`): Redis's own advice.
    EverySecond,
    /// All that was answered (`appendfsync always`).
    Everything,
}

/// What kind of server to start.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// Where it listens.
    pub(crate) listen: Listen,
    /// What survives kill -9.
    pub(crate) durability: Durability,
    /// `requirepass`.
    pub(crate) password: Option<&'static str>,
    /// Further lines of its configuration: (directive, value).
    pub(crate) directives: Vec<(&'static str, String)>,
}

impl Default for Options {
    fn default() -> Self {
        Self { listen: Listen::Tcp, durability: Durability::EverySecond, password: None, directives: Vec::new() }
    }
}

/// A running server; ended when dropped, its data with it.
#[derive(Debug)]
pub(crate) struct RedisServer {
    options: Options,
    directory: TempDir,
    address: SocketAddr,
    process: Option<Process>,
}

impl RedisServer {
    /// Starts a server that listens on a port of its own and keeps its data as Redis advises.
    pub(crate) fn start() -> Self {
        Self::with(Options::default())
    }

    /// Starts a server; it answers PING when this returns.
    pub(crate) fn with(options: Options) -> Self {
        let directory = TempDir::with_prefix("pulsegate-redis-").expect("a temporary directory");
        let mut server = Self { options, directory, address: ports::free(), process: None };
        for _ in 0..START_TRIES {
            if server.try_start() {
                return server;
            }
            server.address = ports::free();
        }
        panic!("redis-server does not start; its log:\n{}", server.log());
    }

    /// SIGKILL: connections break, nothing is saved that was not.
    pub(crate) fn kill9(&mut self) {
        self.process = None;
    }

    /// Starts it again after [`Self::kill9`]: the same address, what is left of the same data.
    pub(crate) fn restart(&mut self) {
        assert!(self.process.is_none(), "it still runs");
        assert!(self.try_start(), "redis-server does not start again; its log:\n{}", self.log());
    }

    /// Starts it again after [`Self::kill9`] at the same address, with another disk: all data are gone.
    pub(crate) fn restart_empty(&mut self) {
        let log = self.directory.path().join("appendonlydir");
        if let Err(error) = std::fs::remove_dir_all(&log) {
            assert_eq!(error.kind(), io::ErrorKind::NotFound, "{}: {error}", log.display());
        }
        self.restart();
    }

    /// SIGSTOP: it is there, and silent, like a dead machine whose peer was never told.
    pub(crate) fn freeze(&self) {
        self.running().signal(Signal::Stop);
    }

    /// SIGCONT after [`Self::freeze`].
    pub(crate) fn thaw(&self) {
        self.running().signal(Signal::Cont);
    }

    /// Where its data are.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Its process id; panics when it was killed.
    pub(crate) fn pid(&self) -> u32 {
        self.running().pid()
    }

    /// See [`Process::state`]; none when it was killed.
    pub(crate) fn state(&self) -> Option<char> {
        self.process.as_ref().and_then(Process::state)
    }

    /// The URL for `REDIS_URL`.
    pub(crate) fn url(&self) -> String {
        match self.options.listen {
            Listen::Tcp => {
                let password = self.options.password.map(|word| format!(":{word}@")).unwrap_or_default();
                format!("redis://{password}{}", self.address)
            }
            Listen::Unix => format!("redis+unix://{}", self.socket_path().display()),
        }
    }

    /// Where it listens, if on TCP.
    pub(crate) fn address(&self) -> SocketAddr {
        assert_eq!(self.options.listen, Listen::Tcp);
        self.address
    }

    /// Where it listens, if on a Unix socket.
    pub(crate) fn socket_path(&self) -> PathBuf {
        self.directory.path().join("redis.sock")
    }

    /// Its password.
    pub(crate) fn password(&self) -> Option<&'static str> {
        self.options.password
    }

    fn running(&self) -> &Process {
        self.process.as_ref().expect("it was killed")
    }

    fn log_path(&self) -> PathBuf {
        self.directory.path().join("redis.log")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_else(|error| format!("(no log: {error})"))
    }

    /// Spawns the server and waits until it answers; false when it ended instead.
    fn try_start(&mut self) -> bool {
        let mut process = match Process::spawn(&mut self.command()) {
            Ok(process) => process,
            Err(error) if error.kind() == io::ErrorKind::NotFound => panic!(
                "redis-server is not on the PATH. These tests run a real Redis (7 or newer): `make test` installs \
                 it, or: apt-get install redis-server, dnf install redis, brew install redis"
            ),
            Err(error) => panic!("redis-server cannot be started: {error}"),
        };
        let deadline = Instant::now() + START_WITHIN;
        while !self.answers() {
            if process.ended().is_some() {
                return false;
            }
            assert!(Instant::now() < deadline, "redis-server does not answer; its log:\n{}", self.log());
            thread::sleep(POLL);
        }
        self.process = Some(process);
        true
    }

    fn command(&self) -> Command {
        let mut command = program();
        let mut set = |directive: &str, value: &str| {
            command.arg(format!("--{directive}")).arg(value);
        };
        let on_path = |path: &Path| path.to_str().expect("temporary paths are UTF-8").to_owned();
        set("dir", &on_path(self.directory.path()));
        set("logfile", &on_path(&self.log_path()));
        match self.options.listen {
            Listen::Tcp => {
                set("bind", &self.address.ip().to_string());
                set("port", &self.address.port().to_string());
            }
            Listen::Unix => {
                set("port", "0");
                set("unixsocket", &on_path(&self.socket_path()));
            }
        }
        set("save", "");
        match self.options.durability {
            Durability::Nothing => set("appendonly", "no"),
            Durability::EverySecond => set("appendonly", "yes"),
            Durability::Everything => {
                set("appendonly", "yes");
                set("appendfsync", "always");
            }
        }
        if let Some(password) = self.options.password {
            set("requirepass", password);
        }
        for (directive, value) in &self.options.directives {
            set(directive, value);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// Whether it answers PING now (not while it loads its data).
    fn answers(&self) -> bool {
        let answer = match self.options.listen {
            Listen::Tcp => TcpStream::connect(self.address).and_then(|stream| self.ask(stream)),
            Listen::Unix => UnixStream::connect(self.socket_path()).and_then(|stream| self.ask(stream)),
        };
        answer.is_ok_and(|text| text.contains("+PONG"))
    }

    fn ask(&self, mut stream: impl Read + Write) -> io::Result<String> {
        if let Some(password) = self.options.password {
            write!(stream, "AUTH {password}\r\n")?;
        }
        // QUIT ends the answer, so that it can be read to its end.
        write!(stream, "PING\r\nQUIT\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::support::resp::Resp;

    #[tokio::test]
    async fn kill9_and_restart_keep_address_and_data() {
        let mut server = RedisServer::with(Options { durability: Durability::Everything, ..Options::default() });
        let url = server.url();
        Resp::to(&server).await.call(&["SET", "k", "v"]).await;
        server.kill9();
        assert!(!server.answers());
        server.restart();
        assert_eq!(server.url(), url);
        assert_eq!(Resp::to(&server).await.call(&["GET", "k"]).await.text(), "v");
    }

    #[tokio::test]
    async fn listens_on_a_unix_socket_and_asks_for_its_password() {
        let options = Options { listen: Listen::Unix, password: Some("sesame"), ..Options::default() };
        let server = RedisServer::with(options);
        assert_eq!(Resp::to(&server).await.call(&["PING"]).await.text(), "PONG");
    }
}
