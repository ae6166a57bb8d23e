"""From the URI of an object store to its filesystem: which options it may carry, and that it carries no secret."""

from __future__ import annotations

import os
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from privshard.core.errors import InputError
from privshard.store.bounded import StalledError, bounded
from privshard.store.waits import storage_timeout_s

ENDPOINT_ENVS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_REGION_ENVS = ("AWS_REGION", "AWS_DEFAULT_REGION")
SMALL_BYTES = 4 << 20
"""Up to this size S3 takes an object in one request, in more than one above it."""
_S3_OPTIONS = ("region", "scheme", "endpoint_override", "tls_ca_file_path")
_SECRET_WORDS = ("key", "secret", "token", "password", "credential", "sas")
_ATTEMPTS = 3


def refuse_secrets(uri: str) -> None:
    """InputError, without showing it, where a URI holds credentials: it is written into jobs, logs and reports."""
    parts = _split(uri)
    options = [name.lower() for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
    secret = any(word in name for name in options for word in _SECRET_WORDS)
    if secret or ":" in parts.netloc.rpartition("@")[0] or (parts.scheme == "s3" and "@" in parts.netloc):
        raise InputError(
            f"workspace: expected a URI without credentials, got one for {parts.scheme}://{parts.hostname or ''} that "
            "holds some.",
            remedy="Give them in the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY), in a profile, or as "
            "the machine's role.",
        )


def open_filesystem(uri: str, *, large: bool = False) -> tuple[Any, PurePosixPath]:
    """pyarrow's filesystem for `uri`, and the folder in it. Nothing is asked of the store, except where a bucket's
    region has to be found out. InputError for a URI that pyarrow doesn't know.

    large: for writing objects of several parts, see `SMALL_BYTES`.
    """
    from pyarrow import ArrowInvalid, fs

    refuse_secrets(uri)
    parts = _split(uri)
    try:
        if parts.scheme == "s3":
            return _s3(parts, large=large), PurePosixPath(f"{parts.netloc}{unquote(parts.path)}")
        files, base = fs.FileSystem.from_uri(uri)
        return files, PurePosixPath(base)
    except (ArrowInvalid, OSError, ValueError) as error:
        raise InputError(
            f"Expected a folder or the URI of an object store, got {uri}: {error}.",
            remedy="Use a local folder, or a URI such as s3://bucket/folder that this pyarrow was built for.",
        ) from error


def _s3(parts: SplitResult, *, large: bool) -> Any:
    """S3 with deadlines of its own below ours, so that its message comes first.

    A broken upload has to leave what was there, and pyarrow 26 closes every stream, broken or not. So a large object's
    parts are sent in the background, since otherwise closing after a failed part completes the upload without it; and
    its upload is begun when the stream is opened, since otherwise closing after a failed beginning stores an empty
    object. A small one is sent whole when the stream is closed.
    """
    from pyarrow import fs

    options = dict(parse_qsl(parts.query))
    unknown = sorted(set(options) - set(_S3_OPTIONS))
    if unknown or not parts.netloc:
        raise ValueError(f"expected a bucket, and none but the options {', '.join(_S3_OPTIONS)}; got {unknown}")
    endpoint = options.pop("endpoint_override", None) or _first(ENDPOINT_ENVS)
    region = options.pop("region", None) or _first(_REGION_ENVS)
    timeout_s = storage_timeout_s()
    if region is None and endpoint is None:
        region = _region(parts.netloc, timeout_s)
    return fs.S3FileSystem(
        **options,
        endpoint_override=endpoint,
        region=region or "us-east-1",
        connect_timeout=min(10.0, timeout_s / 6),
        request_timeout=timeout_s / 4,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS),
        background_writes=True,
        allow_delayed_open=not large,
    )


def _region(bucket: str, timeout_s: float) -> str | None:
    """The region of a bucket on AWS; None where it can't be found out, which the first request explains better."""
    from pyarrow import fs

    try:
        return bounded(lambda: fs.resolve_s3_region(bucket), timeout_s=timeout_s / 4)
    except (OSError, StalledError):
        return None


def _split(uri: str) -> SplitResult:
    try:
        return urlsplit(uri)
    except ValueError as error:
        raise InputError("workspace: expected a folder or a URI, got one that can't be read.") from error


def _first(names: tuple[str, ...]) -> str | None:
    return next((os.environ[name] for name in names if os.environ.get(name)), None)
