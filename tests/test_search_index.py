"""Making an index and bringing it up to date: what is embedded, what is kept, what readers see."""

import os
import shutil
import tarfile
from collections import Counter

import numpy as np
import pytest
import searching
from searching import built, described, draw, draw_many, names

from vlrep_jax import search
from vlrep_jax.search import index, writer
from vlrep_jax.search.listing import read
from vlrep_jax.search.store import reading
from vlrep_jax.search.writer import writing


@pytest.fixture
def encoded(monkeypatch):
    """How many pictures went through the model, by the red of their first pixel."""
    counts, encoder = Counter(), index._encoder

    def counting(model):
        encode = encoder(model)

        def count(pixels):
            counts.update(pixel.tobytes() for pixel in pixels)
            return encode(pixels)

        return count

    monkeypatch.setattr(index, "_encoder", counting)
    return counts


@pytest.fixture
def photos(tmp_path):
    draw_many(tmp_path / "photos", 20)
    return tmp_path / "photos"


def ranked(out):
    """Names in the order of their nearness to a text."""
    text = searching.tiny().encode_text(["a red kangaroo"])[0]
    with search.Engine(out) as engine:
        return [os.path.basename(h.picture.found.name) for h in engine.search(text, 100)]


def test_embeddings_are_the_models_own(photos, tmp_path):
    done = built(tmp_path / "index", photos)
    assert done.counts == (20, 0, 0, 0) and done.embedded == 20 and not done.unreadable
    with search.Engine(tmp_path / "index") as engine:
        assert names(engine) == sorted(path.name for path in photos.iterdir())
        own = searching.tiny().encode_image([photos / name for name in names(engine)])
        np.testing.assert_allclose([engine.embedding(i) for i in engine.ids], own, atol=1e-6)
        picture = engine.store.pictures([engine.ids[0]])[engine.ids[0]]
        assert (picture.width, picture.height) == (24, 20)
        assert engine.store.thumbnail(picture.digest).startswith(b"\xff\xd8")
    text = searching.tiny().encode_text(["a red kangaroo"])[0]
    order = np.argsort(-(own @ text), kind="stable")
    assert ranked(tmp_path / "index") == [sorted(os.listdir(photos))[i] for i in order]


def test_only_what_changed_is_embedded(photos, tmp_path, encoded):
    out = tmp_path / "index"
    built(out, photos)
    with search.Engine(out) as engine:
        before = dict(zip(names(engine), engine.ids.tolist(), strict=True))
    encoded.clear()
    assert built(out, photos).counts == (0, 0, 0, 20) and not encoded

    draw(photos / "new.png", 100)
    draw(photos / "003.png", 101)
    os.unlink(photos / "004.png")
    done = built(out, photos)
    assert done.counts == (1, 1, 1, 18) and done.embedded == 2 == encoded.total()
    with search.Engine(out) as engine:
        after = dict(zip(names(engine), engine.ids.tolist(), strict=True))
    kept = before.keys() - {"003.png", "004.png"}
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    assert after.keys() - kept == {"003.png", "new.png"} and len(after) == 20
    # As if it had been made of these pictures at once.
    built(tmp_path / "fresh", photos)
    assert ranked(out) == ranked(tmp_path / "fresh")


def test_moved_copied_and_touched_pictures_are_told_by_their_bytes(photos, tmp_path, encoded):
    out = tmp_path / "index"
    built(out, photos)
    encoded.clear()
    (photos / "below").mkdir()
    os.rename(photos / "000.png", photos / "below" / "moved.png")
    shutil.copy(photos / "001.png", photos / "copy.png")
    os.utime(photos / "002.png", ns=(1, 1))
    done = built(out, photos)
    assert done.counts == (2, 0, 1, 19) and done.embedded == 0 and not encoded
    assert built(out, photos).counts == (0, 0, 0, 21)
    built(tmp_path / "fresh", photos)
    assert sorted(ranked(out)) == sorted(ranked(tmp_path / "fresh"))
    # Of equal pictures in one run, one is embedded.
    encoded.clear()
    for name in ("x.png", "y.png", "z.png"):
        draw(photos / name, 200)
    assert built(out, photos).embedded == 1 == encoded.total()


def test_a_picture_of_equal_size_and_date_is_taken_for_unchanged(photos, tmp_path, encoded):
    """That is what size and date are for: unchanged files are not read."""
    built(tmp_path / "index", photos)
    encoded.clear()
    path, other = photos / "000.png", photos / "001.png"
    status = path.stat()
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert built(tmp_path / "index", photos).counts == (0, 0, 0, 20)
    os.utime(other, ns=(1, 1))
    assert built(tmp_path / "index", photos).counts == (0, 0, 0, 20) and not encoded


def test_unreadable_pictures_are_named_and_left_out(photos, tmp_path, encoded):
    (photos / "cut.png").write_bytes((photos / "000.png").read_bytes()[:60])
    (photos / "empty.jpg").write_bytes(b"")
    (photos / "words.gif").write_text("no picture")
    out = tmp_path / "index"
    done = built(out, photos)
    assert [(os.path.basename(name), reason) for name, reason in done.unreadable] == [
        ("cut.png", "truncated"),
        ("empty.jpg", "empty"),
        ("words.gif", "format"),
    ]
    assert done.counts == (20, 0, 0, 0)
    encoded.clear()
    # Named again, but not read again; and once it is a picture, it is one of the index.
    assert len(built(out, photos).unreadable) == 3 and not encoded
    draw(photos / "cut.png", 50)
    (photos / "001.png").write_bytes(b"")
    done = built(out, photos)
    assert done.counts == (1, 0, 1, 19) and encoded.total() == 1
    assert {reason for _, reason in done.unreadable} == {"empty", "format"}
    for name in ("words.gif", "empty.jpg", "001.png"):
        os.unlink(photos / name)
    assert not built(out, photos).unreadable


def test_an_index_stays_where_nothing_can_be_read(photos, tmp_path):
    built(tmp_path / "index", photos)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"none of the 1 files.*nothing was changed"):
        built(tmp_path / "index", tmp_path / "bad")
    with pytest.raises(FileNotFoundError, match="stands for no picture"):
        built(tmp_path / "index", tmp_path / "unmounted")
    assert len(ranked(tmp_path / "index")) == 20


@pytest.mark.parametrize("kept", [0, 100, None])
def test_an_index_whose_embeddings_are_cut_or_gone_is_not_added_to(photos, tmp_path, kept):
    built(tmp_path / "index", photos)
    (path,) = (tmp_path / "index").glob("embeddings-*.f32")
    path.unlink() if kept is None else os.truncate(path, kept)
    draw(photos / "new.png", 99)
    with pytest.raises(ValueError, match="is gone or cut: make the index again"):
        built(tmp_path / "index", photos)
    assert not path.exists() or path.stat().st_size == kept


def test_archives_are_indexed_as_folders_are(photos, tmp_path, encoded):
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        tar.add(photos, "photos")
    built(tmp_path / "folder", photos)
    done = built(tmp_path / "archive", f"tar:{tmp_path}/all.tar")
    assert done.counts.added == 20 and ranked(tmp_path / "archive") == ranked(tmp_path / "folder")
    encoded.clear()
    with tarfile.open(tmp_path / "all.tar", "a") as tar:
        tar.add(draw(tmp_path / "new.png", 99), "new.png")
    done = built(tmp_path / "archive", f"tar:{tmp_path}/all.tar")
    assert done.counts == (1, 0, 0, 20) and encoded.total() == 1
    # Written anew in another order: the same pictures, which now lie elsewhere in it.
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        for path in sorted(photos.iterdir(), reverse=True):
            tar.add(path, f"photos/{path.name}")
    done = built(tmp_path / "archive", f"tar:{tmp_path}/all.tar")
    assert done.counts == (0, 0, 1, 20) and encoded.total() == 1
    with search.Engine(tmp_path / "archive") as engine:
        for picture in engine.store.pictures(engine.ids).values():
            name = os.path.basename(picture.found.name)
            assert read(picture.found)[0] == (photos / name).read_bytes()


def test_another_model_is_refused(photos, tmp_path):
    built(tmp_path / "index", photos)
    other = described() | {"fingerprint": "0" * 64, "path": "elsewhere"}
    with pytest.raises(ValueError, match=r"was made by another model .*tiny.* than elsewhere"):
        search.build(tmp_path / "index", searching.tiny(), other, [str(photos)])
    assert len(ranked(tmp_path / "index")) == 20


def test_two_processes_do_not_write_one_index(photos, tmp_path):
    with (
        writing(tmp_path / "index", described(), 16),
        pytest.raises(ValueError, match="is being written by another process"),
    ):
        built(tmp_path / "index", photos)


def test_what_is_no_index_is_left_alone(photos, tmp_path):
    with pytest.raises(FileExistsError, match="is no index"):
        built(photos, photos)
    with pytest.raises(FileNotFoundError, match="there is no index; make one: vlrep index"):
        reading(tmp_path / "nowhere")
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "index.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(ValueError, match="is damaged"):
        reading(tmp_path / "index")


def test_readers_see_the_old_pictures_or_the_new_ones(photos, tmp_path, encoded, monkeypatch):
    out = tmp_path / "index"
    with writing(out, described(), 16), pytest.raises(ValueError, match="is not finished"):
        reading(out)
    built(out, photos)
    before, seen, add = ranked(out), [], writer.Writer.add

    def looked(self, *args):
        add(self, *args)
        seen.append(ranked(out))

    monkeypatch.setattr(writer.Writer, "add", looked)
    draw_many(photos, 30, first=500)
    with search.Engine(out) as engine:  # opened before, it goes on as it was
        built(out, photos)
        assert len(engine) == 20
        assert len(engine.best(np.ones((1, 16), np.float32) / 4, 50)[0][0]) == 20
    assert seen == [before] * 4 and len(ranked(out)) == 30


def test_rows_of_pictures_that_are_gone_are_given_up_in_time(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "_SPARE", 0)
    out = tmp_path / "index"
    built(out, photos)
    for _ in range(3):
        for number, path in enumerate(sorted(photos.iterdir())[:15]):
            draw(path, int(path.stem) + 1000 + number + 100 * _)
        assert built(out, photos).counts == (0, 15, 0, 5)
    files = [path.name for path in out.glob("embeddings-*")]
    assert len(files) == 1 and files != ["embeddings-0.f32"]
    assert (out / files[0]).stat().st_size <= 4 * 16 * (2 * 20 + 15)
    built(tmp_path / "fresh", photos)
    assert ranked(out) == ranked(tmp_path / "fresh")


def test_a_diverged_model_is_no_index(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(index, "_encoder", lambda _: lambda x: np.full((len(x), 16), np.nan))
    with pytest.raises(ValueError, match=r"000\.png is not finite: the model has diverged"):
        built(tmp_path / "index", photos)
