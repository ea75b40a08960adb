"""A PostgreSQL of a benchmark's own, from Debian's package."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from parts import Broken, cpu_seconds, free_port


class Database:
    """A PostgreSQL with its defaults, so durable, in a directory of its own, as long as its context lasts."""

    def __init__(self, cores=None):
        programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
        if not programs:
            raise Broken("PostgreSQL is missing: apt-get install postgresql")
        self.programs, self.port, self.before = programs[-1], free_port(), []
        if cores:
            self.before += ["taskset", "-c", cores]
        if os.geteuid() == 0:
            # PostgreSQL refuses to run as root.
            self.before += ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups"]

    def __enter__(self):
        self.directory = Path(tempfile.mkdtemp(prefix="refshim-database-"))
        try:
            self.start()
        except BaseException:
            shutil.rmtree(self.directory)
            raise
        return self

    def __exit__(self, *_):
        try:
            self.run("pg_ctl", "-D", self.data, "-m", "immediate", "stop")
        finally:
            shutil.rmtree(self.directory)

    def start(self):
        if os.geteuid() == 0:
            shutil.chown(self.directory, "postgres")
        self.data = self.directory / "data"
        self.run("initdb", "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", "-D", self.data)
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.directory}"
        self.run("pg_ctl", "-w", "-D", self.data, "-l", self.directory / "log", "-o", options, "start")
        self.psql("CREATE DATABASE refshim")
        self.postmaster = int((self.data / "postmaster.pid").read_text().split("\n")[0])

    def run(self, name, *arguments):
        command = [*self.before, str(self.programs / name), *map(str, arguments)]
        result = subprocess.run(command, capture_output=True, text=True, cwd="/")
        if result.returncode != 0:
            raise Broken(f"{name} ended with {result.returncode}: {result.stderr}")
        return result.stdout.strip()

    def psql(self, sql, database="postgres"):
        url = f"postgres://postgres@127.0.0.1:{self.port}/{database}"
        return self.run("psql", "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-d", url, "-c", sql)

    def url(self):
        return f"postgres://postgres@127.0.0.1:{self.port}/refshim?sslmode=disable"

    def cpu_seconds(self):
        return cpu_seconds(self.postmaster)
