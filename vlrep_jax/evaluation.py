"""Runs the `evals` section of a config: opens the data, embeds it once, scores it."""

import inspect
import json
from collections.abc import Callable, Mapping
from functools import partial

import jax
import numpy as np

from vlrep_jax.build import bind, build, find, plain
from vlrep_jax.data.pipeline import eval_batches
from vlrep_jax.data.preprocess import Preprocess
from vlrep_jax.data.sources import SOURCES, captions
from vlrep_jax.data.zero_shot_sets import ZERO_SHOT_SETS, of_files
from vlrep_jax.evals import EVALS, EvalResult, check_sizes, class_sets


class EvalData:
    """The pictures, captions and class sets of a source, as evaluations read them.

    Attributes:
      captions: m texts. image_of_caption: int32[m], the picture of each.
    """

    def __init__(self, source, *, preprocess: Preprocess, batch_size: int):
        self.captions, self.image_of_caption = captions(source)
        self._source = source
        self._open = partial(eval_batches, source, preprocess=preprocess, batch_size=batch_size)
        self._batches = self._open(
            process_index=jax.process_index(), process_count=jax.process_count()
        )

    def image_batches(self):
        """The pictures in order. One that cannot be read is black, and so most likely a miss."""
        return iter(self._batches)

    def labels(self, name: str) -> list:
        """What the source knows of each picture under a name.

        Raises:
          ValueError: it knows nothing under it.
        """
        samples = self._source.__getitems__(range(len(self._source)))
        if not all(name in sample.labels for sample in samples):
            raise ValueError(f"The source has no label {name!r}; it has {[*samples[0].labels]}.")
        return [sample.labels[name] for sample in samples]

    def class_set(self, which: str | Mapping):
        """A way to label the pictures: a name in ZERO_SHOT_SETS, or options of `of_files`."""
        if isinstance(which, str):
            return find(ZERO_SHOT_SETS, which, "class set")(self._source)
        options = {key: value for key, value in which.items() if key != "name"}
        return of_files(self._source, **options)

    def pictures(self) -> np.ndarray:
        """uint8[n, h, w, 3] as the model sees them, all of them on any one process.

        A clip's frames lie side by side.
        """
        seen = np.concatenate([batch["image"][batch["index"] >= 0] for batch in self._open()])
        if seen.ndim == 4:
            return seen
        n, frames, height, width, _ = seen.shape
        return seen.transpose(0, 2, 1, 3, 4).reshape(n, height, frames * width, 3)


class Evaluations:
    """The evaluations of a config, ready to run on any encoder of its model."""

    def __init__(self, sections: Mapping, *, preprocess: Preprocess, batch_size: int, mesh):
        """Opens every source.

        Args:
          sections: name -> entry of EVALS with its options and the `source` it reads.
          preprocess: of the pictures.
          batch_size: pictures in a batch, over all processes.
          mesh: devices that share the scoring.

        Raises:
          ValueError: an unknown evaluation, source or class set.
        """
        self.data: dict[str, EvalData] = {}
        self._run: dict[str, Callable] = {}
        self._source: dict[str, str] = {}
        opened = {}
        for name, section in plain(sections).items():
            if "source" not in section:
                raise ValueError(f"config.evals.{name} needs a source.")
            source_section = section.pop("source")
            key = json.dumps(source_section, sort_keys=True)
            if key not in opened:
                source = build(SOURCES, source_section, "source")
                opened[key] = EvalData(source, preprocess=preprocess, batch_size=batch_size)
            self.data[name], self._source[name] = opened[key], key
            self._run[name] = _bound(name, section, mesh)
            for class_set in class_sets(section.get("sets", ())).values():
                try:
                    opened[key].class_set(class_set)  # a misspelling shows now, not after an epoch
                except TypeError as error:
                    raise ValueError(f"config.evals.{name}.sets: {error}.") from None

    def __call__(self, encoder) -> dict[str, EvalResult]:
        """name -> result; pictures that several evaluations read are embedded once."""
        embedded, results = {}, {}
        for name, run in self._run.items():
            key = self._source[name]
            results[name] = run(encoder, self.data[name], image=embedded.get(key))
            embedded[key] = results[name].details.get("image", embedded.get(key))
        return results


def _bound(name, section, mesh):
    """run(encoder, data, image) of a section whose options are known to be right."""
    run = bind(EVALS, section, "evaluation", mesh=mesh)
    try:
        inspect.signature(run).bind(encoder=None, data=None, image=None)
        check_sizes(**section)
    except (TypeError, ValueError) as error:  # now rather than after the first steps
        raise ValueError(f"config.evals.{name}: {str(error).rstrip('.')}.") from None
    return run


def flat_metrics(results: Mapping[str, EvalResult]) -> dict[str, float]:
    """Metrics of all results as `name/metric`."""
    return {
        f"{name}/{metric}": value
        for name, result in results.items()
        for metric, value in result.metrics.items()
    }
