"""docker-registry with the configuration that its page shows, telling refshim of what is pushed past it."""

import json
import urllib.request

from pages import files, with_other
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


TRIED = [distribution]
