"""SOURCES: one contract for all, TFDS feature mappings, and clear lines for bad input."""

import io
import pickle

import numpy as np
import pytest
import tensorflow_datasets as tfds
from emoji_data import emoji_dir, flat
from PIL import Image

from vlrep_jax.data import zero_shot_sets
from vlrep_jax.data.sources import SOURCES, Tfds, captions

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


@pytest.fixture(params=["emoji_captions", "tfds"])
def make(request, nested_dir):
    if request.param == "tfds":
        return lambda: nested(nested_dir)
    return lambda: SOURCES[request.param](emoji_dir(), "unseen")


def test_contract_covers_every_source():
    assert set(SOURCES) == {"emoji_captions", "tfds"}  # the parameters of `make`


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


def test_fingerprint_is_stable_and_tells_apart(make, nested_dir):
    assert make().fingerprint() == make().fingerprint()
    others = [SOURCES["emoji_captions"](emoji_dir(), "train"), nested(nested_dir, key="")]
    assert make().fingerprint() not in [other.fingerprint() for other in others]


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
    with pytest.raises(FileNotFoundError, match="is not a directory"):
        Tfds(tmp_path / "none", "train")
    (tmp_path / "stray.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"holds 0 prepared.*stray\.txt"):
        Tfds(tmp_path, "train")


def test_labels_and_sets_for_zero_shot():
    source = SOURCES["emoji_captions"](emoji_dir(), "unseen")
    for make_set in zero_shot_sets.ZERO_SHOT_SETS.values():
        found = make_set(source)
        assert found.labels.shape == (len(source),) and found.labels.dtype == np.int32
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
