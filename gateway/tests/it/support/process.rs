//! A child process that does not outlive its owner.

use std::io;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// How often a process that should end is asked whether it has.
const POLL: Duration = Duration::from_millis(10);

/// A command that runs `program`, which the kernel kills when we die without a chance to: SIGKILL, Ctrl-C twice. By
/// setpriv(1) of util-linux where it is there, which then becomes the program: the system call needs `unsafe`.
///
/// The kernel looks at the *thread* that spawned, so whoever spawns must not be a thread that ends before its test.
pub(crate) fn command(program: &str) -> Command {
    static BOUND: LazyLock<bool> = LazyLock::new(|| {
        let mut probe = Command::new("setpriv");
        probe.args(["--pdeathsig", "KILL", "true"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        probe.status().is_ok_and(|status| status.success())
    });
    // What is not there must fail as itself, not as an error of setpriv.
    if !*BOUND || !is_there(program) {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program);
    command
}

fn is_there(program: &str) -> bool {
    program.contains('/')
        || search_path().is_some_and(|path| std::env::split_paths(&path).any(|place| place.join(program).exists()))
}

#[expect(clippy::disallowed_methods, reason = "tests look for programs; the product reads its configuration elsewhere")]
fn search_path() -> Option<std::ffi::OsString> {
    std::env::var_os("PATH")
}

/// What one process can do to another without its help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    /// End, in your own way.
    Term,
    /// Freeze: the kernel keeps the sockets open, nobody answers.
    Stop,
    /// Go on.
    Cont,
}

/// A running child; killed and reaped when dropped, so also when a test panics.
#[derive(Debug)]
pub(crate) struct Process(Child);

impl Process {
    /// Starts `command`.
    ///
    /// # Errors
    /// Those of [`Command::spawn`]; `NotFound` when there is no such program.
    pub(crate) fn spawn(command: &mut Command) -> io::Result<Self> {
        command.spawn().map(Self)
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Sends a signal to this very process. By kill(1): the system call needs `unsafe` or one more dependency.
    pub(crate) fn signal(&self, signal: Signal) {
        let name = match signal {
            Signal::Term => "-TERM",
            Signal::Stop => "-STOP",
            Signal::Cont => "-CONT",
        };
        let status = Command::new("kill").arg(name).arg(self.pid().to_string()).status().expect("kill(1) runs");
        assert!(status.success(), "kill {name} {}: {status}", self.pid());
    }

    /// SIGKILL, and waits until the kernel has closed everything it held.
    pub(crate) fn kill9(&mut self) {
        // Fails only when it has ended already, which is what we want.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    /// The kernel's letter for what it does (`T`: stopped), and none when there is no such process any more. None as
    /// well where there is no `/proc`.
    pub(crate) fn state(&self) -> Option<char> {
        let stat = std::fs::read_to_string(Path::new("/proc").join(self.pid().to_string()).join("stat")).ok()?;
        // "pid (name) S …", and a name may hold anything.
        stat.rsplit_once(") ")?.1.chars().next()
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().expect("our own child can be waited for")
    }

    /// Waits for its end, at most `within`. Leaves the runtime free for other tasks meanwhile.
    pub(crate) async fn end(&mut self, within: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + within;
        loop {
            match self.ended() {
                Some(status) => return Some(status),
                None if Instant::now() >= deadline => return None,
                None => tokio::time::sleep(POLL).await,
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill9();
    }
}
