//! What a refshim did to its data directory and told its clients, system call by system call, in order.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// What strace has to show.
const CALLS: &str = "trace=openat,write,pwrite64,writev,sendto,fsync,fdatasync,rename,unlink,unlinkat,rmdir,\
                     ftruncate,fallocate,mkdir";

/// One step. Paths are below the data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Create {
        path: PathBuf,
    },
    MakeDirectory {
        path: PathBuf,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    Remove {
        path: PathBuf,
    },
    /// Without an offset at the file's end.
    Write {
        path: PathBuf,
        offset: Option<u64>,
        bytes: Vec<u8>,
    },
    SetLength {
        path: PathBuf,
        length: u64,
    },
    /// Everything that was done to the file or directory before step `began` is durable.
    Sync {
        path: PathBuf,
        began: usize,
    },
    /// An answer of 201 about this digest is on its way to the client.
    Acknowledge {
        digest: String,
    },
    /// Something that changes nothing.
    Nothing,
}

/// The command that records into `file` what it starts, and is no parent of it.
pub(crate) fn wrapper(file: &Path) -> Vec<String> {
    let command = ["strace", "-D", "-f", "-y", "-xx", "-s", "16777216", "-e", CALLS, "-o"];
    command.into_iter().chain(file.to_str()).map(str::to_owned).collect()
}

/// Waits until strace wrote the end of the process; the steps.
pub(crate) async fn read(file: &Path, data_dir: &Path, pid: u32) -> Vec<Step> {
    let pid = pid.to_string();
    let is_end = |line: &str| {
        line.split_once(' ')
            .is_some_and(|(thread, rest)| thread == pid && rest.trim_start().starts_with("+++ "))
    };
    loop {
        let text = std::fs::read_to_string(file).unwrap();
        if text.lines().any(is_end) {
            return Reader { data_dir, steps: Vec::new(), unfinished: HashMap::new() }.read(&text);
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

struct Reader<'a> {
    data_dir: &'a Path,
    steps: Vec<Step>,
    /// By thread: the line so far, and the step that it is.
    unfinished: HashMap<&'a str, (&'a str, usize)>,
}

impl<'a> Reader<'a> {
    fn read(mut self, text: &'a str) -> Vec<Step> {
        for line in text.lines() {
            let (thread, rest) = line.split_once(' ').unwrap();
            let rest = rest.trim_start();
            if let Some(call) = rest.strip_suffix(" <unfinished ...>") {
                self.unfinished.insert(thread, (call, self.steps.len()));
                self.steps.push(Step::Nothing);
            } else if rest.starts_with("<... ") {
                let (call, began) = self.unfinished.remove(thread).unwrap();
                let end = rest.split_once(" resumed>").unwrap().1;
                self.take(&format!("{call}{end}"), began);
            } else if !rest.starts_with(['+', '-']) {
                self.steps.push(Step::Nothing);
                self.take(rest, self.steps.len() - 1);
            }
        }
        for (call, began) in std::mem::take(&mut self.unfinished).into_values() {
            if let Some(acknowledgement @ Step::Acknowledge { .. }) = self.step(call, began) {
                self.steps[began] = acknowledgement;
            }
        }
        self.steps
    }

    /// What a call does counts from where it began, what a sync promises from where it ended.
    fn take(&mut self, call: &str, began: usize) {
        let Some(step) = self.step(call, began) else { return };
        if matches!(step, Step::Sync { .. }) {
            self.steps.push(step);
        } else {
            self.steps[began] = step;
        }
    }

    fn step(&self, call: &str, began: usize) -> Option<Step> {
        let (name, rest) = call.split_once('(')?;
        let (arguments, result) = rest.rsplit_once(" = ").unwrap_or((rest, "?"));
        let descriptor = self.below(&between(arguments, '<', '>').next().unwrap_or_default());
        let mut strings = between(arguments, '"', '"');
        if descriptor.is_none() && ["write", "writev", "sendto"].contains(&name) {
            // Also one that a kill ended before it returned: the client may have it.
            return acknowledgement(&strings.collect::<Vec<_>>().concat());
        }
        let result: u64 = result.split(['<', ' ']).next()?.parse().ok()?;
        let number = |place: usize| {
            let words = arguments.trim_end().trim_end_matches(')').rsplit(", ");
            words.into_iter().nth(place).and_then(|word| word.parse::<u64>().ok())
        };
        let mut path = || self.below(&strings.next().unwrap_or_default());
        match name {
            "openat" if arguments.contains("O_TRUNC") => Some(Step::SetLength { path: path()?, length: 0 }),
            "openat" if arguments.contains("O_CREAT") => Some(Step::Create { path: path()? }),
            "openat" if arguments.contains("O_DIRECTORY") => None,
            "mkdir" => Some(Step::MakeDirectory { path: path()? }),
            "rename" => Some(Step::Rename { from: path()?, to: path()? }),
            "unlink" | "rmdir" => Some(Step::Remove { path: path()? }),
            "unlinkat" => {
                let name = strings.next()?;
                let directory = between(arguments, '<', '>').next()?;
                Some(Step::Remove { path: self.below(&[directory, name].join(&b'/'))? })
            }
            "ftruncate" => Some(Step::SetLength { path: descriptor?, length: number(0)? }),
            "fsync" | "fdatasync" => Some(Step::Sync { path: descriptor?, began }),
            "write" | "pwrite64" => {
                assert!(!arguments.contains("\"..."), "strace left something out");
                let mut bytes = strings.next()?;
                bytes.truncate(usize::try_from(result).unwrap());
                let offset = if name == "pwrite64" { number(0) } else { None };
                Some(Step::Write { path: descriptor?, offset, bytes })
            }
            _ => {
                assert!(descriptor.is_none(), "nobody knows what this does: {call}");
                None
            }
        }
    }

    fn below(&self, path: &[u8]) -> Option<PathBuf> {
        let path = Path::new(std::str::from_utf8(path).ok()?);
        path.strip_prefix(self.data_dir).ok().map(Path::to_owned)
    }
}

/// The strings between two marks; each byte is written `\x..`.
fn between(text: &str, open: char, close: char) -> impl Iterator<Item = Vec<u8>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (_, after) = rest.split_once(open)?;
        let (inside, after) = after.split_once(close)?;
        rest = after;
        let bytes = inside.split("\\x").skip(1).map(|digits| u8::from_str_radix(digits, 16).ok());
        Some(bytes.collect::<Option<_>>().unwrap_or_default())
    })
}

fn acknowledgement(sent: &[u8]) -> Option<Step> {
    let text = String::from_utf8_lossy(sent);
    let head = text.strip_prefix("HTTP/1.1 201 ")?;
    let digest = head.lines().find_map(|line| line.strip_prefix("docker-content-digest: "))?;
    Some(Step::Acknowledge { digest: digest.to_owned() })
}
