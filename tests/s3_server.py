"""A local server that speaks S3, as a fixture for the test files that import it."""

import urllib.request

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
    # All servers of a process share what they store, and another file's tests may have had one.
    reset = urllib.request.Request(f"{options['endpoint_url']}/moto-api/reset", method="POST")
    urllib.request.urlopen(reset).close()
    fsspec.filesystem("s3", **options).mkdir("bucket")
    yield options
    server.stop()
