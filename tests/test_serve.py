"""The page and the API of `vlrep serve`: results, limits, and what is not given out."""

import asyncio
import io
import os
import re
import socket
import threading

import httpx
import numpy as np
import pytest
from PIL import Image
from searching import draw, tiny
from serving import client, index_of, live

from vlrep_jax.serve import app as app_module
from vlrep_jax.serve import running
from vlrep_jax.serve.batching import Batcher, Busy


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return index_of(tmp_path_factory.mktemp("served"), 40)


@pytest.fixture(scope="module")
def http(index):
    with client(index) as (http, _):
        yield http


def png(size, mode="RGB"):
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, "PNG")
    return buffer.getvalue()


def refused(response, code):
    """The one line that says why."""
    assert response.status_code == code, response.text
    detail = response.json()["detail"]
    assert isinstance(detail, str) and detail and "\n" not in detail
    return detail


def test_text_search_is_that_of_the_command(http, index):
    from vlrep_jax import search

    found = http.get("/api/search", params={"text": "a red kangaroo", "limit": 10}).json()
    text = tiny().encode_text(["a red kangaroo"])[0]
    with search.Engine(index) as engine:
        hits = engine.search(search.make_query([text]), 10)
    assert [hit["id"] for hit in found["results"]] == [hit.picture.id for hit in hits]
    scores = [hit["score"] for hit in found["results"]]
    # One request alone and a batch of them are programs of their own.
    np.testing.assert_allclose(scores, [hit.score for hit in hits], atol=1e-6)
    assert found["total"] == found["reachable"] == 40
    assert re.fullmatch(r"\d{3}\.png", found["results"][0]["name"])  # below the common folder


def test_pages_follow_each_other(http):
    query = {"text": "a dog"}
    get = lambda **more: http.get("/api/search", params=query | more).json()["results"]  # noqa: E731
    whole = get(limit=40)
    pages = [hit for offset in range(0, 48, 16) for hit in get(offset=offset, limit=16)]
    assert [hit["id"] for hit in pages] == [hit["id"] for hit in whole]
    assert get(offset=1000) == []
    browsed = http.get("/api/pictures", params={"offset": 30, "limit": 20}).json()
    assert len(browsed["results"]) == 10 and browsed["results"][0]["score"] is None


def test_a_picture_of_the_index_finds_itself_and_so_does_its_file(http, index):
    like = http.get("/api/search", params={"like": 7}).json()["results"]
    assert like[0]["id"] == 7 and like[0]["score"] == pytest.approx(1, abs=1e-6)
    original = http.get(like[0]["original"])
    assert original.headers["content-type"] == "image/png"
    name = like[0]["name"]
    assert original.content == (index.parent / "photos" / "below" / name).read_bytes()
    sent = http.post("/api/search", files={"image": ("x.png", original.content)}).json()["results"]
    assert [hit["id"] for hit in sent] == [hit["id"] for hit in like]
    both = http.post(
        "/api/search", files={"image": original.content}, data={"text": "a dog", "without": "a cat"}
    ).json()["results"]
    assert [hit["score"] for hit in both] != [hit["score"] for hit in sent]


def test_thumbnails_and_headers(http):
    answer = http.get("/thumbnails/3")
    assert Image.open(io.BytesIO(answer.content)).size == (24, 20)
    assert answer.headers["content-type"] == "image/jpeg"
    for path in ("/", "/thumbnails/3", "/pictures/3", "/healthz", "/nowhere"):
        headers = http.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]


def test_what_is_wrong_is_said_in_a_line(http):
    get = lambda **query: http.get("/api/search", params=query)  # noqa: E731
    assert "Nothing to look for" in refused(get(), 422)
    assert "Nothing to look for" in refused(get(text="  "), 422)
    assert "There is no picture 9999" in refused(get(like=9999), 404)
    assert refused(get(text="a", limit=1000), 422).startswith("limit: ")
    assert refused(get(text="a", like="x"), 422).startswith("like: ")
    assert refused(get(text="a" * 2000), 422).startswith("text: ")
    assert refused(http.post("/api/search"), 422).startswith("image: ")
    assert "no picture of a format" in refused(
        http.post("/api/search", files={"image": b"words"}), 422
    )
    assert "empty" in refused(http.post("/api/search", files={"image": ("x.png", b"")}), 422)
    for path in ("/thumbnails/9999", "/pictures/9999", "/static/app.py", "/nowhere"):
        refused(http.get(path), 404)
    refused(http.delete("/api/search"), 405)


def test_uploads_are_bounded_in_pixels(http):
    bomb = png((9000, 9000), "1")
    assert len(bomb) < 20_000
    assert "50 megapixels" in refused(http.post("/api/search", files={"image": bomb}), 422)


def test_uploads_are_bounded_in_bytes(index):
    sent = 0

    def pieces():
        nonlocal sent
        yield b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        while sent < 20 * app_module.MAX_UPLOAD_BYTES:
            sent += 1 << 20
            yield bytes(1 << 20)

    kind = {"content-type": "multipart/form-data; boundary=x"}
    with live(index) as address:
        answer = httpx.post(f"{address}api/search", content=pieces(), headers=kind, timeout=60)
    assert "larger than 20 MB" in refused(answer, 413)
    assert sent < 5 * app_module.MAX_UPLOAD_BYTES  # what sockets hold, and no more


def test_an_upload_that_announces_too_much_is_not_begun_to_be_read(http):
    kind = {"content-type": "multipart/form-data; boundary=x", "content-length": str(10**12)}
    assert "larger than 20 MB" in refused(http.post("/api/search", content=b"", headers=kind), 413)


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/static/..%2f..%2fcli.py",
        "/pictures/../../etc/passwd",
        "/pictures/%2fetc%2fpasswd",
        "/thumbnails/1%00",
        "/thumbnails/-1",
        "/pictures/1e3",
        f"/pictures/{2**70}",
        "//etc/passwd",
    ],
)
def test_nothing_but_pictures_by_number_is_served(http, path):
    answer = http.get(path)
    assert answer.status_code in (404, 422), answer.text
    assert "root:" not in answer.text and "import" not in answer.text


def test_a_file_that_is_not_what_was_indexed_is_not_served(tmp_path):
    index = index_of(tmp_path, 3)
    folder = tmp_path / "photos" / "below"
    draw(folder / "000.png", 99)
    os.unlink(folder / "001.png")
    os.symlink("/etc/passwd", folder / "001.png")
    os.unlink(folder / "002.png")
    with client(index) as (http, _):
        for id in (1, 2, 3):
            assert "file of this picture" in refused(http.get(f"/pictures/{id}"), 410)
            assert http.get(f"/thumbnails/{id}").status_code == 200


def test_pages_load_nothing_from_elsewhere(http):
    page = http.get("/").text
    for path in re.findall(r'(?:src|href)="([^"]+)"', page):
        assert path.startswith(("/static/", "/docs", "data:,"))
        if path.startswith("/"):
            assert http.get(path).status_code == 200
    docs = http.get("/docs").text
    schema = http.get("/openapi.json").json()
    for path in schema["paths"]:
        assert f"<code>{path}</code>" in docs
    assert "<script" not in docs
    for text in (page, docs, http.get("/static/page.css").text, http.get("/static/page.js").text):
        assert not re.search(r"https?://", text)


def test_health(http):
    health = http.get("/healthz").json()
    assert health["status"] == "ok" and health["pictures"] == 40 and len(health["model"]) == 64


def test_an_empty_index_is_served(tmp_path):
    from searching import described

    from vlrep_jax.search.writer import writing

    with writing(tmp_path / "index", described(), 16) as writer:
        writer.begin([])
        writer.publish([])
    with client(tmp_path / "index") as (http, _):
        for path in ("/api/search?text=a+dog", "/api/pictures"):
            found = http.get(path).json()
            assert found["total"] == 0 and found["results"] == []


def test_requests_that_come_together_are_answered_together():
    """While one batch runs the next gathers; no request waits for another that is not there."""
    batches, held = [], threading.Event()

    def answer(asks):
        batches.append(len(asks))
        held.wait(10)
        return [ValueError(str(x)) if x == 13 else 10 * x for x in asks]

    async def run():
        async with Batcher(answer, size=8, waiting=20) as batcher:
            first = asyncio.create_task(batcher.ask(0))
            while not batches:
                await asyncio.sleep(0.01)
            rest = [asyncio.create_task(batcher.ask(i)) for i in range(1, 21)]
            await asyncio.sleep(0.05)
            with pytest.raises(Busy):
                await batcher.ask(99)
            rest[0].cancel()  # whoever asked has gone: nobody works for them
            held.set()
            return await asyncio.gather(first, *rest, return_exceptions=True)

    first, gone, *results = asyncio.run(run())
    assert first == 0 and isinstance(gone, asyncio.CancelledError)
    assert isinstance(results.pop(11), ValueError)
    assert results == [10 * i for i in range(2, 21) if i != 13]
    assert batches == [1, 7, 8, 4]


def test_a_batch_that_fails_fails_for_all_of_it_and_no_more():
    def answer(asks):
        if 1 in asks:
            raise RuntimeError("broken")
        return asks

    async def run():
        async with Batcher(answer, size=1) as batcher:
            one, two = (asyncio.create_task(batcher.ask(i)) for i in (1, 2))
            return await asyncio.gather(one, two, return_exceptions=True)

    one, two = asyncio.run(run())
    assert isinstance(one, RuntimeError) and two == 2


def test_a_batch_has_the_answers_of_each_request_alone(index):
    from vlrep_jax.serve.answering import Ask

    with client(index) as (_, site):
        pixels = tiny().preprocess(index.parent / "photos" / "below" / "003.png")
        asks = [
            Ask("a dog", "", None, None, 24),
            Ask("a cat", "a dog", None, None, 48),
            Ask("", "", pixels, None, 24),
            Ask("", "", None, 5, 24),
            Ask("", "", None, 999, 24),
            Ask("a dog", "", pixels, 5, 24),
        ]
        together = site.answers(asks)
        alone = [site.answers([ask])[0] for ask in asks]
    for ask, one, two in zip(asks, together, alone, strict=True):
        if ask.like == 999:
            assert isinstance(one, KeyError) and isinstance(two, KeyError)
            continue
        assert one[0] == two[0]
        np.testing.assert_allclose(one[1], two[1], atol=1e-6)


def test_no_query_of_zeros_pads_a_batch(index, monkeypatch):
    """All pictures tie for it: exact search would have to rank every one in float64."""
    from vlrep_jax.serve.answering import Ask

    asked = []
    with client(index) as (_, site):
        best = site.engine.best
        monkeypatch.setattr(site.engine, "best", lambda q, k: asked.append(q) or best(q, k))
        site.answers([Ask(f"dog {i}", "", None, None, 24) for i in range(3)])
    assert len(asked) == 1 and len(asked[0]) == 4
    np.testing.assert_allclose(np.linalg.norm(asked[0], axis=1), 1, rtol=1e-5)


def test_a_model_without_a_tokenizer_answers_what_needs_none(index, monkeypatch):
    import dataclasses

    from vlrep_jax.serve.answering import Answers, Ask

    silent = dataclasses.replace(tiny(), tokenizer=None)
    pixels = tiny().preprocess(index.parent / "photos" / "below" / "003.png")
    with client(index) as (_, site):
        answers = Answers(site.engine, silent, 4)
        answers.warm([24])
        asks = [Ask("dog", "", pixels, None, 24), Ask("", "", pixels, None, 24)]
        refused, found = answers(asks)
    assert isinstance(refused, ValueError) and "no tokenizer" in str(refused)
    assert found[1][0] == pytest.approx(1, abs=1e-6)


def test_nothing_is_compiled_while_people_wait(index):
    from jax._src import monitoring

    from vlrep_jax.serve.answering import Ask

    compiled = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    pixels = tiny().preprocess(index.parent / "photos" / "below" / "003.png")
    with client(index, batch=8) as (_, site):
        site.answers.warm([24, 48])
        monitoring.register_event_duration_secs_listener(listen)
        try:
            for count in range(1, 9):
                asks = [
                    Ask(f"dog {i}", "", pixels if i % 3 else None, None, 24) for i in range(count)
                ]
                asks[0] = Ask("a dog", "a cat", None, 3, 48)
                results = site.answers(asks)
                assert all(isinstance(ids, list) for ids, _ in results)
        finally:
            monitoring.unregister_event_duration_listener(listen)
    assert not compiled


def test_a_port_in_use_and_an_address_that_is_none():
    with running.listening("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"port {port} of 127.0.0.1 is in use: name another"):
            running.listening("127.0.0.1", port)
    with pytest.raises(ValueError, match="is no address"):
        running.listening("no.such.host.invalid", 0)
    with pytest.raises(ValueError, match="nothing can listen there"):
        running.listening("192.0.2.1", 0)
    with pytest.raises(ValueError, match="must be from 0 to 65535"):
        running.listening("127.0.0.1", 70_000)
    if socket.has_ipv6:
        running.listening("::1", 0).close()
