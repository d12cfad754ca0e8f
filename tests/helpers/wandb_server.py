"""A fake W&B server on localhost that answers wandb's requests and records what is uploaded.

It implements the parts of W&B's GraphQL, file stream and file upload APIs that a run and
`wandb sync` need, for wandb 0.21.1 and the newest version, and can simulate server failures.
"""

import collections
import contextlib
import json
import re
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
    run: str
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


class Server:
    """The server; a context manager that starts and stops it.

    Args:
        fault: How requests fail: "dies" (the server stops), "hangs" (no response), an HTTP status
            such as 500, or a delay in seconds as a float, after which the response is correct.
        since: Name of the first request that fails, such as "CommitArtifact"; "" for any.
        only: Whether only requests of that name fail; by default, all later ones fail.
    """

    def __init__(self, fault: str | int | float | None = None, since: str = "", only: bool = False):
        self.fault, self.since, self.only = fault, since, only
        self.failing = threading.Event()
        self.closed = threading.Event()
        self.requests: list[str] = []
        self.runs: dict[str, Run] = collections.defaultdict(Run)
        self.artifacts: dict[str, Artifact] = {}
        self.lock = threading.RLock()
        self.connections: set = set()

    def __enter__(self) -> "Server":
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.fake_server = self
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.die()

    def die(self) -> None:
        """Stop abruptly: close all connections without a response and refuse new ones."""
        if not self.closed.is_set():
            self.closed.set()
            self.http.socket.close()
            threading.Thread(target=self.http.shutdown).start()
            for connection in list(self.connections):
                with contextlib.suppress(OSError):
                    connection.shutdown(2)

    @property
    def run(self) -> Run:
        """The only run."""
        (run,) = self.runs.values()
        return run

    def artifact(self, kind: str) -> Artifact:
        """Return the only committed artifact of a type."""
        (artifact,) = [a for a in self.artifacts.values() if a.type == kind and a.committed]
        return artifact

    def url_of(self, *path: str) -> str:
        """Return the upload URL of a file."""
        return "/".join([self.url, "put", *(urllib.parse.quote(part, safe="") for part in path)])

    # ------------------------------------------------------------------- requests

    def respond(self, name: str, variables: dict) -> dict:
        """Return the data of the response to a GraphQL operation."""
        method = getattr(self, f"on_{name}", None)
        return method(**variables) if method else {}

    def on_Viewer(self, **_: object) -> dict:
        teams = {"edges": [{"node": {"name": ENTITY}}]}
        viewer = {"id": "viewer", "entity": ENTITY, "username": ENTITY, "email": "", "flags": "{}"}
        server = {"cliVersionInfo": {"max_cli_version": "1.0.0"}}
        return {"viewer": viewer | {"teams": teams, "admin": False}, "serverInfo": server}

    def on_ServerFeaturesQuery(self) -> dict:
        return {"serverInfo": {"features": []}}

    def on_ProbeServerCapabilities(self) -> dict:  # used by wandb 0.21
        types = {
            "QueryType": "serverInfo",
            "ServerInfoType": "cliVersionInfo",
            "MutationType": "createRunFiles",
        }
        return {name: {"fields": [{"name": known}]} for name, known in types.items()}

    def on_InputFields(self, **_: object) -> dict:
        names = (
            "tags",
            "runName",
            "entityName",
            "projectName",
            "historyStep",
            "ttlDurationSeconds",
        )
        return {"TypeInfo": {"inputFields": [{"name": name} for name in names]}}

    def on_ArtifactType(self, **_: object) -> dict:
        return {"project": None}  # accepts any type

    def on_UpsertBucket(self, name: str, project: str, config: str | None, **more: object) -> dict:
        inserted = name not in self.runs
        run = self.runs[name]
        run.settings |= {key: value for key, value in more.items() if value is not None}
        run.settings["project"] = project
        if config:
            run.config = {key: entry["value"] for key, entry in json.loads(config).items()}
        bucket = {
            "id": name,
            "name": name,
            "displayName": name,
            "config": "{}",
            "historyLineCount": 0,
            "project": {"id": project, "name": project, "entity": {"id": "e", "name": ENTITY}},
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def on_CreateRunFiles(self, run: str, files: list[str], **_: object) -> dict:
        urls = [{"name": name, "uploadUrl": self.url_of("run", run, name)} for name in files]
        return {"createRunFiles": {"runID": run, "uploadHeaders": [], "files": urls}}

    def on_CreateArtifact(self, **variables: object) -> dict:
        variables = variables.get("input", variables)
        number = str(len(self.artifacts))
        self.artifacts[number] = Artifact(
            type=variables["artifactTypeName"],
            name=variables.get("artifactCollectionName") or variables["artifactCollectionNames"][0],
            digest=variables["digest"],
            run=variables.get("runName"),
            metadata=json.loads(variables.get("metadata") or "{}"),
        )
        sequence = {"id": number, "latestArtifact": None}
        artifact = {"id": number, "state": "PENDING", "artifactSequence": sequence}
        return {"createArtifact": {"artifact": artifact}}

    def on_CreateArtifactManifest(self, artifactID: str, **_: object) -> dict:
        url = self.url_of("manifest", artifactID)
        file = {"id": artifactID, "uploadUrl": url, "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": artifactID, "file": file}}}

    def on_CreateArtifactFiles(self, **variables: object) -> dict:
        specs = variables.get("input", {}).get("artifactFiles") or variables.get("artifactFiles")
        nodes = [
            {
                "displayName": spec["name"],
                "storagePath": spec["name"],
                "uploadUrl": self.url_of("artifact", spec["artifactID"], spec["name"]),
                "uploadHeaders": [],
                "artifact": {"id": spec["artifactID"]},
            }
            for spec in specs
        ]
        return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}

    def on_CommitArtifact(self, artifactID: str) -> dict:
        artifact = self.artifacts[artifactID]
        artifact.committed = True
        committed = {"id": artifactID, "digest": artifact.digest}
        return {"commitArtifact": {"artifact": committed}}

    def on_ArtifactByID(self, id: str) -> dict:
        artifact = self.artifacts[id]
        project = {"id": "p", "internalId": "p", "name": "mine", "entity": {"name": ENTITY}}
        project |= {"entityName": ENTITY}  # of wandb 0.21
        sequence = {"__typename": "ArtifactSequence", "id": "s", "name": artifact.name}
        values = {
            "__typename": "Artifact",
            "id": id,
            "artifactSequence": sequence | {"project": project},
            "artifactType": {"name": artifact.type},
            "versionIndex": 0,
            "metadata": json.dumps(artifact.metadata),
            "ttlDurationSeconds": -2,
            "ttlIsInherited": True,
            "tags": [],
            "aliases": [],
            "state": "COMMITTED",
            "size": sum(map(len, artifact.files.values())),
            "fileCount": len(artifact.files),
            "digest": artifact.digest,
            "createdAt": "2026-01-01T00:00:00",
        }
        empty = dict.fromkeys(("description", "historyStep", "commitHash", "updatedAt"))
        return {"artifact": values | empty}

    on_ArtifactByIDShort = on_ArtifactByID  # of wandb 0.21

    def on_file_stream(self, run: str, request: dict) -> None:
        for name, part in (request.get("files") or {}).items():
            lines = enumerate(part["content"], start=part["offset"])
            self.runs[run].streams[name] |= dict(lines)
        if request.get("complete"):
            self.runs[run].exit_code = request["exitcode"]

    def on_put(self, kind: str, number: str, name: str = "", *, body: bytes) -> None:
        if kind == "run":
            self.runs[number].files[name] = body
        elif kind == "manifest":
            self.artifacts[number].manifest = json.loads(body)
        else:
            self.artifacts[number].files[name] = body


class Handler(BaseHTTPRequestHandler):
    """Parses requests and passes them to the `Server`."""

    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.server.fake_server.connections.add(self.connection)

    def finish(self) -> None:
        self.server.fake_server.connections.discard(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, *_: object) -> None:
        """Log nothing."""

    def handle_one_request(self) -> None:
        with contextlib.suppress(OSError):  # either side closed the connection
            super().handle_one_request()
            return
        self.close_connection = True

    def handle_request(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        server = self.server.fake_server
        path = [urllib.parse.unquote(part) for part in self.path.split("/")[1:]]
        request = json.loads(body) if path[0] in ("graphql", "files") else {}
        name = " ".join([path[-1], *(request.get("files") or {})])
        if path[0] == "graphql":
            match = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])
            name = match[1] if match else "Viewer"  # wandb 0.21 does not name this query
        with server.lock:
            server.requests.append(name)
            fails = server.fault is not None and server.since in name
            if fails:
                server.failing.set()
        fails = fails if server.only else server.failing.is_set()
        if fails and self.fail(server, server.fault):
            return
        response: dict = {}
        with server.lock:
            if path[0] == "graphql":
                response = {"data": server.respond(name, request.get("variables") or {})}
            elif path[-1] == "file_stream":
                server.on_file_stream(path[-2], request)
            elif path[0] == "put":
                server.on_put(*path[1:], body=body)
        self.send(200, json.dumps(response).encode())

    do_GET = do_POST = do_PUT = handle_request

    def fail(self, server: Server, fault: str | int | float) -> bool:
        """Simulate a failure; return whether the request is finished."""
        if fault == "dies":
            server.die()
        elif fault == "hangs":
            server.closed.wait()
        elif isinstance(fault, float):
            return server.closed.wait(fault)
        else:
            self.send(fault, b'{"errors": [{"message": "no"}]}')
            return True
        self.close_connection = True
        return True

    def send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
