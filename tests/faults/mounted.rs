//! File systems of a test's own, seen by those alone who were started on them.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Shuts an ext4 down at once (`EXT4_IOC_SHUTDOWN`, no flush of its log): what is not on the disk is gone.
const SHUT_DOWN: &str = "import fcntl, os, struct, sys
fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587D, struct.pack('I', 2))";

/// Needs root's rights; or, in memory, the right to make namespaces of one's own.
pub(crate) struct Mounted {
    /// Holds the namespace open.
    holder: Child,
    directory: tempfile::TempDir,
}

impl Mounted {
    /// So many bytes of memory.
    pub(crate) fn memory(bytes: u64) -> Self {
        let mounted = Self::new(&["-t", "tmpfs", "-o", &format!("size={bytes}"), "none"]);
        mounted.expect("a small disk needs root's rights, or user namespaces")
    }

    /// The ext4 in a file; none where that cannot be mounted.
    pub(crate) fn ext4(image: &Path) -> Option<Self> {
        Self::new(&["-t", "ext4", "-o", "loop", image.to_str().unwrap()])
    }

    fn new(what: &[&str]) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new("unshare");
        if !is_root() {
            command.arg("--map-root-user");
        }
        command.args(["--mount", "sh", "-c", r#"mount "$@" && echo mounted && exec sleep infinity"#, "sh"]);
        command.args(what).arg(directory.path());
        let mut holder = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let mounted = Self { holder, directory };
        (line == "mounted\n").then_some(mounted)
    }

    /// The directory as those see it who were started by [`Mounted::wrapper`].
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The command that starts another there.
    pub(crate) fn wrapper(&self) -> Vec<String> {
        let user: &[&str] = if is_root() { &[] } else { &["--user", "--preserve-credentials"] };
        let target = self.holder.id().to_string();
        let words = ["nsenter", "--target", &target, "--mount"].into_iter().chain(user.iter().copied());
        words.map(str::to_owned).collect()
    }

    /// The directory as everybody can reach it.
    fn seen_from_outside(&self) -> PathBuf {
        let root = format!("/proc/{}/root", self.holder.id());
        Path::new(&root).join(self.directory.path().strip_prefix("/").unwrap())
    }

    /// Leaves at most so much room.
    pub(crate) fn fill(&self, room: u64) {
        let mut file = File::create(self.seen_from_outside().join("filling")).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
        file.set_len(file.metadata().unwrap().len().saturating_sub(room)).unwrap();
    }

    pub(crate) fn free(&self) {
        fs::remove_file(self.seen_from_outside().join("filling")).unwrap();
    }

    /// As if the power went.
    pub(crate) fn shut_down(&self) {
        let mut python = Command::new("python3");
        let status = python.args(["-c", SHUT_DOWN]).arg(self.seen_from_outside()).status().unwrap();
        assert!(status.success());
    }

    /// Expects that nobody uses it any more.
    pub(crate) fn unmount(self) {
        let wrapper = self.wrapper();
        let umount = Command::new(&wrapper[0]).args(&wrapper[1..]).arg("umount").arg(self.path()).status();
        assert!(umount.unwrap().success());
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // It is gone already if nothing could be mounted.
        self.holder.kill().ok();
        self.holder.wait().unwrap();
    }
}

fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}
