"""The Kustomize base and overlays, and those that the document shows."""

import functools
import re
import shutil
import tempfile
from pathlib import Path

import chart
import yaml
from rendering import Rendering
from tools import DEPLOY, ROOT, StrictLoader, output_of, program, require

HOME = DEPLOY / "kustomize"
DOCUMENT = DEPLOY / "KUBERNETES.md"


def built(directory, name):
    return Rendering(name, output_of(program("kubectl"), "kustomize", str(directory)))


@functools.cache
def renderings():
    overlays = [HOME / "base", *sorted((HOME / "overlays").iterdir())]
    return [built(overlay, f"kustomize/{overlay.name}") for overlay in overlays] + documented()


def blocks():
    """The blocks of YAML in the document, by the file that their first line names."""
    return re.findall(r"(?ms)^```yaml\n# (\S+\.yaml).*?\n(.*?)^```$", DOCUMENT.read_text())


@functools.cache
def documented():
    """What becomes of the values and overlays in the document, beside a checkout of refshim."""
    found = []
    for number, (name, text) in enumerate(blocks()):
        shown = f"KUBERNETES.md, block {number + 1}"
        if name == "values.yaml":
            rendering = chart.rendered(yaml.load(text, StrictLoader))
        else:
            with tempfile.TemporaryDirectory() as directory:
                shutil.copytree(HOME, Path(directory) / "refshim" / "deploy" / "kustomize")
                (Path(directory) / "kustomization.yaml").write_text(text)
                rendering = built(directory, shown)
        rendering.name = shown
        found.append(rendering)
    return found


def kustomize_has_the_overlays():
    made = {one.name: one for one in renderings()}
    for overlay, kind, replicas, registry in (
        ("base", "StatefulSet", 1, None),
        ("sidecar-registry-2", "StatefulSet", 1, "registry:2"),
        ("sidecar-registry-3", "StatefulSet", 1, "registry:3"),
        ("gateway-postgresql", "Deployment", 3, None),
    ):
        found = made.pop(f"kustomize/{overlay}")
        require((found.workload["kind"], found.replicas) == (kind, replicas), f"{overlay}: {found.workload['kind']}")
        image = found.containers.get("registry", {}).get("image")
        require(image == registry, f"{overlay} has {image}")
    require(all(name.startswith("KUBERNETES.md") for name in made), f"and there are {set(made)}")


def kubernetes_document_shows_what_works():
    kinds = [name for name, _ in blocks()]
    marked = len(re.findall(r"(?m)^```yaml$", DOCUMENT.read_text()))
    require(len(kinds) == marked, f"{marked} blocks, {len(kinds)} name their file")
    require({"values.yaml", "kustomization.yaml"} == set(kinds), f"blocks of {kinds}")
    for place in re.findall(r"deploy/(?:chart|kustomize)[\w./-]*", DOCUMENT.read_text()):
        require((ROOT / place.rstrip(".")).exists(), f"there is no {place}")


def chart_and_kustomize_agree():
    """The same installation made by either: the same Pods but for names, labels and where settings come from."""
    pairs = {
        "kustomize/sidecar-registry-3": {},
        "kustomize/sidecar-registry-2": {"registry": {"image": {"tag": "2"}}},
        "kustomize/base": {"mode": "gateway", "upstream": {"url": "https://registry.example"}},
    }
    made = {one.name: one for one in renderings()}
    for name, values in pairs.items():
        one, other = made[name], chart.rendered(values)
        for part in (core, lambda rendering: rendering.pod["securityContext"], lambda rendering: rendering.settings):
            require(part(one) == part(other), f"{name}: {part(one)}, and the chart: {part(other)}")


def core(rendering):
    """What the containers have in common."""
    kept = {}
    for name, container in rendering.containers.items():
        alike = {key: container.get(key) for key in ("image", "resources", "securityContext", "ports", "restartPolicy")}
        for probe in ("livenessProbe", "readinessProbe"):
            # The default of Kubernetes, which the chart says.
            alike[probe] = {"failureThreshold": 3, **container[probe]} if probe in container else None
        alike["data"] = [one for one in container["volumeMounts"] if one["mountPath"].startswith("/var/lib")]
        kept[name] = alike
    return kept


CHECKS = [kustomize_has_the_overlays, kubernetes_document_shows_what_works, chart_and_kustomize_agree]
