"""Eight CPU devices, quick compilation, strict rank promotion, and compiled programs kept."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
# Compiling is most of what tests cost; without optimization it takes a quarter of the time. Tests
# that want a user's program ask for it (`wirings.whole`).
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
        "--xla_cpu_use_fusion_emitters=false",
        # Run at once, collectives that need not wait for each other take all threads of a machine
        # with few cores, each for one that another device has yet to reach.
        "--xla_cpu_enable_concurrency_optimized_scheduler=false",
    ]
)

import jax
import pytest


def pytest_configure(config):
    # A vector meeting a matrix is a bug more often than a wish; write out the new dimension.
    jax.config.update("jax_numpy_rank_promotion", "raise")
    if hasattr(config, "cache"):
        jax.config.update("jax_compilation_cache_dir", str(config.cache.mkdir("compiled")))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(scope="session")
def programs(pytestconfig):
    """Directory of the programs that tests compile, for the processes that they start."""
    return pytestconfig.cache.mkdir("compiled")


@pytest.fixture(scope="module", autouse=True)
def programs_of_one_file_at_a_time():
    """Each compiled program maps some memory; those of all files pass Linux's limit of 65,530 maps,
    and the next one ends the process."""
    yield
    jax.clear_caches()
