"""The two sides of `cpu_step.py` and `gpu_step.py`: one train step here, the same one in open_clip.

Each side is built from one `Shape` and lives in a process of its own, whose thread pools and device
memory do not meet the other's: `Worker` starts it and asks it for steps, `serve` answers.
"""

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass

LEARNING_RATE, WEIGHT_DECAY, BETAS, EPS = 5e-4, 0.2, (0.9, 0.98), 1e-6  # CLIP's, of both sides
MAX_LOGIT_SCALE = 100.0


@dataclass(frozen=True)
class Shape:
    """A CLIP with a vision transformer and the batch that it is given; heads are 64 wide."""

    image_size: int
    patch_size: int
    width: int
    depth: int
    text_width: int
    text_depth: int
    context_length: int
    vocab_size: int
    embed_dim: int
    batch_size: int

    def __str__(self):
        return (
            f"images {self.image_size} px in patches of {self.patch_size}, width {self.width}, "
            f"{self.depth} layers; texts of {self.context_length} tokens (of {self.vocab_size:,}), "
            f"width {self.text_width}, {self.text_depth} layers; batch {self.batch_size}"
        )


def batch(shape):
    """(normalised pixels float32[b, s, s, 3], ids int64[b, l]): made once, the same on both sides.

    Data loading is no part of the comparison.
    """
    import numpy as np

    rng = np.random.default_rng(0)
    size = (shape.batch_size, shape.image_size, shape.image_size, 3)
    images = rng.standard_normal(size, np.float32)
    tokens = rng.integers(1, shape.vocab_size - 1, (shape.batch_size, shape.context_length))
    tokens[:, -1] = shape.vocab_size - 1  # the end of text has the largest id
    return images, tokens


# A side is made by side(shape, **options) and gives (step, parameters, about): step(n) takes n
# steps and returns the last loss when it is there; about(), asked after a step, is what else the
# table wants. Imports are inside, for neither side is to pay for the other's.


def ours(shape, *, dtype="float32", attention="xla", unroll=True, cache_dir=None, flops=False):
    """This library's step, as `vlrep train` compiles it."""
    import jax
    import numpy as np

    if cache_dir:
        jax.config.update("jax_compilation_cache_dir", cache_dir)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    from vlrep_jax import recipes
    from vlrep_jax.experiment import make_experiment

    def tower(**options):
        depth = options["depth"]
        return options | {"embed_dim": shape.embed_dim, "unroll": depth if unroll else 1}

    config = recipes.base()
    config.batch_size, config.steps = shape.batch_size, 1_000_000
    config.max_logit_scale = MAX_LOGIT_SCALE
    config.model = {
        "name": "dual_encoder",
        "attention": attention,
        "towers": {"dtype": dtype, "remat": "none"},
        "image": tower(
            name="vit",
            image_size=shape.image_size,
            patch_size=shape.patch_size,
            width=shape.width,
            depth=shape.depth,
            heads=shape.width // 64,
        ),
        "text": tower(
            name="text_transformer",
            context_length=shape.context_length,
            vocab_size=shape.vocab_size,
            width=shape.text_width,
            depth=shape.text_depth,
            heads=shape.text_width // 64,
        ),
    }
    config.optimizer = {"name": "adamw", "weight_decay": WEIGHT_DECAY, "eps": EPS}
    config.optimizer.b1, config.optimizer.b2 = BETAS
    config.schedule = {"name": "constant", "peak": LEARNING_RATE}
    experiment = make_experiment(config)
    state = experiment.init()
    images, tokens = batch(shape)
    pairs = experiment.put({"image": images, "text": tokens.astype(np.int32)})

    def step(n):
        nonlocal state
        for _ in range(n):
            state, metrics = experiment.step(state, pairs)
        return float(metrics["loss"])

    def about():
        if not flops:
            return {}
        from vlrep_jax.plan.estimate import training_flops

        return {"flops_per_pair": training_flops(experiment)}

    return step, sum(leaf.size for leaf in jax.tree.leaves(state.params)), about


def open_clip(shape, *, compile=False, device="cpu", bfloat16=False, threads=0, fused=False):
    """open_clip's model and loss in the step of its trainer, `open_clip_train.train`."""
    import torch

    declare_missing_operators(torch)
    from open_clip.loss import ClipLoss
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    if threads:
        torch.set_num_threads(threads)
    if device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True  # as its trainer does
    torch.manual_seed(0)
    vision = CLIPVisionCfg(
        layers=shape.depth,
        width=shape.width,
        head_width=64,
        patch_size=shape.patch_size,
        image_size=shape.image_size,
    )
    text = CLIPTextCfg(
        context_length=shape.context_length,
        vocab_size=shape.vocab_size,
        width=shape.text_width,
        heads=shape.text_width // 64,
        layers=shape.text_depth,
    )
    plain = CLIP(shape.embed_dim, vision, text, output_dict=True).to(device)
    model = torch.compile(plain) if compile else plain
    named = list(plain.named_parameters())
    no_decay = [p for name, p in named if p.ndim < 2 or "bias" in name or "ln" in name]
    decay = [p for name, p in named if not (p.ndim < 2 or "bias" in name or "ln" in name)]
    groups = [
        {"params": no_decay, "weight_decay": 0.0},
        {"params": decay, "weight_decay": WEIGHT_DECAY},
    ]
    fused = {"fused": True} if fused else {}
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, eps=EPS, **fused)
    loss_of = ClipLoss(local_loss=True, gather_with_grad=True, cache_labels=True)
    images, tokens = (torch.from_numpy(array).to(device) for array in batch(shape))
    # Its layout, and contiguous: the transposition of the pixels is no part of the step.
    images = images.permute(0, 3, 1, 2).contiguous()

    def step(n):
        for _ in range(n):
            optimizer.zero_grad()
            with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
                out = model(images, tokens)
                loss = loss_of(out["image_features"], out["text_features"], out["logit_scale"])
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                plain.logit_scale.clamp_(0, math.log(MAX_LOGIT_SCALE))
        return float(loss.detach())

    return step, sum(p.numel() for _, p in named), dict


def declare_missing_operators(torch):
    """Lets a torchvision import without its compiled operators, which no model here calls.

    Its wheels are built for one torch; beside another, such as a local CPU build, they do not load.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", signature)


SIDES = {"ours": ours, "open_clip": open_clip}


class SideFailed(Exception):
    """A worker ended; says why. `out_of_memory` tells the reason that a smaller batch removes."""

    def __init__(self, message):
        super().__init__(message)
        words = ("out of memory", "RESOURCE_EXHAUSTED", "OutOfMemory", "bad_alloc")
        self.out_of_memory = any(word in message for word in words)


class Worker:
    """A side in a process of its own, its step compiled and run once.

    Attributes:
      first_step_s: from the start of the process to the end of its first step.
      parameters, loss, about: as the side gives them; the loss is that of the first step.

    Raises:
      SideFailed: the process ended with an error.
    """

    def __init__(self, name, shape, options, *, python=sys.executable, environment=None):
        self.name = name
        task = {"side": name, "shape": asdict(shape), "options": options}
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the worker)
        started = time.monotonic()
        self._process = subprocess.Popen(
            [python, __file__, json.dumps(task)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=os.environ | (environment or {}),
        )
        ready = self._answer()
        self.first_step_s = time.monotonic() - started
        self.parameters, self.loss = ready["parameters"], ready["loss"]
        self.about = self._ask({"about": True})

    def steps_per_s(self, steps):
        """Takes so many steps."""
        return steps / self._ask({"steps": steps})["seconds"]

    def _ask(self, question):
        print(json.dumps(question), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self):
        if line := self._process.stdout.readline():
            answer = json.loads(line)
            if "error" in answer:
                self.close()
                raise SideFailed(answer["error"])
            return answer
        self._process.wait()
        self._errors.seek(0)
        lines = [line for line in self._errors.read().splitlines() if line.strip()]
        raise SideFailed("\n".join(lines[-15:]) or f"exit code {self._process.returncode}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Ends the process."""
        self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()


def serve(task):
    """Answers the questions of a `Worker` on standard input, one JSON object a line."""
    # What libraries print must not get between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**values):
        print(json.dumps(values), file=answers, flush=True)

    try:
        step, parameters, about = SIDES[task["side"]](Shape(**task["shape"]), **task["options"])
        answer(parameters=parameters, loss=step(1))
        for line in sys.stdin:
            question = json.loads(line)
            if "about" in question:
                answer(**about())
            else:
                started = time.perf_counter()
                step(question["steps"])
                answer(seconds=time.perf_counter() - started)
    except Exception as error:
        # Whatever a side raises, for compilers and kernels have errors of many types, goes to the
        # parent, which raises it as SideFailed.
        answer(error=f"{type(error).__name__}: {error}"[:2000])


def alternated(workers, *, pairs, steps, rest_s=0.0):
    """{name: steps a second, one figure a pair}: every worker once in turn, `pairs` times.

    rest_s: before each turn, so that threads which spin after their work have gone to sleep.
    """
    rates = {name: [] for name in workers}
    for worker in workers.values():
        worker.steps_per_s(2)  # the second step may still allocate
    for _ in range(pairs):
        for name, worker in workers.items():
            time.sleep(rest_s)
            rates[name].append(worker.steps_per_s(steps))
    return rates


def median_ratio(rates, others):
    """The median over pairs of one side's rate by the other's: what slows a pair slows both."""
    return statistics.median(a / b for a, b in zip(rates, others, strict=True))


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
