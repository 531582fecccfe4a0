"""A small Hub: the endpoints that `huggingface_hub` uses to create, upload, commit and download,
over real HTTP."""

import base64
import hashlib
import http.server
import json
import re
import threading
from typing import Any
from urllib.parse import unquote, urlsplit

OWNER, READER = "hf_writetokenofalice", "hf_readtokenofbob"
"""Tokens that the server knows; only the first may write, and only it sees private repositories."""


class HubServer:
    """Repositories in memory.

    Attributes:
        repos: id -> {"private": bool, "files": {path: bytes}, "commits": int}.
        cut: How many uploads of large files to cut in the middle before one goes through.
        seen: (method, path) of every request.
    """

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, Any]] = {}
        self.large: dict[str, bytes] = {}
        self.cut = 0
        self.seen: list[tuple[str, str]] = []
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                hub.seen.append((self.command, self.path))
                hub.answer(self, urlsplit(unquote(self.path)).path)

            do_GET = do_POST = do_HEAD = do_PUT = handle_any

            def log_message(self, *args: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def sha(self, repo: str) -> str:
        """Commit that a repository is at."""
        return hashlib.sha1(f"{repo} {self.repos[repo]['commits']}".encode()).hexdigest()

    # answering

    def answer(self, http_: Any, path: str) -> None:
        token = (http_.headers.get("authorization") or "").removeprefix("Bearer ")
        if token not in ("", OWNER, READER) and not path.startswith("/upload/"):
            return self.reply(http_, 401, {"error": "Invalid credentials in Authorization header"})
        if path == "/api/repos/create":
            return self.create(http_, token)
        if path == "/api/validate-yaml":
            self.body(http_)
            return self.reply(http_, 200, {"errors": [], "warnings": []})
        if found := re.fullmatch(r"/upload/(\w+)", path):
            return self.upload(http_, found[1])
        for pattern, method in (
            (r"/api/models/([^/]+/[^/]+)/preupload/main", self.preupload),
            (r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self.batch),
            (r"/api/models/([^/]+/[^/]+)/commit/main", self.commit),
            (r"/api/models/([^/]+/[^/]+)/revision/(\w+)", self.info),
            (r"/api/models/([^/]+/[^/]+)/tree/(\w+)/?", self.tree),
            (r"/([^/]+/[^/]+)/resolve/(\w+)/(.+)", self.resolve),
        ):
            if found := re.fullmatch(pattern, path):
                repo = found[1]
                if repo not in self.repos or (self.repos[repo]["private"] and token != OWNER):
                    self.body(http_)
                    headers = {"X-Error-Code": "RepoNotFound"}
                    return self.reply(
                        http_, 404 if token else 401, {"error": "Repository not found"}, headers
                    )
                if method in (self.preupload, self.batch, self.commit) and token != OWNER:
                    self.body(http_)
                    return self.reply(http_, 403, {"error": "You don't have the rights to push"})
                return method(http_, *found.groups())
        self.body(http_)
        return self.reply(http_, 404, {"error": f"unknown endpoint {path}"})

    @staticmethod
    def body(http_: Any) -> bytes:
        if http_.headers.get("transfer-encoding", "").lower() == "chunked":
            found = b""
            while size := int(http_.rfile.readline().strip(), 16):
                found += http_.rfile.read(size)
                http_.rfile.readline()
            http_.rfile.readline()
            return found
        return http_.rfile.read(int(http_.headers.get("content-length", 0)))

    @staticmethod
    def reply(http_: Any, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        http_.send_response(status)
        http_.send_header("content-length", str(len(raw)))
        http_.send_header("content-type", "application/json")
        for name, value in (headers or {}).items():
            http_.send_header(name, value)
        http_.end_headers()
        if http_.command != "HEAD":
            http_.wfile.write(raw)

    def create(self, http_: Any, token: str) -> None:
        asked = json.loads(self.body(http_))
        repo = f"{asked.get('organization') or 'alice'}/{asked['name']}"
        if token != OWNER or not repo.startswith("alice/"):
            return self.reply(
                http_,
                403,
                {"error": "You don't have the rights to create a model under this namespace"},
            )
        status = 409 if repo in self.repos else 200
        private = asked.get("private") or asked.get("visibility") == "private"
        self.repos.setdefault(repo, {"private": bool(private), "files": {}, "commits": 0})
        return self.reply(http_, status, {"url": f"{self.url}/{repo}", "id": repo, "name": repo})

    def preupload(self, http_: Any, _repo: str) -> None:
        files = json.loads(self.body(http_))["files"]
        modes = [
            {
                "path": f["path"],
                "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for f in files
        ]
        self.reply(http_, 200, {"files": modes})

    def batch(self, http_: Any, _repo: str) -> None:
        objects = [
            {
                "oid": o["oid"],
                "size": o["size"],
                "actions": {"upload": {"href": f"{self.url}/upload/{o['oid']}"}},
            }
            for o in json.loads(self.body(http_))["objects"]
        ]
        self.reply(http_, 200, {"transfer": "basic", "objects": objects})

    def upload(self, http_: Any, oid: str) -> None:
        if self.cut:
            self.cut -= 1
            http_.rfile.read(1024)
            http_.connection.close()
            http_.close_connection = True
            return None
        raw = self.body(http_)
        assert hashlib.sha256(raw).hexdigest() == oid
        self.large[oid] = raw
        return self.reply(http_, 200, {})

    def commit(self, http_: Any, repo: str) -> None:
        files = {}
        for line in self.body(http_).splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.large[value["oid"]]
        self.repos[repo]["files"] |= files
        self.repos[repo]["commits"] += 1
        sha = self.sha(repo)
        self.reply(
            http_,
            200,
            {"success": True, "commitOid": sha, "commitUrl": f"{self.url}/{repo}/commit/{sha}"},
        )

    def info(self, http_: Any, repo: str, revision: str) -> None:
        if revision not in ("main", self.sha(repo)):
            return self.reply(
                http_, 404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"}
            )
        files = [{"rfilename": name} for name in self.repos[repo]["files"]]
        about = {
            "id": repo,
            "modelId": repo,
            "sha": self.sha(repo),
            "private": self.repos[repo]["private"],
            "siblings": files,
        }
        return self.reply(http_, 200, about | {"tags": [], "downloads": 0, "likes": 0})

    def tree(self, http_: Any, repo: str, _revision: str) -> None:
        files = self.repos[repo]["files"]
        listed = [
            {"type": "file", "path": p, "size": len(raw), "oid": hashlib.sha1(raw).hexdigest()}
            for p, raw in files.items()
        ]
        self.reply(http_, 200, listed)

    def resolve(self, http_: Any, repo: str, _revision: str, path: str) -> None:
        if path not in self.repos[repo]["files"]:
            return self.reply(
                http_, 404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"}
            )
        raw = self.repos[repo]["files"][path]
        headers = {
            "X-Repo-Commit": self.sha(repo),
            "ETag": f'"{hashlib.sha256(raw).hexdigest()}"',
            "accept-ranges": "bytes",
        }
        return self.reply(http_, 200, raw, headers)
