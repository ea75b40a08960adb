"""Load on what was started, and what it cost.

Each kind of load gives requests, seconds and bytes, and some the times of the median and of the slowest hundredth.
"""

import json
import re
import statistics
import subprocess
import sys

from parts import HERE, MIB, Broken, program
from tables import say

CIPHER = "TLS_AES_128_GCM_SHA256"


def pinned(parts, command, seconds):
    command = ["taskset", "-c", parts.load_cores, *map(str, command)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60)
    if result.returncode != 0:
        raise Broken(f"{command[3]} ended with {result.returncode}: {result.stdout} {result.stderr}")
    return result.stdout


def wrk(parts, port, path, connections, seconds, *arguments):
    """Over HTTP/1.1; `arguments` are those of wrk.lua."""
    command = [program("wrk"), "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "60s"]
    command += ["-s", HERE / "wrk.lua", f"http://127.0.0.1:{port}{path}", "--", *arguments]
    output = pinned(parts, command, seconds)
    numbers = re.search(r"^RESULT (\d+) (\d+) (\d+) (\d+) (\d+) (\d+)$", output, re.MULTILINE)
    requests, duration, received, p50, p99, failed = map(int, numbers.groups())
    if failed or not requests:
        raise Broken(f"{failed} of {requests} requests for {path} failed: {output}")
    return {"requests": requests, "seconds": duration / 1e6, "bytes": received, "p50_us": p50, "p99_us": p99}


def h2load(parts, port, path, connections, seconds, protocol):
    """Over TLS 1.3 with one cipher, one request at a time on each connection; `protocol` is that of ALPN."""
    command = [program("h2load"), "-t1", f"-c{connections}", "-m1", f"-D{seconds}", f"--npn-list={protocol}"]
    command += [f"--tls13-ciphers={CIPHER}", f"https://127.0.0.1:{port}{path}"]
    output = pinned(parts, command, seconds)
    for expected in (f"Cipher: {CIPHER}", f"Application protocol: {protocol}"):
        if expected not in output:
            raise Broken(f"h2load does not say {expected}: {output}")
    requests, failed, received = map(int, re.search(
        r"^requests: .* (\d+) done, .* (\d+) failed,.*^traffic: \S+ \((\d+)\) total", output, re.MULTILINE | re.DOTALL
    ).groups())
    if failed or not received:
        raise Broken(f"{failed} of {requests} requests for {path} failed: {output}")
    return {"requests": requests, "seconds": seconds, "bytes": received}


def bulk(parts, direction, port, size, connections, seconds):
    """Blobs of so many bytes in one direction, over HTTP/1.1."""
    blob = parts.blob(size)
    path = parts.blob_path(size) if direction == "download" else f"/v2/bench/blobs/uploads/1?digest={blob.name}"
    command = [sys.executable, HERE / "bulk.py", direction, port, path, blob, connections, seconds]
    result = json.loads(pinned(parts, command, seconds))
    durations = result.pop("durations")
    p50, p99 = (durations[int(len(durations) * part)] * 1e6 for part in (0.5, 0.99))
    return {**result, "requests": len(durations), "p50_us": p50, "p99_us": p99}


def measure(part, load):
    """Runs a load and adds what it cost the part that answers."""
    before = part.cpu_seconds()
    result = load()
    part.check()
    cpu = (part.cpu_seconds() - before) * 1e6
    requests, mib = result["requests"], result["bytes"] / MIB
    return {
        "requests_per_second": requests / result["seconds"],
        "mib_per_second": mib / result["seconds"],
        # Of the longest downloads none may have ended.
        "cpu_us_per_request": cpu / max(requests, 1),
        "cpu_us_per_mib": cpu / mib,
        **{key: result[key] for key in ("p50_us", "p99_us") if key in result},
    }


def median(results):
    return {key: statistics.median(result[key] for result in results) for key in results[0]}


def in_turn(jobs, settings):
    """Medians by title and name of jobs (title, name, part, load): A B C D, A B C D. A load takes seconds."""
    for *_, load in jobs:
        load(1)
    results = {}
    for turn in range(settings.rounds):
        for title, name, part, load in jobs:
            say(f"round {turn + 1} of {settings.rounds}: {title}, {name}")
            numbers = measure(part, lambda: load(settings.seconds))
            results.setdefault(title, {}).setdefault(name, []).append(numbers)
    return {title: {name: median(runs) for name, runs in by_name.items()} for title, by_name in results.items()}
