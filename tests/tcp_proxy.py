"""A TCP proxy before a Unix socket, which cuts its connections or falls silent on request."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

Hears = Callable[[bytes], bool]


class Proxy:
    """`port` leads to the socket. While `silent`, what either side says is swallowed. `cut_when` sees what clients
    say; where it is true the connection is cut: after the server got it, if `after_passing`, but before its answer."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.silent = False
        self.cut_when: Hears | None = None
        self.after_passing = False
        self._open: list[socket.socket] = []

    def serve(self) -> None:
        """Accept until closed."""
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                upstream = socket.socket(socket.AF_UNIX)
                try:
                    upstream.connect(self._target)
                except OSError:
                    client.close()
                    continue
                self._open += [client, upstream]
                threading.Thread(target=self._forward, args=(client, upstream, True), daemon=True).start()
                threading.Thread(target=self._forward, args=(upstream, client, False), daemon=True).start()

    def cut(self) -> None:
        """Cut every connection."""
        for end in self._open:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def close(self) -> None:
        """Stop."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _forward(self, source: socket.socket, sink: socket.socket, from_client: bool) -> None:
        with suppress(OSError):
            while said := source.recv(1 << 16):
                if self.silent:
                    continue
                if from_client and self.cut_when is not None and self.cut_when(said):
                    self.cut_when = None
                    if self.after_passing:
                        source.shutdown(socket.SHUT_RDWR)  # the answer finds nobody
                        sink.sendall(said)
                        sink.recv(1 << 16)
                    break
                sink.sendall(said)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextmanager
def proxy_to(target: str) -> Iterator[Proxy]:
    """A running proxy; it and its connections are gone at the end."""
    proxy = Proxy(target)
    threading.Thread(target=proxy.serve, daemon=True).start()
    try:
        yield proxy
    finally:
        proxy.close()
