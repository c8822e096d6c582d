"""SOURCES: one contract for all, TFDS feature mappings, and clear lines for bad input."""

import io
import json
import pickle

import numpy as np
import pytest
import tensorflow_datasets as tfds
from data_files import write_csv, write_folder, write_pictures
from emoji_data import ListSource, emoji_dir, flat
from PIL import Image
from tars import shards
from test_answers import write_files

from vlrep_jax.build import build
from vlrep_jax.data import zero_shot_sets
from vlrep_jax.data.order import order
from vlrep_jax.data.preparing import write_array_record
from vlrep_jax.data.sources import SOURCES, Sample, Tfds, captions
from vlrep_jax.data.sources.sample import key_hashes

COCO_LIKE = [("one",), ("two", "zwei"), ("three", "drei", "trois")]


class Nested(tfds.core.GeneratorBasedBuilder):
    """Captions repeated inside a sequence, as COCO has them."""

    VERSION = tfds.core.Version("1.2.0")
    code_path = None

    def _info(self):
        text = tfds.features.Text()
        repeated = tfds.features.Sequence({"text": text, "id": np.int64})
        image = tfds.features.Image(shape=(None, None, 3))
        features = {
            "picture": image,
            "captions": repeated,
            "meta": {"file": text, "size": np.int64},
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for number, texts in enumerate(COCO_LIKE):
            repeated = [{"text": text, "id": number} for text in texts]
            meta = {"file": f"{number}.png", "size": 8}
            yield number, {"picture": flat(number), "captions": repeated, "meta": meta}


@pytest.fixture(scope="module")
def nested_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("nested")
    Nested(data_dir=path, file_format="array_record").download_and_prepare()
    return path


def nested(path, **changed):
    options = {"image": "picture", "captions": "captions.text", "key": "meta.file"} | changed
    return Tfds(path, "train", **options)


@pytest.fixture(scope="module")
def sections(nested_dir, tmp_path_factory):
    """A section for each entry of SOURCES."""
    folder = write_folder(tmp_path_factory.mktemp("folder"))
    tables = tmp_path_factory.mktemp("tables")
    write_pictures(tables)
    files = {"name": "files", "path": str(write_csv(tables / "t.csv"))}
    nested = {"image": "picture", "captions": "captions.text", "key": "meta.file"}
    made = [
        {"name": "emoji_captions", "data_dir": str(emoji_dir()), "split": "unseen"},
        {"name": "emoji_questions", "data_dir": str(emoji_dir()), "split": "unseen"},
        files,
        {"name": "folder", "path": str(folder)},
        {
            "name": "mixture",
            "parts": {
                "a": {"source": files, "weight": 2},
                "b": {"source": {"name": "folder", "path": str(folder)}, "weight": 1.5},
            },
        },
        {"name": "moving", "source": {"name": "folder", "path": str(folder)}, "frames": 2},
        {"name": "subset", "source": files, "first": 3, "salt": "x"},
        {"name": "tar", "path": shards(tmp_path_factory.mktemp("tar"), 3, 4)},
        {"name": "tfds", "path": str(nested_dir), "split": "train", **nested},
        {"name": "vqa", **write_files(tmp_path_factory.mktemp("vqa"))},
    ]
    return {section["name"]: section for section in made}


@pytest.fixture(params=SOURCES)
def make(request, sections):
    return lambda: build(SOURCES, sections[request.param], "source")


def test_reading_one_many_or_after_pickling_gives_the_same(make):
    source = make()
    indices = [2, 0, len(source) - 1, 2]
    many = source.__getitems__(indices)
    assert many == [source[i] for i in indices]
    assert pickle.loads(pickle.dumps(source)).__getitems__(indices) == many
    assert source.__getitems__([]) == []


def test_samples_hold_encoded_pictures_texts_and_unique_keys(make):
    source = make()
    held = source.__getitems__(range(len(source)))
    assert len({sample.key for sample in held}) == len(source)
    for sample in held:
        Image.open(io.BytesIO(sample.image)).verify()
        assert sample.captions and all(isinstance(text, str) for text in sample.captions)
        assert isinstance(sample.captions, tuple)


def test_fingerprint_is_stable_and_tells_apart(make, sections):
    assert make().fingerprint() == make().fingerprint()
    held = [build(SOURCES, section, "source").fingerprint() for section in sections.values()]
    assert held.count(make().fingerprint()) == 1


def test_the_order_holds_each_sample_as_often_and_is_a_function_of_the_seed(make):
    source = make()
    stream, again = order(source, 5), order(make(), 5)
    # A mixture's parts take turns, and have seen as many epochs as each other only here and there.
    epoch = [stream[i] for i in range(len(source))]
    assert epoch == [again[i] for i in range(len(source))]
    if not isinstance(source, SOURCES["mixture"]):
        assert sorted(epoch) == list(range(len(source)))
    assert [stream[i] for i in range(10**9, 10**9 + 3)] == [again[10**9 + i] for i in range(3)]
    if len(source) > 100:
        assert epoch != [order(source, 6)[i] for i in range(len(source))]


def test_key_hashes_are_those_of_the_keys(make):
    source = make()
    if hasattr(source, "key_hashes"):
        held = source.__getitems__(range(len(source)))
        expected = key_hashes(sample.key for sample in held)
        np.testing.assert_array_equal(source.key_hashes(), expected)
        assert source.key_hashes().dtype == np.uint64


def test_an_index_behind_the_end_is_an_error(make):
    source = make()
    with pytest.raises((IndexError, ValueError)):
        source[len(source)]


def test_nested_and_repeated_features_are_mapped(nested_dir):
    source = nested(nested_dir, labels={"size": "meta.size"})
    held = {s.key: s for s in source.__getitems__(range(3))}
    assert held["1.png"].captions == ("two", "zwei")
    assert held["2.png"].captions == ("three", "drei", "trois")
    assert held["0.png"].labels == {"size": 8}


@pytest.fixture
def two_files(tmp_path):
    """A prepared data set of two files of 40 samples, and the path of the second one."""
    folder = tmp_path / "two"
    pictures = [Sample(flat(i), (f"number {i}",), f"k{i}", {}) for i in range(40)]
    write_array_record(ListSource(pictures), str(folder))
    (file,) = folder.glob("*.array_record*")
    other = file.with_name(file.name.replace("of-00001", "of-00002").replace("00000", "00001"))
    file = file.rename(file.with_name(file.name.replace("of-00001", "of-00002")))
    other.write_bytes(file.read_bytes())
    about = json.loads((folder / "dataset_info.json").read_text())
    about["splits"][0]["shardLengths"] = ["40", "40"]
    (folder / "dataset_info.json").write_text(json.dumps(about))
    return folder, other


def test_a_damaged_record_is_a_bad_sample_and_an_absent_file_all_of_its_own(two_files):
    folder, other = two_files
    source = Tfds(folder, key="key")
    assert len(source) == 80 and not any(s.problem for s in source.__getitems__(range(80)))
    data = bytearray(other.read_bytes())
    where = data.index(b"number 7")
    data[where : where + 4] = b"----"
    other.write_bytes(data)
    problems = [s.problem for s in Tfds(folder, key="key").__getitems__(range(80))]
    assert [i for i, problem in enumerate(problems) if problem] == [47]
    assert problems[47] == "corrupt" and source.shard_of(47) == str(other)
    rng, whole = np.random.default_rng(0), bytes(data)
    for way in range(12):
        data = bytearray(whole[: int(rng.integers(len(whole)))] if way % 3 == 0 else whole)
        for place in rng.integers(0, max(len(data), 1), 8 * (way % 3 == 1)):
            data[place : place + 1] = b"?"
        start = int(rng.integers(len(whole)))
        data[start : start + 700] = bytes(len(data[start : start + 700]) * (way % 3 == 2))
        other.write_bytes(data)
        for sample in Tfds(folder, key="key").__getitems__(range(40, 80)):
            assert sample.problem == "corrupt" or sample.captions == (f"number {sample.key[1:]}",)
    other.unlink()
    held = Tfds(folder, key="key").__getitems__(range(30, 50))
    assert [s.problem for s in held] == [""] * 10 + ["missing"] * 10
    assert held[9].captions == ("number 39",) and held[10].key == "#40"


def test_prepared_sets_of_one_name_and_length_are_told_apart(tmp_path):
    found = []
    for number in range(3):
        texts = ("a", "a", "longer")[number]
        folder = tmp_path / str(number) / "mine"
        write_array_record(ListSource([Sample(flat(1), (texts,), "k", {})]), str(folder))
        found.append(Tfds(folder).fingerprint())
    assert found[0] == found[1] != found[2]


def test_captions_that_are_no_texts_are_refused(nested_dir):
    with pytest.raises(ValueError, match=r"several features; name one: 'captions.id', 'captions.t"):
        nested(nested_dir, captions="captions")
    with pytest.raises(ValueError, match=r"captions='meta.size' of .* is no text: Tensor"):
        nested(nested_dir, captions="meta.size")


def test_pictures_of_one_identity_share_it(nested_dir):
    by_feature = nested(nested_dir, identity="meta.size").__getitems__(range(3))
    assert {sample.identity for sample in by_feature} == {"8"}
    by_picture = nested(nested_dir, identity="image").__getitems__(range(3))
    assert len({sample.identity for sample in by_picture} - {""}) == 3
    assert nested(nested_dir, identity="image").fingerprint() != nested(nested_dir).fingerprint()


def test_a_data_set_is_found_by_its_name(nested_dir, monkeypatch):
    held = {"image": "picture", "captions": "captions.text"}
    for dataset in ("nested", "nested:1.2.0"):
        assert len(Tfds(dataset=dataset, data_dir=str(nested_dir), **held)) == 3
    monkeypatch.setenv("TFDS_DATA_DIR", str(nested_dir))
    assert len(Tfds(dataset="nested", **held)) == 3
    with pytest.raises(
        FileNotFoundError, match=r"not prepared in .*vlrep data prepare coco --data"
    ):
        Tfds(dataset="coco", data_dir=str(nested_dir))
    with pytest.raises(ValueError, match="name one"):
        Tfds("somewhere", dataset="nested")


def test_slices_of_a_split_can_be_read(nested_dir):
    assert len(Tfds(nested_dir, "train[:2]", image="picture", captions="meta.file")) == 2


def test_captions_lists_all_with_their_picture(nested_dir):
    source = nested(nested_dir)
    texts, owners = captions(source)
    assert sorted(texts) == sorted(text for texts in COCO_LIKE for text in texts)
    assert owners.dtype == np.int32
    assert all(text in source[owner].captions for text, owner in zip(texts, owners, strict=True))


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"captions": "captions.words"}, r"no feature 'captions\.words'; it has .*captions\.text"),
        ({"image": "image"}, r"no feature 'image'; it has .*'picture'"),
        ({"key": "id"}, r"no feature 'id'"),
    ],
)
def test_a_feature_that_is_not_there_lists_those_that_are(nested_dir, changed, line):
    with pytest.raises(ValueError, match=line):
        nested(nested_dir, **changed)


def test_an_image_path_that_is_no_picture_is_named(nested_dir):
    with pytest.raises(ValueError, match=r"'meta\.size' of .* is not an image feature"):
        nested(nested_dir, image="meta.size")


def test_bad_paths_and_splits_list_what_exists(nested_dir, tmp_path):
    with pytest.raises(ValueError, match=r"no split 'test'; it has \['train'\]"):
        Tfds(nested_dir, "test")
    with pytest.raises(ValueError, match="read from local disks; mount the store"):
        Tfds("gs://bucket/set")
    assert len(Tfds(f"file://{nested_dir}", image="picture", captions="meta.file")) == 3
    with pytest.raises(FileNotFoundError, match="is not a directory"):
        Tfds(tmp_path / "none", "train")
    (tmp_path / "stray.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"holds 0 prepared.*stray\.txt"):
        Tfds(tmp_path, "train")


def test_labels_and_sets_for_zero_shot():
    source = SOURCES["emoji_captions"](emoji_dir(), "unseen")
    moving = SOURCES["moving"](source, frames=2)
    for name, make_set in zero_shot_sets.ZERO_SHOT_SETS.items():
        source_of_set = source if name in ("skin_tone", "group") else moving
        found = make_set(source_of_set)
        assert found.labels.shape == (len(source_of_set),) and found.labels.dtype == np.int32
        # Every class has pictures, else its accuracy would be undefined.
        assert set(found.labels) - {-1} == set(range(len(found.class_names)))
        assert all(template.count("{}") == 1 for template in found.templates)
    tones = zero_shot_sets.skin_tone(source)
    for sample, label in zip(source.__getitems__(range(len(source))), tones.labels, strict=True):
        assert (label >= 0) == (sample.captions[0].count("skin tone") == 1)
        assert label < 0 or tones.class_names[label] in sample.captions[0]


def test_a_zero_shot_set_of_a_source_without_its_label_is_refused(nested_dir):
    with pytest.raises(ValueError, match="no label 'skin_tone'"):
        zero_shot_sets.skin_tone(nested(nested_dir))
