"""containerd, Docker, skopeo and buildah with the mirrors that their pages show, and what verifiers ask.

docker-registry stands in Docker Hub's place twice: behind refshim, and as what clients fall back to.
"""

import json
import subprocess
import urllib.request

from checks import digest_of
from pages import files, require, with_other
from processes import PATH, Refshim, Registry, as_root, run

REFSHIM = "/etc/refshim/refshim.toml"
HUB = "https://registry-1.docker.io"
NAME = "docker.io/library/app"


class Mirror:
    """refshim in front of one registry, and a port for the registry behind the name, where nobody listens at first."""

    def __init__(self, lab, page):
        self.lab, self.machine, self.files = lab, lab.machine, files(page)
        self.registry = Registry(lab.machine)
        self.origin = lab.machine.port()
        self.refshim = Refshim(lab.machine, self.files[REFSHIM], f"http://127.0.0.1:{self.registry.port}")
        for tag in ("mirrored", "direct"):
            copy = ["skopeo", "copy", "-q", "--insecure-policy", "--dest-tls-verify=false"]
            run(*copy, lab.small.source(), f"docker://127.0.0.1:{self.registry.port}/library/app:{tag}")

    def falls_back(self):
        """refshim is gone, and the registry behind the name comes up, with the same content."""
        self.machine.stop(self.refshim.process)
        Registry(self.machine, root=self.registry.root, port=self.origin)


def containerd(lab):
    mirror = Mirror(lab, "containerd.md")
    hosts = with_other(mirror.files["/etc/containerd/certs.d/docker.io/hosts.toml"], {
        HUB: f"http://127.0.0.1:{mirror.origin}",
        "https://refshim.example.com": f"http://127.0.0.1:{mirror.refshim.port}",
    })
    # The directory is named after the registry.
    directory = lab.machine.directory / "certs.d"
    (directory / "docker.io").mkdir(parents=True)
    (directory / "docker.io" / "hosts.toml").write_text(hosts)

    scratch = lab.machine.directory
    settings = (
        f"version = 2\nroot = '{scratch}/root'\nstate = '{scratch}/state'\n"
        "disabled_plugins = ['io.containerd.grpc.v1.cri']\n"
        f"[grpc]\naddress = '{scratch}/socket'\n"
    )
    config = lab.machine.file("containerd.toml", settings)
    ctr = [*as_root(), "ctr", "--address", f"{scratch}/socket"]

    def answers():
        return subprocess.run([*ctr, "version"], capture_output=True).returncode == 0

    process, _ = lab.machine.start_until(answers, *as_root(), "containerd", "--config", str(config))
    fetch = [*ctr, "content", "fetch", "--hosts-dir", str(directory)]
    run(*fetch, f"{NAME}:mirrored")
    mirror.falls_back()
    run(*fetch, f"{NAME}:direct")
    lab.machine.stop(process)


def podman(lab):
    mirror = Mirror(lab, "podman.md")
    conf = with_other(mirror.files["/etc/containers/registries.conf"], {
        'location = "docker.io"': f'prefix = "docker.io"\nlocation = "127.0.0.1:{mirror.origin}"\ninsecure = true',
        'location = "refshim.example.com"': f'location = "127.0.0.1:{mirror.refshim.port}"\ninsecure = true',
    })
    conf = lab.machine.file("registries.conf", conf)
    skopeo = ["skopeo", "--registries-conf", str(conf)]
    storage = lab.machine.directory
    buildah = [
        "buildah", "--registries-conf", str(conf), "--root", f"{storage}/graph", "--runroot", f"{storage}/run",
        "--storage-driver", "vfs", "pull", "-q", "--policy", "always", "--signature-policy",
        str(lab.machine.file("policy.json", ACCEPT_ALL)),
    ]

    def pulls(tag):
        shown = run(*skopeo, "inspect", "--raw", f"docker://{NAME}:{tag}")
        require(digest_of(shown.encode()) == lab.small.digest, f"{shown} is not the image")
        run(*buildah, f"{NAME}:{tag}")

    pulls("mirrored")
    mirror.falls_back()
    pulls("direct")


ACCEPT_ALL = '{"default": [{"type": "insecureAcceptAnything"}]}'


def verifiers(lab):
    """What admission controllers ask, as their pages say it."""
    address = f"http://127.0.0.1:{lab.verified.port}"

    def answer(path):
        with urllib.request.urlopen(address + path, timeout=60) as response:
            return response.headers, json.loads(response.read())

    # oras-go, of Ratify: is there an API? Then each type by itself.
    headers, body = answer(f"/v2/app/referrers/sha256:{'0' * 64}")
    require(body["manifests"] == [], f"{body}")
    require(headers["Content-Type"] == "application/vnd.oci.image.index.v1+json", f"{headers}")
    path = f"/v2/app/referrers/{lab.small.digest}"
    headers, body = answer(f"{path}?artifactType=application/spdx%2Bjson")
    require(headers["OCI-Filters-Applied"] == "artifactType", f"{headers}")
    require([entry["artifactType"] for entry in body["manifests"]] == ["application/spdx+json"], f"{body}")
    # go-containerregistry, of Kyverno and policy-controller: everything, then every manifest and its blobs.
    headers, body = answer(path)
    require(0 < len(body["manifests"]) <= 50 and "Link" not in headers, f"{headers}: {body}")
    for entry in body["manifests"]:
        request = urllib.request.Request(
            f"{address}/v2/app/manifests/{entry['digest']}", headers={"Accept": entry["mediaType"]}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            content = response.read()
        require(digest_of(content) == entry["digest"] and len(content) == entry["size"], f"{entry}")
        for layer in json.loads(content)["layers"]:
            with urllib.request.urlopen(f"{address}/v2/app/blobs/{layer['digest']}", timeout=60) as response:
                require(digest_of(response.read()) == layer["digest"], f"{layer}")


def docker(lab):
    mirror = Mirror(lab, "docker.md")
    settings = with_other(mirror.files["/etc/docker/daemon.json"], {
        "https://refshim.example.com": f"http://127.0.0.1:{mirror.refshim.port}",
    })
    home = lab.machine.file("daemon.json", settings).parent
    socket = f"{home}/socket"
    ask = [*as_root(), "curl", "-qfsS", "--unix-socket", socket]

    def answers():
        return subprocess.run([*ask, "http://docker/_ping"], capture_output=True).returncode == 0

    # It touches nothing that another daemon, or the machine's network, has.
    apart = ["--iptables=false", "--ip6tables=false", "--ip-masq=false", "--ip-forward=false", "--bridge=none"]
    places = ["--data-root", f"{home}/data", "--exec-root", f"{home}/exec", "--pidfile", f"{home}/pid"]
    process, log = lab.machine.start_until(
        answers, *as_root(), lab.dockerd, "--config-file", f"{home}/daemon.json", "-H", f"unix://{socket}",
        "--storage-driver", "vfs", *apart, *places, PATH=PATH,
    )

    def pull(tag):
        return run(*ask, "-X", "POST", f"http://docker/images/create?fromImage=app&tag={tag}")

    said = pull("mirrored")
    require("Digest: " + lab.small.digest in said, f"{said}")
    # Docker Hub's own address cannot be another one: that Docker turns to it is in its log.
    lab.machine.stop(mirror.refshim.process)
    pull_fails = [*ask, "-X", "POST", "http://docker/images/create?fromImage=app&tag=direct"]
    subprocess.run(pull_fails, capture_output=True, timeout=60)
    turned = f"Attempting next endpoint for pull after error: Get \\\"http://127.0.0.1:{mirror.refshim.port}/v2/"
    require(turned in log.read_text(), f"Docker did not turn to Docker Hub: {log.read_text()}")
    lab.machine.stop(process)


TRIED = [containerd, podman, docker, verifiers]
