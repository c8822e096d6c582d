"""A generator of pictures from a trained model's text embeddings: a GAN on emoji.

Run: vlrep train --config=configs/generator_gan.py --workdir=W --config.init_from=runs/quickstart
Cost: see docs/applications/generation.md. Expected: see there.

The towers are those of `init_from` and stay as they are. For another model than the quick start's,
other pictures or a larger size change `model` (the towers as in that model's recipe; each width of
the generator doubles its side), `tokenizer`, `image` and `data.source`.
"""

import runpy
from pathlib import Path

QUICKSTART = Path(__file__).with_name("quickstart.py")


def get_config():
    config = runpy.run_path(QUICKSTART)["get_config"]()
    config.init_from = "runs/quickstart"
    config.init_skip = ("generator/.*", "discriminator/.*")
    config.freeze = ("image/.*", "text/.*", "logit_scale")
    config.batch_size = 64
    config.steps = 1000

    config.model = {
        **config.model.to_dict(),
        "name": "text_to_image",
        "generator": {"name": "conv_generator", "image_size": 48, "widths": (128, 64, 32)},
        "discriminator": {
            "name": "conv_discriminator",
            "image_size": 48,
            "widths": (32, 64, 128),
        },
    }
    config.loss = {"name": "hinge_gan", "reconstruction": 10.0, "r1": 0.1, "text_noise": 0.3}
    config.optimizer = {"name": "adamw", "b1": 0.0, "b2": 0.99}
    config.schedule = {"name": "cosine", "peak": 2e-3, "warmup_steps": 50}
    config.ema_decay = 0.995

    # The pictures as they are: a generator draws what it is shown. Most are Twemoji's, so that the
    # median of what a caption stands for is one of them.
    config.data.transform = {"name": "squash"}
    config.data.source.twemoji_repeats = 3
    config.evals = {}
    config.log_every = 25
    config.eval_every = config.checkpoint_every = 500
    return config
