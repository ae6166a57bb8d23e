"""A real S3 server for tests, offline, and a proxy before it that fails on request."""

from __future__ import annotations

import http.client
import http.server
import importlib.util
import itertools
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

# It takes a free port by itself and says which: one looked up before may be taken by then. It ends with its stdin.
_MOTO = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@dataclass
class Fault:
    """What happens to requests whose "METHOD /path" matches: `status` is answered, or the wire is cut or stays silent.

    after: so many matching requests pass first. times: so many fail, None for all. seen: how many matched.
    """

    matches: str
    status: int | None = None
    code: str = "InternalError"
    silent: bool = False
    after: int = 0
    times: int | None = None
    seen: int = 0

    def hits(self, request: str) -> bool:
        """Whether this request is to fail."""
        if not re.search(self.matches, request):
            return False
        self.seen += 1
        return self.after < self.seen and (self.times is None or self.seen <= self.after + self.times)


@dataclass
class Buckets:
    """A running server behind its proxy. `uri()` names a new bucket; `faults` are what fails; `requests` what came."""

    port: int
    proxy_port: int = 0
    faults: list[Fault] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)
    numbers: Any = field(default_factory=itertools.count)

    @property
    def endpoint(self) -> str:
        """The address of the proxy."""
        return f"http://127.0.0.1:{self.proxy_port}"

    def uri(self, path: str = "/ws") -> str:
        """The URI of a folder in a new bucket; its options name the endpoint."""
        name = f"bucket-{next(self.numbers)}"
        assert self.ask("PUT", f"/{name}")[0] == 200
        return f"s3://{name}{path}?endpoint_override={self.endpoint}&region=us-east-1"

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
        """One request to the server itself."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()

    def fail(self, matches: str, **how: Any) -> Fault:
        """Let requests fail from now on, until `heal`."""
        self.faults.append(Fault(matches, **how))
        return self.faults[-1]

    def heal(self) -> None:
        """Nothing fails any more, and what was kept waiting is cut off."""
        self.faults.clear()
        self.released.set()
        self.released = threading.Event()


def missing() -> str | None:
    """Why no server can be started here; None where it can."""
    names = ("moto", "flask")
    absent = [name for name in names if importlib.util.find_spec(name) is None]
    return f"{', '.join(absent)} not installed (pip install 'privshard[test]')" if absent else None


@contextmanager
def running_buckets() -> Iterator[Buckets]:
    """Start moto's server and the proxy; both are gone at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", _MOTO],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    port = process.stdout.readline().strip()
    if not port:
        raise RuntimeError("moto's server did not start")
    buckets = Buckets(int(port))
    proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"buckets": buckets}))
    proxy.daemon_threads = True
    buckets.proxy_port = proxy.server_address[1]
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        yield buckets
    finally:
        buckets.heal()
        proxy.shutdown()
        proxy.server_close()
        process.terminate()
        process.communicate()


class _Handler(http.server.BaseHTTPRequestHandler):
    """Passes a request on, byte for byte, unless it is to fail."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # the head of an answer and its body leave apart: the second waits for nothing
    buckets: Buckets

    def handle_any(self) -> None:
        body, request = self._body(), f"{self.command} {self.path}"
        buckets = self.buckets
        buckets.requests.append(request)
        fault = next((fault for fault in list(buckets.faults) if fault.hits(request)), None)
        if fault is None:
            self._pass_on(body)
        elif fault.status is not None:
            error = f"<Error><Code>{fault.code}</Code><Message>{fault.code} by the test</Message></Error>".encode()
            self._answer(fault.status, {}, b"" if self.command == "HEAD" else error)
        else:
            if fault.silent:
                buckets.released.wait()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("transfer-encoding", ""):
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        raw = b""
        while True:
            line = self.rfile.readline()
            raw += line
            size = int(line.split(b";")[0], 16)
            while size == 0:
                line = self.rfile.readline()
                raw += line
                if line in (b"\r\n", b""):
                    return raw
            raw += self.rfile.read(size) + self.rfile.readline()

    def _pass_on(self, body: bytes) -> None:
        upstream = http.client.HTTPConnection("127.0.0.1", self.buckets.port, timeout=60)
        upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            upstream.putheader(name, value)
        upstream.endheaders(body)
        answer = upstream.getresponse()
        content = answer.read()
        headers = dict(answer.getheaders())
        if self.command == "HEAD" and "Content-Length" in headers:
            self._answer(answer.status, headers, b"", length=headers["Content-Length"])
        else:
            self._answer(answer.status, headers, content)
        upstream.close()

    def _answer(self, status: int, headers: dict[str, str], content: bytes, *, length: str | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(content)))
        self.end_headers()
        self.wfile.write(content)
