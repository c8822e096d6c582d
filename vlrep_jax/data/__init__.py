"""Data: sources, transforms, tokenizers and the Grain pipeline that makes host batches of them.

Nothing in this package imports jax; batches are dictionaries of NumPy arrays.
"""
