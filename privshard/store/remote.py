"""Objects of an object store, through pyarrow's filesystems; nothing here assumes that names can be changed."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any, TypeVar

from privshard.core.errors import ResourceError
from privshard.store.bounded import bounded
from privshard.store.disk import missing
from privshard.store.remote_errors import explain_remote, is_denied
from privshard.store.remote_uri import SMALL_BYTES, open_filesystem
from privshard.store.waits import storage_timeout_s

Result = TypeVar("Result")

_FOLDERLESS = ("s3", "gcs")  # names with slashes, in which folders are a manner of speaking
_MIB = 1 << 20


class RemoteFolder:
    """Objects below a URI that pyarrow knows: s3://, gs://, abfs://, hdfs://… `ObjectStore` has checked the paths.

    An object store shows an object when its upload is completed, and an upload that breaks is never completed: what
    was there before stays. Where a filesystem shows files while they are written, what broke is deleted. Every request
    has a deadline (`store.waits`), after which a ResourceError says what was waited for; an upload may then still
    complete later, which is why names that are written twice are the business of `store.leased`.
    """

    def __init__(self, uri: str) -> None:
        self._files, self._base = open_filesystem(uri)
        self._uri = uri
        self._atomic = self._files.type_name in (*_FOLDERLESS, "abfs")

    def read(self, path: str) -> bytes:
        """The bytes of an object."""

        def download() -> bytes:
            with self._files.open_input_file(self._at(path)) as file:
                return file.read(file.size())

        try:
            size = self._info(path).size or 0
            return self._ask(download, path, num_bytes=size)
        except FileNotFoundError as error:
            raise missing(path, self._uri) from error

    def write(self, path: str, data: bytes) -> None:
        """Write an object, whole or not at all."""

        def upload() -> None:
            if self._files.type_name not in _FOLDERLESS:
                self._files.create_dir(str(PurePosixPath(self._at(path)).parent), recursive=True)
            files = self._large_files if len(data) > SMALL_BYTES else self._files
            with files.open_output_stream(self._at(path)) as stream:
                stream.write(data)  # in one call: a stream that is closed between two stores the first alone

        try:
            self._ask(upload, path, num_bytes=len(data))
            if self._info(path).size != len(data):
                raise ResourceError(
                    f"Expected {len(data)} bytes at {self._place(path)}, the store holds another number.",
                    remedy="Check the store, and run the same command again.",
                )
        except FileNotFoundError as error:
            raise explain_remote(error, self._place(path)) from error
        except ResourceError:
            if not self._atomic:
                self.delete(path)
            raise

    def exists(self, path: str) -> bool:
        """Whether there is an object at `path`."""
        return self._info(path).is_file

    def list(self, prefix: str) -> list[str]:
        """Paths of the objects in the folder `prefix` and below, sorted."""
        from pyarrow import fs

        selector = fs.FileSelector(self._at(prefix), recursive=True, allow_not_found=True)
        infos = self._ask(lambda: self._files.get_file_info(selector), prefix)
        found = (PurePosixPath(info.path) for info in infos if info.is_file)
        return sorted(path.relative_to(self._base).as_posix() for path in found)

    def delete(self, path: str) -> None:
        """Delete an object; nothing happens where there is none."""
        self._gone(lambda: self._files.delete_file(self._at(path)), path)

    def delete_tree(self, prefix: str) -> None:
        """Delete everything in the folder `prefix`."""
        self._gone(lambda: self._files.delete_dir(self._at(prefix)), prefix)

    def sweep(self) -> list[str]:
        """Nothing: a stream that was never closed left no object."""
        return []

    @cached_property
    def _large_files(self) -> Any:
        """The filesystem for writing objects of several parts."""
        return open_filesystem(self._uri, large=True)[0] if self._files.type_name == "s3" else self._files

    def _gone(self, delete: Callable[[], None], path: str) -> None:
        try:
            self._ask(delete, path)
        except FileNotFoundError:
            return

    def _info(self, path: str) -> Any:
        return self._ask(lambda: self._files.get_file_info(self._at(path)), path)

    def _ask(self, request: Callable[[], Result], path: str, *, num_bytes: int = 0) -> Result:
        """One request within its deadline; FileNotFoundError passes, other failures are explained."""
        try:
            return bounded(request, timeout_s=storage_timeout_s() + num_bytes / _MIB)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise explain_remote(self._reason(error), self._place(path)) from error

    def _reason(self, error: OSError) -> OSError:
        """A refused HEAD request has no body, so it doesn't say why: a listing of the same folder does."""
        from pyarrow import fs

        if not is_denied(error) or "HeadObject" not in str(error):
            return error
        try:
            selector = fs.FileSelector(str(self._base), allow_not_found=True)
            bounded(lambda: self._files.get_file_info(selector), timeout_s=storage_timeout_s())
        except OSError as reason:
            return reason
        return error

    def _at(self, path: str) -> str:
        return str(self._base / path)

    def _place(self, path: str) -> str:
        """Where an object is, for people: the URI without its options."""
        folder, _, _ = self._uri.partition("?")
        return f"{folder}/{path}".rstrip("/")
