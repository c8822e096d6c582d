"""What `vlrep serve` does: an index and its model opened, and a server at a port."""

import errno
import logging
import socket
import sys
from contextlib import suppress
from pathlib import Path

import jax

from vlrep_jax.parallel import make_mesh
from vlrep_jax.search.engine import Engine
from vlrep_jax.search.running import model_of, recall_line
from vlrep_jax.weights.pretrained import BATCH

try:
    import uvicorn
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from vlrep_jax.serve.app import PAGE, Site, create_app, depth
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"vlrep serve needs a package that is not installed ({error.name}): "
        "pip install 'vlrep_jax[serve]'."
    ) from None

GRACE_S = 3  # for requests under way once it is told to stop; one client may send nothing more
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(
    path: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    batch: int = 16,
    exact: bool = False,
    model: str | None = None,
) -> None:
    """Serves the search page and the API of an index until it is interrupted.

    Args:
      path: of the index.
      host, port: where to listen; port 0 is any that is free.
      batch: requests encoded as one, at most.
      exact: do not use a graph of near neighbours.
      model: path of the index's model, where it is not where it was.

    Raises:
      FileNotFoundError: there is no index, or its model is not there.
      ValueError: another model, or a number out of range.
      OSError: nothing can listen there: the port is in use, for one.
    """
    if not 1 <= batch <= BATCH:
        raise ValueError(f"--batch={batch} must be from 1 to {BATCH}.")
    # First, as the model may take long to load.
    with listening(host, port) as listener:
        devices = jax.local_devices()
        mesh = make_mesh(devices=devices) if len(devices) > 1 else None
        engine = Engine(path, exact=exact, mesh=mesh)
        with engine.store:
            site = Site(path, engine, model_of(engine.store, model), batch)
            if len(engine):
                site.answers.warm([depth(PAGE), depth(2 * PAGE)])
            app = create_app(site)
            if host in LOOPBACK:  # else a page of another site could ask under a name of its own
                app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK, "[::1]"])
            shown = f"[{host}]" if ":" in host else host
            where = f"http://{shown}:{listener.getsockname()[1]}/"
            print(f"Serving {len(engine):,} pictures at {where} (Ctrl-C stops it).", flush=True)
            if engine.recall:
                print(f"Approximate: {recall_line(engine.recall)}.", file=sys.stderr, flush=True)
            config = uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                ws="none",
                timeout_graceful_shutdown=GRACE_S,
            )
            with suppress(KeyboardInterrupt):
                _Server(config).run(sockets=[listener])
    print("Stopped.")


class _Server(uvicorn.Server):
    async def shutdown(self, sockets=None):
        # What is cut off from now on would be a traceback each.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        await super().shutdown(sockets)


def listening(host: str, port: int) -> socket.socket:
    """A socket bound to an address.

    Raises:
      ValueError: it cannot be: the port is in use, or there is no such address.
    """
    if not 0 <= port < 65_536:
        raise ValueError(f"--port={port} must be from 0 to 65535.")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
    except OSError as error:
        raise ValueError(f"--host={host} is no address: {error.strerror}.") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ValueError(
                f"port {port} of {host} is in use: name another, as in --port={port + 1}, or "
                "--port=0 for any that is free."
            ) from None
        raise ValueError(
            f"--host={host} --port={port}: nothing can listen there ({error.strerror})."
        ) from None
    return listener
