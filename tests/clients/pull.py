"""Pulls the files of an artifact with oras, and prints their content by name.

Its argument: {"registry", "target", "credentials"}, where "target" is name@digest.
"""

import json
import sys
import tempfile
from pathlib import Path

import oras.client

wanted = json.loads(sys.argv[1])
client = oras.client.OrasClient(hostname=wanted["registry"], insecure=True, auth_backend="basic")
client.login(*wanted["credentials"], hostname=wanted["registry"], tls_verify=False)
with tempfile.TemporaryDirectory() as directory:
    files = client.pull(target=f"{wanted['registry']}/{wanted['target']}", outdir=directory)
    print(json.dumps({Path(file).name: Path(file).read_text() for file in files}))
