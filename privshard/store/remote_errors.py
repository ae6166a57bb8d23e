"""What an object store's failure means, in words: what is missing, and what a person can do."""

from __future__ import annotations

import re

from privshard.core.errors import ResourceError
from privshard.store.bounded import StalledError
from privshard.store.disk import explain
from privshard.store.waits import STORAGE_TIMEOUT_ENV

RIGHTS = "list the bucket, and get, put and delete objects (s3:ListBucket, s3:GetObject, s3:PutObject, s3:DeleteObject)"
_RUN_AGAIN = "and run the same command again: it resumes."

# Signs in a message, in order; what they say; what to do.
_MEANINGS: tuple[tuple[str, str, str], ...] = (
    (
        r"ExpiredToken|RequestExpired|EXPIRED_TOKEN|token.*expired|credentials.*expired",
        "the credentials have expired",
        f"Renew them (environment, profile or role), {_RUN_AGAIN}",
    ),
    (
        r"RequestTimeTooSkewed|REQUEST_TIME_TOO_SKEWED",
        "the clock of this machine is too far from the store's",
        f"Set the clock, for example by NTP, {_RUN_AGAIN}",
    ),
    (
        r"InvalidAccessKeyId|INVALID_ACCESS_KEY_ID|INVALID_CLIENT_TOKEN_ID|SignatureDoesNotMatch|"
        r"SIGNATURE_DOES_NOT_MATCH|InvalidToken|UnrecognizedClient|MISSING_AUTHENTICATION_TOKEN",
        "the store doesn't know the credentials",
        "Correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, the profile (AWS_PROFILE), or the machine's role.",
    ),
    (
        r"NoSuchBucket|NO_SUCH_BUCKET|bucket does not exist|Bucket .* not found",
        "there is no such bucket",
        "Create the bucket (privshard never does), or correct the URI.",
    ),
    (
        r"QuotaExceeded|InsufficientStorage|\b507\b|StorageFull|XMinioStorageFull|No space left",
        "the store is full",
        f"Free space or raise the quota, {_RUN_AGAIN}",
    ),
    (
        r"ACCESS_DENIED|AccessDenied|AccessControl|Forbidden|\b403\b",
        "access is denied: the credentials are missing or expired, or lack a right",
        f"Give credentials that may {RIGHTS}.",
    ),
    (
        r"SLOW_DOWN|SlowDown|SERVICE_UNAVAILABLE|ServiceUnavailable|\b503\b|THROTTLING|INTERNAL_FAILURE|\b500\b",
        "the store is overloaded or unavailable, after several attempts",
        f"Wait, {_RUN_AGAIN}",
    ),
    (
        r"NETWORK_CONNECTION|resolve host|Connection refused|Timeout was reached|timed out|curlCode",
        "the store does not answer",
        f"Check the network, the endpoint (AWS_ENDPOINT_URL) and that the store runs, {_RUN_AGAIN}",
    ),
)


def explain_remote(error: OSError, place: str) -> ResourceError:
    """The ResourceError for a failure at `place`; access keys in its message are blotted out."""
    if isinstance(error, StalledError):
        return ResourceError(
            f"Expected an answer about {place}, but the store gave {error}.",
            remedy=f"Check the network and the store, {_RUN_AGAIN} A slow one gets more time by {STORAGE_TIMEOUT_ENV}.",
        )
    said = blotted(" ".join(str(error).split()))
    for signs, meaning, remedy in _MEANINGS:
        if re.search(signs, said, re.IGNORECASE):
            return ResourceError(f"Expected to use {place}, but {meaning} ({said.rstrip('.')}).", remedy=remedy)
    return explain(error, place)


def is_denied(error: OSError) -> bool:
    """Whether a store refused a request as such, rather than failed at it."""
    return re.search(r"ACCESS_DENIED|AccessDenied|Forbidden|\b403\b", str(error)) is not None


def blotted(text: str) -> str:
    """`text` without access key ids and what looks like a token."""
    text = re.sub(r"\b(AKIA|ASIA|LSIA)[A-Z0-9]{8,}", r"\1…", text)
    return re.sub(r"(?i)((?:token|secret|signature|credential)s?=)[^\s&;,)]+", r"\1…", text)
