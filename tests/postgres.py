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
GUARDED_USER = "guarded"
"""A name for a user that has to give a password."""
_OPTIONS = "-c listen_addresses='' -c fsync=off -c shared_buffers=16MB"


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

    def restart(self) -> None:
        """Stop it at once, as a crash would, and start it again."""
        for verb in (["-m", "immediate", "stop"], ["start"]):
            self.control(*verb)

    def control(self, *arguments: str) -> None:
        """pg_ctl with these arguments."""
        command = [self.binaries / "pg_ctl", "-D", self.folder / "data", "-l", self.folder / "log", "-w"]
        options = ["-o", f"-c unix_socket_directories={self.folder} {_OPTIONS}"] if "start" in arguments else []
        subprocess.run(
            [*command, *options, *arguments],
            check=True,
            user=self.account,
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def socket(self) -> str:
        """The server's socket, for a proxy."""
        return str(self.folder / ".s.PGSQL.5432")


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
    try:
        subprocess.run([binaries / "initdb", "-D", folder / "data", "-U", _USER, "-A", "trust", "--no-sync"], **run)
        access = folder / "data" / "pg_hba.conf"
        access.write_text(f"local all {GUARDED_USER} scram-sha-256\n{access.read_text()}")
        server = Server(folder, binaries, account)
        server.control("start")
        try:
            yield server
        finally:
            server.control("-m", "immediate", "stop")
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
