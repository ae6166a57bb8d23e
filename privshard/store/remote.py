"""Objects of an object store, through pyarrow's filesystems; nothing here assumes that names can be changed."""

from __future__ import annotations

from contextlib import suppress
from pathlib import PurePosixPath
from typing import Any

from privshard.core.errors import InputError
from privshard.store.disk import explain, missing


class RemoteFolder:
    """Objects below a URI that pyarrow knows: s3://, gs://, abfs://, hdfs://… `ObjectStore` has checked the paths.

    One stream writes an object, and object stores show it when that stream is closed. Where writing fails the
    object is deleted, the one it was to replace included: absent, never a part.
    """

    def __init__(self, uri: str) -> None:
        from pyarrow import ArrowInvalid, fs

        try:
            self._files, base = fs.FileSystem.from_uri(uri)
        except (ArrowInvalid, OSError) as error:
            raise InputError(
                f"Expected a folder or the URI of an object store, got {uri}: {error}.",
                remedy="Use a local folder, or a URI such as s3://bucket/folder that this pyarrow was built for.",
            ) from error
        self._uri, self._base = uri, PurePosixPath(base)

    def read(self, path: str) -> bytes:
        """The bytes of an object."""
        try:
            with self._files.open_input_stream(self._at(path)) as stream:
                return stream.read()
        except FileNotFoundError as error:
            raise missing(path, self._uri) from error
        except OSError as error:
            raise explain(error, f"{self._uri}/{path}") from error

    def write(self, path: str, data: bytes) -> None:
        """Write an object, whole or not at all."""
        try:
            self._files.create_dir(str(PurePosixPath(self._at(path)).parent), recursive=True)
            with self._files.open_output_stream(self._at(path)) as stream:
                stream.write(data)
        except OSError as error:
            with suppress(OSError):
                self._files.delete_file(self._at(path))
            raise explain(error, f"{self._uri}/{path}") from error

    def exists(self, path: str) -> bool:
        """Whether there is an object at `path`."""
        return self._info(path).is_file

    def list(self, prefix: str) -> list[str]:
        """Paths of the objects in the folder `prefix` and below, sorted."""
        from pyarrow import fs

        selector = fs.FileSelector(self._at(prefix), recursive=True, allow_not_found=True)
        try:
            files = [info for info in self._files.get_file_info(selector) if info.is_file]
        except OSError as error:
            raise explain(error, f"{self._uri}/{prefix}") from error
        return sorted(PurePosixPath(info.path).relative_to(self._base).as_posix() for info in files)

    def delete(self, path: str) -> None:
        """Delete an object; nothing happens where there is none."""
        try:
            self._files.delete_file(self._at(path))
        except FileNotFoundError:
            return
        except OSError as error:
            raise explain(error, f"{self._uri}/{path}") from error

    def delete_tree(self, prefix: str) -> None:
        """Delete everything in the folder `prefix`."""
        try:
            self._files.delete_dir(self._at(prefix))
        except FileNotFoundError:
            return
        except OSError as error:
            raise explain(error, f"{self._uri}/{prefix}") from error

    def sweep(self) -> list[str]:
        """Nothing: a stream that was never closed left no object."""
        return []

    def _info(self, path: str) -> Any:
        try:
            return self._files.get_file_info(self._at(path))
        except OSError as error:
            raise explain(error, f"{self._uri}/{path}") from error

    def _at(self, path: str) -> str:
        return str(self._base / path)
