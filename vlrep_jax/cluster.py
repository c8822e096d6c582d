"""The processes of one run: how they find each other, what they tell each other, how they end.

Everything goes through the key-value store of `jax.distributed`, which is there before the first
array and still there when a collective hangs. A process that is alone is a cluster of one.
"""

import faulthandler
import importlib.util
import json
import logging
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import contextmanager, suppress

import jax
from jax._src import clusters, distributed  # no public way leads to either

from vlrep_jax import addresses
from vlrep_jax.exits import FAULT_CODE, USER_ERROR_CODE, USER_ERRORS, code_of

_PREFIX = "vlrep/"
_WAIT_S = 3600  # of one request of a thread that waits for as long as the run takes
_LEAVE_S = 60  # of the last handshake, which begins when all are there
_LINGER_S = 1.0  # what process 0 grants the others to read why the run ends: it keeps the store


class Cluster:
    """This process among those of a run.

    Attributes:
      index, count: of this process, and of all. name: for messages.
    """

    def __init__(self, client=None, index: int = 0, count: int = 1):
        self._client, self.index, self.count = client, index, count
        self.name = f"process {index} ({socket.gethostname()})"
        self._threads: list[threading.Thread] = []
        self._ending, self._leaving = threading.Lock(), threading.Lock()
        self._left = False

    def tell(self, name: str, value: str) -> None:
        """Publishes a value; of several under one name the first stays."""
        try:
            self._client.key_value_set(_PREFIX + name, value)
        except jax.errors.JaxRuntimeError as error:
            if "ALREADY_EXISTS" not in str(error):
                raise

    def hear(self, name: str, timeout_s: float) -> str:
        """The value of a name, as soon as some process tells it.

        Raises:
          jax.errors.JaxRuntimeError: nobody did in that time.
        """
        return self._client.blocking_key_value_get(_PREFIX + name, int(timeout_s * 1000))

    def on(self, name: str, action: Callable[[str], None]) -> None:
        """Has a thread call `action` with a name's value, once some process tells it."""
        if self._client is None:
            return

        def wait():
            try:
                value = self._hear_at_last(name)
            except jax.errors.JaxRuntimeError:
                return  # the store is gone; who is left is ended by jax
            action(value)

        thread = threading.Thread(target=wait, name=f"waits for {name}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _hear_at_last(self, name):
        """As `hear`, for as long as it takes: a process that is gone is found by its heartbeat."""
        while True:
            try:
                return self.hear(name, _WAIT_S)
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise

    def gather(self, name: str, value, timeout_s: float) -> list | None:
        """The JSON values of all processes in order, on process 0; None on the others."""
        if self.count == 1:
            return [value]
        self.tell(f"{name}/{self.index}", json.dumps(value, sort_keys=True))
        if self.index:
            return None
        return [json.loads(self.hear(f"{name}/{i}", timeout_s)) for i in range(self.count)]

    def check_equal(self, values: dict, timeout_s: float) -> None:
        """Compares what must be the same everywhere, once a run.

        Args:
          values: flat, of JSON values.
          timeout_s: how long the slowest process may take to get here.

        Raises:
          ValueError: on every process; it names what differs, and where.
        """
        found = self.gather("equal", {"host": self.name, "values": values}, timeout_s)
        if self.count == 1:
            return
        if found is not None:
            self.tell("verdict", differences(found))
        if verdict := self.hear("verdict", timeout_s):
            raise ValueError(verdict)

    def end(self, reason: str, code: int = FAULT_CODE) -> None:
        """Ends all processes at once, with their stacks; nothing is saved. Does not return."""
        with self._ending:  # whoever comes second waits for the end
            faulthandler.cancel_dump_traceback_later()
            if self._client is not None:
                # Process 0 may be gone already, and with it the store.
                with suppress(jax.errors.JaxRuntimeError):
                    self.tell("fault", json.dumps([f"{self.name}: {reason}", code]))
                    # What failed here may be that another process, whose fault it is, went away.
                    first, code = json.loads(self.hear("fault", _LINGER_S))
                    if first != f"{self.name}: {reason}":
                        reason = f"{reason}; ended with {first}"
            self._end_here(f"{self.name}: {reason}", code)

    def _on_fault(self, value):
        reason, code = json.loads(value)
        if self._ending.acquire(blocking=False):  # else it was this process that told it
            self._end_here(f"ended with {reason}", code)

    def _end_here(self, reason, code):
        sys.stdout.flush()
        print(f"vlrep: {reason}", file=sys.stderr, flush=True)
        if code != USER_ERROR_CODE:
            faulthandler.dump_traceback(file=sys.__stderr__, all_threads=True)
        if self.index == 0 and self.count > 1:
            time.sleep(_LINGER_S)
        os._exit(code)

    def leave_together(self) -> None:
        """Returns once every process is here, so that none takes the other for dead.

        However long one of them still writes: jax's own barrier at the end has a limit, at which it
        would end those that wait.
        """
        if self._client is None:
            return
        with self._leaving:
            if self._left:
                return
            self.tell(f"leaving/{self.index}", "")
            if self.index == 0:
                for other in range(1, self.count):
                    self._hear_at_last(f"leaving/{other}")
                self.tell("all leave", "")
            self._hear_at_last("all leave")
            jax.distributed.shutdown()
            self._left = True

    def close(self) -> None:
        """Leaves at the end of a run; the threads must be gone before the interpreter is."""
        self.leave_together()
        for thread in self._threads:
            thread.join()

    @contextmanager
    def ending_all(self):
        """An error inside ends all processes, with its code; alone it is just raised.

        Around what closes files and waits for other processes it must stand inside of that.
        """
        try:
            yield
        except Exception as error:
            if self.count == 1:
                raise
            if isinstance(error, USER_ERRORS):
                self.end(f"error: {error}", code_of(error))
            traceback.print_exc()
            self.end(f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")


@contextmanager
def joined(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    join_s: int,
    heartbeat_s: int,
):
    """Joins the other processes of this run, if there are any, and leaves them at the end.

    Cloud TPU, SLURM, Open MPI and Kubernetes jobs are found as jax finds them.

    Args:
      coordinator: HOST:PORT at which process 0 listens. With `processes` and `process` it takes
        the place of what would be found.
      processes: their number; 1 looks for no others.
      process: number of this one, from 0.
      join_s: how long to wait for all of them.
      heartbeat_s: after so long without a sign of life a process is dead, and ends the others.

    Yields:
      A Cluster.

    Raises:
      ValueError: the arguments do not fit together, or process 0 cannot listen. If the others do
        not come the process ends, with one line and exit code 1.
    """
    address, count, index, local = _place(coordinator, processes, process, join_s)
    if count == 1:
        yield Cluster()
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # That service takes SIGTERM for itself; `stopping` knows SIGINT too, and every moment.
    jax.config.update("jax_enable_preemption_service", False)
    logging.getLogger("jax._src.distributed").setLevel(logging.ERROR)
    # jax ends a process whose peers are gone with SIGABRT; this shows where it stood.
    faulthandler.enable(file=sys.__stderr__)
    bound = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS") or addresses.own_address(address)
    if index == 0:
        addresses.check_listens(bound)
    late = threading.Timer(join_s, _give_up, (address, index, count, join_s))
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(
            bound if index == 0 else address,
            num_processes=count,
            process_id=index,
            local_device_ids=local,
            cluster_detection_method="deactivate",  # all of it is known
            coordinator_bind_address=bound,
            initialization_timeout=2 * join_s + 60,  # at its end jax aborts, without a clear word
            heartbeat_timeout_seconds=heartbeat_s,
            shutdown_timeout_seconds=_LEAVE_S,
        )
    except RuntimeError as error:  # the port is taken, for example
        raise ValueError(
            f"Process {index} of {count} cannot join at {address}: "
            f"{' '.join(str(error).split())[:300]}"
        ) from None
    late.cancel()
    addresses.keep_collectives_to(bound if index == 0 else address)
    cluster = Cluster(distributed.global_state.client, index, count)
    cluster.on("fault", cluster._on_fault)
    with cluster.ending_all():
        yield cluster
        cluster.close()


def _give_up(address, index, count, join_s):
    """Ends this process; it waits in C++, and no exception would reach it."""
    print(
        f"vlrep: error: process {index} of {count} could not join the others at {address} in "
        f"{join_s} s. Are all {count} started, with numbers 0 to {count - 1} and the same "
        "coordinator, and can they reach it?",
        file=sys.stderr,
        flush=True,
    )
    os._exit(FAULT_CODE)


def _place(coordinator, processes, process, join_s):
    """(coordinator, number of processes, number of this one, local devices), found where not given.

    One process alone is (None, 1, 0, None).
    """
    given = {"--coordinator": coordinator, "--processes": processes, "--process": process}
    missing = [flag for flag, value in given.items() if value is None]
    if processes == 1:
        return None, 1, 0, None
    if not missing:
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise ValueError(f"--coordinator={coordinator} must be HOST:PORT.")
        if processes < 1 or not 0 <= process < processes:
            raise ValueError(
                f"--process={process} must be from 0 to {processes - 1}, as there are "
                f"--processes={processes}."
            )
        return coordinator, processes, process, None
    if len(missing) < 3:
        raise ValueError(
            f"{', '.join(missing)} must be given too: --coordinator=HOST:PORT --processes=N "
            "--process=I, or none of them where the cluster is one that is found."
        )
    if "KUBERNETES_SERVICE_HOST" in os.environ and importlib.util.find_spec("kubernetes") is None:
        # It only warns of it, in a pod of whatever kind.
        return None, 1, 0, None
    try:
        found = clusters.ClusterEnv.auto_detect_unset_distributed_params(
            None, None, None, None, None, join_s
        )
    except Exception as error:  # whatever a cluster's own interface raises
        raise ValueError(
            f"The other processes of this cluster were not found ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]}). Give --coordinator=HOST:PORT --processes=N "
            "--process=I, or --processes=1 for this process alone."
        ) from None
    address, count, index, local = found
    return (None, 1, 0, None) if address is None or count == 1 else (address, count, index, local)


def differences(found: list[dict]) -> str:
    """What differs between processes and where, in one line; '' where nothing does.

    Args:
      found: by process, {"host": its name, "values": {name: value}}.
    """
    names = sorted({name for each in found for name in each["values"]})
    words = []
    for name in names:
        hosts = {}  # value -> who has it
        for each in found:
            value = json.dumps(each["values"].get(name))
            hosts.setdefault(value, []).append(each["host"])
        if len(hosts) > 1:
            common = max(hosts, key=lambda value: len(hosts[value]))
            others = [
                f"{value} on {', '.join(who[:3])}{' and others' if len(who) > 3 else ''}"
                for value, who in hosts.items()
                if value != common
            ]
            where = hosts[common][0] if len(hosts[common]) == 1 else f"{len(hosts[common])} others"
            words.append(f"{name} is {'; '.join(others[:4])}, but {common} on {where}")
    if not words:
        return ""
    more = f"; and {len(words) - 8} more" if len(words) > 8 else ""
    return (
        f"The processes of this run differ: {'; '.join(words[:8])}{more}. Start all of them with "
        "the same recipe, code and data."
    )
