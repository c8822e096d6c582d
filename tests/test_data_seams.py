"""Every kind of data, alone and in mixtures and subsets, under the whole pipeline's promises."""

import itertools
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from data_kinds import KINDS, sections
from s3_server import s3  # noqa: F401, a fixture
from spying_source import spying_caption
from test_data_pipeline import assert_equal

from vlrep_jax.data.caption_choice import CAPTIONS
from vlrep_jax.data.pipeline import train_batches
from vlrep_jax.data.sources.sections import open_section
from vlrep_jax.data.tokenizers import train_bpe
from vlrep_jax.data.transforms import TRANSFORMS

TOKENIZER = train_bpe([f"number {i}" for i in range(50)], 300)
COUNT = 8  # batches of 16: more than two epochs


@pytest.fixture(scope="module")
def made(tmp_path_factory, s3):  # noqa: F811
    return sections(tmp_path_factory.mktemp("kinds"), s3)


def batches(source, **changed):
    options = {
        "transform": partial(TRANSFORMS["random_crop"], size=4, scale=(0.3, 1.0)),
        "caption": CAPTIONS["random"],
        "tokenizer": TOKENIZER,
        "context_length": 12,
        "batch_size": 16,
        "seed": 5,
    }
    return train_batches(source, **(options | changed))


def taken(made, count):
    found = list(itertools.islice(made, count))
    made.close()
    return found


def joined(parts):
    """The global batches of the hosts' own ones."""
    return [
        {n: np.concatenate([b[n] for b in rows]) for n in rows[0]}
        for rows in zip(*parts, strict=True)
    ]


@pytest.mark.parametrize("captions_per_image", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_neither_hosts_nor_resuming_change_a_batch(kind, captions_per_image, made):
    options = {"captions_per_image": captions_per_image}
    if captions_per_image > 1 and "lanes" in kind:
        pytest.skip("8 lanes of 8 pictures: tested with one caption")
    source = open_section(made[kind])
    whole = taken(batches(source, **options), COUNT)
    assert not np.concatenate([batch["bad"] for batch in whole]).any()
    assert len({batch["text"].tobytes() for batch in whole}) == COUNT
    state = {}
    for hosts in (2, 4, 8):
        own = [
            batches(source, process_index=host, process_count=hosts, **options)
            for host in range(hosts)
        ]
        number = hosts - 1  # where the run goes on, on another number of hosts each time
        for host in own:
            host.restore(state or host.state() | {"next_batch": number})
        begun = own[0].state()["next_batch"]
        assert_equal(joined([list(itertools.islice(host, 3)) for host in own]), whole[begun:][:3])
        (state,) = {json.dumps(host.state()) for host in own}
        state = json.loads(state) | {"next_batch": (begun + 3) % 5}
        for host in own:
            host.close()


OTHER = """
import json, sys
sys.path[:0] = [sys.argv[1]]
from test_data_seams import batches, open_section
kept = [(kind, open_section(section)) for kind, section in json.load(sys.stdin).items()]
print(json.dumps({kind: batches(source).state() for kind, source in reversed(kept)}))
"""


def test_another_process_knows_every_position_again(made):
    states = {kind: batches(open_section(made[kind])).state() for kind in KINDS}
    tests = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", OTHER, tests],
        input=json.dumps(made),
        env=os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": str(Path(tests).parent)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == states


@pytest.mark.parametrize("kind", KINDS)
def test_a_worker_makes_the_same_and_loads_neither_jax_nor_grain(kind, made):
    options = {"caption": partial(spying_caption, program=os.getpid()), "process_count": 2}
    source = open_section(made[kind])
    plain = taken(batches(source, **options), 3)
    assert_equal(taken(batches(source, num_workers=1, **options), 3), plain)
