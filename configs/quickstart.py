"""A small CLIP on emoji: Twemoji and OpenMoji pictures with their Unicode names.

Run: vlrep train --config=configs/quickstart.py --workdir=runs/quickstart
Cost: about 3 minutes on 2 cores.
Expected: recall@10 on unseen concepts, see README.
"""

from vlrep_jax import recipes

DATA_DIR = "data"  # the pictures are prepared here on the first run


def get_config():
    config = recipes.base()
    config.batch_size = 256
    config.steps = 300

    config.model = {
        "name": "dual_encoder",
        "image": {
            "name": "vit",
            "image_size": 48,
            "patch_size": 12,
            "width": 160,
            "depth": 3,
            "heads": 4,
            "embed_dim": 128,
            "pool": "mean",
        },
        "text": {
            "name": "text_transformer",
            "vocab_size": 2000,
            "context_length": 16,
            "width": 128,
            "depth": 2,
            "heads": 4,
            "embed_dim": 128,
        },
    }
    config.optimizer = {"name": "adamw", "b2": 0.98, "eps": 1e-6, "weight_decay": 0.2}
    config.schedule = {"name": "cosine", "peak": 2e-3, "warmup_steps": 15}
    config.clip_norm = 1.0

    config.tokenizer = {"name": "bpe", "vocab_size": 2000}
    config.data.source = {"name": "emoji_captions", "data_dir": DATA_DIR, "split": "train"}
    config.data.transform = {"name": "augment"}
    config.data.caption = {"name": "emoji"}
    config.data.num_threads = 2
    config.data.cache = True

    # Concepts that were never trained on; the two artists draw the same ones.
    unseen = {"name": "emoji_captions", "data_dir": DATA_DIR, "split": "unseen"}
    other_artist = {**unseen, "split": "unseen_openmoji"}
    config.evals.unseen = {"name": "retrieval", "source": unseen}
    config.evals.unseen_openmoji = {"name": "retrieval", "source": other_artist}
    config.evals.zero_shot = {
        "name": "zero_shot",
        "source": unseen,
        "sets": ("skin_tone", "group"),
    }
    config.log_every = 10
    config.eval_every = 100
    config.checkpoint_every = 100
    return config
