"""A stand-in for W&B's server on loopback: answers what wandb's client asks, keeps what it sends.

It speaks the part of W&B's GraphQL, file stream and file upload that a run and `wandb sync` need,
of wandb 0.21.1 and of the newest, and can fail as servers do, from a request on that a test names.
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
    """What arrived of an artifact."""

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
    """What arrived of a run."""

    settings: dict = field(default_factory=dict)  # project, group, tags …
    config: dict = field(default_factory=dict)
    streams: dict[str, dict[int, str]] = field(  # of each streamed file: its lines
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
    """The server, from `with` to its end. `fail` is how it fails from some request on.

    Args:
        fault: what the first request that must fail gets, and each after it: "dies" (no
            connection any more), "hangs" (no answer), a status such as 500, or a number of seconds
            as a float, after which the right answer comes.
        since: the first request's name, such as "CommitArtifact"; "" is any.
        only: whether no others fail than those of that name.
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
        self.http.stand_in = self
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *of: object) -> None:
        self.die()

    def die(self) -> None:
        """Ends it as a power cut would: nothing is answered, nobody can connect."""
        if not self.closed.is_set():
            self.closed.set()
            self.http.socket.close()
            threading.Thread(target=self.http.shutdown).start()
            for connection in list(self.connections):
                with contextlib.suppress(OSError):
                    connection.shutdown(2)

    @property
    def run(self) -> Run:
        """The only one."""
        (run,) = self.runs.values()
        return run

    def artifact(self, kind: str) -> Artifact:
        """The only committed one of a type."""
        (found,) = [a for a in self.artifacts.values() if a.type == kind and a.committed]
        return found

    def url_of(self, *path: str) -> str:
        """Where a file is to be put."""
        return "/".join([self.url, "put", *(urllib.parse.quote(part, safe="") for part in path)])

    # ------------------------------------------------------------------- what it is asked

    def answer(self, name: str, asked: dict) -> dict:
        """The data of a GraphQL operation's answer."""
        method = getattr(self, f"on_{name}", None)
        return method(**asked) if method else {}

    def on_Viewer(self, **of: object) -> dict:
        teams = {"edges": [{"node": {"name": ENTITY}}]}
        viewer = {"id": "viewer", "entity": ENTITY, "username": ENTITY, "email": "", "flags": "{}"}
        server = {"cliVersionInfo": {"max_cli_version": "1.0.0"}}
        return {"viewer": viewer | {"teams": teams, "admin": False}, "serverInfo": server}

    def on_ServerFeaturesQuery(self) -> dict:
        return {"serverInfo": {"features": []}}

    def on_ProbeServerCapabilities(self) -> dict:  # of wandb 0.21
        types = {
            "QueryType": "serverInfo",
            "ServerInfoType": "cliVersionInfo",
            "MutationType": "createRunFiles",
        }
        return {name: {"fields": [{"name": known}]} for name, known in types.items()}

    def on_InputFields(self, **of: object) -> dict:
        names = (
            "tags",
            "runName",
            "entityName",
            "projectName",
            "historyStep",
            "ttlDurationSeconds",
        )
        return {"TypeInfo": {"inputFields": [{"name": name} for name in names]}}

    def on_ArtifactType(self, **of: object) -> dict:
        return {"project": None}  # any type is right

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

    def on_CreateRunFiles(self, run: str, files: list[str], **of: object) -> dict:
        urls = [{"name": name, "uploadUrl": self.url_of("run", run, name)} for name in files]
        return {"createRunFiles": {"runID": run, "uploadHeaders": [], "files": urls}}

    def on_CreateArtifact(self, **asked: object) -> dict:
        asked = asked.get("input", asked)
        number = str(len(self.artifacts))
        self.artifacts[number] = Artifact(
            type=asked["artifactTypeName"],
            name=asked.get("artifactCollectionName") or asked["artifactCollectionNames"][0],
            digest=asked["digest"],
            run=asked.get("runName"),
            metadata=json.loads(asked.get("metadata") or "{}"),
        )
        sequence = {"id": number, "latestArtifact": None}
        artifact = {"id": number, "state": "PENDING", "artifactSequence": sequence}
        return {"createArtifact": {"artifact": artifact}}

    def on_CreateArtifactManifest(self, artifactID: str, **of: object) -> dict:
        url = self.url_of("manifest", artifactID)
        file = {"id": artifactID, "uploadUrl": url, "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": artifactID, "file": file}}}

    def on_CreateArtifactFiles(self, **asked: object) -> dict:
        specs = asked.get("input", {}).get("artifactFiles") or asked.get("artifactFiles")
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
        found = {"id": artifactID, "digest": artifact.digest}
        return {"commitArtifact": {"artifact": found}}

    def on_ArtifactByID(self, id: str) -> dict:
        found = self.artifacts[id]
        project = {"id": "p", "internalId": "p", "name": "mine", "entity": {"name": ENTITY}}
        project |= {"entityName": ENTITY}  # of wandb 0.21
        sequence = {"__typename": "ArtifactSequence", "id": "s", "name": found.name}
        described = {
            "__typename": "Artifact",
            "id": id,
            "artifactSequence": sequence | {"project": project},
            "artifactType": {"name": found.type},
            "versionIndex": 0,
            "metadata": json.dumps(found.metadata),
            "ttlDurationSeconds": -2,
            "ttlIsInherited": True,
            "tags": [],
            "aliases": [],
            "state": "COMMITTED",
            "size": sum(map(len, found.files.values())),
            "fileCount": len(found.files),
            "digest": found.digest,
            "createdAt": "2026-01-01T00:00:00",
        }
        empty = dict.fromkeys(("description", "historyStep", "commitHash", "updatedAt"))
        return {"artifact": described | empty}

    on_ArtifactByIDShort = on_ArtifactByID  # of wandb 0.21

    def on_file_stream(self, run: str, asked: dict) -> None:
        for name, part in (asked.get("files") or {}).items():
            lines = enumerate(part["content"], start=part["offset"])
            self.runs[run].streams[name] |= dict(lines)
        if asked.get("complete"):
            self.runs[run].exit_code = asked["exitcode"]

    def on_put(self, kind: str, number: str, name: str = "", *, body: bytes) -> None:
        if kind == "run":
            self.runs[number].files[name] = body
        elif kind == "manifest":
            self.artifacts[number].manifest = json.loads(body)
        else:
            self.artifacts[number].files[name] = body


class Handler(BaseHTTPRequestHandler):
    """Takes the requests apart."""

    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.server.stand_in.connections.add(self.connection)

    def finish(self) -> None:
        self.server.stand_in.connections.discard(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, *of: object) -> None:
        """Nothing."""

    def handle_one_request(self) -> None:
        with contextlib.suppress(OSError):  # it died, or the client did
            super().handle_one_request()
            return
        self.close_connection = True

    def respond(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        server = self.server.stand_in
        path = [urllib.parse.unquote(part) for part in self.path.split("/")[1:]]
        asked = json.loads(body) if path[0] in ("graphql", "files") else {}
        name = " ".join([path[-1], *(asked.get("files") or {})])
        if path[0] == "graphql":
            named = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
            name = named[1] if named else "Viewer"  # to which wandb 0.21 gives no name
        with server.lock:
            server.requests.append(name)
            fails = server.fault is not None and server.since in name
            if fails:
                server.failing.set()
        fails = fails if server.only else server.failing.is_set()
        if fails and self.fail(server, server.fault):
            return
        answer: dict = {}
        with server.lock:
            if path[0] == "graphql":
                answer = {"data": server.answer(name, asked.get("variables") or {})}
            elif path[-1] == "file_stream":
                server.on_file_stream(path[-2], asked)
            elif path[0] == "put":
                server.on_put(*path[1:], body=body)
        self.send(200, json.dumps(answer).encode())

    do_GET = do_POST = do_PUT = respond

    def fail(self, server: Server, fault: str | int | float) -> bool:
        """Fails; whether no right answer must follow."""
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
