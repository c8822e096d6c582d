"""Other projects' weights, read and written: OpenAI, OpenCLIP, Hugging Face, big_vision."""

from vlrep_jax.weights.pretrained import Pretrained, convert, load, save, save_run

__all__ = ["Pretrained", "convert", "load", "save", "save_run"]
