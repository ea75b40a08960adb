//! What is asked on a terminal, or read from standard input to its end.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

/// Whether the command waits for what is typed. It blocks then, and cannot be dropped.
static IS_WAITING: AtomicBool = AtomicBool::new(false);

/// Reads from standard input. Blocks, also when a signal comes; so all that commands read from it they read here.
pub(super) fn read<T>(read: impl FnOnce(&mut io::StdinLock<'static>) -> io::Result<T>) -> io::Result<T> {
    IS_WAITING.store(true, Ordering::SeqCst);
    let read = read(&mut io::stdin().lock());
    IS_WAITING.store(false, Ordering::SeqCst);
    read
}

pub(super) fn is_waiting() -> bool {
    IS_WAITING.load(Ordering::SeqCst)
}

/// Whether there is somebody to ask: who sees the question and can type the answer.
pub(super) fn is_there() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Asks for a line.
pub(super) fn line(question: &str) -> io::Result<String> {
    // The question is not the result, which goes to standard output.
    let mut stderr = io::stderr();
    write!(stderr, "{question}")?;
    stderr.flush()?;
    let mut line = String::new();
    read(|input| input.read_line(&mut line))?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// Asks for a line that is not shown.
pub(super) fn secret(question: &str) -> io::Result<String> {
    let before = tcgetattr(io::stdin())?;
    let mut hidden = before.clone();
    hidden.local_modes.remove(LocalModes::ECHO);
    hidden.local_modes.insert(LocalModes::ECHONL);
    // Before the question, or what is typed at once would be shown.
    tcsetattr(io::stdin(), OptionalActions::Now, &hidden)?;
    let typed = line(question);
    tcsetattr(io::stdin(), OptionalActions::Now, &before)?;
    typed
}

/// How the terminal was, for a process that ends while it asks for a secret.
pub(super) struct Before(Option<Termios>);

impl Before {
    pub(super) fn now() -> Self {
        Self(tcgetattr(io::stdin()).ok())
    }

    pub(super) fn restore(&self) {
        if let Some(before) = &self.0 {
            // If that fails, there is no terminal any more.
            let _restored = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}
