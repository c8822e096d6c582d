"""A run's numbers: metrics.jsonl, TensorBoard events and a progress display. Reads no device."""

import json
import math
import os
import sys
import time
from pathlib import Path

from vlrep_jax.appending import Appender
from vlrep_jax.events import EventFile

FILE_NAME = "metrics.jsonl"


class MetricsWriter:
    """Appends to WORKDIR/metrics.jsonl and WORKDIR/tb, and shows progress on stderr.

    A line is one JSON object: `step` first, then the names. JSON has no NaN or infinity, so these
    are the strings "NaN", "Infinity" and "-Infinity" (protobuf's JSON form); `read` turns them
    back. A step may be written several times.

    Continuing a run from step s drops what was written after s: those steps come again. A last
    line cut short by a crash is dropped too. Where rows cannot be written, as on a full disk, they
    wait in memory: `sync` tells.
    """

    def __init__(
        self,
        workdir,
        *,
        start_step=0,
        is_writer=True,
        total_steps=None,
        loss="train/loss",
        rate="train/images_per_second",
    ):
        """Opens the files.

        Args:
          workdir: directory, made if missing.
          start_step: the step that the run continues from; 0 for a new one, which drops all rows.
          is_writer: False on every process but one: nothing is then written or shown.
          total_steps: the last step, for the progress display; None for no display.
          loss, rate: the metrics that the progress display shows.

        Raises:
          ValueError: metrics.jsonl holds, before its last line, something that is no metrics row.
        """
        self._rows = self._events = self._progress = None
        self._shown = {"loss": loss, "images/s": rate}
        self._told = False  # that rows wait
        if not is_writer:
            return
        self._workdir = Path(workdir)
        self._workdir.mkdir(parents=True, exist_ok=True)
        self._open(start_step)
        if total_steps is not None:
            self._progress = Progress(total_steps, start_step=start_step)

    def _open(self, step):
        path, tensorboard = self._workdir / FILE_NAME, self._workdir / "tb"
        # Nothing is saved at step 0, so what was written of it comes again as well.
        first = step + 1 if step else 0
        _rewind(path, first)
        self._rows = Appender(path)
        self._events = EventFile(tensorboard, hide_from=first if tensorboard.exists() else None)

    def rewind(self, step):
        """Drops what was written after a step, as when a run continues from there."""
        if self._rows is None:
            return
        self._close_files()
        self._open(step)
        if self._progress is not None:
            self._progress.go_back(step)

    def write(self, step, values):
        """Writes {name: number or scalar array} at a step; on disk when this returns, if it can."""
        if self._rows is None:
            return
        values = {name: float(value) for name, value in values.items()}
        if "step" in values:
            raise ValueError("a metric cannot be named 'step'; that key holds the step itself.")
        row = {"step": int(step)} | {name: _to_json(value) for name, value in values.items()}
        self._rows.add(_line(row))
        self._events.add(int(step), values)
        try:
            self._flush()
        except OSError as error:
            if not self._told:
                self.say(
                    f"Metrics of step {step} could not be written ({error}). They wait in memory; "
                    "no step is saved before they are on disk."
                )
            self._told = True
        if self._progress is not None:
            shown = {label: values[name] for label, name in self._shown.items() if name in values}
            self._progress.show(shown)

    def _flush(self):
        self._rows.flush()
        self._events.flush()
        self._told = False

    def sync(self):
        """Returns once the disk has all rows; raises OSError where it cannot."""
        if self._rows is not None:
            self._flush()
            self._rows.sync()
            self._events.sync()

    def advance(self, step):
        """Moves the progress display to a step; cheap enough for every step."""
        if self._progress is not None:
            self._progress.advance(int(step))

    def say(self, text):
        """Prints a line on stderr, above the progress display; nothing where nothing is shown."""
        if self._progress is not None:
            self._progress.say(text)

    def close(self):
        """Ends the display and closes the files; a second call does nothing.

        Raises:
          OSError: rows that could not be written are lost.
        """
        if self._progress is not None:
            self._progress.close()
        self._progress = None
        try:
            self.sync()
        finally:
            self._close_files()

    def _close_files(self):
        for part in (self._rows, self._events):
            if part is not None:
                part.close()
        self._rows = self._events = None

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        try:
            self.close()
        except OSError:
            if kind is None:  # else what ended the run is the error to tell
                raise


def read(path):
    """The rows of a metrics.jsonl (or of the one in a work directory), as a list of dicts.

    The file may be one that a run is writing: an unfinished last line is left out.
    """
    path = Path(path)
    return _rows(path / FILE_NAME if path.is_dir() else path)[0]


class Progress:
    """A progress bar on a terminal, and a plain line every `every_s` seconds elsewhere."""

    def __init__(
        self, total, *, unit="step", start_step=0, stream=None, every_s=10.0, clock=time.monotonic
    ):
        self._total, self._start, self._step = total, start_step, start_step
        self._unit = unit
        self._stream = sys.stderr if stream is None else stream
        self._every_s, self._clock = every_s, clock
        self._said, self._paced_from = clock(), None
        self._values = {}
        self._bar = _bar(self._stream, unit) if self._stream.isatty() else None
        if self._bar is not None:
            self._task = self._bar.add_task("step", total=total, completed=start_step, values="")
            self._bar.start()

    def show(self, values):
        """Replaces the numbers shown, such as {'loss': 3.2, 'images/s': 410.}."""
        self._values |= values
        if self._bar is not None:
            self._bar.update(self._task, values=_words(self._values))

    def advance(self, step):
        """Moves to a step."""
        self._step = step
        if self._paced_from is None:  # the first step compiles, and says nothing of the pace
            self._paced_from = (step, self._clock())
        if self._bar is not None:
            self._bar.update(self._task, completed=step)
        elif self._clock() - self._said >= self._every_s:
            self._say()

    def go_back(self, step):
        """Moves back to a step that was passed."""
        self._step, self._paced_from = step, None
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def say(self, text):
        """Prints a line without disturbing the display."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=self._stream, flush=True)

    def close(self):
        if self._bar is not None:
            self._bar.stop()
        elif self._step > self._start:
            self._say()

    def _say(self):
        self._said = self._clock()
        words = [f"{self._unit} {self._step}/{self._total}", _words(self._values)]
        began, since = self._paced_from
        done, left = self._step - began, self._total - self._step
        if done and left > 0:
            words.append(_duration((self._said - since) / done * left) + " left")
        print("  ".join(filter(None, words)), file=self._stream, flush=True)


def _bar(stream, unit):
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    return Bar(
        TextColumn(unit),
        MofNCompleteColumn(),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[values]}"),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=Console(file=stream),
        expand=True,
    )


def _words(values):
    number = {name: f"{v:,.0f}" if abs(v) >= 100 else f"{v:.3g}" for name, v in values.items()}
    return "  ".join(f"{name} {text}" for name, text in number.items())


def _duration(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _rewind(path, first):
    """Drops the rows of a step and all later ones, through a new file: a crash leaves the old one
    or the new."""
    if not path.exists():
        return
    rows, whole = _rows(path)
    kept = [row for row in rows if row["step"] < first]
    if whole and len(kept) == len(rows):
        return
    part = path.with_suffix(".part")
    with open(part, "wb") as file:
        for row in kept:
            file.write(_line({name: _to_json(value) for name, value in row.items()}))
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def _line(row):
    return (json.dumps(row, allow_nan=False, ensure_ascii=False) + "\n").encode()


def _rows(path):
    """The rows of a metrics file, and whether it ends in a whole line."""
    data = path.read_bytes()
    lines = data.splitlines()
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            rows.append({"step": int(row["step"])} | {k: _from_json(v) for k, v in row.items()})
        except (ValueError, TypeError, KeyError):
            if number < len(lines):
                raise ValueError(
                    f"{path}, line {number} is no metrics row: {line[:80]!r}. Delete that line, "
                    "or move the file away."
                ) from None
            return rows, False
    return rows, data.endswith(b"\n") or not data


def _to_json(value):
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _from_json(value):
    return float(value) if value in ("NaN", "Infinity", "-Infinity") else value
