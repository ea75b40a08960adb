"""A push, a pull, tags and their end, and an error, by oras-py: HOST REPOSITORY."""

import hashlib
import os
import sys
from pathlib import Path

import oras.client

host, repository = sys.argv[1:]
tls = os.environ["ORAS_TLS"] == "true"
client = oras.client.OrasClient(hostname=host, insecure=not tls, auth_backend=os.environ.get("ORAS_AUTH", "token"))
if "ORAS_USER" in os.environ:
    client.login(os.environ["ORAS_USER"], os.environ["ORAS_PASSWORD"], hostname=host, tls_verify=tls)


def digest(content):
    return "sha256:" + hashlib.sha256(content).hexdigest()


Path("artifact.txt").write_text("an artifact\n")
Path("large.bin").write_bytes(b"x" * 100_000)
for tag, chunked in [("v1", False), ("v2", True)]:
    answer = client.push(
        target=f"{repository}:{tag}",
        files=["artifact.txt", "large.bin"],
        disable_path_validation=True,
        manifest_annotations={"org.opencontainers.image.created": "2026-01-01T00:00:00Z"},
        do_chunked=chunked,
        chunk_size=40_000,
    )
    print("push", answer.status_code, answer.headers.get("Docker-Content-Digest"))
for file in sorted(client.pull(target=f"{repository}:v1", outdir="pulled")):
    print("pull", Path(file).name, digest(Path(file).read_bytes()))
print("tags", client.get_tags(repository))
print("manifest", client.get_manifest(f"{repository}:v2"))
try:
    client.get_manifest(f"{repository}:none")
except Exception as error:  # noqa: BLE001
    print("none", type(error).__name__, error)
