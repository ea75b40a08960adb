"""What a client must find behind any proxy: transfers of any size that are not stored on the way, addresses that lead
back, and a registry that is told who asks."""

import gzip
import hashlib
import http.client
import http.server
import io
import json
import os
import shutil
import ssl
import tarfile
import threading
import time
from urllib.parse import urljoin, urlsplit

from pages import require
from processes import refshim, run, until

LAYER_BYTES = 48 << 20
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CLIENT = "127.0.0.2"


def digest_of(content):
    return "sha256:" + hashlib.sha256(content).hexdigest()


class Image:
    """An OCI layout with one image of one large layer, which gzip does not make smaller."""

    def __init__(self, directory, tag="v1", size=LAYER_BYTES):
        self.directory, self.tag = directory, tag
        directory.mkdir()
        (directory / "blobs" / "sha256").mkdir(parents=True)
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            member = tarfile.TarInfo("large")
            member.size = size
            tar.addfile(member, io.BytesIO(os.urandom(size)))
        layer = self.blob(gzip.compress(archive.getvalue(), 0), "application/vnd.oci.image.layer.v1.tar+gzip")
        rootfs = {"type": "layers", "diff_ids": [digest_of(archive.getvalue())]}
        config = {"architecture": "amd64", "os": "linux", "rootfs": rootfs}
        config = self.blob(json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json")
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]}
        manifest = self.blob(json.dumps(manifest).encode(), MANIFEST)
        self.layer, self.digest = layer["digest"], manifest["digest"]
        named = {**manifest, "annotations": {"org.opencontainers.image.ref.name": tag}}
        (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [named]}))
        (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def blob(self, content, media_type):
        digest = digest_of(content)
        (self.directory / "blobs" / "sha256" / digest.removeprefix("sha256:")).write_bytes(content)
        return {"mediaType": media_type, "digest": digest, "size": len(content)}

    def source(self):
        return f"oci:{self.directory}:{self.tag}"


class Echo:
    """In a registry's place, answers with the fields of each request: what a registry is told."""

    def __init__(self):
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                body = json.dumps({name.lower(): value for name, value in self.headers.items()}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


class Door:
    """The proxy's port, over TLS, as a client at an address of its own meets it."""

    def __init__(self, port, authority, certificates):
        self.port, self.authority, self.certificates = port, authority, certificates
        self.host = f"localhost:{port}"
        self.trust = ssl.create_default_context(cafile=authority)

    def connection(self):
        return http.client.HTTPSConnection(
            "localhost", self.port, context=self.trust, timeout=60, source_address=(CLIENT, 0)
        )

    def request(self, method, path, **fields):
        """The status, the fields and the body of an answer."""
        connection = self.connection()
        headers = {name.replace("_", "-"): value for name, value in fields.items()}
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        answer = response.status, response.headers, response.read()
        connection.close()
        return answer


def image_passes(door, image, directory):
    """A large layer, there and back, by a client that uploads in chunks."""
    shutil.rmtree(directory, ignore_errors=True)
    skopeo = ["skopeo", "copy", "-q", "--insecure-policy"]
    remote = f"docker://{door.host}/app:v1"
    run(*skopeo, "--dest-cert-dir", str(door.certificates), image.source(), remote)
    run(*skopeo, "--src-cert-dir", str(door.certificates), remote, f"dir:{directory}")
    copied = digest_of((directory / image.layer.removeprefix("sha256:")).read_bytes())
    require(copied == image.layer, f"{copied} came back for {image.layer}")


def referrer_is_listed(door, image, sbom):
    attached = run(
        refshim(), "attach", f"{door.host}/app:v1", str(sbom), "--artifact-type", "application/spdx+json",
        "--ca-file", str(door.authority),
    ).strip()
    status, fields, body = door.request("GET", f"/v2/app/referrers/{image.digest}")
    require(status == 200, f"{status}: {body}")
    require(fields["Content-Type"] == "application/vnd.oci.image.index.v1+json", fields["Content-Type"])
    listed = [entry["digest"] for entry in json.loads(body)["manifests"]]
    require(attached in listed, f"{attached} is not in {listed}")


def answers_are_whole(door, image):
    """HEAD tells the length, a range is one, and an error is the registry's."""
    status, fields, _ = door.request("HEAD", "/v2/app/manifests/v1", Accept=MANIFEST)
    require((status, fields["Docker-Content-Digest"]) == (200, image.digest), f"{status}: {fields}")
    require(int(fields["Content-Length"]) > 0, f"{fields}")
    status, fields, body = door.request("GET", f"/v2/app/blobs/{image.layer}", Range="bytes=10-19")
    require((status, len(body)) == (206, 10), f"{status}: {fields}")
    status, _, body = door.request("GET", "/v2/app/manifests/none", Accept=MANIFEST)
    require(status == 404 and json.loads(body)["errors"][0]["code"] == "MANIFEST_UNKNOWN", f"{status}: {body}")
    status, _, body = door.request("GET", "/v2/", Authorization="Bearer " + "x" * 20000)
    require(status == 200, f"a long token: {status}: {body}")


def upload_streams(door, registry):
    """A layer reaches the registry while it is being sent, and the addresses on the way lead back to the proxy."""
    status, fields, body = door.request("POST", "/v2/streamed/blobs/uploads/", Content_Length="0")
    require(status == 202, f"{status}: {body}")
    location = leads_back(door, fields["Location"])
    content = os.urandom(16 << 20)
    connection = door.connection()
    connection.putrequest("PATCH", location)
    connection.putheader("Content-Type", "application/octet-stream")
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    half = len(content) // 2
    chunk(connection, content[:half])
    until("half of the upload is at the registry", lambda: registry.uploading() > half // 2)
    chunk(connection, content[half:])
    connection.send(b"0\r\n\r\n")
    response = connection.getresponse()
    body = response.read()
    require(response.status == 202, f"{response.status}: {body}")
    location = leads_back(door, response.headers["Location"])
    mark = "&" if "?" in location else "?"
    status, fields, body = door.request("PUT", f"{location}{mark}digest={digest_of(content)}", Content_Length="0")
    require(status == 201, f"{status}: {body}")
    status, _, body = door.request("GET", leads_back(door, fields["Location"]))
    require((status, body == content) == (200, True), f"{status}, {len(body)} bytes")


def http2_passes(door, image, directory):
    """A large layer in one piece, there and back, over HTTP/2."""
    curl = ["curl", "-qfsS", "--http2", "--cacert", str(door.authority), "-w", "%{http_version}"]
    there, back = image.directory / "blobs" / "sha256" / image.layer.removeprefix("sha256:"), directory / "over-http2"
    _, fields, _ = door.request("POST", "/v2/http2/blobs/uploads/", Content_Length="0")
    location = leads_back(door, fields["Location"])
    location += ("&" if "?" in location else "?") + f"digest={image.layer}"
    version = run(*curl, "-T", str(there), "-o", "/dev/null", f"https://{door.host}{location}")
    require(version == "2", f"the upload went by HTTP/{version}")
    version = run(*curl, "-o", str(back), f"https://{door.host}/v2/http2/blobs/{image.layer}")
    require(version == "2" and digest_of(back.read_bytes()) == image.layer, f"HTTP/{version}, or other bytes")


def chunk(connection, content):
    connection.send(f"{len(content):x}\r\n".encode() + content + b"\r\n")


def leads_back(door, location):
    """The path of an address that a client follows."""
    followed = urlsplit(urljoin(f"https://{door.host}/", location))
    require((followed.scheme, followed.netloc) == ("https", door.host), f"{location} leads elsewhere")
    return followed.path + ("?" + followed.query if followed.query else "")


class HeldDownload:
    """A client that has asked for a layer and takes nothing of it until it is told to."""

    def __init__(self, door, image):
        self.image, connection = image, door.connection()
        connection.request("GET", f"/v2/app/blobs/{image.layer}")
        self.response = connection.getresponse()

    def ends(self):
        content = self.response.read()
        require(digest_of(content) == self.image.layer, f"{len(content)} bytes came")


class SlowDownload(threading.Thread):
    """A client that takes a part, and the rest only when a limit on the whole would have ended it."""

    def __init__(self, door, image, seconds):
        super().__init__(daemon=True)
        self.door, self.image, self.seconds = door, image, seconds
        self.wrong = "it never ended"
        self.start()

    def run(self):
        try:
            connection = self.door.connection()
            connection.request("GET", f"/v2/app/blobs/{self.image.layer}")
            response = connection.getresponse()
            content = response.read(1 << 20)
            time.sleep(self.seconds)
            content += response.read()
            self.wrong = None if digest_of(content) == self.image.layer else f"{len(content)} bytes came"
        except Exception as error:  # Told by whoever waits for it.
            self.wrong = repr(error)


def registry_is_told(door):
    """Who asks, whatever the client says of itself: registries believe the first address."""
    lie = {"X_Forwarded_For": "203.0.113.9", "X_Forwarded_Proto": "http", "X_Forwarded_Host": "elsewhere.example"}
    for said in ({}, lie):
        status, _, body = door.request("GET", "/v2/echo/manifests/v1", **said)
        require(status == 200, f"{status}: {body}")
        told = json.loads(body)
        require(told["x-forwarded-for"].split(",")[0] == CLIENT, f"{said}: {told}")
        require(told["x-forwarded-proto"] == "https", f"{said}: {told}")
        require(told["x-forwarded-host"] == door.host, f"{said}: {told}")
