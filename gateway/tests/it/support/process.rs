//! A child process that does not outlive its owner.

use std::io;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

/// How often a process that should end is asked whether it has.
const POLL: Duration = Duration::from_millis(10);

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
