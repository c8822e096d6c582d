"""A small CLIP on emoji: Twemoji and OpenMoji pictures with their Unicode names.

Run: vlrep train --config=configs/quickstart.py --workdir=runs/quickstart
Cost: about 3.5 minutes on 2 cores. Expected on unseen concepts: see docs/quickstart.md.

What makes minutes enough: a convolutional stem, which needs less data than patches do; Muon, which
needs fewer steps than AdamW; half of the patches dropped, which halves the cost of a step.
"""

from vlrep_jax import recipes

DATA_DIR = "data"  # the pictures are prepared here on the first run


def get_config():
    config = recipes.base()
    config.batch_size = 128
    config.steps = 500

    config.model = {
        "name": "dual_encoder",
        "image": {
            "name": "vit",
            "image_size": 48,
            "patch_size": 8,
            "stem": "conv",
            "patch_keep": 0.5,
            "pool": "mean",
            "width": 128,
            "depth": 3,
            "heads": 4,
            "embed_dim": 128,
            "activation": "quick_gelu",
        },
        "text": {
            "name": "text_transformer",
            "vocab_size": 2000,
            "context_length": 16,
            "width": 128,
            "depth": 2,
            "heads": 4,
            "embed_dim": 128,
            "activation": "quick_gelu",
        },
    }
    config.optimizer = {
        "name": "muon",
        "b2": 0.98,
        "eps": 1e-6,
        "adam_rate": 0.25,
        "weight_decay": 0.05,
    }
    config.schedule = {"name": "cosine", "peak": 8e-3, "warmup_steps": 15}
    config.clip_norm = 1.0
    config.max_logit_scale = 100.0

    config.tokenizer = {"name": "bpe", "vocab_size": 2000}
    config.data.source = {
        "name": "emoji_captions",
        "data_dir": DATA_DIR,
        "split": "train",
        "twemoji_repeats": 2,
    }
    # No change of colour: it is what tells skin tones, hearts and flags apart.
    config.data.transform = {
        "name": "augment",
        "affine": {"degrees": 10.0, "scale": (0.85, 1.15), "shift": 0.08},
    }
    config.data.caption = {
        "name": "emoji",
        "plain_share": 0.4,
        "alias_share": 0.3,
        "group_share": 0.35,
    }
    config.data.num_threads = 2
    config.data.cache = True

    # Concepts that were never trained on; `docs/quickstart.md` says what counts as one.
    unseen = {"name": "emoji_captions", "data_dir": DATA_DIR, "split": "unseen"}
    config.evals = {
        "unseen": {"name": "retrieval", "source": unseen},
        "unseen_motifs": {"name": "retrieval", "source": {**unseen, "split": "unseen_motifs"}},
        "unseen_openmoji": {"name": "retrieval", "source": {**unseen, "split": "unseen_openmoji"}},
        "zero_shot": {"name": "zero_shot", "source": unseen, "sets": ("skin_tone", "group")},
    }
    config.log_every = 10
    config.eval_every = 125
    config.checkpoint_every = 125
    return config
