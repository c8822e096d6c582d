"""A server of a small index, in this process or on a port of its own."""

import threading
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from searching import built, draw_many, tiny
from starlette.testclient import TestClient

from vlrep_jax import search
from vlrep_jax.serve import running
from vlrep_jax.serve.app import Site, create_app


@contextmanager
def client(index: Path, batch: int = 4):
    """An HTTP client of an application over an index, and its site."""
    with search.Engine(index) as engine:
        site = Site(index, engine, tiny(), batch)
        with TestClient(create_app(site), "http://127.0.0.1") as http:
            yield http, site


def index_of(folder: Path, count: int) -> Path:
    draw_many(folder / "photos" / "below", count)
    built(folder / "index", folder / "photos")
    return folder / "index"


@contextmanager
def live(index: Path, batch: int = 4):
    """The same on a port of its own, by uvicorn in a thread; gives its address."""
    with search.Engine(index) as engine, running.listening("127.0.0.1", 0) as listener:
        site = Site(index, engine, tiny(), batch)
        server = uvicorn.Server(uvicorn.Config(create_app(site), log_level="error", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join(30)
