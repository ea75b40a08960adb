"""The processes of the benchmark: the upstreams, the proxies, how they are set up, pinned and ended.

Everything listens on loopback and keeps its files in one directory, which goes when the benchmark ends.
"""

import hashlib
import http.client
import os
import pwd
import re
import resource
import shutil
import socket
import subprocess
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BUILD = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
KIB, MIB = 1 << 10, 1 << 20
START_LIMIT = 30
OPEN_FILES = 65_536
TICKS = os.sysconf("SC_CLK_TCK")
PATH = os.environ["PATH"] + ":/usr/sbin:/sbin"

MANIFEST = """{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",\
"config":{"mediaType":"application/vnd.oci.image.config.v1+json","size":7023,\
"digest":"sha256:b5b2b2c507a0944348e0303114d8d93aaaa081732b86451d9bce1f432a537bc7"},"layers":[%s]}""" % ",".join(
    '{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","size":%d,"digest":"sha256:%064x"}' % (size, size)
    for size in range(1000, 6000, 1000)
)
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
MANIFEST_PATH = f"/v2/bench/manifests/sha256:{hashlib.sha256(MANIFEST.encode()).hexdigest()}"

NGINX = """
daemon off;
user {user};
worker_processes {workers};
pid {directory}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 32768; }}
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
        listen 127.0.0.1:{port} backlog=4096;
        # Any digest is there, as refshim asks for the subject of a query.
        location ~ "/manifests/(?<digest>sha256:[0-9a-f]{{64}})$" {{
            default_type {manifest_type};
            add_header Docker-Content-Digest $digest;
            return 200 '{manifest}';
        }}
        location ~ /manifests/ {{
            if ($request_method = PUT) {{ return 201; }}
            return 404;
        }}
        # No referrers API: refshim lists what it knows itself.
        location ~ /referrers/ {{ return 404; }}
        location ^~ /v2/bench/blobs/ {{
            default_type application/octet-stream;
            alias {directory}/;
        }}
        location / {{
            default_type application/json;
            return 200 '{{}}';
        }}
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
        listen 127.0.0.1:{port} {protocols} backlog=4096 reuseport;
        {tls}
        tcp_nodelay on;
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_set_header Host $http_host;
        proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
        proxy_set_header X-Forwarded-Proto $scheme;
        proxy_request_buffering off;
        proxy_max_temp_file_size 0;
        location / {{
            proxy_pass http://registry;
        }}
        location /v2/bench/blobs/ {{
            proxy_pass http://registry;
            {blobs}
        }}
    }}
"""

# With nginx' own buffers of 4 KiB, a MiB of a large blob takes it three to four times as long.
NGINX_BLOBS = """
            proxy_buffer_size 256k;
            proxy_buffers 8 256k;
            proxy_busy_buffers_size 512k;
            client_body_buffer_size 1m;
"""

NGINX_TLS = """
        ssl_certificate {certificate};
        ssl_certificate_key {key};
        ssl_protocols TLSv1.3;
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
    bind 127.0.0.1:{port} backlog 4096
    default_backend registry
backend registry
    server registry 127.0.0.1:{upstream}
"""


class Broken(Exception):
    """Something did not work; a slow answer is not that."""


def refshim_binary():
    """What is measured."""
    return Path(os.environ.get("TEST_BINARY", BUILD / "refshim"))


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
        return cpu_seconds(self.process.pid)

    def resident_kib(self):
        return memory_kib(self.process.pid, "VmRSS")

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
        self.proxy_core, self.two_cores = str(cores[0]), f"{cores[0]},{cores[1]}"
        self.load_cores = ",".join(map(str, cores[1:]))
        self.blobs = {}
        # Nginx' workers look for their files as this user.
        self.user = pwd.getpwuid(os.geteuid()).pw_name

    def blob(self, size):
        """A file of so many bytes, which the upstream serves at [`blob_path`]."""
        if size not in self.blobs:
            content = os.urandom(size)
            self.blobs[size] = self.directory / f"sha256:{hashlib.sha256(content).hexdigest()}"
            self.blobs[size].write_bytes(content)
        return self.blobs[size]

    def blob_path(self, size):
        return f"/v2/bench/blobs/{self.blob(size).name}"

    def certificate(self):
        """A certificate of ECDSA P-256 and its key."""
        certificate, key = self.directory / "certificate.pem", self.directory / "key.pem"
        if not key.exists():
            command = [program("openssl"), "req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
            command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
            command += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-keyout", key, "-out", certificate]
            subprocess.run(command, check=True, capture_output=True)
        return certificate, key

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

    def nginx(self, name, port, server, cores, workers=1):
        directory = self.directory / f"{name}-{port}"
        directory.mkdir()
        text = NGINX.format(directory=directory, server=server, workers=workers, user=self.user)
        configuration = self.file(f"{name}-{port}.conf", text)
        return self.start(name, [program("nginx"), "-e", "stderr", "-p", directory, "-c", configuration], port, cores)

    def static_upstream(self):
        """Answers any manifest, takes any, serves the blobs."""
        port = free_port()
        server = NGINX_UPSTREAM.format(
            port=port, directory=self.directory, manifest=MANIFEST, manifest_type=MANIFEST_TYPE
        )
        return self.nginx("upstream", port, server, self.load_cores)

    def upload_upstream(self):
        port = free_port()
        return self.start("sink", ["python3", HERE / "bulk.py", "serve", port], port, self.load_cores)

    def nginx_proxy(self, upstream, cores=None, has_tls=False):
        port, cores = free_port(), cores or self.proxy_core
        certificate, key = self.certificate() if has_tls else (None, None)
        server = NGINX_PROXY.format(
            port=port, upstream=upstream, blobs=NGINX_BLOBS,
            protocols="ssl http2" if has_tls else "",
            tls=NGINX_TLS.format(certificate=certificate, key=key) if has_tls else "",
        )
        return self.nginx("nginx", port, server, cores, workers=len(cores.split(",")))

    def haproxy(self, upstream):
        port = free_port()
        configuration = self.file(f"haproxy-{port}.cfg", HAPROXY.format(port=port, upstream=upstream))
        return self.start("haproxy", [program("haproxy"), "-db", "-f", configuration], port, self.proxy_core)

    def bare_proxy(self, upstream):
        port = free_port()
        command = [BUILD / "examples" / "bare_proxy", f"127.0.0.1:{port}", f"127.0.0.1:{upstream}"]
        return self.start("bare", command, port, self.proxy_core)

    def refshim(self, upstream, cores=None, has_tls=False, settings=None, data=None):
        """With its defaults, but for `settings`: values by their variables without `REFSHIM_`."""
        port, admin = free_port(), free_port()
        settings = dict(settings or {})
        if has_tls:
            settings["TLS_CERTIFICATE"], settings["TLS_KEY"] = map(str, self.certificate())
        command = [
            refshim_binary(), "serve", "--upstream", f"http://127.0.0.1:{upstream}",
            "--listen", f"127.0.0.1:{port}", "--admin-listen", f"127.0.0.1:{admin}",
            "--data-dir", data or self.directory / f"refshim-{port}",
        ]
        environment = {f"REFSHIM_{key}": value for key, value in settings.items()}
        return self.start("refshim", command, port, cores or self.proxy_core, lambda _: is_ready(admin), environment)


def cpu_seconds(pid):
    """User and system time so far of a process and its children, also of those that ended."""
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(stat.parent.name) == pid:
            total += sum(int(fields[place]) for place in (11, 12, 13, 14))
        elif int(fields[1]) == pid:
            total += int(fields[11]) + int(fields[12])
    return total / TICKS


def memory_kib(pid, key):
    """A line of the process's status: `VmRSS` is what is resident, `VmHWM` the most that ever was."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(rf"^{key}:\s+(\d+)", status, re.MULTILINE)[1])


def allow_open_files():
    """For this process and what it starts: enough for all connections here, or as many as there may be."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, max(most, OPEN_FILES)))
    except (OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


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
