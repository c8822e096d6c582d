"""`vlrep index` and `vlrep search`, as people run them."""

import json
import os
import re
import sys

import pytest
from PIL import Image
from searching import draw, draw_many, saved

from vlrep_jax import cli
from vlrep_jax.search import approximate


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model, pictures, and an index of them."""
    top = tmp_path_factory.mktemp("search")
    saved(top / "model")
    draw_many(top / "photos", 12)
    (top / "photos" / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(SystemExit) as ended:
        cli.main(["index", *words(top)])
    assert not ended.value.code
    return top


def words(top, out="index"):
    return [f"--model={top / 'model'}", f"--images={top / 'photos'}", f"--out={top / out}"]


@pytest.fixture
def vlrep(capsys):
    """Runs a command; gives its exit code and what it printed."""

    def run(*argv):
        with pytest.raises(SystemExit) as ended:
            cli.main([str(word) for word in argv])
        printed = capsys.readouterr()
        return ended.value.code or 0, printed.out, printed.err

    return run


@pytest.fixture
def mistake(vlrep):
    """Runs a command that is wrong; gives the one line that says so."""

    def run(*argv):
        code, out, err = vlrep(*argv)
        assert code == 2 and not out and err.count("\n") == 1 and err.startswith("vlrep: error: ")
        return err

    return run


def test_index_says_what_it_did(made, vlrep):
    code, out, err = vlrep("index", *words(made))
    assert code == 0
    assert re.fullmatch(
        rf"{made}/index: 12 pictures. Added 0, changed 0, removed 0, unchanged 12; embedded 0 in "
        r"\d+\.\d s\.\n",
        out,
    )
    assert "Left out 1 that cannot be read: " in err and "cut.png (format)" in err
    listed = (made / "index" / "unreadable.tsv").read_text()
    assert listed == f"{made}/photos/cut.png\tformat\n"


def test_search_by_text(made, vlrep, monkeypatch):
    monkeypatch.chdir(made)
    code, out, err = vlrep("search", "index", "a red kangaroo", "-k", 5)
    lines = out.splitlines()
    assert code == 0 and len(lines) == 5 and not err
    assert all(re.fullmatch(r" +\d   -?\d\.\d{3}  photos/\d{3}\.png", line) for line in lines)
    code, out, _ = vlrep("search", "index", "a red kangaroo", "-k", 99, "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["rank"] for row in rows] == list(range(1, 13))
    assert rows[0].keys() == {"rank", "score", "path", "id", "width", "height"}
    scores = [row["score"] for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert [os.path.relpath(row["path"]) for row in rows[:5]] == [line.split()[2] for line in lines]


def test_search_by_picture_finds_the_picture_first(made, vlrep):
    own = made / "photos" / "007.png"
    code, out, _ = vlrep("search", made / "index", f"--image={own}", "--json")
    first = json.loads(out.splitlines()[0])
    assert code == 0 and first["path"] == str(own) and first["score"] == pytest.approx(1, abs=1e-6)


def test_what_is_not_wanted_changes_the_order(made, vlrep):
    plain, less = (
        [
            json.loads(line)["score"]
            for line in vlrep("search", made / "index", *how)[1].split("\n")[:-1]
        ]
        for how in (["a dog", "--json"], ["a dog", "--not=a cat", "--json"])
    )
    assert len(plain) == len(less) == 12 and plain != less


def test_a_page_shows_the_pictures(made, vlrep):
    page = made / "found.html"
    code, out, _ = vlrep("search", made / "index", "<b>dogs</b>", "-k3", f"--html={page}")
    assert code == 0 and out == f"Wrote 3 of 12 pictures to {page}\n"
    text = page.read_text()
    assert text.count("data:image/jpeg;base64,") == 3 and "&lt;b&gt;dogs&lt;/b&gt;" in text
    assert "<b>dogs" not in text and not re.search(r"(src|href)=.https?:", text)
    assert not list(made.glob(".found*"))


def test_mistakes_are_one_line(made, mistake, tmp_path):
    index = made / "index"
    assert "there is no index; make one: vlrep index" in mistake("search", tmp_path, "a dog")
    assert "nothing to look for" in mistake("search", index)
    assert "nothing to look for" in mistake("search", index, "  ")
    assert "-k 0 must be at least 1" in mistake("search", index, "a dog", "-k", 0)
    bad = made / "photos" / "cut.png"
    assert "cut.png: it is no picture of a format that is read here" in mistake(
        "search", index, f"--image={bad}"
    )
    assert "No such file" in mistake("search", index, f"--image={tmp_path}/nowhere.png")
    assert "no such file or directory" in mistake("search", index, "a dog", "--model=nowhere")
    page = tmp_path / "no" / "page.html"
    assert "there is no directory" in mistake("search", index, "a dog", f"--html={page}")
    for page in (tmp_path, ""):
        assert "is a directory; name a file" in mistake("search", index, "a", f"--html={page}")
    nowhere = [word.replace("photos", "nowhere") for word in words(made)]
    assert "stands for no picture" in mistake("index", *nowhere)
    assert "takes no '--config.x=1'" in mistake("search", index, "a dog", "--config.x=1")
    assert "must be at least 0" in mistake("index", *words(made), "--approximate_from=-1")


def test_another_model_is_refused_everywhere(made, mistake, tmp_path, monkeypatch):
    import searching

    section = {**searching.MODEL, "image": {**searching.MODEL["image"], "heads": 2}}
    monkeypatch.setattr(searching, "tiny", lambda: searching.pretrained(section))
    other = saved(tmp_path / "other")  # another architecture, of parameters with the same shapes
    refusal = mistake("search", made / "index", "a dog", f"--model={other}")
    assert "index was made by another model" in refusal and "/model" in refusal
    again = [f"--model={other}", *words(made)[1:]]
    assert "was made by another model" in mistake("index", *again)
    assert "was made by another model" in mistake(
        "serve", made / "index", f"--model={other}", "--port=0"
    )


def test_a_model_that_is_not_where_it_was(made, vlrep, mistake, tmp_path):
    moved = tmp_path / "moved"
    os.rename(made / "model", moved)
    try:
        assert "say where it is, --model=PATH" in mistake("search", made / "index", "a dog")
        assert vlrep("search", made / "index", "a dog", f"--model={moved}")[0] == 0
    finally:
        os.rename(moved, made / "model")


def test_a_graph_is_made_and_measured(made, vlrep, monkeypatch):
    from vlrep_jax.search.engine import Engine

    many = made / "many"
    draw_many(many, 150)
    asked = [f"--model={made / 'model'}", f"--images={many}", f"--out={made / 'graph'}"]
    code, out, _ = vlrep("index", *asked, "--approximate_from=100")
    recall = (
        r"recall@10 against exact search is ([01]\.\d{3}) for pictures and ([01]\.\d{3}) for texts"
    )
    found = re.search(f"Searches are approximate: {recall}; --exact is exact", out)
    assert code == 0 and found and min(map(float, found.groups())) > 0.9
    code, out, err = vlrep("search", made / "graph", "a dog", "-k5")
    assert code == 0 and re.search(f"^Approximate: {recall}; --exact", err)
    exact = vlrep("search", made / "graph", "a dog", "-k5", "--exact")
    assert exact[1].splitlines()[0] == out.splitlines()[0] and not exact[2]

    # Brought up to date, not made anew; and none where there are fewer pictures.
    built = []
    monkeypatch.setattr(approximate, "new_graph", built.append)
    draw(many / "new.png", 1000)
    os.unlink(many / "000.png")
    code, out, _ = vlrep("index", *asked, "--approximate_from=100")
    assert code == 0 and "Added 1, changed 0, removed 1" in out and not built
    with Engine(made / "graph") as engine:
        assert len(engine) == 150 and engine.recall
        new = engine.ids[-1]
        assert engine.search(engine.embedding(new), 1)[0].picture.id == new
    assert "approximate" not in vlrep("index", *asked)[1]
    assert not list((made / "graph").glob("graph-*"))


def test_without_usearch(made, vlrep, mistake, monkeypatch):
    monkeypatch.setattr(approximate, "FROM", 5)
    monkeypatch.setitem(sys.modules, "usearch", None)
    monkeypatch.setattr(approximate, "is_installed", lambda: False)
    code, out, _ = vlrep("index", *words(made))
    assert code == 0 and "pip install 'vlrep_jax[search]' and run this again" in out
    refusal = mistake("index", *words(made), "--approximate_from=5")
    assert "needs a package that is not installed" in refusal


def test_pictures_that_are_not_rgb(made, vlrep):
    folder = made / "odd"
    folder.mkdir()
    for mode in ("L", "P", "RGBA", "CMYK", "I;16", "1"):
        Image.new(mode, (30, 20)).save(
            folder / f"{mode.replace(';', '')}.tif"
            if mode in ("CMYK", "I;16")
            else folder / f"{mode}.png"
        )
    code, out, err = vlrep(
        "index", f"--model={made / 'model'}", f"--images={folder}", f"--out={made / 'odd-index'}"
    )
    assert code == 0 and "6 pictures. Added 6" in out and "Left out" not in err
