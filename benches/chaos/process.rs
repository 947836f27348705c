//! Nodes as child processes, which end with this one, however it ends.

use std::fs::OpenOptions;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::Failure;
use crate::patience::Patience;

/// What starts a node.
#[derive(Clone, Debug)]
pub(crate) struct Recipe {
    pub(crate) id: u64,
    /// What stands in front of the program, such as `ip netns exec`.
    pub(crate) prefix: Vec<String>,
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<String>,
    pub(crate) log: PathBuf,
}

/// A running node; killed when dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    pub(crate) paused: bool,
}

impl Process {
    /// Starts a node.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn start(recipe: &Recipe) -> Result<Self, Failure> {
        let log = OpenOptions::new().create(true).append(true).open(&recipe.log)?;
        // `Drop` does not run when this process is killed; the kernel's signal comes always. NB:
        // it comes when the *thread* that started the child ends; those of the runtime do not.
        let mut words = recipe.prefix.clone();
        words.extend(["setpriv", "--pdeathsig", "KILL", "--"].map(str::to_owned));
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg(&recipe.program).args(&recipe.args);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = command
            .spawn()
            .map_err(|e| format!("cannot start node {} with {}: {e}", recipe.id, words[0]))?;
        Ok(Self { child, paused: false })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How the process ended, if it did.
    ///
    /// # Errors
    /// When the system does not tell.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>, Failure> {
        Ok(self.child.try_wait()?)
    }

    /// Ends the process at once.
    ///
    /// # Errors
    /// When it had ended by itself: a node must not.
    pub(crate) fn kill(mut self) -> Result<(), Failure> {
        if let Some(status) = self.child.try_wait()? {
            return Err(format!("it ended by itself: {status}").into());
        }
        self.child.kill()?;
        let status = self.child.wait()?;
        match status.signal() {
            Some(9) => Ok(()),
            _ => Err(format!("it ended by itself: {status}").into()),
        }
    }

    /// Stops the process until [`Process::resume`].
    ///
    /// # Errors
    /// When it is gone.
    pub(crate) fn pause(&mut self) -> Result<(), Failure> {
        self.signal(Signal::STOP)?;
        self.paused = true;
        Ok(())
    }

    /// Lets a paused process go on.
    ///
    /// # Errors
    /// When it is gone.
    pub(crate) fn resume(&mut self) -> Result<(), Failure> {
        self.signal(Signal::CONT)?;
        self.paused = false;
        Ok(())
    }

    /// Asks the process to end, and waits until it has, with success.
    ///
    /// # Errors
    /// When it does not, or with a failure.
    pub(crate) async fn stop(mut self, limit: Duration) -> Result<(), Failure> {
        self.signal(Signal::TERM)?;
        let mut patience = Patience::new(limit);
        loop {
            match self.child.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(format!("asked to stop, it ended with {status}").into()),
                None if patience.is_over() => {
                    return Err(format!("asked to stop, it ran on for {limit:?}").into());
                }
                None => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    fn signal(&self, signal: Signal) -> Result<(), Failure> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        Ok(kill_process(pid.ok_or("not a process id")?, signal)?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Children of this process that have not been waited for, or still run: there must be none.
///
/// # Errors
/// When `/proc` cannot be read.
pub(crate) fn children() -> Result<Vec<String>, Failure> {
    let own = std::process::id().to_string();
    let mut found = Vec::new();
    for entry in Path::new("/proc").read_dir()?.flatten() {
        // Processes end while this reads.
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some((name, rest)) = stat.rsplit_once(')') else { continue };
        if rest.split_whitespace().nth(1) == Some(&own) {
            found.push(format!("{name}){}", rest.get(..2).unwrap_or_default()));
        }
    }
    Ok(found)
}
