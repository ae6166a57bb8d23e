"""A real S3 server that fails: uploads that break, rights that lack, silence; every error names what is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from privshard.core.errors import InputError, ResourceError, VerificationError
from privshard.store.objects import ObjectStore
from privshard.store.probe import PROBE, require_rights
from privshard.store.remote_errors import blotted

LARGE = os.urandom(12 << 20)  # more than one part of an upload
RIGHTS = ["s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:DeleteObject"]


@pytest.fixture
def uri(buckets):
    return buckets.uri()


@pytest.fixture
def store(uri):
    return ObjectStore(uri)


@pytest.fixture
def quick(monkeypatch):
    """Deadlines that a test can wait for."""
    monkeypatch.setenv("PRIVSHARD_STORAGE_TIMEOUT_S", "2")


def test_round_trip_of_small_and_large_objects(store, buckets):
    store.write("data/eval/a", b"small")
    store.write("components/large", LARGE)
    store.write("empty", b"")
    assert store.read("components/large") == LARGE
    assert store.read("empty") == b""
    assert store.list() == ["components/large", "data/eval/a", "empty"]
    assert store.list("data") == ["data/eval/a"]
    store.delete("nothing")
    store.delete_tree("data")
    assert not store.exists("data/eval/a")
    with pytest.raises(VerificationError, match="data/eval/a"):
        store.read("data/eval/a")
    assert not any("COPY" in request for request in buckets.requests)  # nothing is ever renamed


@pytest.mark.parametrize(
    ("request_that_fails", "how"),
    [
        ("PUT .*partNumber=2", {"status": 403, "code": "AccessDenied"}),
        pytest.param("PUT .*partNumber=1", {"status": 507, "code": "InsufficientStorage"}, marks=pytest.mark.slow),
        ("PUT .*partNumber=2", {}),
        pytest.param("POST .*uploadId", {"status": 503, "code": "SlowDown"}, marks=pytest.mark.slow),
        pytest.param(r"POST .*\?uploads", {"status": 500, "code": "InternalError"}, marks=pytest.mark.slow),
    ],
)
def test_an_upload_that_breaks_leaves_what_was_there(store, buckets, quick, request_that_fails, how):
    store.write("components/large", LARGE)
    fault = buckets.fail(request_that_fails, **how)
    with pytest.raises(ResourceError):
        store.write("components/large", LARGE[::-1] + b"longer")
    with pytest.raises(ResourceError):
        store.write("components/new", LARGE)
    assert fault.seen
    buckets.heal()
    assert store.read("components/large") == LARGE
    assert not store.exists("components/new")


def test_a_killed_upload_leaves_nothing(uri, buckets):
    code = (
        "import sys, os, threading; from privshard.store.objects import ObjectStore\n"
        "threading.Timer(float(sys.argv[2]), lambda: os._exit(9)).start()\n"
        "ObjectStore(sys.argv[1]).write('components/new', bytes(12 << 20))"
    )
    buckets.fail("PUT .*partNumber=2", silent=True)
    died = subprocess.run([sys.executable, "-c", code, uri, "3"], check=False)
    assert died.returncode == 9
    buckets.heal()
    assert ObjectStore(uri).list() == []


def test_what_passes_by_itself_is_tried_again(store, buckets):
    for how in ({"status": 503, "code": "SlowDown"}, {}):
        fault = buckets.fail("PUT", times=1, **how)
        store.write("a", b"x")
        assert fault.seen == 2
        buckets.heal()
    assert store.read("a") == b"x"


@pytest.mark.parametrize(
    "verb",
    [
        "write",
        "delete",
        *(pytest.param(verb, marks=pytest.mark.slow) for verb in ("read", "list", "exists", "delete_tree")),
    ],
)
def test_silence_has_a_deadline(store, buckets, quick, verb):
    store.write("a", b"x")
    buckets.fail(".", silent=True)
    with pytest.raises(ResourceError, match=r"ws(/a)?, but the store (does not answer|gave no answer within)"):
        getattr(store, verb)(*(("a", b"y") if verb == "write" else ("a",)))
    buckets.heal()
    assert store.read("a") == b"x"


def test_a_filesystem_without_deadlines_gets_one(quick, monkeypatch):
    import threading

    store = ObjectStore("mock:///bucket")
    silent, files = threading.Event(), store._folder._files

    class Silent:
        type_name = "mock"

        def __getattr__(self, name):
            return lambda *_, **__: silent.wait()

    monkeypatch.setattr(store._folder, "_files", Silent())
    with pytest.raises(ResourceError, match=r"no answer within 2 s.*PRIVSHARD_STORAGE_TIMEOUT_S"):
        store.read("a")
    silent.set()
    assert files.type_name == "mock"


@pytest.mark.parametrize(
    ("matches", "status", "code", "message", "remedy"),
    [
        ("PUT", 400, "ExpiredToken", "credentials have expired", "Renew"),
        ("PUT", 403, "InvalidAccessKeyId", "doesn't know the credentials", "AWS_ACCESS_KEY_ID"),
        ("PUT", 403, "SignatureDoesNotMatch", "doesn't know the credentials", "AWS_SECRET_ACCESS_KEY"),
        ("PUT", 403, "AccessDenied", "access is denied", "s3:DeleteObject"),
        ("PUT", 403, "RequestTimeTooSkewed", "clock of this machine", "NTP"),
        ("PUT", 507, "InsufficientStorage", "the store is full", "resumes"),
        ("PUT", 403, "QuotaExceeded", "the store is full", "raise the quota"),
        ("PUT", 503, "SlowDown", "overloaded", "resumes"),
        ("DELETE|POST .*delete", 403, "AccessDenied", "right to delete.*nobody could be forgotten", "s3:DeleteObject"),
        ("GET .*list", 403, "AccessDenied", "access is denied", "s3:ListBucket"),
    ],
)
def test_what_is_missing_is_named(store, buckets, matches, status, code, message, remedy):
    buckets.fail(matches, status=status, code=code)
    with pytest.raises(ResourceError, match=message) as caught:
        require_rights(store)
    assert remedy in caught.value.remedy
    assert caught.value.exit_code == 4
    assert "endpoint_override" not in str(caught.value)


def test_a_refused_look_says_why(store, buckets):
    """A HEAD request has no body, so its 403 alone would not tell expired credentials from missing rights."""
    buckets.fail("HEAD", status=403)
    buckets.fail("GET", status=400, code="ExpiredToken")
    with pytest.raises(ResourceError, match="credentials have expired"):
        store.exists("ledger.url")


def test_there_is_no_such_bucket(buckets):
    missing = ObjectStore(buckets.uri().replace("s3://bucket", "s3://no-such-bucket"))
    with pytest.raises(ResourceError, match=r"there is no such bucket.*Create the bucket"):
        require_rights(missing)


def test_nobody_is_at_the_endpoint(monkeypatch):
    monkeypatch.setenv("PRIVSHARD_STORAGE_TIMEOUT_S", "120")  # a refusal is told long before, on a busy machine too
    store = ObjectStore("s3://bucket/ws?endpoint_override=http://127.0.0.1:9&region=us-east-1")
    with pytest.raises(ResourceError, match=r"the store does not answer.*endpoint"):
        store.exists("ledger.url")


def test_rights_are_tried_and_nothing_stays(store):
    store.write("mine", b"x")
    require_rights(store)
    assert store.list() == ["mine"]


def test_a_store_that_keeps_what_is_deleted_is_refused(store, buckets):
    buckets.fail("DELETE|POST .*delete", status=204)
    with pytest.raises(ResourceError, match="still there: nobody could be forgotten"):
        require_rights(store)
    buckets.heal()
    assert [path.startswith(PROBE) for path in store.list()] == [True]


@pytest.mark.parametrize("lacking", [None, *RIGHTS])
def test_real_policies_without_one_right_are_refused(buckets, monkeypatch, lacking):
    """moto enforces IAM: a user whose policy lacks the right, with real signatures."""
    import boto3

    uri = buckets.uri()
    iam = boto3.client("iam", endpoint_url=f"http://127.0.0.1:{buckets.port}", region_name="us-east-1")
    user = f"user-{lacking}".replace(":", "-")
    allowed = [right for right in RIGHTS if right != lacking]
    policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": allowed, "Resource": "*"}]}
    iam.create_user(UserName=user)
    iam.put_user_policy(UserName=user, PolicyName="p", PolicyDocument=json.dumps(policy))
    key = iam.create_access_key(UserName=user)["AccessKey"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
    assert buckets.ask("POST", "/moto-api/reset-auth", b"0")[0] == 200
    try:
        if lacking is None:
            require_rights(ObjectStore(uri))
        else:
            with pytest.raises(ResourceError, match=r"denied|right to delete") as caught:
                require_rights(ObjectStore(uri))
            assert lacking.removeprefix("s3:") in caught.value.remedy
            assert key["SecretAccessKey"] not in str(caught.value)
    finally:
        buckets.ask("POST", "/moto-api/reset-auth", b"inf")


@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKIAEXAMPLE:hunter2@bucket/ws",
        "s3://bucket/ws?access_key=AKIAEXAMPLE&secret_key=hunter2",
        "s3://bucket/ws?session_token=hunter2",
        "abfs://user:hunter2@container/ws",
        "gs://bucket/ws?credential=hunter2",
    ],
)
def test_a_uri_with_credentials_is_refused_unseen(uri):
    with pytest.raises(InputError, match="without credentials") as caught:
        ObjectStore(uri)
    assert "hunter2" not in str(caught.value)
    assert "environment" in caught.value.remedy


def test_unknown_options_are_refused():
    with pytest.raises(InputError, match=r"options region.*got \['regoin'\]"):
        ObjectStore("s3://bucket/ws?regoin=x").exists("a")


def test_the_endpoint_may_come_from_the_environment(buckets, monkeypatch):
    plain = buckets.uri().partition("?")[0]
    monkeypatch.setenv("AWS_ENDPOINT_URL", buckets.endpoint)
    ObjectStore(plain).write("a", b"x")
    assert ObjectStore(plain).read("a") == b"x"


def test_access_keys_are_blotted_out():
    text = "The key AKIAIOSFODNN7EXAMPLE of X-Amz-Signature=abcdef and token=xyz is wrong"
    assert blotted(text) == "The key AKIA… of X-Amz-Signature=… and token=… is wrong"


def test_fetched_copies_are_gone_with_the_block(store):
    store.write("components/c", b"x")
    with store.fetched({"c": "components/c"}) as files:
        assert files["c"].read_bytes() == b"x"
    assert not files["c"].exists()
