"""Imported by a process of a test: makes it go wrong as the environment's FAULT says.

FAULT is words of KIND@STEP. `raise` and `hang` happen where that step waits for data; `start`,
`restore`, `compile`, `step`, `evaluate`, `save` and `report` say that they begin there, and take
some time, so that a test can catch them. barrier@S is the limit of jax's last barrier. late@S has
every batch come so much later, and wrong@N has the loss jump on batch N. once@FILE is
a SIGTERM to process 1 in its start-up, unless FILE is there.
"""

import os
import signal
import sys
import time

from vlrep_jax import cli, cluster

FAULT = dict(word.split("@") for word in os.environ["FAULT"].split())
SLOW_S = 2.0


def at(name, step):
    """Whether this is where something is to happen; says so."""
    if FAULT.get(name) != str(step):
        return False
    print(f"now: {name}", flush=True)
    return True


def slowed(method, name, step_of):
    """A method of a Session that takes its time at a step."""

    def slow(self, *args):
        if at(name, step_of(self, *args)):
            time.sleep(SLOW_S)
        return method(self, *args)

    return slow


def batches_of(session):
    """`device_batches` that goes wrong before the batch of a step."""
    for number, batch in enumerate(device_batches(session), session.start_step + 1):
        if at("step", number):
            time.sleep(SLOW_S)
        if at("raise", number):
            raise RuntimeError("the disk of this host is gone")
        if at("hang", number):
            time.sleep(3600)
        at("compile", number)  # which it does next, in C++
        time.sleep(float(FAULT.get("late", 0)))
        yield batch


def one_marked(batches):
    """`Batches.__next__` with one batch on which the loss jumps."""
    number, batch = batches.state()["next_batch"], next_batch(batches)
    return spiking.marked(batch) if FAULT.get("wrong") == str(number) else batch


def load_config(*args):
    """`cli.load_config`, after which a run's modules are loaded and may be changed."""
    global device_batches, next_batch, spiking
    if at("start", 0):
        time.sleep(SLOW_S)
    if "once" in FAULT and "--process=1" in sys.argv and not os.path.exists(FAULT["once"]):
        open(FAULT["once"], "w").close()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(SLOW_S)
    config = loaded(*args)
    import spiking

    from vlrep_jax.data.pipeline import Batches
    from vlrep_jax.losses import LOSSES
    from vlrep_jax.session import Session

    if "wrong" in FAULT:
        LOSSES["softmax"] = spiking.softmax
    next_batch, Batches.__next__ = Batches.__next__, one_marked
    device_batches, Session.device_batches = Session.device_batches, batches_of
    Session.evaluate = slowed(Session.evaluate, "evaluate", lambda _, step, state: step)
    Session.save = slowed(Session.save, "save", lambda _, step, state: step)
    Session.report = slowed(Session.report, "report", lambda self, state: self.config.steps)
    Session.begin = slowed(Session.begin, "restore", lambda self: self.start_step)
    return config


if "barrier" in FAULT:
    cluster._LEAVE_S = int(FAULT["barrier"])
loaded, cli.load_config = cli.load_config, load_config
