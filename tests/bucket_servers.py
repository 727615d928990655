"""Local stand-ins of Google's and Amazon's protocols, for tests of gs:// and s3://.

Each is a context that gives the environment for a process that uses it; its bucket is "bucket".
"""

import contextlib
import copy
import socket
import time

import pytest


@contextlib.contextmanager
def gs():
    """gcp-storage-emulator."""
    emulator = pytest.importorskip("gcp_storage_emulator.server")
    pytest.importorskip("gcsfs")
    from gcp_storage_emulator.handlers import objects

    download = objects.download

    def with_generation(request, response, storage, *args, **kwargs):
        """Google's answers have this header, and TensorStore needs it; the emulator's lack it."""
        download(request, response, storage, *args, **kwargs)
        names = request.params["bucket_name"], request.params["object_id"]
        if response.status < 300:
            response["x-goog-generation"] = storage.get_file_obj(*names)["generation"]

    objects.download = with_generation
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = emulator.create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
    running.start()
    try:
        yield {
            "STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}",
            "TENSORSTORE_GCS_HTTP_URL": f"http://127.0.0.1:{port}",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            "GOOGLE_CLOUD_PROJECT": "test",
            "EPATH_USE_TF": "0",
        }
    finally:
        running.stop()
        objects.download = download


@contextlib.contextmanager
def s3(monkeypatch=None, lag: float = 0.0):
    """moto. With `lag`, a deletion takes a hundredth of it, and listings show for that many seconds
    what was deleted; reading it fails at once.
    """
    server = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    import boto3

    if lag:
        _delay_deletions(monkeypatch, lag)
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    found = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "name",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "EPATH_USE_TF": "0",
    }
    try:
        boto3.client(
            "s3",
            endpoint_url=found["AWS_ENDPOINT_URL"],
            aws_access_key_id="name",
            aws_secret_access_key="secret",
            region_name="us-east-1",
        ).create_bucket(Bucket="bucket")
        yield found
    finally:
        running.stop()
        from moto.s3.models import s3_backends

        for backends in s3_backends.values():
            for backend in backends.values():
                backend.reset()


def _delay_deletions(monkeypatch, lag):
    from moto.s3.models import S3Backend

    delete, listing = S3Backend.delete_object, S3Backend.list_objects
    deleted = {}  # (bucket, name) → (when, the object)

    def slow(self, bucket_name, key_name, *args, **kwargs):
        found = self.head_object(bucket_name, key_name)
        if found is not None:
            deleted[bucket_name, key_name] = time.monotonic(), found
        time.sleep(lag / 100)
        return delete(self, bucket_name, key_name, *args, **kwargs)

    def stale(self, bucket, *args, **kwargs):
        shown = copy.copy(bucket)
        shown.keys = {
            key: found
            for (name, key), (when, found) in list(deleted.items())
            if name == bucket.name and time.monotonic() < when + lag
        } | dict(bucket.keys.items())
        return listing(self, shown, *args, **kwargs)

    monkeypatch.setattr(S3Backend, "delete_object", slow)
    monkeypatch.setattr(S3Backend, "list_objects", stale)


SERVERS = {"gs": gs, "s3": s3}
