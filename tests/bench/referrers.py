"""Referrers for queries: pushed one by one or written as a dump, and what is listed of them."""

import concurrent.futures
import hashlib
import http.client
import json
import re
import threading

from parts import MANIFEST_TYPE, Broken

SBOM = "application/vnd.example.sbom+json"
# One referrer of each subject is of this type, all others of the one above.
SIGNATURE = "application/vnd.example.signature+json"


def digest(text):
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def subject(count):
    """What has so many referrers."""
    return digest(f"subject of {count}")


def query_path(count):
    return f"/v2/bench/referrers/{subject(count)}"


def artifact_type(number):
    return SBOM if number else SIGNATURE


def annotations(number):
    return {"org.opencontainers.image.created": "2024-01-01T00:00:00Z", "org.example.number": str(number)}


def manifest(count, number):
    return json.dumps({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": artifact_type(number), "size": 2, "digest": "sha256:" + "4" * 64},
        "layers": [],
        "annotations": annotations(number),
        "subject": {"mediaType": MANIFEST_TYPE, "size": 1000, "digest": subject(count)},
    }).encode()


def push(port, counts):
    """Pushes the referrers of a subject for each count."""
    local = threading.local()

    def put(count, number):
        if not hasattr(local, "connection"):
            local.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        path = f"/v2/bench/manifests/referrer-{count}-{number}"
        local.connection.request("PUT", path, manifest(count, number), {"Content-Type": MANIFEST_TYPE})
        answer = local.connection.getresponse()
        body = answer.read()
        if answer.status != 201:
            raise Broken(f"PUT {path} answered {answer.status}: {body[:500]}")

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        pushes = [pool.submit(put, count, number) for count in counts for number in range(count)]
        for one in pushes:
            one.result()


def pages(port, path):
    """The number of entries on each page of an answer, and the bytes of the first."""
    entries, first = [], None
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    while path:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise Broken(f"GET {path} answered {answer.status}: {body[:500]}")
        first = first or len(body)
        entries.append(len(json.loads(body)["manifests"]))
        following = re.search(r'<([^>]+)>; *rel="?next', answer.headers.get("Link", ""))
        path = following and re.sub(r"^https?://[^/]+", "", following.group(1))
    connection.close()
    return entries, first


# In one of the repositories of a dump, with its number in place of %d and %x.
REPOSITORY = "bench/repository-%d"
REPOSITORY_SUBJECT = "sha256:%064x"
REPOSITORY_QUERY = f"/v2/{REPOSITORY}/referrers/{REPOSITORY_SUBJECT}"


def dump(path, counts, repositories):
    """A dump for `refshim index load`: a subject for each count of referrers, and repositories with one referrer each."""
    links = [("bench", subject(count), f"{count} {number}", number) for count in counts for number in range(count)]
    links += [
        (REPOSITORY % number, REPOSITORY_SUBJECT % number, f"repository {number}", 1)
        for number in range(1, repositories + 1)
    ]
    with path.open("w") as file:
        print(json.dumps({"refshim": {"format": 1, "last_order": 0}}), file=file)
        for order, (name, of, referrer, number) in enumerate(links):
            print(json.dumps(recorded(name, of, digest(f"referrer {referrer}"), number, order)), file=file)
        print(json.dumps({"end": {"records": len(links)}}), file=file)


def recorded(name, of, referrer, number, order):
    descriptor = {
        "mediaType": MANIFEST_TYPE, "digest": referrer, "size": 500,
        "artifactType": artifact_type(number), "annotations": annotations(number),
    }
    return {"recorded": {
        "referrer": {"upstream": 0, "name": name, "digest": referrer},
        "order": 1_700_000_000_000_000 + order, "pending": False,
        "descriptor": json.dumps(descriptor), "links": [{"subject": of, "kind": "subject"}],
    }}
