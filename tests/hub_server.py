"""A Hugging Face Hub for the tests: answers the real client as the Hub does, with faults on demand.

Repositories are commits of files in memory. Large files arrive by LFS over HTTP, or by Xet through a store in a folder.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub_wire import ok, ranged, read_chunks, send, xet_hashes

MOCK_TOKEN = "mock-oauth-token-for-local-dev"  # of Gradio's mock sign-in
REPO = r"(?P<kind>models|datasets|spaces)/(?P<repo>[^/]+/[^/]+)"
SIGNATURE = "X-Amz-Signature=0123abcd"  # of a presigned address: who has it may write there
LFS_SUFFIXES = (".safetensors", ".parquet")


@dataclass(eq=False)
class Repo:
    """commits: (id, files by path), the first is the one that made it. tags, branches: name -> commit id."""

    private: bool = False
    commits: list[tuple[str, dict[str, bytes | str]]] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    titles: list[str] = field(default_factory=list)

    def add(self, files: dict[str, bytes | str], title: str) -> str:
        """Make a commit of these files (a str is the SHA-256 of one in the Xet store) and return its id."""
        oid = hashlib.sha1(f"{len(self.commits)}{sorted(files)}{title}{id(self)}".encode()).hexdigest()
        self.commits.append((oid, files))
        self.titles.append(title)
        return oid

    @property
    def files(self) -> dict[str, bytes | str]:
        return self.commits[-1][1]

    def at(self, revision: str) -> tuple[str, dict[str, bytes | str]] | None:
        revision = self.tags.get(revision, revision)
        if revision in ("main", "HEAD"):
            return self.commits[-1]
        return next((commit for commit in self.commits if commit[0] == revision), None)


@dataclass(eq=False)
class Fault:
    """What happens instead of the next `times` requests whose "METHOD path" matches."""

    pattern: str
    status: int = 500
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)
    # or: drop (the connection), cut (the body in half), alter (its last byte), wait (`seconds`, then answer)
    how: str = "answer"
    seconds: float = 0.0


class Refused(Exception):
    """An error answer: status, X-Error-Code, sentence."""


class HubServer:
    """The server. tokens: token -> user; readers: tokens that may not write; requests: all that arrived."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self.tokens = {"ada-token": "ada", "bob-token": "bob", MOCK_TOKEN: "ada"}
        self.readers = {"reader-token"}
        self.tokens["reader-token"] = "ada"
        self.repos: dict[tuple[str, str], Repo] = {}
        self.blobs: dict[str, bytes] = {}  # by SHA-256
        self.faults: list[Fault] = []
        self.requests: list[dict[str, Any]] = []
        self.jobs: list[dict[str, Any]] = []
        self.lock = threading.RLock()
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def answer(self) -> None:
                with contextlib.suppress(ConnectionError):
                    owner.answer(self)

            do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        port = self.http.server_address[1]
        # The client follows redirects within an origin and wants X-Repo-Commit there: files have their own origin.
        self.url, self.cdn = f"http://127.0.0.1:{port}", f"http://localhost:{port}/cdn"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        self.faults = [Fault(".", how="drop", times=10**9)]  # for connections that are still open
        self.http.shutdown()
        self.http.server_close()

    def add_repo(self, name: str, files: dict[str, bytes], private: bool = False, kind: str = "models") -> str:
        """Create a repository, or add a commit to it; return the id of the commit."""
        repo = self.repos.setdefault((kind, name), Repo(private))
        return repo.add(dict(files), "from a test")

    # --- one request ---

    def answer(self, request: Any) -> None:
        method, url = request.command, urlsplit(request.path)
        path = unquote(url.path)
        chunked = request.headers.get("Transfer-Encoding") == "chunked"
        body = (
            read_chunks(request.rfile)
            if chunked
            else request.rfile.read(int(request.headers.get("Content-Length") or 0))
        )
        token = (request.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        with self.lock:
            self.requests.append({"method": method, "path": path, "token": token, "body": body[:2_000_000]})
            fault = next((f for f in self.faults if f.times > 0 and re.search(f.pattern, f"{method} {path}")), None)
            if fault:
                fault.times -= 1
        if fault and fault.how == "wait":
            threading.Event().wait(fault.seconds)  # tests shorten time.sleep
        elif fault and fault.how == "drop":
            request.connection.shutdown(socket.SHUT_RDWR)
            request.close_connection = True
            return
        elif fault and fault.how == "answer":
            return send(request, fault.status, b'{"error": "on demand"}', fault.headers)
        try:
            user = self.tokens.get(token) if token else None
            if token and user is None:
                raise Refused(401, "", "Invalid credentials in Authorization header")
            with self.lock:
                status, content, headers = self.route(method, path, parse_qs(url.query), body, user, token, request)
        except Refused as error:
            status, code, sentence = error.args
            content = json.dumps({"error": sentence}).encode()
            headers = {"X-Error-Message": sentence} | ({"X-Error-Code": code} if code else {})
        if fault and fault.how == "alter" and content:
            content = content[:-1] + bytes([content[-1] ^ 1])
        send(request, status, content, headers, cut=bool(fault and fault.how == "cut"))

    def route(
        self,
        method: str,
        path: str,
        query: dict[str, list[str]],
        body: bytes,
        user: str | None,
        token: Any,
        request: Any,
    ) -> tuple[int, bytes, dict[str, str]]:
        def found(pattern: str, wanted: str = "GET") -> re.Match[str] | None:
            return re.fullmatch(pattern, path) if method in wanted.split() else None

        def sent() -> Any:
            return json.loads(body)

        if found("/api/whoami-v2"):
            self.demand(user)
            auth = {"type": "access_token", "accessToken": {"role": "write", "displayName": "test"}}
            return ok({"type": "user", "name": user, "fullname": user, "avatarUrl": "", "orgs": [], "auth": auth})
        if found("/api/validate-yaml", "POST"):
            return ok({"errors": [], "warnings": []})
        if found("/api/repos/create", "POST"):
            self.demand(user, token)
            asked = sent()
            kind, name = f"{asked.get('type') or 'model'}s", f"{asked.get('organization') or user}/{asked['name']}"
            url = f"{self.url}/{'' if kind == 'models' else kind + '/'}{name}"
            if name.split("/")[0] != user:
                raise Refused(403, "", f"You may not make repositories of {name.split('/')[0]}")
            if (kind, name) in self.repos:
                return 409, json.dumps({"error": "You already created it", "url": url}).encode(), {}
            private = asked.get("private") is True or asked.get("visibility") == "private"
            self.repos[kind, name] = Repo(private)
            self.repos[kind, name].add({".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
            return ok({"url": url})
        if match := found(r"/api/jobs/(?P<user>[^/]+)", "POST"):
            self.demand(user, token)
            self.jobs.append(sent())
            spec = {"id": "job1", "createdAt": "2026-01-01T00:00:00.000Z", "status": {"stage": "RUNNING"}}
            return ok(
                {**spec, "owner": {"id": "1", "name": match["user"], "type": "user"}, "url": f"{self.url}/jobs/1"}
            )
        if found("/api/models"):
            author, tag = query.get("author", [""])[0], query.get("filter", [""])[0]
            names = [n for (kind, n), r in self.repos.items() if kind == "models" and n.startswith(f"{author}/")]
            shown = [n for n in names if self.may_read(self.repos["models", n], n, user)]
            tagged = [
                n for n in shown if tag.encode() in self.bytes_of(self.repos["models", n].files.get("README.md", b""))
            ]
            return ok([{"id": n, "modelId": n, "tags": [tag], "private": False} for n in tagged])
        if match := found(rf"/api/{REPO}(?:/revision/(?P<rev>.+))?"):
            repo = self.readable(match, user)
            oid, files = self.commit(repo, match["rev"] or "main")
            siblings = [{"rfilename": name, **self.entry(name, content)} for name, content in files.items()]
            return ok({"id": match["repo"], "sha": oid, "private": repo.private, "tags": [], "siblings": siblings})
        if match := found(rf"/api/{REPO}/refs"):
            repo = self.readable(match, user)
            refs = [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": oid} for n, oid in repo.tags.items()]
            main = [{"name": "main", "ref": "refs/heads/main", "targetCommit": repo.commits[-1][0]}]
            return ok({"branches": main, "tags": refs, "converts": []})
        if match := found(rf"/api/{REPO}/tree/(?P<rev>[^/]+)"):
            files = self.commit(self.readable(match, user), match["rev"])[1]
            return ok([{"type": "file", "path": name, **self.entry(name, content)} for name, content in files.items()])
        if match := found(rf"/api/{REPO}/paths-info/(?P<rev>.+)", "POST"):
            files = self.commit(self.readable(match, user), match["rev"])[1]
            try:
                wanted = sent()["paths"]
            except ValueError:
                wanted = parse_qs(body.decode())["paths"]
            return ok([{"type": "file", "path": n, **self.entry(n, files[n])} for n in wanted if n in files])
        if match := found(rf"/api/{REPO}/tag/(?P<rev>.+)", "POST DELETE"):
            self.demand(user, token)
            repo = self.readable(match, user)
            if method == "DELETE":
                repo.tags.pop(match["rev"])
                return ok({})
            name = sent()["tag"]
            if name in repo.tags:
                raise Refused(409, "", "Tag exists")
            repo.tags[name] = self.commit(repo, match["rev"])[0]
            return ok({})
        if match := found(rf"/api/{REPO}/preupload/(?P<rev>.+)", "POST"):
            self.demand(user, token)
            there = self.readable(match, user).files
            answers = []
            for file in sent()["files"]:
                name = file["path"]
                large = name.endswith(LFS_SUFFIXES) or file["size"] > 10_000_000
                entry = self.entry(name, there[name]) if name in there else {}
                oid = entry.get("lfs", {}).get("oid") or entry.get("oid")
                answers.append({"path": name, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False})
                answers[-1] |= {"oid": oid} if oid else {}
            return ok({"files": answers})
        if found(r"/.+\.git/info/lfs/objects/batch", "POST"):
            self.demand(user, token)
            objects = []
            for asked in sent()["objects"]:
                put, check = {"href": f"{self.url}/lfs/{asked['oid']}?{SIGNATURE}"}, {"href": f"{self.url}/lfs/verify"}
                actions = {} if asked["oid"] in self.blobs else {"actions": {"upload": put, "verify": check}}
                objects.append({**asked, **actions})
            return ok({"transfer": "basic", "objects": objects})
        if match := found(r"/lfs/(?P<oid>[0-9a-f]{64})", "PUT"):
            if hashlib.sha256(body).hexdigest() != match["oid"]:
                raise Refused(400, "", "The content does not match its hash")
            self.blobs[match["oid"]] = body
            return ok({})
        if found("/lfs/verify", "POST"):
            return ok({})
        if match := found(rf"/api/{REPO}/xet-(?P<right>read|write)-token/.+"):
            if match["right"] == "write":
                self.demand(user, token)
            fields = {"accessToken": "x", "exp": int(time.time()) + 3600, "casUrl": f"local://{self.store}"}
            names = {"X-Xet-Cas-Url": "casUrl", "X-Xet-Access-Token": "accessToken", "X-Xet-Token-Expiration": "exp"}
            return 200, json.dumps(fields).encode(), {header: str(fields[key]) for header, key in names.items()}
        if match := found(rf"/api/{REPO}/commit/(?P<rev>.+)", "POST"):
            self.demand(user, token)
            return self.make_commit(self.readable(match, user), match["repo"], body)
        if match := found(
            r"/(?P<kind>datasets/|spaces/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<rev>[^/]+)/(?P<path>.+)", "GET HEAD"
        ):
            return self.resolve(match, user, request)
        if match := found(r"/cdn/(?P<oid>[0-9a-f]{64})", "GET HEAD"):
            return ranged(self.bytes_of(match["oid"]), request, {"ETag": f'"{match["oid"]}"'})
        raise Refused(404, "", f"no route for {method} {path}")

    def make_commit(self, repo: Repo, name: str, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        lines = [json.loads(line) for line in body.splitlines() if line]
        header = next(line["value"] for line in lines if line["key"] == "header")
        if header.get("parentCommit") not in (None, repo.commits[-1][0]):
            raise Refused(412, "", "A commit has happened since. Please refresh and try again.")
        files = dict(repo.files)
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.blobs and value["oid"] not in self.xet_hashes():
                    raise Refused(400, "", f"{value['path']} was never uploaded")
                files[value["path"]] = value["oid"]
            elif line["key"] == "deletedFile":
                files.pop(value["path"], None)
        oid = repo.add(files, header["summary"])
        return ok({"commitOid": oid, "commitUrl": f"{self.url}/{name}/commit/{oid}", "success": True})

    def resolve(self, match: re.Match[str], user: str | None, request: Any) -> tuple[int, bytes, dict[str, str]]:
        repo = self.readable({"kind": (match["kind"] or "models").strip("/"), "repo": match["repo"]}, user)
        oid, files = self.commit(repo, match["rev"])
        if match["path"] not in files:
            raise Refused(404, "EntryNotFound", "Entry not found")
        content = files[match["path"]]
        entry, headers = self.entry(match["path"], content), {"X-Repo-Commit": oid}
        if "lfs" not in entry:
            return ranged(self.bytes_of(content), request, {**headers, "ETag": f'"{entry["oid"]}"'})
        sha256 = entry["lfs"]["oid"]
        headers |= {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(entry["size"]), "ETag": f'"{sha256}"'}
        if sha256 not in self.blobs and sha256 in self.xet_hashes():
            route = f"{self.url}/api/models/{match['repo']}/xet-read-token/{oid}"
            headers |= {"X-Xet-Hash": self.xet_hashes()[sha256][0], "Link": f'<{route}>; rel="xet-auth"'}
        return 302, b"", {**headers, "Location": f"{self.cdn}/{sha256}"}

    # --- repositories and permissions ---

    def demand(self, user: str | None, token: Any = None) -> None:
        if user is None:
            raise Refused(401, "", "Invalid username or password.")
        if token in self.readers:
            raise Refused(403, "", "Your token has no right to write")

    def may_read(self, repo: Repo, name: str, user: str | None) -> bool:
        return not repo.private or user == name.split("/")[0]

    def readable(self, match: Any, user: str | None) -> Repo:
        repo = self.repos.get((match["kind"], match["repo"]))
        if repo is None or not self.may_read(repo, match["repo"], user):
            raise Refused(404 if user else 401, "RepoNotFound", "Repository not found")
        return repo

    def commit(self, repo: Repo, revision: str) -> tuple[str, dict[str, bytes | str]]:
        if (commit := repo.at(unquote(revision))) is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def entry(self, name: str, content: bytes | str) -> dict[str, Any]:
        if isinstance(content, str) or name.endswith(LFS_SUFFIXES):
            sha256 = content if isinstance(content, str) else hashlib.sha256(content).hexdigest()
            if isinstance(content, bytes):
                self.blobs[sha256] = content
            size = len(self.blobs[sha256]) if sha256 in self.blobs else self.xet_hashes()[sha256][1]
            lfs = {"oid": sha256, "sha256": sha256, "size": size, "pointerSize": 130}
            oid = hashlib.sha1(sha256.encode()).hexdigest()
            return {"oid": oid, "blobId": oid, "size": size, "lfs": lfs}
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        return {"oid": oid, "blobId": oid, "size": len(content)}

    def bytes_of(self, content: bytes | str) -> bytes:
        if isinstance(content, bytes):
            return content
        if content not in self.blobs:
            raise Refused(404, "EntryNotFound", "only in the Xet store")
        return self.blobs[content]

    def xet_hashes(self) -> dict[str, tuple[str, int]]:
        return xet_hashes(self.store)


@contextlib.contextmanager
def hub_server(store: Path) -> Iterator[HubServer]:
    """Run a server while the block lasts."""
    store.mkdir(parents=True, exist_ok=True)
    server = HubServer(store)
    try:
        yield server
    finally:
        server.close()
