"""Pushes one file as a manifest with oras, about another manifest if one is named.

Its argument: {"registry", "target", "file", "config", "annotations", "subject"}, where "file" and "config"
are paths, each with ":" and a media type behind it, and "subject" is a reference like "target".
"""

import json
import sys

import oras.oci
import oras.provider

wanted = json.loads(sys.argv[1])
registry = oras.provider.Registry(hostname=wanted["registry"], insecure=True)
subject = wanted.get("subject")
if subject:
    subject = oras.oci.Subject.from_manifest(registry.get_manifest(subject))
answer = registry.push(
    target=wanted["target"],
    files=[wanted["file"]],
    manifest_config=wanted["config"],
    manifest_annotations=wanted["annotations"],
    subject=subject,
    disable_path_validation=True,
    quiet=True,
)
print(json.dumps({"digest": answer.headers["Docker-Content-Digest"], "subject": answer.headers.get("OCI-Subject")}))
