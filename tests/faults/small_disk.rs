//! A file system in memory that is soon full, seen by those alone who were started on it.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Needs root's rights, or the right to make namespaces of one's own.
pub(crate) struct SmallDisk {
    /// Holds the namespace open.
    holder: Child,
    directory: tempfile::TempDir,
}

impl SmallDisk {
    pub(crate) fn new(bytes: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let script = r#"mount -t tmpfs -o "size=$0" none "$1" && echo mounted && exec sleep infinity"#;
        let mut command = Command::new("unshare");
        if !is_root() {
            command.arg("--map-root-user");
        }
        command.args(["--mount", "sh", "-c", script, &bytes.to_string()]).arg(directory.path());
        let mut holder = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "mounted\n", "a small disk needs root's rights, or user namespaces");
        Self { holder, directory }
    }

    /// The directory as those see it who were started by [`SmallDisk::wrapper`].
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The command that starts another on this disk.
    pub(crate) fn wrapper(&self) -> Vec<String> {
        let user: &[&str] = if is_root() { &[] } else { &["--user", "--preserve-credentials"] };
        let target = self.holder.id().to_string();
        let words = ["nsenter", "--target", &target, "--mount"].into_iter().chain(user.iter().copied());
        words.map(str::to_owned).collect()
    }

    fn filling(&self) -> PathBuf {
        Path::new(&format!("/proc/{}/root", self.holder.id()))
            .join(self.directory.path().strip_prefix("/").unwrap())
            .join("filling")
    }

    /// Leaves at most so much room.
    pub(crate) fn fill(&self, room: u64) {
        let mut file = File::create(self.filling()).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
        file.set_len(file.metadata().unwrap().len().saturating_sub(room)).unwrap();
    }

    pub(crate) fn free(&self) {
        fs::remove_file(self.filling()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        self.holder.kill().unwrap();
        self.holder.wait().unwrap();
    }
}

fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}
