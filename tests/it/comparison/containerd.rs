//! A containerd of the test's own, with a namespace for each way.

use std::process::Command;

use super::side::Way;
use super::tools::as_root;
use crate::support::Logged;

pub(super) struct Containerd {
    _process: Logged,
    directory: tempfile::TempDir,
}

impl Containerd {
    pub(super) fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).display().to_string();
        let settings = format!(
            "version = 2\nroot = '{}'\nstate = '{}'\ndisabled_plugins = ['io.containerd.grpc.v1.cri']\n\
             [plugins.'io.containerd.metadata.v1.bolt']\ncontent_sharing_policy = 'isolated'\n\
             [grpc]\naddress = '{}'\n[debug]\nformat = 'json'\n",
            path("root"),
            path("state"),
            path("sock")
        );
        let file = directory.path().join("containerd.toml");
        std::fs::write(&file, settings).unwrap();
        let mut command = as_root("containerd");
        command.arg("--config").arg(&file);
        let process = Logged::spawn(command);
        process.wait_for("containerd successfully booted");
        Self { _process: process, directory }
    }

    pub(super) fn ctr(&self, way: Way) -> Command {
        let mut command = as_root("ctr");
        command.arg("--address").arg(self.directory.path().join("sock"));
        command.args(["--namespace", if way == Way::Alone { "alone" } else { "through" }]);
        command
    }
}
