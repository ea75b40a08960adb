"""Pushes and pulls files with oras, and looks at tags and manifests, there or not.

Its argument: {"registry", "credentials", "token", "tls"}, where "credentials" is null or a user and a password.
With a token they are not used: oras asks for the right to pull, and then never for the one to push.
"""

import hashlib
import json
import sys
from pathlib import Path

import oras.client

wanted = json.loads(sys.argv[1])
registry = wanted["registry"]
client = oras.client.OrasClient(
    hostname=registry, insecure=not wanted["tls"], auth_backend="token" if wanted["token"] else "basic"
)
if wanted["token"]:
    client.auth.set_token_auth(wanted["token"])
elif wanted["credentials"]:
    client.login(*wanted["credentials"], hostname=registry, tls_verify=wanted["tls"])

Path("small").write_text("an artifact\n")
Path("large").write_bytes(b"x" * 100_000)
for tag, chunked in [("whole", False), ("chunked", True)]:
    answer = client.push(
        target=f"{registry}/oras:{tag}",
        files=["small", "large"],
        disable_path_validation=True,
        manifest_annotations={"org.opencontainers.image.created": "2026-01-01T00:00:00Z"},
        do_chunked=chunked,
        chunk_size=40_000,
        quiet=True,
    )
    print("push", answer.status_code, answer.headers["Docker-Content-Digest"])
for file in sorted(client.pull(target=f"{registry}/oras:chunked", outdir="pulled")):
    print("pull", Path(file).name, hashlib.sha256(Path(file).read_bytes()).hexdigest())
print("tags", client.get_tags(f"{registry}/oras"))
print("manifest", json.dumps(client.get_manifest(f"{registry}/oras:whole")))
try:
    client.get_manifest(f"{registry}/oras:none")
except ValueError as error:
    print("none", error)
