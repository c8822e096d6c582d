"""Every key of a recipe with its meaning and default; the files in configs/ say what differs."""

from ml_collections import ConfigDict

from vlrep_jax.data.preprocess import CLIP_MEAN, CLIP_STD
from vlrep_jax.models import preprocessing

# Sections whose keys are always those of `base`; the others name an entry of a table.
FIXED_SECTIONS = ("image", "data", "parallel", "microbatch", "cluster", "keep_best", "spikes")


def base() -> ConfigDict:
    """The keys that every recipe has. A recipe must set steps, model and schedule.peak.

    A section with a `name` is an entry of a table with its keyword arguments, and may be replaced
    by another of the same table; `build.build` tells what it takes.
    """
    config = ConfigDict()
    # A trained model whose parameters this run begins with: a work directory ('DIR', or 'DIR@STEP')
    # or a published model's files; images and texts may be larger or smaller here
    # (vlrep_jax/initial.py). '' draws new parameters.
    config.init_from = ""
    # Patterns over parameter paths that are not taken from there, or begin anew: ('text/.*',).
    config.init_skip = ()
    config.seed = 0  # of initial weights, data order, augmentation and dropout
    config.batch_size = 256  # global: over all devices of all processes
    # A device's rows are embedded in so many parts, one after the other: memory of one part, the
    # loss of the whole batch, and one more forward pass (objectives.chunked). 1 is all at once.
    config.chunks = 1
    # Of each part so many rows of a device at a time, at most, for speed: their work then stays in
    # the chip's fast memory (objectives.microbatched). 0 is all at once.
    config.microbatch = ConfigDict({"image": 0, "text": 0})
    config.steps = 0
    config.model = ConfigDict()  # models.create
    config.loss = ConfigDict({"name": "softmax"})  # losses.LOSSES
    # Of the captioning loss of a CoCa, or of a FusionEncoder with captions; 0 for any other model.
    config.captioning_weight = 0.0
    # Of the image-text matching loss that a FusionEncoder learns to judge pairs by; 0 for any other
    # model, and for one of questions, which model.answers turns it into: answers are then all that
    # it is trained for.
    config.matching_weight = 0.0
    # One row of the batch in so many is judged and captioned; negatives come from all of them. A
    # larger batch has harder ones, and the towers' pass is the cheap part.
    config.matching_every = 1
    # optim.make_optimizer; patterns in freeze are over parameter paths: ('image/.*',) is LiT.
    config.optimizer = ConfigDict({"name": "adamw", "weight_decay": 0.0})
    config.freeze = ()
    config.schedule = ConfigDict({"name": "cosine", "peak": 0.0, "warmup_steps": 0})
    config.clip_norm = 0.0  # of the gradient; 0 for none
    config.max_logit_scale = 0.0  # the learned scale is clamped after every update; 0 for not
    config.ema_decay = 0.0  # evaluates a moving average of the parameters; 0 for none

    config.tokenizer = ConfigDict({"name": "clip"})  # data.tokenizers.TOKENIZERS
    # Preprocessing of evaluation images, data.preprocess.Preprocess; mean and std also say what
    # uint8 pixels become on the device, in training too.
    config.image = ConfigDict(
        {
            "mode": "crop",
            "mean": CLIP_MEAN,
            "std": CLIP_STD,
            "interpolation": "bicubic",
            "short_side": 0,
            "center": "round",
            "fill": 0,
        }
    )
    config.data = ConfigDict(
        {
            # data.sources.SOURCES; here a prepared TFDS directory and where its features keep
            # the picture and the captions. Whoever trains fills in the path.
            "source": {
                "name": "tfds",
                "path": "",
                "split": "train",
                "image": "image",
                "captions": "captions",
            },
            "transform": {"name": "random_crop"},  # data.transforms.TRANSFORMS
            "caption": {"name": "random"},  # data.caption_choice.CAPTIONS
            "captions_per_image": 1,  # rows of one picture, each with another of its captions
            # Of training pictures (data.picture.DECODERS): 'auto', 'opencv' or 'pillow'.
            "decoder": "auto",
            # Processes of each host that make batches; 0 leaves it to threads of the program.
            "num_workers": 0,
            "num_threads": 8,  # without workers
            "prefetch": 4,  # batches made ahead of the step
            "cache": False,  # keep decoded pictures in memory
            "max_bad_fraction": 0.1,  # of samples; more is an error
            # Continuing with other data, transforms or captions: 'refuse', or 'continue' at the
            # same batch.
            "on_change": "refuse",
        }
    )
    config.evals = ConfigDict()  # name -> entry of evals.EVALS, with the source it reads

    # 'jit' over the mesh below, or 'pmap'. rules: (pattern, 'replicate' | 'fsdp') over state paths.
    # slices: parts of 'data' that lie in networks of their own; 0 is as many as TPUs say they are.
    config.parallel = ConfigDict(
        {"wiring": "jit", "data": -1, "fsdp": 1, "slices": 0, "rules": ((".*", "fsdp"),)}
    )
    # Limits in seconds, beyond which all processes end (docs/clusters.md): joining each other,
    # without a sign of life, any one step, save or evaluation, and all that comes before
    # the first step is done, compiling included.
    config.cluster = ConfigDict(
        {"join_s": 300, "heartbeat_s": 100, "watchdog_s": 1800, "start_s": 7200}
    )

    # A step whose loss or gradient is not finite changes nothing; so many in a row end the run.
    config.max_skipped = 10
    # A spike is a loss more than `threshold` robust deviations above the median of the last
    # `window` losses (vlrep_jax/spikes.py), once there are as many. 'off' does not look; 'warn'
    # counts it and writes its batch down; 'skip' does not apply its update either, which then
    # counts to max_skipped; 'rollback' goes back to the newest checkpoint and on behind the batch.
    config.spikes = ConfigDict({"policy": "off", "threshold": 8.0, "window": 128})

    # Where compiled programs are kept for the next run of the same one ('' keeps none). A directory
    # that JAX was told of by other means, such as JAX_COMPILATION_CACHE_DIR, goes before it.
    config.compilation_cache = "~/.cache/vlrep_jax"

    config.log_every = 50
    config.eval_every = 1000
    config.checkpoint_every = 1000
    # Which checkpoints stay: the newest so many; for good each step that keep_every divides (0 is
    # none); and the one with the best 'max' or 'min' of a metric, such as
    # 'unseen/text_to_image_recall@10' ('' is none). Only a step that is evaluated as well as saved
    # has one: where eval_every is not checkpoint_every, that is where both divide the step.
    config.keep_checkpoints = 3
    config.keep_every = 0
    config.keep_best = ConfigDict({"metric": "", "mode": "max"})
    # When a checkpoint cannot be saved, as on a full disk: 'continue' training until the next is
    # due and try again, or 'stop'. A run never ends well without its last state on disk.
    config.on_save_error = "continue"
    return config


def image_section(preset: str) -> dict:
    """What `config.image` has of its own for a preset's evaluation pictures."""
    return {key: value for key, value in preprocessing(preset).items() if key != "tokenizer"}


def clip_paper(model: str, *, peak: float, samples: int = 400_000_000) -> ConfigDict:
    """CLIP's hyper-parameters for vision transformers (arXiv:2103.00020, tables 18 and 20).

    Args:
      model: name in models.PRESETS.
      peak: learning rate of the model's size.
      samples: pairs in the data set; the paper trains on it for 32 epochs.
    """
    config = base()
    config.image.update(image_section(model))
    config.batch_size = 32_768
    config.microbatch.image = 32
    # It moves as many bytes as copies of the parameters would, updates each of them once, and needs
    # less memory.
    config.parallel.data, config.parallel.fsdp = 1, -1
    config.max_logit_scale = 100.0
    config.steps = 32 * samples // config.batch_size
    # attention: 'cudnn' and 'flash' are the kernels of GPUs and TPUs (models/attention.py).
    towers = {"dtype": "bfloat16", "remat": "full", "unroll": 1}
    config.model = ConfigDict({"name": model, "attention": "xla", "towers": towers})
    config.optimizer = ConfigDict(
        {"name": "adamw", "b1": 0.9, "b2": 0.98, "eps": 1e-6, "weight_decay": 0.2}
    )
    config.schedule = ConfigDict({"name": "cosine", "peak": peak, "warmup_steps": 2000})
    return config
