"""docker-registry with the configuration that its page shows, telling refshim of what is pushed past it, and in Nexus'
place.
"""

import json
import urllib.error
import urllib.request
from urllib.parse import urljoin, urlsplit

from pages import files, require, with_other
from processes import Refshim, Registry, refshim, run, until

SECRET = "a secret of this run"


def distribution(lab):
    shown = files("distribution.md")
    config = with_other(shown["/etc/refshim/refshim.toml"], {
        "/etc/refshim/notifications-secret": str(lab.machine.file("notifications-secret", SECRET)),
    })
    # The registry is started last, on a port that is known.
    port = lab.machine.port()
    shim = Refshim(lab.machine, config, f"http://127.0.0.1:{port}", ready=False)
    registry = Registry(lab.machine, port=port, config=with_other(shown["/etc/docker/registry/config.yml"], {
        "rootdirectory: /var/lib/registry": "rootdirectory: ROOT",
        "addr: :5000": "addr: ADDRESS",
        "http://refshim:5001/": f"http://127.0.0.1:{shim.admin}/",
        "Bearer SECRET": f"Bearer {SECRET}",
    }))
    shim.is_ready()
    lab.registry, lab.verified = registry, shim

    past = f"127.0.0.1:{port}/told"
    copy = ["skopeo", "copy", "-q", "--insecure-policy", "--dest-tls-verify=false", lab.small.source()]
    run(*copy, f"docker://{past}:v1")
    # A reference is in no referrers tag, where refshim would find it without being told.
    run(refshim(), "ref", f"{past}:v1", f"{past}:refers")
    path = f"http://127.0.0.1:{shim.port}/v2/told/manifests/v1/references"

    def is_listed():
        with urllib.request.urlopen(path, timeout=60) as response:
            return json.loads(response.read())["manifests"]

    until("what was pushed past refshim is listed", is_listed)

    through = f"127.0.0.1:{shim.port}/app:v1"
    run(*copy, f"docker://{through}")
    for artifact_type in ("application/spdx+json", "application/vnd.example.signature"):
        run(refshim(), "attach", through, str(lab.sbom), "--artifact-type", artifact_type)


def nexus(lab):
    """Two registries below paths in Nexus' place, each with its own content."""

    def below(path):
        config = (
            "version: 0.1\nlog: {level: info, accesslog: {disabled: true}}\n"
            f"storage: {{filesystem: {{rootdirectory: ROOT}}}}\nhttp: {{addr: ADDRESS, prefix: {path}/}}\n"
        )
        return f"http://127.0.0.1:{Registry(lab.machine, config=config).port}{path}"

    hosted, proxied = below("/repository/docker-hosted"), below("/repository/docker-hub-proxy")
    config = with_other(files("nexus.md")["/etc/refshim/refshim.toml"], {
        "https://nexus.example/repository/docker-hosted": hosted,
        "https://nexus.example/repository/docker-hub-proxy": proxied,
        "/etc/refshim/password": str(lab.machine.file("password", SECRET)),
    })
    shim = Refshim(lab.machine, config, hosted)
    address = f"127.0.0.1:{shim.port}"
    copy = ["skopeo", "copy", "-q", "--insecure-policy", "--dest-tls-verify=false", lab.small.source()]
    run(*copy, f"docker://{address}/app:v1")
    attach = [refshim(), "attach", f"{address}/app:v1", str(lab.sbom), "--artifact-type", "application/spdx+json"]
    attached = run(*attach).strip()
    require(attached in run(refshim(), "references", "--json", f"{address}/app:v1"), "it is not listed")

    def answer(method, path, host):
        request = urllib.request.Request(f"http://{address}{path}", method=method, headers={"Host": host})
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, response.headers
        except urllib.error.HTTPError as error:
            return error.code, error.headers

    status, fields = answer("POST", "/v2/app/blobs/uploads/", "docker.example.com")
    location = urlsplit(urljoin("https://docker.example.com", fields["Location"]))
    leads_back = location.netloc == "docker.example.com" and location.path.startswith("/v2/app/")
    require(status == 202 and leads_back, f"{status}: {fields}")
    blob = f"/v2/app/blobs/{lab.small.layer}"
    require(answer("HEAD", blob, "docker.example.com")[0] == 200, "it is not in the hosted repository")
    require(answer("HEAD", blob, "hub.example.com")[0] == 404, "it is in the other repository")


TRIED = [distribution, nexus]
