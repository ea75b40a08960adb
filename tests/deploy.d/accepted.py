"""refshim itself reads each configuration that helm or kustomize made."""

import os
import re
import subprocess
import tempfile
from pathlib import Path

from tools import ROOT, output_of, require

# An address for documentation, which no machine has: refshim ends once it has read the configuration.
NOWHERE = "192.0.2.1:5000"
REFUSED = 64


def binary():
    """The refshim that the tests have built, if they have."""
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    found = Path(os.environ.get("TEST_BINARY", target / "debug" / "refshim"))
    return found.resolve() if found.exists() else None


def files_for(settings, directory):
    """The files that settings name, below a directory."""
    named = [value for key, value in settings.items() if key != "data_dir" and not isinstance(value, (int, bool))]
    paths = [path for value in named for path in ([value] if isinstance(value, str) else value)]
    for path in (path for path in paths if path.startswith("/etc/refshim/")):
        file = directory / path.removeprefix("/etc/refshim/")
        file.parent.mkdir(exist_ok=True)
        if file.name == "tls.key":
            continue
        elif file.suffix in (".crt", ".pem"):
            key = file.with_suffix(".key")
            output_of(
                "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj",
                "/CN=example", "-days", "1", "-keyout", str(key), "-out", str(file),
            )
        else:
            file.write_text('{"auths": {}}' if "docker" in file.name else "secret")


def outcome(rendering, *, change=lambda text: text):
    """The exit code and the message of refshim with the settings of a rendering."""
    with tempfile.TemporaryDirectory() as directory:
        directory = Path(directory)
        files_for(rendering.settings, directory)
        variables = {name: value for name, value in rendering.variables().items() if name.startswith("REFSHIM_")}
        variables = {name: value.replace("/etc/refshim/", f"{directory}/") for name, value in variables.items()}
        if rendering.file:
            file = directory / "refshim.toml"
            file.write_text(change(rendering.file.replace("/etc/refshim/", f"{directory}/")))
            variables["REFSHIM_CONFIG"] = str(file)
        variables |= {"REFSHIM_LISTEN": NOWHERE, "REFSHIM_DATA_DIR": str(directory / "data")}
        command = [str(binary()), "serve"]
        result = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=60)
        return result.returncode, result.stderr


def refshim_accepts(renderings):
    def refshim_accepts_what_is_rendered():
        for rendering in renderings():
            code, message = outcome(rendering)
            require(code == 1 and NOWHERE in message, f"{rendering.name}: ended with {code}: {message}")
        with_file = next(rendering for rendering in renderings() if rendering.file)
        code, message = outcome(with_file, change=lambda text: re.sub("upstream", "upstraem", text, count=1))
        require(code == REFUSED and "upstraem" in message, f"a wrong setting: ended with {code}: {message}")

    return refshim_accepts_what_is_rendered
