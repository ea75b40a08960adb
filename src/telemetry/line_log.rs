//! The access log and the audit log: lines that a thread of its own writes, so that no request waits for a disk or for
//! whoever reads a pipe.
//!
//! A line that cannot be written is lost and counted, and the log says so once until lines can be written again. So is a
//! line for which there is no room, because the disk is slower than the requests. A file is opened anew when it is told
//! to (SIGHUP, after logrotate), and is replaced by itself when it has grown too long.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use tokio::sync::oneshot;

use super::{LogName, Metrics};
use crate::config::LogOutput;

/// Lines that may wait. With a few hundred bytes each, about a megabyte; with the longest that there are, 80.
const WAITING: usize = 4096;
/// Lines that are written at once.
const BATCH: usize = 256;
/// How long the end waits for the lines that are left.
const LAST_WAIT: Duration = Duration::from_secs(5);
/// The file's permissions: names and addresses are nobody else's business.
const MODE: u32 = 0o640;

/// A log of lines.
#[derive(Debug)]
pub struct LineLog {
    name: LogName,
    messages: SyncSender<Message>,
    shared: Arc<Shared>,
    lost: Counter,
}

/// The log cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", path.display())]
pub struct LineLogError {
    path: PathBuf,
    source: io::Error,
}

/// When a file is replaced by a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// Its length in bytes; 0 never.
    pub max_bytes: u64,
    /// How many of the replaced files are kept.
    pub keep: usize,
}

#[derive(Debug)]
enum Message {
    Line(String),
    /// Look at [`Shared`].
    Wake,
    End(oneshot::Sender<()>),
}

#[derive(Debug, Default)]
struct Shared {
    reopens: AtomicBool,
    /// Whether it was said that there is no room for lines.
    is_full: AtomicBool,
}

impl LineLog {
    /// Opens it and starts its thread; none if it is off.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn open(
        name: LogName,
        output: &LogOutput,
        rotation: Rotation,
        metrics: &Metrics,
    ) -> Result<Option<Arc<Self>>, LineLogError> {
        let target = match output {
            LogOutput::Off => return Ok(None),
            LogOutput::Stdout => Target::Stdout,
            LogOutput::Stderr => Target::Stderr,
            LogOutput::File(path) => {
                let file = append_to(path).map_err(|source| LineLogError { path: path.clone(), source })?;
                Target::File { path: path.clone(), file }
            }
        };
        let (messages, waiting) = sync_channel(WAITING);
        let (shared, lost) = (Arc::new(Shared::default()), metrics.lines_lost(name));
        let writer = Writer { name, target, rotation, is_torn: false, lost_since: None, lost: lost.clone() };
        let seen = Arc::clone(&shared);
        // Without a thread the lines are lost, and counted; that a process cannot start one is told by everything else.
        thread::Builder::new()
            .name(format!("{}-log", name.as_str()))
            .spawn(move || writer.run(&waiting, &seen))
            .ok();
        Ok(Some(Arc::new(Self { name, messages, shared, lost })))
    }

    /// Writes a line, which has its line break. Never waits.
    pub fn write(&self, line: String) {
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) =
            self.messages.try_send(Message::Line(line))
        {
            self.lost.inc();
            // The thread says so, once it writes again: this one must not wait for a standard error that is stuck.
            self.shared.is_full.store(true, Ordering::Relaxed);
        }
    }

    /// Opens a file anew: the old one may have been renamed.
    pub fn reopen(&self) {
        self.shared.reopens.store(true, Ordering::Release);
        // If there is no room for the message, the thread has others and looks after those.
        self.messages.try_send(Message::Wake).ok();
    }

    /// Waits until what was written before is in the file, but not for long.
    pub async fn close(&self) {
        let (end, ended) = oneshot::channel();
        let mut message = Message::End(end);
        let written = async {
            while let Err(TrySendError::Full(back)) = self.messages.try_send(message) {
                message = back;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            ended.await.ok();
        };
        if tokio::time::timeout(LAST_WAIT, written).await.is_err() {
            tracing::warn!(
                log = self.name.as_str(),
                "the last lines of the {} log are lost",
                self.name.as_str()
            );
        }
    }
}

/// Where the thread writes to.
#[derive(Debug)]
enum Target {
    Stdout,
    Stderr,
    File { path: PathBuf, file: File },
}

/// The thread's side.
#[derive(Debug)]
struct Writer {
    name: LogName,
    target: Target,
    rotation: Rotation,
    /// Whether the last line in the file is not whole.
    is_torn: bool,
    /// How many lines were lost since it failed; nothing while it works.
    lost_since: Option<u64>,
    lost: Counter,
}

impl Writer {
    fn run(mut self, messages: &Receiver<Message>, shared: &Shared) {
        let (mut batch, mut ends) = (String::new(), Vec::new());
        let mut was_told = false;
        while let Ok(first) = messages.recv() {
            let mut count = 0;
            for message in std::iter::once(first).chain(messages.try_iter().take(BATCH - 1)) {
                match message {
                    Message::Line(line) => {
                        batch.push_str(&line);
                        count += 1;
                    }
                    Message::Wake => {}
                    Message::End(end) => ends.push(end),
                }
            }
            if shared.reopens.swap(false, Ordering::Acquire) {
                self.reopen();
            }
            if count > 0 {
                self.write(&batch);
                batch.clear();
            }
            if shared.is_full.swap(false, Ordering::Relaxed) && !was_told {
                was_told = true;
                let log = self.name.as_str();
                let waiting = WAITING;
                tracing::error!(
                    log,
                    waiting,
                    "lines of the {log} log are lost: they come faster than they can be written"
                );
            } else if count < BATCH as u64 - 1 {
                was_told = false;
            }
            // Whoever waits for it may be gone.
            ends.drain(..).for_each(|end: oneshot::Sender<()>| end.send(()).unwrap_or_default());
        }
    }

    fn write(&mut self, batch: &str) {
        let mut rest = batch;
        while !rest.is_empty() {
            let (lines, behind) = rest.split_at(self.fitting(rest));
            let written = self.write_all(lines.as_bytes());
            self.note(written, lines.lines().count() as u64);
            rest = behind;
        }
    }

    fn note(&mut self, written: io::Result<()>, count: u64) {
        let log = self.name.as_str();
        match (written, self.lost_since) {
            (Ok(()), None) => {}
            (Ok(()), Some(lost)) => {
                self.lost_since = None;
                tracing::info!(log, lost, "the {log} log can be written again");
            }
            (Err(error), before) => {
                self.lost.inc_by(count);
                self.lost_since = Some(before.unwrap_or(0) + count);
                if before.is_none() {
                    tracing::error!(log, %error, "the {log} log cannot be written; its lines are lost until it can");
                }
            }
        }
    }

    fn write_all(&mut self, batch: &[u8]) -> io::Result<()> {
        let mut to: Box<dyn Write> = match &self.target {
            Target::Stdout => Box::new(io::stdout().lock()),
            Target::Stderr => Box::new(io::stderr().lock()),
            Target::File { file, .. } => Box::new(file),
        };
        // The part of a line that a full disk left is a line of its own: the next one can be read.
        if self.is_torn {
            to.write_all(b"\n")?;
            self.is_torn = false;
        }
        let mut rest = batch;
        while !rest.is_empty() {
            match to.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(length) => {
                    let (written, behind) = rest.split_at(length.min(rest.len()));
                    self.is_torn = !written.ends_with(b"\n");
                    rest = behind;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        to.flush()
    }

    fn reopen(&mut self) {
        let Target::File { path, file } = &mut self.target else { return };
        match append_to(path) {
            Ok(anew) => {
                *file = anew;
                self.is_torn = false;
            }
            Err(error) => {
                let (log, file) = (self.name.as_str(), path.display());
                tracing::error!(log, %file, %error, "the {log} log cannot be opened anew; it goes on in the old file");
            }
        }
    }

    /// How much of these lines fits into the file, and at least one line. Replaces the file if not even that does.
    fn fitting(&mut self, lines: &str) -> usize {
        let Target::File { file, .. } = &self.target else { return lines.len() };
        let most = self.rotation.max_bytes;
        if most == 0 {
            return lines.len();
        }
        // Asked each time, and not counted: somebody else may have cut it short (logrotate's copytruncate).
        let length = file.metadata().map_or(0, |file| file.len());
        let first = lines.find('\n').map_or(lines.len(), |end| end + 1);
        let mut room = most.saturating_sub(length);
        if length > 0 && room < first as u64 {
            self.replace();
            room = most;
        }
        let room = usize::try_from(room).unwrap_or(usize::MAX).min(lines.len());
        let fitting = lines.as_bytes().get(..room).unwrap_or_default();
        fitting.iter().rposition(|byte| *byte == b'\n').map_or(first, |end| end + 1)
    }

    fn replace(&mut self) {
        let Target::File { path, .. } = &self.target else { return };
        match rotate(path, self.rotation.keep) {
            Ok(()) => self.reopen(),
            Err(error) => {
                let (log, file) = (self.name.as_str(), path.display());
                tracing::error!(log, %file, %error, "the {log} log cannot be rotated; the file goes on growing");
                // Not again with each line.
                self.rotation.max_bytes = self.rotation.max_bytes.saturating_mul(2);
            }
        }
    }
}

/// Renames a file to its name with `.1`, that one to `.2`, and so on; the last one is overwritten.
fn rotate(path: &Path, keep: usize) -> io::Result<()> {
    let numbered = |number: usize| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{number}"));
        PathBuf::from(name)
    };
    for number in (1..keep).rev() {
        match fs::rename(numbered(number), numbered(number + 1)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    fs::rename(path, numbered(1))
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(MODE).open(path)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::process::Command;

    use super::*;

    /// Of Linux: reads of a pipe that has nothing do not wait.
    const O_NONBLOCK: i32 = 0o4000;

    #[test]
    fn who_does_not_read_stops_nobody_and_what_is_lost_is_counted() {
        const LINES: usize = 50_000;
        const LENGTH: usize = "line \n".len() + 100;
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe");
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let mut reader = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(&pipe).unwrap();
        let rotation = Rotation { max_bytes: 0, keep: 1 };
        let log = LineLog::open(LogName::Access, &LogOutput::File(pipe), rotation, &Metrics::new());
        let log = log.unwrap().unwrap();
        for number in 0..LINES {
            log.write(format!("line {number:0100}\n"));
        }
        let lost = usize::try_from(log.lost.get()).unwrap();
        assert!(lost > LINES / 2, "{lost}");
        // All others are there, once somebody reads.
        let (mut read, mut buffer) = (Vec::new(), vec![0; 1 << 16]);
        while read.len() < (LINES - lost) * LENGTH {
            match reader.read(&mut buffer) {
                Ok(length) => read.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::yield_now(),
                Err(error) => panic!("{error}"),
            }
        }
        let read = String::from_utf8(read).unwrap();
        assert!(read.lines().all(|line| line.len() == LENGTH - 1 && line.starts_with("line 0")));
        assert_eq!(read.lines().count(), LINES - lost);
    }

    #[tokio::test]
    async fn a_file_is_replaced_before_it_is_too_long() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("log");
        let rotation = Rotation { max_bytes: 30, keep: 2 };
        let log = LineLog::open(LogName::Audit, &LogOutput::File(file.clone()), rotation, &Metrics::new());
        let log = log.unwrap().unwrap();
        // However many are written at once.
        for number in 0..7 {
            log.write(format!("line number {number}\n"));
        }
        log.close().await;
        let read = |name: &str| std::fs::read_to_string(directory.path().join(name)).unwrap();
        let two = |number: usize| format!("line number {number}\nline number {}\n", number + 1);
        assert_eq!(
            [read("log.2"), read("log.1"), read("log")],
            [two(2), two(4), "line number 6\n".to_owned()]
        );
        assert!(!directory.path().join("log.3").exists());
    }
}
