"""The programs that are tried: each on a port of its own, with its log in a file, ended by its number."""

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

from pages import ROOT, require, with_other

# Long enough for a busy machine; reaching it is a failure.
LIMIT = 60
# Debian has servers where only root's PATH leads.
PATH = os.environ["PATH"] + ":/usr/sbin:/sbin"


def until(what, condition):
    """Waits for what is bound to come."""
    began = time.monotonic()
    while not (found := condition()):
        require(time.monotonic() - began < LIMIT, f"not within {LIMIT} s: {what}")
        time.sleep(0.02)
    return found


def run(*command, **settings):
    """The output of a command that must succeed."""
    result = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, **settings)
    require(result.returncode == 0, f"{command} ended with {result.returncode}: {result.stdout}{result.stderr}")
    return result.stdout


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Machine:
    """A directory, and the processes and ports of one run."""

    def __init__(self, directory):
        self.directory = Path(directory)
        self.reserved, self.processes, self.count = [], {}, 0

    def port(self):
        """A port for a process to listen at. The socket bound here keeps others from being given it."""
        kept = socket.socket()
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kept.bind(("127.0.0.1", 0))
        self.reserved.append(kept)
        return kept.getsockname()[1]

    def file(self, name, text):
        """Writes a file in a directory of its own."""
        self.count += 1
        path = self.directory / str(self.count) / name
        path.parent.mkdir()
        path.write_text(text)
        return path

    def start(self, port, *command, **environment):
        """Starts a server and waits until it listens; the process and the file with its log."""
        return self.start_until(lambda: listens(port), *command, **environment)

    def start_until(self, is_there, *command, **environment):
        """Starts a server and waits until it is there."""
        log = self.file("log", "")
        program = shutil.which(command[0], path=PATH) or command[0]
        with log.open("w") as output:
            process = subprocess.Popen(
                [program, *command[1:]], stdout=output, stderr=output, stdin=subprocess.DEVNULL,
                env={**os.environ, **environment}, cwd=log.parent,
            )
        self.processes[process.pid] = process

        def is_up():
            require(process.poll() is None, f"{command} ended: {log.read_text()}")
            return is_there()

        until(f"{command[0]} is there", is_up)
        return process, log

    def stop(self, process):
        """SIGTERM, and SIGKILL for what does not go."""
        process.terminate()
        try:
            process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        del self.processes[process.pid]

    def stop_all(self):
        for process in self.processes.values():
            process.terminate()
        for process in list(self.processes.values()):
            self.stop(process)


def as_root():
    return [] if os.geteuid() == 0 else ["sudo"]


def refshim():
    """The binary, as the tests built it."""
    target = Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target")
    binary = Path(os.environ.get("TEST_BINARY") or target / "debug" / "refshim")
    require(binary.exists(), f"there is no {binary}: cargo build --locked")
    return str(binary.resolve())


class Registry:
    """docker-registry, Debian's registry:2."""

    def __init__(self, machine, config=None, root=None, port=None):
        self.machine = machine
        self.root = root or machine.file("empty", "").parent / "root"
        self.port = port or machine.port()
        config = config or (
            "version: 0.1\nlog: {level: info, accesslog: {disabled: true}}\n"
            "storage: {filesystem: {rootdirectory: ROOT}, delete: {enabled: true}}\nhttp: {addr: ADDRESS}\n"
        )
        config = with_other(config, {"ROOT": str(self.root), "ADDRESS": f"127.0.0.1:{self.port}"})
        file = machine.file("config.yml", config)
        self.process, self.log = machine.start(self.port, "docker-registry", "serve", str(file))

    def uploading(self):
        """The largest upload in progress, in bytes."""
        sizes = []
        for file in self.root.glob("docker/registry/v2/repositories/**/_uploads/*/data"):
            # It may end meanwhile.
            try:
                sizes.append(file.stat().st_size)
            except FileNotFoundError:
                pass
        return max(sizes, default=0)


class Refshim:
    """refshim with a page's configuration. Variables take precedence over the file: the addresses of this machine."""

    def __init__(self, machine, config, upstream, ready=True, **variables):
        self.machine = machine
        self.port, self.admin = machine.port(), machine.port()
        file = machine.file("refshim.toml", config)
        self.process, self.log = machine.start(
            self.port, refshim(), "serve", "--config", str(file),
            **{
                "REFSHIM_UPSTREAM": upstream,
                "REFSHIM_LISTEN": f"127.0.0.1:{self.port}",
                "REFSHIM_ADMIN_LISTEN": f"127.0.0.1:{self.admin}",
                "REFSHIM_DATA_DIR": str(file.parent / "data"),
                **variables,
            },
        )
        if ready:
            self.is_ready()

    def is_ready(self):
        """Waits until it answers queries, and its registry is there."""
        ask = ["curl", "-qfsS", "-o", "/dev/null", f"http://127.0.0.1:{self.admin}/readyz"]
        until("refshim is ready", lambda: subprocess.run(ask, capture_output=True).returncode == 0)
