"""A Hub on 127.0.0.1, which speaks the Hub's protocol to the real client, and what that client makes of it."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest

# What the Hub keeps as a large file, behind a redirect to another host.
LARGE = ".safetensors"
REPOSITORY = "somebody/cells"
CLIENT = """
import json, os, sys
from pathlib import Path
from tahoe.errors import TahoeError
from tahoe.model.hub import download as hub

call = json.loads(sys.argv[1])
hub.RELEASES["70m"] = hub.Release(call["repository"], "70m-model", call["pinned"], "", call["sha256"])
cache_dir = Path(call["cache_dir"]) if call["cache_dir"] else None
try:
    found = hub.download("70m", revision=call["revision"], cache_dir=cache_dir)
    if call["verify"]:
        hub.verify("70m", found, cache_dir=cache_dir)
    told = {"folder": str(found.folder), "commit": found.commit, "weights_sha256": found.weights_sha256}
except TahoeError as error:
    told = {"error": str(error)}
assert "torch" not in sys.modules
print(json.dumps(told))
"""


def git_name(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class LoopbackHub(ThreadingHTTPServer):
    """Files of one repository, by commit and path, and what is to go wrong."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.commits: dict[str, dict[str, bytes]] = {}
        self.main = ""
        self.blobs: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.gated_for = ""
        """If set, the token that is let in."""
        self.cuts = 0
        """How many downloads of large files break off half-way."""
        self.damaged: set[str] = set()
        """Paths of files that arrive with one byte changed."""

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, files: dict[str, bytes]) -> str:
        """Put files there, on the main branch; its name is made from the content, as git's is."""
        name = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.commits[name], self.main = files, name
        return name

    def paths(self, method: str = "GET") -> list[str]:
        return [path for verb, path, _ in self.requests if verb == method]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: LoopbackHub

    def log_message(self, *arguments: object) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self, content: object) -> None:
        self.answer(200, json.dumps(content).encode(), Content_Type="application/json")

    def fails(self, status: int, code: str) -> None:
        self.answer(status, X_Error_Code=code, X_Error_Message=code)

    def noted(self) -> tuple[list[str], bytes]:
        path = urlsplit(self.path).path
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.requests.append((self.command, unquote(path), headers))
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return [unquote(part) for part in path.strip("/").split("/")], body

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts, _ = self.noted()
        match parts:
            case ["large", oid]:
                self.large(oid)
            case ["api", "models", *names, "revision", revision] if "/".join(names) == REPOSITORY:
                files = self.files(revision)
                if files is not None:
                    commit = self.server.main if revision == "main" else revision
                    names = [{"rfilename": path} for path in files]
                    self.json({"id": REPOSITORY, "sha": commit, "siblings": names, "tags": []})
            case ["api", "models", *names, "tree", revision] if "/".join(names) == REPOSITORY:
                files = self.files(revision)
                if files is not None:
                    self.json([self.entry(path, content) for path, content in files.items()])
            case [owner, name, "resolve", revision, *path] if f"{owner}/{name}" == REPOSITORY:
                self.resolve(revision, "/".join(path))
            case _:
                self.fails(404, "RepoNotFound")

    def files(self, revision: str) -> dict[str, bytes] | None:
        commit = self.server.main if revision == "main" else revision
        if commit not in self.server.commits:
            self.fails(404, "RevisionNotFound")
            return None
        return self.server.commits[commit]

    def entry(self, path: str, content: bytes) -> dict[str, object]:
        entry: dict[str, object] = {
            "type": "file",
            "path": path,
            "size": len(content),
            "oid": git_name(content),
        }
        if path.endswith(LARGE):
            oid = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 134}
        return entry

    def resolve(self, revision: str, path: str) -> None:
        files, hub = self.files(revision), self.server
        if files is None:
            return
        if hub.gated_for and self.headers.get("Authorization") != f"Bearer {hub.gated_for}":
            self.fails(401 if "Authorization" not in self.headers else 403, "GatedRepo")
            return
        if path not in files:
            self.fails(404, "EntryNotFound")
            return
        content = files[path]
        commit = hub.main if revision == "main" else revision
        if path.endswith(LARGE):
            oid = hashlib.sha256(content).hexdigest()
            hub.blobs[oid] = damage(content) if path in hub.damaged else content
            # another host as far as the client can tell, so that it must not send its token there
            where = f"http://localhost:{hub.server_port}/large/{oid}"
            facts = {"X_Linked_ETag": f'"{oid}"', "X_Linked_Size": str(len(content))}
            self.answer(302, X_Repo_Commit=commit, Location=where, **facts)
        else:
            name = git_name(content)
            content = damage(content) if path in hub.damaged else content
            self.answer(200, content, X_Repo_Commit=commit, ETag=f'"{name}"')

    def large(self, oid: str) -> None:
        content, hub = self.server.blobs[oid], self.server
        first = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(content) - first))
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        if hub.cuts > 0:
            hub.cuts -= 1
            self.wfile.write(content[first : first + (len(content) - first) // 2])
            self.close_connection = True
        else:
            self.wfile.write(content[first:])

    def do_POST(self) -> None:
        parts, body = self.noted()
        hub = self.server
        match parts:
            case ["api", "repos", "create"]:
                self.json({"url": f"{hub.endpoint}/{REPOSITORY}", "name": REPOSITORY, "id": "1"})
            case ["api", "validate-yaml"]:
                self.json({"errors": [], "warnings": []})
            case ["api", "models", *_, "preupload", _]:
                paths = [file["path"] for file in json.loads(body)["files"]]
                modes = {True: "lfs", False: "regular"}
                self.json(
                    {
                        "files": [
                            {"path": path, "uploadMode": modes[path.endswith(LARGE)], "shouldIgnore": False}
                            for path in paths
                        ]
                    }
                )
            case [*_, "info", "lfs", "objects", "batch"]:
                objects = [
                    file | {"actions": {"upload": {"href": f"{hub.endpoint}/upload/{file['oid']}"}}}
                    for file in json.loads(body)["objects"]
                ]
                self.json({"transfer": "basic", "objects": objects})
            case ["api", "models", *_, "commit", _]:
                files = dict(hub.commits.get(hub.main, {}))
                for line in map(json.loads, body.splitlines()):
                    value = line["value"]
                    if line["key"] == "file":
                        files[value["path"]] = base64.b64decode(value["content"])
                    elif line["key"] == "lfsFile":
                        files[value["path"]] = hub.blobs[value["oid"]]
                name = hub.commit(files)
                self.json(
                    {"success": True, "commitOid": name, "commitUrl": f"{hub.endpoint}/{REPOSITORY}/commit/{name}"}
                )
            case _:
                self.fails(404, "RepoNotFound")

    def do_PUT(self) -> None:
        parts, body = self.noted()
        assert hashlib.sha256(body).hexdigest() == parts[1]
        self.server.blobs[parts[1]] = body
        self.answer(200)


def damage(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.fixture
def loopback(reference):
    """A running Hub that has the small network of the tests as ``70m-model``, and a file that nobody asked for."""
    hub = LoopbackHub()
    files = {f"70m-model/{file.name}": file.read_bytes() for file in (reference / "tiny-model").iterdir()}
    hub.commit(files | {"70m-model/payload.pkl": b"\x80\x04never to be read"})
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield hub
    hub.shutdown()
    thread.join()
    hub.server_close()


class Client:
    """The real client in a process of its own, since it reads its environment at import."""

    def __init__(self, hub: LoopbackHub, home: object) -> None:
        self.hub = hub
        self.home = home
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
            "HF_ENDPOINT": hub.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "TAHOE_PROGRESS": "0",
        }

    def start(self, *, revision=None, pinned=None, sha256=(), verify=False, cache_dir=None, **environment):
        call = {
            "repository": REPOSITORY,
            "revision": revision,
            "pinned": pinned or self.hub.main,
            "sha256": dict(sha256),
            "verify": verify,
            "cache_dir": cache_dir and str(cache_dir),
        }
        return subprocess.Popen(
            [sys.executable, "-c", CLIENT, json.dumps(call)],
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def download(self, **call):
        return result(self.start(**call))


def result(process: subprocess.Popen) -> dict:
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return json.loads(out) | {"stderr": errors}


@pytest.fixture
def client(loopback, tmp_path):
    return Client(loopback, tmp_path / "home")
