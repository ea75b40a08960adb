"""refshim's settings, as config/refshim.toml lists them."""

import re

from tools import DEPLOY, ROOT, require

EXAMPLE = ROOT / "config" / "refshim.toml"


def known_keys():
    """Every key of the example file, those in comments too. What operators name is `<name>`."""
    keys, table = set(), ""
    for line in EXAMPLE.read_text().splitlines():
        if header := re.match(r"#? ?\[([\w.]+)\]$", line):
            table = header.group(1) + "."
        elif key := re.match(r"#? ?([a-z_0-9]+) = ", line):
            keys.add(table + key.group(1))
    require("upstream" in keys and len(keys) > 5, f"too few settings found: {keys}")
    return keys


def general(key):
    """A key in which operators' names are `<name>`."""
    return re.sub(r"^(upstreams|notifications)\.\w+", r"\1.<name>", key)


def variable(key):
    return "REFSHIM_" + key.upper().replace(".", "_")


def known_variables():
    """The variable of every key, and the one that names the file."""
    return {variable(key) for key in known_keys()} | {"REFSHIM_CONFIG"}


def default(key):
    """The default of a setting of the example file that has one."""
    *table, name = key.split(".")
    text = EXAMPLE.read_text()
    if table:
        text = text.split(f"\n[{'.'.join(table)}]\n")[1].split("\n[")[0]
    return re.search(rf'^#{name} = "?(.*?)"?$', text, re.MULTILINE).group(1)


def seconds(duration):
    number, unit = re.fullmatch(r"(\d+)(ms|s|m|h)", duration).groups()
    return int(number) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600}[unit]


def settings_are_known():
    known, seen = known_variables(), set()
    for file in sorted(file for file in DEPLOY.rglob("*") if file.is_file()):
        for name in re.findall(r"\bREFSHIM_[A-Z_]+", file.read_text()):
            require(name in known, f"{file.name}: refshim has no setting {name}")
            seen.add(name)
    require("REFSHIM_UPSTREAM" in seen, "no file sets the upstream")
