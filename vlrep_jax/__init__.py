"""Joint image-text representations in JAX: encoders, losses, training, evaluation."""

__version__ = "0.1.0"
