"""The processes of the benchmark: the upstreams, the proxies, how they are set up, pinned and ended.

Everything listens on loopback and keeps its files in one directory, which goes when the benchmark ends.
Each runs as a single process, so that its CPU time is one line of /proc.
"""

import hashlib
import http.client
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BUILD = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
BLOB = 64 << 20
START_LIMIT = 30
TICKS = os.sysconf("SC_CLK_TCK")
PATH = os.environ["PATH"] + ":/usr/sbin:/sbin"

MANIFEST = """{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",\
"config":{"mediaType":"application/vnd.oci.image.config.v1+json","size":7023,\
"digest":"sha256:b5b2b2c507a0944348e0303114d8d93aaaa081732b86451d9bce1f432a537bc7"},"layers":[%s]}""" % ",".join(
    '{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","size":%d,"digest":"sha256:%064x"}' % (size, size)
    for size in range(1000, 6000, 1000)
)
DIGEST = "sha256:" + hashlib.sha256(MANIFEST.encode()).hexdigest()

NGINX = """
daemon off;
master_process off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    sendfile on;
    keepalive_timeout 1h;
    keepalive_requests 1000000000;
    client_max_body_size 0;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    {server}
}}
"""

NGINX_UPSTREAM = """
    server {{
        listen 127.0.0.1:{port} backlog=512;
        default_type application/vnd.oci.image.manifest.v1+json;
        location = /v2/bench/manifests/latest {{
            add_header Docker-Content-Digest {digest};
            return 200 '{manifest}';
        }}
        # Any digest is there, as refshim asks for the subject of a query.
        location ~ "^/v2/bench/manifests/(?<digest>sha256:[0-9a-f]{{64}})$" {{
            add_header Docker-Content-Digest $digest;
            return 200 '{manifest}';
        }}
        location /v2/bench/manifests/ {{
            if ($request_method = PUT) {{ return 201; }}
            return 404;
        }}
        location /v2/bench/blobs/ {{
            default_type application/octet-stream;
            alias {directory}/;
        }}
        location / {{ return 200 '{{}}'; }}
    }}
"""

# Responses are buffered, though recipes for registries often turn that off: nginx does better with it,
# and without temporary files it never writes a blob to disk.
NGINX_PROXY = """
    upstream registry {{
        server 127.0.0.1:{upstream};
        keepalive 256;
        keepalive_requests 1000000000;
        keepalive_timeout 1h;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=512;
        location / {{
            proxy_pass http://registry;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Forwarded-Proto $scheme;
            proxy_request_buffering off;
            proxy_max_temp_file_size 0;
        }}
    }}
"""

HAPROXY = """
global
    nbthread 1
    maxconn 4096
defaults
    mode http
    timeout connect 10s
    timeout client 1h
    timeout server 1h
    option forwardfor
    http-reuse always
frontend clients
    bind 127.0.0.1:{port} backlog 512
    default_backend registry
backend registry
    server registry 127.0.0.1:{upstream}
"""


class Broken(Exception):
    """Something did not work; a slow answer is not that."""


def program(name):
    found = shutil.which(name, path=PATH)
    if not found:
        raise Broken(f"{name} is missing")
    return found


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Part:
    """A running process that listens on `port`."""

    def __init__(self, name, process, port, log):
        self.name, self.process, self.port, self.log = name, process, port, log

    def cpu_seconds(self):
        """User and system time of all its threads so far."""
        stat = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(stat[11]) + int(stat[12])) / TICKS

    def check(self):
        status = self.process.poll()
        if status is not None:
            raise Broken(f"{self.name} ended with {status}: {self.log.read_text()[-2000:]}")

    def end(self):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Parts:
    """Starts processes, pinned; whatever was started ends with `stack`."""

    def __init__(self, directory, stack):
        self.directory, self.stack = directory, stack
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) < 2:
            raise Broken("two cores are needed: one for the proxy, one for everything else")
        self.proxy_cores, self.load_cores = str(cores[0]), ",".join(map(str, cores[1:]))
        self.blob = directory / "blob"
        with self.blob.open("wb") as file:
            for _ in range(BLOB >> 20):
                file.write(os.urandom(1 << 20))

    def start(self, name, command, port, cores, is_up=None, environment=None):
        log = self.directory / f"{name}-{port}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["taskset", "-c", cores, *map(str, command)],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, env={**os.environ, **(environment or {})},
            )
        part = Part(name, process, port, log)
        self.stack.callback(part.end)
        limit = time.monotonic() + START_LIMIT
        while not (is_up or listens)(port):
            part.check()
            if time.monotonic() > limit:
                raise Broken(f"{name} did not start within {START_LIMIT} s: {log.read_text()[-2000:]}")
            time.sleep(0.05)
        return part

    def file(self, name, text):
        path = self.directory / name
        path.write_text(text)
        return path

    def nginx(self, name, port, server, cores):
        directory = self.directory / f"{name}-{port}"
        directory.mkdir()
        configuration = self.file(f"{name}-{port}.conf", NGINX.format(directory=directory, server=server))
        return self.start(name, [program("nginx"), "-e", "stderr", "-p", directory, "-c", configuration], port, cores)

    def static_upstream(self):
        """Answers any manifest, takes any, serves the blob."""
        port = free_port()
        server = NGINX_UPSTREAM.format(port=port, manifest=MANIFEST, digest=DIGEST, directory=self.directory)
        return self.nginx("upstream", port, server, self.load_cores)

    def upload_upstream(self):
        port = free_port()
        return self.start("sink", ["python3", HERE / "bulk.py", "serve", port], port, self.load_cores)

    def nginx_proxy(self, upstream):
        port = free_port()
        return self.nginx("nginx", port, NGINX_PROXY.format(port=port, upstream=upstream), self.proxy_cores)

    def haproxy(self, upstream):
        port = free_port()
        configuration = self.file(f"haproxy-{port}.cfg", HAPROXY.format(port=port, upstream=upstream))
        return self.start("haproxy", [program("haproxy"), "-db", "-f", configuration], port, self.proxy_cores)

    def bare_proxy(self, upstream):
        port = free_port()
        command = [BUILD / "examples" / "bare_proxy", f"127.0.0.1:{port}", f"127.0.0.1:{upstream}"]
        return self.start("bare", command, port, self.proxy_cores)

    def refshim(self, upstream):
        port, admin = free_port(), free_port()
        command = [
            BUILD / "refshim", "serve", "--upstream", f"http://127.0.0.1:{upstream}",
            "--listen", f"127.0.0.1:{port}", "--admin-listen", f"127.0.0.1:{admin}",
            "--data-dir", self.directory / f"refshim-{port}",
        ]
        quiet = {"REFSHIM_LOG_FILTER": "warn"}
        return self.start("refshim", command, port, self.proxy_cores, lambda _: is_ready(admin), quiet)


def listens(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def is_ready(admin):
    connection = http.client.HTTPConnection("127.0.0.1", admin, timeout=2)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
