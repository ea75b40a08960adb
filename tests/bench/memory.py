"""How much memory refshim takes while many clients hold connections: the clients, and what is resident then."""

import contextlib
import socket
import ssl
import time

from parts import KIB, MIB, Broken
from tables import say

STREAMS, IDLE, IDLE_TLS = 1_000, 5_000, 2_000
BLOB = 64 * MIB
# A few readers take little: what a stream holds is then bounded by refshim, not by the kernel's buffers.
RECEIVE_BUFFER = 64 * KIB
READ_EACH = 2 * MIB


def connect(port):
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    client.settimeout(60)
    client.connect(("127.0.0.1", port))
    return client


def connect_tls(context):
    return lambda port: context.wrap_socket(connect(port), server_hostname="localhost")


def anyone():
    """A context that does not look at certificates."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def ask(client, path):
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())


def idle(port, connections, connecting, stack):
    """Connections that stay after one request each."""
    for _ in range(connections):
        client = stack.enter_context(contextlib.closing(connecting(port)))
        ask(client, "/v2/")
        answer = b""
        while not answer.endswith(b"{}"):
            more = client.recv(65536)
            if not more:
                raise Broken("a connection was closed")
            answer += more


def streams(port, path, stack):
    """Downloads of which each client has read some, a little at a time, and then pauses."""
    clients = [stack.enter_context(contextlib.closing(connect(port))) for _ in range(STREAMS)]
    for client in clients:
        ask(client, path)
    for _ in range(READ_EACH // RECEIVE_BUFFER):
        for client in clients:
            if not client.recv(RECEIVE_BUFFER):
                raise Broken("a download was cut short")


def settled_kib(part):
    """What is resident once that no longer grows."""
    before, now = 0, part.resident_kib()
    while now > before:
        time.sleep(0.5)
        before, now = now, part.resident_kib()
    part.check()
    return now


def grown(part, hold):
    """KiB before and while `hold` holds something."""
    before = settled_kib(part)
    with contextlib.ExitStack() as stack:
        hold(stack)
        return before, settled_kib(part)


def each(part, connections, connecting):
    """KiB of memory for each idle connection, after a first one."""
    with contextlib.ExitStack() as stack:
        idle(part.port, 1, connecting, stack)
    before, after = grown(part, lambda stack: idle(part.port, connections, connecting, stack))
    return (after - before) / connections


def measured(parts, upstream):
    """MiB idle and with streams, KiB for each idle connection."""
    many = {"LIMITS_REQUESTS_PER_CLIENT": str(2 * STREAMS)}
    say(f"memory with {STREAMS} downloads")
    part = parts.refshim(upstream.port, settings=many)
    start, streaming = grown(part, lambda stack: streams(part.port, parts.blob_path(BLOB), stack))
    say(f"memory with {IDLE} idle connections")
    plain = each(parts.refshim(upstream.port), IDLE, connect)
    say(f"memory with {IDLE_TLS} idle TLS connections")
    tls = each(parts.refshim(upstream.port, has_tls=True), IDLE_TLS, connect_tls(anyone()))
    return {
        "idle_mib": start / KIB,
        "streams_mib": streaming / KIB,
        "idle_connection_kib": plain,
        "idle_tls_connection_kib": tls,
    }
