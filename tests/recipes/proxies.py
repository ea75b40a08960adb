"""nginx, HAProxy, Traefik and Envoy in front of refshim, with the files that their pages show."""

import checks
from pages import files, require, with_other
from processes import Refshim, until

REFSHIM = "/etc/refshim/refshim.toml"


class Tried:
    """A proxy on a port of its own in front of a refshim of its own."""

    def __init__(self, lab, page):
        self.machine, self.lab = lab.machine, lab
        self.files = files(page)
        self.refshim = Refshim(
            lab.machine, self.files[REFSHIM], f"http://127.0.0.1:{lab.registry.port}",
            REFSHIM_UPSTREAMS_ECHO_URL=lab.echo.url, REFSHIM_UPSTREAMS_ECHO_PREFIXES="echo",
        )
        self.port = lab.machine.port()

    def started(self, *command, port=None):
        process, log = self.machine.start(port or self.port, *command)
        return process, log

    def passes(self, http2=True):
        lab, door = self.lab, checks.Door(self.port, self.lab.certificate, self.lab.certificates)
        checks.image_passes(door, lab.image, lab.machine.directory / "copied")
        checks.referrer_is_listed(door, lab.image, lab.sbom)
        checks.answers_are_whole(door, lab.image)
        checks.upload_streams(door, lab.registry)
        checks.registry_is_told(door)
        if http2:
            checks.http2_passes(door, lab.image, lab.machine.directory)
        return door


def nginx(lab):
    tried = Tried(lab, "nginx.md")
    log = nginx_with(tried, tried.port, {})
    held = checks.HeldDownload(tried.passes(http2=False), lab.image)

    # Without what the page says against it bodies are stored, or the last line here could not fail.
    port = lab.machine.port()
    storing = nginx_with(tried, port, {"proxy_request_buffering off;": "", "proxy_buffering off;": ""})
    door = checks.Door(port, lab.certificate, lab.certificates)
    checks.image_passes(door, lab.image_of_its_own(), lab.machine.directory / "copied")
    require("request body is buffered to a temporary file" in storing.read_text(), "no request is stored")
    stored = checks.HeldDownload(door, lab.image)
    until("an answer is stored", lambda: "upstream response is buffered to a temporary file" in storing.read_text())
    stored.ends()

    held.ends()
    require("temporary file" not in log.read_text(), f"bodies are stored: {log.read_text()}")


def nginx_with(tried, port, changes):
    """Starts nginx with the page's file in its place; the log."""
    lab = tried.lab
    settings = with_other(tried.files["/etc/nginx/conf.d/refshim.conf"], {
        "listen 443 ssl;": f"listen 127.0.0.1:{port} ssl;",
        "127.0.0.1:5000": f"127.0.0.1:{tried.refshim.port}",
        "registry.example.com": "localhost",
        "/etc/nginx/tls/registry.crt": str(lab.certificate),
        "/etc/nginx/tls/registry.key": str(lab.key),
        **changes,
    })
    directory = lab.machine.file("refshim.conf", settings).parent
    kinds = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
    stored = "".join(f"{kind}_temp_path {directory}/{kind};" for kind in kinds)
    main = lab.machine.file(
        "nginx.conf",
        f"daemon off; master_process off; pid {directory}/pid; error_log stderr warn; events {{}}\n"
        f"http {{ access_log off; {stored} include {directory}/refshim.conf; }}\n",
    )
    _, log = tried.started("nginx", "-e", "stderr", "-c", str(main), port=port)
    return log


def haproxy(lab):
    tried = Tried(lab, "haproxy.md")
    settings = with_other(tried.files["/etc/haproxy/haproxy.cfg"], {
        "bind :443": f"bind 127.0.0.1:{tried.port}",
        "127.0.0.1:5000": f"127.0.0.1:{tried.refshim.port}",
        "check port 5001": f"check port {tried.refshim.admin}",
        "/etc/haproxy/tls/registry.pem": str(lab.certificate_with_key),
    })
    tried.started("haproxy", "-db", "-f", str(lab.machine.file("haproxy.cfg", settings)))
    tried.passes()


def traefik(lab):
    tried = Tried(lab, "traefik.md")
    dynamic = with_other(tried.files["/etc/traefik/refshim.yaml"], {
        "http://127.0.0.1:5000": f"http://127.0.0.1:{tried.refshim.port}",
        "registry.example.com": "localhost",
        "/etc/traefik/tls/registry.crt": str(lab.certificate),
        "/etc/traefik/tls/registry.key": str(lab.key),
    })
    static = with_other(tried.files["/etc/traefik/traefik.yaml"], {
        '":443"': f'"127.0.0.1:{tried.port}"',
        "/etc/traefik/refshim.yaml": str(lab.machine.file("refshim.yaml", dynamic)),
    })
    # Nobody is asked for a newer version.
    static += "global: { checkNewVersion: false, sendAnonymousUsage: false }\n"
    tried.started(str(lab.programs / "traefik"), f"--configFile={lab.machine.file('traefik.yaml', static)}")
    door = checks.Door(tried.port, lab.certificate, lab.certificates)

    def is_ready():
        try:
            return door.request("GET", "/v2/")[0] == 200
        except OSError:
            return False

    until("Traefik has its routes and certificate", is_ready)
    tried.passes()


def envoy(lab):
    tried = Tried(lab, "envoy.md")
    settings = with_other(tried.files["/etc/envoy/envoy.yaml"], {
        "address: 0.0.0.0, port_value: 443": f"address: 127.0.0.1, port_value: {tried.port}",
        "address: 127.0.0.1, port_value: 5000": f"address: 127.0.0.1, port_value: {tried.refshim.port}",
        "/etc/envoy/tls/registry.crt": str(lab.certificate),
        "/etc/envoy/tls/registry.key": str(lab.key),
    })
    options = ["--disable-hot-restart", "--concurrency", "1", "--log-level", "warn"]
    tried.started(str(lab.programs / "envoy"), "-c", str(lab.machine.file("envoy.yaml", settings)), *options)
    door = tried.passes()
    # A route's own limit is 15 seconds. What comes after it is tried meanwhile.
    lab.slow = checks.SlowDownload(door, lab.image, seconds=17)


def envoy_does_not_end_slow_downloads(lab):
    lab.slow.join()
    require(lab.slow.wrong is None, lab.slow.wrong)


TRIED = [envoy, nginx, haproxy, traefik]
AT_LAST = [envoy_does_not_end_slow_downloads]
