"""A real PostgreSQL server for tests, in a temporary folder, reachable through a Unix socket alone."""

from __future__ import annotations

import glob
import importlib.util
import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_USER = "postgres"


@dataclass(frozen=True)
class Server:
    """A running server. `database()` makes an empty one and gives its URL."""

    folder: Path
    binaries: Path
    account: str | None
    numbers: Any = field(default_factory=itertools.count)

    def database(self) -> str:
        """The URL of a new, empty database."""
        name = f"ledger{next(self.numbers)}"
        command = [self.binaries / "createdb", "-h", self.folder, "-U", _USER, name]
        subprocess.run(command, check=True, capture_output=True, user=self.account, cwd=self.folder)
        return f"postgresql://{_USER}@/{name}?host={self.folder}"


def missing() -> str | None:
    """Why no server can be started here; None where it can."""
    if _binaries() is None:
        return "no PostgreSQL server is installed (Debian: apt-get install postgresql)"
    if importlib.util.find_spec("psycopg") is None:
        return "psycopg is not installed (pip install 'privshard[postgres]')"
    if os.geteuid() == 0 and _account() is None:
        return "PostgreSQL does not run as root, and there is no user postgres"
    return None


@contextmanager
def running_server() -> Iterator[Server]:
    """Start a server and stop it at the end; `missing()` must be None."""
    binaries = _binaries()
    assert binaries is not None
    account = _account() if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # socket paths are short, and pytest's folders are closed
    if account is not None:
        shutil.chown(folder, account, account)
    run = {"check": True, "user": account, "cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off -c shared_buffers=16MB"
    try:
        subprocess.run([binaries / "initdb", "-D", folder / "data", "-U", _USER, "-A", "trust", "--no-sync"], **run)
        control = [binaries / "pg_ctl", "-D", folder / "data", "-l", folder / "log", "-w"]
        subprocess.run([*control, "-o", options, "start"], **run)
        try:
            yield Server(folder, binaries, account)
        finally:
            subprocess.run([*control, "-m", "immediate", "stop"], **run)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _binaries() -> Path | None:
    """The folder of the newest server that is installed."""
    folders = [Path(name).parent for name in glob.glob("/usr/lib/postgresql/*/bin/initdb")]
    on_path = shutil.which("initdb")
    newest = sorted(folders, key=lambda folder: int(folder.parent.name) if folder.parent.name.isdigit() else 0)[-1:]
    return next(iter([*newest, *([Path(on_path).parent] if on_path else [])]), None)


def _account() -> str | None:
    try:
        return pwd.getpwnam(_USER).pw_name
    except KeyError:
        return None
