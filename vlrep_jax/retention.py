"""Which checkpoints stay on disk."""

from collections.abc import Mapping
from dataclasses import dataclass

MODES = ("max", "min")


@dataclass(frozen=True)
class Keep:
    """The newest steps, every so many steps for good, and the best by a metric.

    Attributes:
      newest: how many of the newest stay; at least 1, so the newest is never removed.
      every: a step that this number divides stays for good; 0 for none.
      metric: of an evaluation, such as 'unseen/text_to_image_recall@10'; the step at which it is
        best stays, the newer of two alike. A step that was saved but not evaluated cannot be it.
        '' for none.
      mode: whether 'max' or 'min' is best.
    """

    newest: int = 3
    every: int = 0
    metric: str = ""
    mode: str = "max"

    def __post_init__(self):
        if self.newest < 1:
            raise ValueError(f"config.keep_checkpoints={self.newest} must be at least 1.")
        if self.every < 0:
            raise ValueError(f"config.keep_every={self.every} must not be negative; 0 is none.")
        if self.mode not in MODES:
            raise ValueError(f"config.keep_best.mode={self.mode!r} must be 'max' or 'min'.")

    def kept(self, steps: Mapping[int, Mapping[str, float]]) -> set[int]:
        """The steps to keep.

        Args:
          steps: of each finished checkpoint, the metrics of the evaluation at that step; {} where
            there was none.
        """
        kept = set(sorted(steps)[-self.newest :])
        if self.every:
            kept |= {step for step in steps if step % self.every == 0}
        values = {step: values.get(self.metric) for step, values in steps.items()}
        values = {step: value for step, value in values.items() if value is not None}
        if values:
            sign = 1 if self.mode == "max" else -1
            kept.add(max(values, key=lambda step: (sign * values[step], step)))
        return kept
