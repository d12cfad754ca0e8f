"""A fake W&B server on localhost that answers W&B's requests and records what is uploaded.

It implements the parts of W&B's GraphQL, file stream and file upload APIs that a run and
`wandb sync` need, and can simulate server failures.
"""

import collections
import contextlib
import json
import re
import socket
import sys
import threading
import urllib.parse
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ENTITY = "somebody"


@dataclass
class Artifact:
    """An uploaded artifact."""

    type: str
    name: str
    digest: str
    metadata: dict
    committed: bool = False
    manifest: dict = field(default_factory=dict)  # as uploaded
    files: dict[str, bytes] = field(default_factory=dict)


@dataclass
class Run:
    """An uploaded run."""

    settings: dict = field(default_factory=dict)  # project, group, tags …
    config: dict = field(default_factory=dict)
    streams: dict[str, dict[int, str]] = field(  # file name → line number → line
        default_factory=lambda: collections.defaultdict(dict)
    )
    files: dict[str, bytes] = field(default_factory=dict)
    exit_code: int | None = None

    @property
    def history(self) -> list[dict]:
        lines = self.streams["wandb-history.jsonl"]
        return [json.loads(lines[i]) for i in sorted(lines)]

    @property
    def summary(self) -> dict:
        return json.loads(self.streams["wandb-summary.json"].get(0, "{}"))


class Server(ThreadingHTTPServer):
    """The server; a context manager that starts and stops it.

    Args:
        fault: How requests fail: "dies" (the server stops), "hangs" (no response), or an HTTP
            status such as 500.
        since: Name of the first request that fails, such as "CommitArtifact"; "" for any.
        only: Whether only requests of that name fail; by default, all later ones fail.
    """

    daemon_threads = True

    def __init__(self, fault: str | int | None = None, since: str = "", only: bool = False):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.fault, self.since, self.only = fault, since, only
        self.failing, self.closed = threading.Event(), threading.Event()
        self.runs: dict[str, Run] = collections.defaultdict(Run)
        self.artifacts: dict[str, Artifact] = {}
        self.lock = threading.RLock()
        self.connections: list[socket.socket] = []

    def __enter__(self) -> "Server":
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.die()

    def process_request(self, request: socket.socket, client_address: object) -> None:
        self.connections.append(request)
        super().process_request(request, client_address)

    def handle_error(self, request: socket.socket, client_address: object) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # of a client that ended
            super().handle_error(request, client_address)

    def die(self) -> None:
        """Stop abruptly: close all connections without a response and refuse new ones."""
        if not self.closed.is_set():
            self.closed.set()
            self.socket.close()
            threading.Thread(target=self.shutdown).start()
            for connection in self.connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    @property
    def run(self) -> Run:
        """The only run."""
        (run,) = self.runs.values()
        return run

    def artifact(self, kind: str) -> Artifact:
        """Return the only committed artifact of a type."""
        (artifact,) = [a for a in self.artifacts.values() if a.type == kind and a.committed]
        return artifact

    def file(self, *path: str) -> dict:
        """Return the fields with which the client uploads a file."""
        quoted = "/".join(urllib.parse.quote(part, safe="") for part in path)
        return {"uploadUrl": f"{self.url}/put/{quoted}", "uploadHeaders": []}

    def respond(self, name: str, variables: dict) -> dict:
        """Return the data of the response to a GraphQL operation."""
        method = getattr(self, f"on_{name}", None)
        return method(**variables.get("input", variables)) if method else {}

    def on_Viewer(self, **_: object) -> dict:
        teams = {"edges": [{"node": {"name": ENTITY}}]}
        viewer = {"id": "viewer", "entity": ENTITY, "username": ENTITY, "email": "", "flags": "{}"}
        server = {"cliVersionInfo": {"max_cli_version": "1.0.0"}}
        return {"viewer": viewer | {"teams": teams, "admin": False}, "serverInfo": server}

    def on_ServerFeaturesQuery(self) -> dict:
        return {"serverInfo": {"features": []}}

    def on_ArtifactType(self, **_: object) -> dict:
        return {"project": None}  # accepts any type

    def on_UpsertBucket(self, name: str, project: str, config: str | None, **more: object) -> dict:
        inserted = name not in self.runs
        run = self.runs[name]
        run.settings |= {key: value for key, value in more.items() if value is not None}
        run.settings["project"] = project
        if config:
            run.config = {key: entry["value"] for key, entry in json.loads(config).items()}
        bucket = {"id": name, "name": name, "displayName": name, "config": "{}"}
        in_project = {"id": project, "name": project, "entity": {"id": "e", "name": ENTITY}}
        bucket |= {"historyLineCount": 0, "project": in_project}
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def on_CreateRunFiles(self, run: str, files: list[str], **_: object) -> dict:
        urls = [{"name": name, **self.file("run", run, name)} for name in files]
        return {"createRunFiles": {"runID": run, "uploadHeaders": [], "files": urls}}

    def on_CreateArtifact(self, **variables: object) -> dict:
        number = str(len(self.artifacts))
        self.artifacts[number] = Artifact(
            type=variables["artifactTypeName"],
            name=variables["artifactCollectionName"],
            digest=variables["digest"],
            metadata=json.loads(variables.get("metadata") or "{}"),
        )
        sequence = {"id": number, "latestArtifact": None}
        artifact = {"id": number, "state": "PENDING", "artifactSequence": sequence}
        return {"createArtifact": {"artifact": artifact}}

    def on_CreateArtifactManifest(self, artifactID: str, **_: object) -> dict:
        file = {"id": artifactID, **self.file("manifest", artifactID)}
        return {"createArtifactManifest": {"artifactManifest": {"id": artifactID, "file": file}}}

    def on_CreateArtifactFiles(self, artifactFiles: list[dict], **_: object) -> dict:
        edges = []
        for spec in artifactFiles:
            number, name = spec["artifactID"], spec["name"]
            node = {"displayName": name, "storagePath": name, "artifact": {"id": number}}
            edges.append({"node": node | self.file("artifact", number, name)})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def on_CommitArtifact(self, artifactID: str) -> dict:
        artifact = self.artifacts[artifactID]
        artifact.committed = True
        return {"commitArtifact": {"artifact": {"id": artifactID, "digest": artifact.digest}}}

    def on_ArtifactByID(self, id: str) -> dict:
        artifact = self.artifacts[id]
        project = {"id": "p", "internalId": "p", "name": "mine", "entity": {"name": ENTITY}}
        sequence = {"__typename": "ArtifactSequence", "id": "s", "name": artifact.name}
        values = {
            "id": id,
            "artifactSequence": sequence | {"project": project},
            "artifactType": {"name": artifact.type},
            "versionIndex": 0,
            "metadata": json.dumps(artifact.metadata),
            "ttlDurationSeconds": -2,
            "ttlIsInherited": True,
            "tags": [],
            "state": "COMMITTED",
            "size": sum(map(len, artifact.files.values())),
            "fileCount": len(artifact.files),
            "digest": artifact.digest,
            "createdAt": "2026-01-01T00:00:00",
        }
        empty = dict.fromkeys(("description", "historyStep", "commitHash", "updatedAt"))
        return {"artifact": values | empty}

    def on_file_stream(self, run: str, request: dict) -> None:
        for name, part in (request.get("files") or {}).items():
            self.runs[run].streams[name] |= dict(enumerate(part["content"], start=part["offset"]))
        if request.get("complete"):
            self.runs[run].exit_code = request["exitcode"]

    def on_put(self, kind: str, number: str, name: str = "", *, body: bytes) -> None:
        if kind == "manifest":
            self.artifacts[number].manifest = json.loads(body)
        else:
            (self.runs if kind == "run" else self.artifacts)[number].files[name] = body


class Handler(BaseHTTPRequestHandler):
    """Parses requests and passes them to the `Server`."""

    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: object) -> None:
        """Log nothing."""

    def handle_request(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        server = self.server
        path = [urllib.parse.unquote(part) for part in self.path.split("/")[1:]]
        request = json.loads(body) if path[0] in ("graphql", "files") else {}
        name = " ".join(["/".join(path[1:]), *(request.get("files") or {})])
        if path[0] == "graphql":
            name = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])[1]
        with server.lock:
            fails = server.fault is not None and server.since in name
            if fails:
                server.failing.set()
            if fails if server.only else server.failing.is_set():
                response = None
            elif path[0] == "graphql":
                response = {"data": server.respond(name, request.get("variables") or {})}
            else:
                response = {}
                if path[-1] == "file_stream":
                    server.on_file_stream(path[-2], request)
                elif path[0] == "put":
                    server.on_put(*path[1:], body=body)
        if response is not None:
            self.send(200, response)
        elif isinstance(server.fault, int):
            self.send(server.fault, {"errors": [{"message": "no"}]})
        else:
            if server.fault == "dies":
                server.die()
            server.closed.wait()
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def send(self, status: int, content: dict) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
