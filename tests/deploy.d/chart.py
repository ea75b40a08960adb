"""The Helm chart: rendered with each of values/, and what must hold beyond one rendering."""

import functools
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import yaml
from rendering import Rendering, flat
from tools import DEPLOY, StrictLoader, Wrong, program, require, version

CHART = DEPLOY / "chart"
VALUES = sorted((Path(__file__).parent / "values").glob("*.yaml"))

# Wrong values, each with a word of the message that refuses it.
REFUSED = [
    ({"mode": "proxy"}, "/mode"),
    ({"mode": "gateway"}, "needs upstream.url"),
    ({"upstream": {"url": "https://registry.example"}}, "mode sidecar has its registry in the Pod"),
    ({"mode": "gateway", "upstream": {"url": "https://user:secret@registry.example"}}, "/upstream/url"),
    ({"mode": "gateway", "upstream": {"url": "registry.example"}}, "/upstream/url"),
    ({"upstream": {"ca": {"existingSecret": "a", "existingConfigMap": "b"}}}, "/upstream/ca"),
    ({"upstream": {"service": {"existingSecret": "a"}}}, "needs a user"),
    ({"upstream": {"service": {"existingSecret": "a", "kind": "cookie"}}}, "/upstream/service/kind"),
    ({"upstream": {"service": {"kind": "token", "user": "me"}}}, "with kind password alone"),
    ({"index": {"kind": "mysql"}}, "/index/kind"),
    ({"index": {"kind": "postgresql"}}, "needs index.postgresql.url"),
    ({"index": {"postgresql": {"url": "postgres://refshim@db/refshim"}}}, "index.kind is local"),
    ({"index": {"postgresql": {"url": "postgres://refshim:secret@db/refshim"}}}, "/index/postgresql/url"),
    ({"index": {"local": {"accessMode": "ReadWriteMany"}}}, "/index/local/accessMode"),
    ({"index": {"local": {"size": "many"}}}, "/index/local/size"),
    ({"replicas": 2}, "is for one replica"),
    ({"replicas": 0}, "/replicas"),
    ({"replicas": "3"}, "/replicas"),
    ({"index": {"kind": "postgresql", "postgresql": {"url": "postgres://db/refshim"}}}, "need a storage in common"),
    ({"index": {"kind": "postgresql", "postgresql": {"url": "postgres://db/refshim"}}}, "need registry.httpSecret"),
    ({"settings": {"admin_listen": "0.0.0.0:80"}}, "settings.admin_listen is the chart's"),
    ({"settings": {"index": {"migrate": False}}}, "settings.index.migrate is the chart's"),
    ({"settings": {"upstreams": {"default": {"service": {"user": "me"}}}}}, "set upstream.service"),
    ({"settings": {"Limits": {}}}, "invalid propertyName 'Limits'"),
    ({"settings": {"timeouts": {"shutdown": "1m"}}}, "terminationGracePeriodSeconds must be more than 60"),
    ({"terminationGracePeriodSeconds": 30}, "terminationGracePeriodSeconds must be more than 30"),
    ({"tls": {"clientCa": {"existingSecret": "a"}}}, "needs tls.existingSecret"),
    ({"image": {"tag": "a b"}}, "/image/tag"),
    ({"image": {"digest": "sha256:1"}}, "/image/digest"),
    ({"service": {"port": 70000}}, "/service/port"),
    ({"service": {"port": "5000"}}, "/service/port"),
    ({"service": {"extraPorts": [{"name": "more", "containerPort": 5001}]}}, "/service/extraPorts/0/containerPort"),
    ({"service": {"extraPorts": [{"name": "admin", "containerPort": 8443}]}}, "/service/extraPorts/0/name"),
    ({"ingress": {"enabled": True}}, "ingress needs hosts"),
    ({"ingress": {"enabled": True, "hosts": ["https://a.example"]}}, "/ingress/hosts/0"),
    ({"httpRoute": {"enabled": True}}, "httpRoute needs parentRefs"),
    ({"podDisruptionBudget": {"maxUnavailable": 0}}, "/podDisruptionBudget/maxUnavailable"),
    ({"livenessProbe": {"httpGet": {"path": "/"}}}, "/livenessProbe"),
    ({"replica": 1}, "additional properties 'replica' not allowed"),
    ({"registry": {"storage": "50Gi"}}, "additional properties 'storage' not allowed"),
    ({"extraEnv": {"A": "b"}}, "/extraEnv"),
    ({"podLabels": {"a": 1}}, "/podLabels/a"),
]


def helm(*arguments):
    """What helm printed, with nothing of the user's or the machine's that it would look at."""
    with tempfile.TemporaryDirectory() as home:
        environment = {"PATH": os.environ["PATH"], "HOME": home, "KUBECONFIG": "/dev/null"}
        command = [program("helm"), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def rendered(values, *, chart=CHART, release="registry"):
    """What `helm template` makes of a file of values, or of values."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        if not isinstance(values, Path):
            json.dump(values, file)
            file.flush()
        given = values if isinstance(values, Path) else file.name
        result = helm("template", release, chart, "--namespace", "images", "--values", given)
    if result.returncode != 0:
        raise Wrong(result.stderr)
    name = values.name if isinstance(values, Path) else json.dumps(values)
    return Rendering(f"chart with {name}", result.stdout)


@functools.cache
def renderings():
    return [rendered(values) for values in VALUES]


def chart_passes_lint():
    for values in VALUES:
        result = helm("lint", "--strict", CHART, "--values", values)
        require(result.returncode == 0, f"{values.name}: {result.stdout}{result.stderr}")
        findings = [line for line in result.stdout.splitlines() if line.startswith("[") and "icon is" not in line]
        require(not findings, f"{values.name}: {findings}")


def chart_is_of_this_version():
    chart = yaml.load((CHART / "Chart.yaml").read_text(), StrictLoader)
    require(chart["appVersion"] == version(), f"appVersion is {chart['appVersion']}, refshim is {version()}")
    require(re.fullmatch(r"\d+\.\d+\.\d+", chart["version"]), f"version {chart['version']}")


def chart_refuses_wrong_values():
    for values, message in REFUSED:
        try:
            rendered(values)
        except Wrong as error:
            # Not the line of a template that failed in the middle.
            is_meant = "values don't meet the specifications" in str(error) or "\n- " in str(error)
            require(message in str(error) and is_meant, f"{values}: refused with {error}")
        else:
            raise Wrong(f"{values} is not refused")


def chart_settings_are_as_given():
    """From YAML to TOML nothing changes, numbers and odd characters included."""
    given = {
        "limits": {"connections": 20000000, "manifest_bytes": "1GiB"},
        "index": {"forget_after": "2h", "cache_bytes": 9007199254740991},
        "upstreams": {"hub": {"prefixes": ["hub", "a/b"], "strip_prefix": True, "server_name": 'ü"\\<&>\n#='}},
        "trusted_proxies": [],
        "log": {"filter": "warn,refshim=debug"},
    }
    found = rendered({"settings": given}).settings
    for key, value in flat(given):
        require(found.get(key) == value and type(found[key]) is type(value), f"{key} is {found.get(key)!r}")
    require(found["log.format"] == "json", "the default is gone")
    require(rendered({"settings": {"log": None}}).settings.get("log.format") is None, "the default cannot be removed")


def chart_is_rendered_the_same_twice():
    for values, first in zip(VALUES, renderings()):
        require(rendered(values).objects == first.objects, f"{values.name} differs")


def chart_releases_do_not_meet():
    """Two releases in one namespace share no object, and neither selects the other's Pods."""
    for values in VALUES:
        if "fullnameOverride" in values.read_text():
            continue
        one, other = rendered(values, release="one"), rendered(values, release="other")
        both = {(kind["kind"], kind["metadata"]["name"]) for kind in one.objects}
        both &= {(kind["kind"], kind["metadata"]["name"]) for kind in other.objects}
        require(not both, f"{values.name}: both have {both}")
        selector = one.workload["spec"]["selector"]["matchLabels"].items()
        require(not selector <= other.pod_labels.items(), f"{values.name}: one selects the other's Pods")


def chart_takes_long_names():
    name = "registry-of-the-department-for-images-and-other-odd-ones"[:53]
    found = rendered(VALUES[0], release=name)
    # A Pod's name ends in a number, its controller's revision in a checksum, both below 63.
    require(len(found.workload["metadata"]["name"]) <= 52, f"{found.workload['metadata']['name']} is too long")
    require(rendered({}, release="refshim").workload["metadata"]["name"] == "refshim", "refshim-refshim")


def immutable(rendering):
    """What Kubernetes lets nobody change of a workload or a headless Service."""
    spec = rendering.workload["spec"]
    kept = [spec["selector"], spec.get("serviceName"), spec.get("volumeClaimTemplates"), rendering.workload["kind"]]
    return kept + [rendering.workload["metadata"]["name"]]


def chart_can_be_upgraded():
    """A later chart with other settings changes nothing that cannot be changed."""
    with tempfile.TemporaryDirectory() as directory:
        later = Path(directory) / "chart"
        shutil.copytree(CHART, later)
        file = later / "Chart.yaml"
        file.write_text(re.sub(r"(?m)^((?:appV|v)ersion:) .*$", r"\1 9.9.9", file.read_text()))
        for values, before in zip(VALUES, renderings()):
            changed = yaml.load(values.read_text(), StrictLoader)
            changed.setdefault("settings", {})["log"] = {"filter": "debug"}
            changed.setdefault("podLabels", {})["new"] = "label"
            changed["nodeSelector"] = {"new": "node"}
            after = rendered(changed, chart=later)
            require(immutable(before) == immutable(after), f"{values.name}: {immutable(after)}")


def pods_of(values):
    return rendered(values).workload["spec"]["template"]


def chart_restarts_for_changed_settings_alone():
    before = pods_of({})
    require(pods_of({"settings": {"limits": {"connections": 5}}}) != before, "the Pods stay as they were")
    others = [{"service": {"port": 80}}, {"serviceMonitor": {"enabled": True}}, {"networkPolicy": {"enabled": False}}]
    for unrelated in others:
        require(pods_of(unrelated) == before, f"{unrelated} replaces the Pods")


def notes(values):
    result = helm("install", "registry", CHART, "--namespace", "images", "--dry-run=client", "--values", values)
    require(result.returncode == 0, f"{values.name}: {result.stderr}")
    return result.stdout.split("\nNOTES:\n")[1]


def chart_tells_what_to_do_next():
    for values, rendering in zip(VALUES, renderings()):
        text = notes(values)
        kind, name = rendering.workload["kind"].lower(), rendering.workload["metadata"]["name"]
        require(f"rollout status {kind}/{name}\n" in text, f"{values.name}: not how to wait for it: {text}")
        for named in re.findall(r"(statefulset|deployment|service)/(\S+)", text):
            require(named[1] == name, f"{values.name}: {named}")
        is_behind = bool(rendering.all("Ingress") + rendering.all("HTTPRoute"))
        is_told = "settings.trusted_proxies" in text
        require(is_told == (is_behind and "trusted_proxies" not in rendering.settings), f"{values.name}: {text}")
        require("<no value>" not in text and "%!" not in text, f"{values.name}: {text}")


# What the chart's README tells of as a whole.
WHOLE = {"settings", "livenessProbe", "readinessProbe", "registry.livenessProbe", "resources", "registry.resources"}
WHOLE |= {"podSecurityContext", "securityContext"}


def leaves(values, prefix=""):
    for key, value in values.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict) and value and path not in WHOLE:
            yield from leaves(value, f"{path}.")
        else:
            yield path, value


def shown(value):
    """A default as the README writes it."""
    if isinstance(value, (dict, list)) and value:
        return "see values.yaml"
    return "" if value in ("", None, [], {}) else f"`{json.dumps(value)}`"


def chart_readme_has_every_value():
    values = yaml.load((CHART / "values.yaml").read_text(), StrictLoader)
    rows = re.findall(r"(?m)^\| `([\w.]+)` \| (.*?) ?\| .+ \|$", (CHART / "README.md").read_text())
    wanted = {(path, shown(value)) for path, value in leaves(values)}
    require(len(set(rows)) == len(rows), "a value is listed twice")
    require(set(rows) == wanted, f"values.yaml and README.md differ in {wanted ^ set(rows)}")


CHECKS = [
    chart_passes_lint,
    chart_is_of_this_version,
    chart_refuses_wrong_values,
    chart_settings_are_as_given,
    chart_is_rendered_the_same_twice,
    chart_releases_do_not_meet,
    chart_takes_long_names,
    chart_can_be_upgraded,
    chart_restarts_for_changed_settings_alone,
    chart_tells_what_to_do_next,
    chart_readme_has_every_value,
]
