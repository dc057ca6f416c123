"""A chat model behind real HTTP on 127.0.0.1: answers by rule, and makes the trouble it is told to."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random


def completion(
    content: str | None,
    refusal: str | None = None,
    finish_reason: str = "stop",
    usage: tuple[int, int] = (1000, 100),
) -> dict:
    message = {"role": "assistant", "content": content, "refusal": refusal}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "tale-teller-1",
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
        "usage": {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)},
    }


def tell(body: dict) -> str:
    """What the model says: a function of the question alone, so that runs can be compared."""
    user = body["messages"][-1]["content"]
    names = re.findall(r"^- (\w[\w.' ]*?)(?: \(also|$)", user.partition("\n\n")[0], re.MULTILINE)
    name = body.get("response_format", {}).get("json_schema", {}).get("name")
    if name == "events":
        passage = user.partition("<passage>")[2].partition("</passage>")[0]
        sentences = (" ".join(sentence.split()[:20]) for sentence in re.split(r"(?<=[.!?])\s+", passage))
        told = [s for s in sentences if len(s) > 30 and any(re.search(rf"\b{n.split()[-1]}\b", s) for n in names)]
        return json.dumps({"events": told[:4]})
    if name == "false_events":
        true = user.partition("The true next event:\n- ")[2].partition("\n")[0]
        rng = Random(hashlib.sha256(true.encode()).digest())
        things = rng.sample(
            re.findall(r"\w+", "lantern saddle letter violin ladder teapot ribbon compass candle almanac"), 5
        )
        places = rng.sample(
            re.findall(r"\w+", "harbour orchard chapel attic stable cellar meadow library quarry bakery"), 5
        )
        verbs = rng.sample(
            re.findall(r"\w+", "sold buried mended dropped painted traded burned hid weighed polished"), 5
        )
        false = [f"{rng.choice(names)} {v} the {t} near the {p}" for v, t, p in zip(verbs, things, places, strict=True)]
        padded = [f"{event} {'very ' * 40}"[: max(len(true), len(event))].strip() for event in false]
        return json.dumps({"events": padded})
    return re.sub(r"\W+", " ", user)[-40:]


class ChatServer:
    """`with ChatServer() as server:` listens at `server.url`.

    Attributes:
        troubles: what goes wrong with the next requests, in order: a status ("429"), "garbage", "half", "drop", "slow",
            "empty", "malformed", "refused", "cut"; anything else answers as it should.
        say: what is answered to a good request.
        bodies, headers: of all requests to /chat/completions, in order of arrival.
    """

    def __init__(self, troubles: list[str] | None = None, say: Callable[[dict], str] = tell) -> None:
        self.troubles, self.say = list(troubles or []), say
        self.bodies: list[dict] = []
        self.headers: list[dict] = []
        self.retry_after: str | None = None
        self.slow_seconds = 1.0
        self.usage = (1000, 100)  # tokens in and out that an answer says it took
        self.times: list[float] = []
        self.most_at_once = self._at_once = 0
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict] = {}
        self.polls_needed = 2
        self.batch_troubles: list[str] = []
        self.lock = threading.Lock()

    def __enter__(self) -> ChatServer:
        handler = type("Handler", (_Handler,), {"owner": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def next_trouble(self) -> str:
        with self.lock:
            return self.troubles.pop(0) if self.troubles else ""

    def count(self, change: int) -> None:
        with self.lock:
            self._at_once += change
            self.most_at_once = max(self.most_at_once, self._at_once)

    def finish_batch(self, batch: dict) -> None:
        """Answer every request of a batch, but for the lines that trouble is made with."""
        output, errors = [], []
        for line in self.files[batch["input_file_id"]].decode().splitlines():
            request = json.loads(line)
            self.bodies.append(request["body"])
            trouble = self.batch_troubles.pop(0) if self.batch_troubles else ""
            if trouble == "lost":
                response = {"status_code": 500, "body": {"error": {"message": "lost"}}}
                errors.append(json.dumps({"custom_id": request["custom_id"], "response": response}))
            elif trouble == "garbage":
                output.append('{"custom_id": ')
            else:
                answer = completion("no json" if trouble == "malformed" else self.say(request["body"]))
                response = {"status_code": 200, "body": answer}
                output.append(json.dumps({"custom_id": request["custom_id"], "response": response}))
        for name, lines in (("output_file_id", output), ("error_file_id", errors)):
            batch[name] = f"file-{len(self.files)}" if lines else None
            if lines:
                self.files[batch[name]] = "\n".join(reversed(lines)).encode()
        batch["status"] = "completed"


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Connections end early here on purpose."""


class _Handler(BaseHTTPRequestHandler):
    owner: ChatServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.endswith("/chat/completions"):
            self._chat(json.loads(content))
        elif self.path.endswith("/files"):
            boundary = self.headers["Content-Type"].partition("boundary=")[2].encode()
            part = next(part for part in content.split(b"--" + boundary) if b"filename=" in part)
            name = f"file-{len(self.owner.files)}"
            self.owner.files[name] = part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")
            self._json(
                200, {"id": name, "object": "file", "bytes": 1, "created_at": 1, "filename": "x", "purpose": "batch"}
            )
        else:
            request = json.loads(content)
            name = f"batch-{len(self.owner.batches)}"
            batch = {"id": name, "object": "batch", "created_at": 1, "status": "in_progress", "polls": 0, **request}
            self.owner.batches[name] = batch
            self._json(200, batch)

    def do_GET(self) -> None:
        name = self.path.partition("?")[0].rstrip("/").split("/")[-1]
        if self.path.endswith("/content"):
            self._send(200, self.owner.files[self.path.split("/")[-2]], "application/jsonl")
        elif name == "batches":
            self._json(200, {"object": "list", "data": list(self.owner.batches.values()), "has_more": False})
        else:
            batch = self.owner.batches[name]
            batch["polls"] += 1
            if batch["polls"] >= self.owner.polls_needed and batch["status"] == "in_progress":
                self.owner.finish_batch(batch)
            self._json(200, batch)

    def _chat(self, body: dict) -> None:
        owner = self.owner
        with owner.lock:
            owner.bodies.append(body)
            owner.headers.append({name.lower(): value for name, value in self.headers.items()})
            owner.times.append(time.monotonic())
        owner.count(+1)
        try:
            self._answer(body, owner.next_trouble())
        finally:
            owner.count(-1)

    def _answer(self, body: dict, trouble: str) -> None:
        owner = self.owner
        if trouble.isdigit():
            message = f"trouble with {self.headers['Authorization']}"
            headers = {"Retry-After": owner.retry_after} if owner.retry_after else {}
            self._json(int(trouble), {"error": {"message": message, "type": "x", "code": None}}, headers)
        elif trouble == "policy":
            self._json(400, {"error": {"message": "not this", "type": "x", "code": "content_policy_violation"}})
        elif trouble == "garbage":
            self._send(200, b"<html>Bad gateway</html>", "text/html")
        elif trouble == "half":
            content = json.dumps(completion("x" * 5000)).encode()
            self._send(200, content[:300], "application/json", length=len(content))
            self._reset()
        elif trouble == "drop":
            self._reset()
        elif trouble == "slow":
            time.sleep(owner.slow_seconds)
            self._reset()
        elif trouble == "empty":
            self._json(200, completion(""))
        elif trouble == "malformed":
            self._json(200, completion('{"events": ["half a'))
        elif trouble == "refused":
            self._json(200, completion(None, refusal="I cannot help with that."))
        elif trouble == "cut":
            self._json(200, completion('{"events": ["Eliza', finish_reason="length"))
        else:
            self._json(200, completion(owner.say(body), usage=owner.usage))

    def _reset(self) -> None:
        """End the connection without a word."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def _json(self, status: int, value: dict, headers: dict | None = None) -> None:
        self._send(status, json.dumps(value).encode(), "application/json", headers=headers)

    def _send(
        self, status: int, content: bytes, kind: str, headers: dict | None = None, length: int | None = None
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length or len(content)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()
