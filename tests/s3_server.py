"""A local server that speaks S3, as a fixture for the test files that import it."""

import fsspec
import pytest


@pytest.fixture(scope="module")
def s3():
    """fsspec options of a local server that speaks S3, with an empty bucket."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = {"endpoint_url": f"http://{host}:{port}", "key": "k", "secret": "s"}
    fsspec.filesystem("s3", **options).mkdir("bucket")
    yield options
    server.stop()
