"""Large bodies at next to no cost: the upstream that takes uploads, and the client of both directions.

What is received is thrown away in the kernel (MSG_TRUNC) and what is sent comes from the page cache
(sendfile), so that the core that makes the load is not what limits a proxy.
"""

import json
import os
import re
import socket
import sys
import threading
import time

CHUNK = 1 << 20
NOWHERE = bytearray(CHUNK)


def read_head(connection):
    """The head of a message, with what of the body came along; nothing when the connection ended."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        if not more:
            return b"", b""
        data += more
    head, _, rest = data.partition(b"\r\n\r\n")
    return head, rest


def length_of(head):
    if b"chunked" in head.lower():
        raise ValueError("a body without a length is not measured here")
    found = re.search(rb"(?im)^content-length: *(\d+)", head)
    return int(found.group(1)) if found else 0


def discard(connection, length):
    while length > 0:
        received = connection.recv_into(NOWHERE, min(length, CHUNK), socket.MSG_TRUNC)
        if not received:
            raise ConnectionError("the body was cut short")
        length -= received


def take_uploads(connection):
    """Answers each request once all of its body is there: a PUT with 201, a look whether it is up with 200."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection:
        while True:
            head, rest = read_head(connection)
            if not head:
                return
            discard(connection, length_of(head) - len(rest))
            status = b"201 Created" if head.startswith(b"PUT ") else b"200 OK"
            connection.sendall(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n")


def serve(port):
    listener = socket.create_server(("127.0.0.1", port), backlog=128)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=take_uploads, args=(connection,), daemon=True).start()


def download(connection, path, _file):
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())
    head, rest = read_head(connection)
    length = length_of(head)
    discard(connection, length - len(rest))
    return head, length


def upload(connection, path, file):
    length = os.fstat(file).st_size
    connection.sendall(f"PUT {path} HTTP/1.1\r\nHost: bench\r\nContent-Length: {length}\r\n\r\n".encode())
    sent = 0
    while sent < length:
        sent += os.sendfile(connection.fileno(), file, sent, length - sent)
    head, _ = read_head(connection)
    return head, length


def transfer(transfers, port, path, file, until, results):
    """Repeats one transfer on one connection until the time is up; the last one is completed."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while time.monotonic() < until:
            started = time.monotonic()
            head, length = transfers(connection, path, file)
            if not re.match(rb"HTTP/1.1 20[01] ", head):
                raise ConnectionError(f"answered {head[:80]}")
            results.append((time.monotonic() - started, length))


def load(direction, port, path, file_name, connections, seconds):
    """Prints what was transferred: count, bytes, seconds, and the time that each transfer took."""
    results, file = [], os.open(file_name, os.O_RDONLY)
    started = time.monotonic()
    arguments = (globals()[direction], port, path, file, started + seconds, results)
    threads = [threading.Thread(target=transfer, args=arguments) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({
        "seconds": time.monotonic() - started,
        "bytes": sum(length for _, length in results),
        "durations": sorted(duration for duration, _ in results),
    }))


def fail_loudly(failure):
    """A thread that fails takes the whole client with it."""
    sys.stderr.write(f"bulk: {failure.exc_type.__name__}: {failure.exc_value}\n")
    sys.stderr.flush()
    os._exit(1)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    else:
        threading.excepthook = fail_loudly
        _, direction, port, path, file_name, connections, seconds = sys.argv
        load(direction, int(port), path, file_name, int(connections), float(seconds))
