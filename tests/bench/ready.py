"""Getting ready to measure: programs and binaries, a directory for everything, and how a benchmark ends."""

import contextlib
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from parts import ROOT, Broken, Parts, program
from tables import say

# By Debian's packages.
PACKAGES = {"nginx": "nginx", "haproxy": "haproxy", "wrk": "wrk", "h2load": "nghttp2-client", "openssl": "openssl"}
SERVICES = {"nginx", "haproxy"}


def install_missing(names):
    missing = []
    for name in names:
        with contextlib.suppress(Broken):
            program(name)
            continue
        missing.append(name)
    if not missing:
        return
    root = [] if os.geteuid() == 0 else ["sudo"]
    packages = [PACKAGES[name] for name in missing]
    command = [*root, "apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages]
    say(" ".join(command))
    subprocess.run(command, check=True, stdout=sys.stderr)
    for name in SERVICES & set(missing):
        # The packages start services, which nobody asked for.
        with contextlib.suppress(FileNotFoundError):
            subprocess.run([*root, "systemctl", "disable", "--now", name], capture_output=True)


def build(names, is_plain):
    """Compiles these: refshim as it is released, or without a profile; not what TEST_BINARY names."""
    # Apart, or the features that only tests need would be in the binary that is measured.
    if "bare" in names:
        cargo_build("--example", "bare_proxy")
    if "refshim" in names and "TEST_BINARY" not in os.environ:
        if is_plain:
            cargo_build("--bin", "refshim")
        else:
            os.environ["TEST_BINARY"] = released()


def cargo_build(*target):
    say(f"building {target[-1]}")
    subprocess.run(["cargo", "build", "--release", "--locked", "--quiet", *target], cwd=ROOT, check=True)


def released():
    """Where refshim is as it is released."""
    version = subprocess.run(["rustc", "-vV"], capture_output=True, text=True, check=True).stdout
    llvm = re.search(r"^LLVM version: (\d+)", version, re.MULTILINE).group(1)
    PACKAGES[f"llvm-profdata-{llvm}"] = f"llvm-{llvm}"
    install_missing([f"llvm-profdata-{llvm}"])
    say("building refshim twice, with a profile")
    return subprocess.run([ROOT / "deploy" / "build"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


@contextlib.contextmanager
def started():
    """What starts processes, in a directory of its own; both go at the end."""
    (ROOT / "target").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=ROOT / "target") as directory, contextlib.ExitStack() as stack:
        yield Parts(Path(directory), stack)


def machine():
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {"cpu": model and model.group(1), "cores": os.cpu_count(), "kernel": platform.release()}


def version_of(name):
    result = subprocess.run([program(name), "-v"], capture_output=True, text=True)
    return (result.stdout + result.stderr).splitlines()[0]


def ends_well(main):
    """Runs a benchmark; what it started ends with it, also when it is told to stop."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        main()
    except (Broken, OSError, subprocess.SubprocessError) as error:
        sys.exit(f"bench: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
