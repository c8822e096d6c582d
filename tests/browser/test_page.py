"""The search page in a real browser: typing, uploading, clicking, keys, widths, what goes wrong.

`pytest tests/browser -n 0` runs it; it is skipped, with the reason, where there is no Chromium.
"""

import re
import shutil
import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
from chromium import browser, missing  # noqa: E402

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())
HOSTILE = "<img src=x onerror=document.title=1>.png"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from searching import draw
    from serving import index_of

    top = tmp_path_factory.mktemp("page")
    draw(top / "photos" / HOSTILE, 999)
    index_of(top, 60)
    return top


@pytest.fixture(scope="module")
def address(folder):
    from serving import live

    with live(folder / "index") as address:
        yield address


@pytest.fixture(scope="module")
def chromium():
    with browser() as started:
        yield started


@pytest.fixture
def open_page(chromium, address):
    """(path, width) -> a page; at the end nothing was loaded from elsewhere and nothing broke."""
    opened, faults, asked = [], [], []

    def show(path="", width=1280, at=address):
        context = chromium.new_context(viewport={"width": width, "height": 800})
        context.set_default_timeout(10_000)
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda m: faults.append(m.text) if "Content Security" in m.text else 0)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(at + path)
        opened.append(context)
        return page

    yield show
    for context in opened:
        context.close()
    assert not faults
    assert all(url.startswith(("http://127.0.0.1:", "blob:", "data:")) for url in asked)


def settled(page):
    """Waits for the results of the newest query."""
    page.wait_for_selector("#grid[aria-busy=false] .hit >> nth=0")


def names(page):
    return page.locator(".hit .name").all_inner_texts()


def scores(page):
    return [float(text) for text in page.locator(".hit .score").all_inner_texts()]


def focused(page):
    """The place of the result that has the focus, or the id of another element."""
    return page.evaluate(
        "(() => { const i = [...document.querySelectorAll('.hit > button')]"
        ".indexOf(document.activeElement); return i < 0 ? document.activeElement.id : i; })()"
    )


def test_typing_a_text(open_page):
    page = open_page()
    settled(page)
    assert len(names(page)) == 24 and not scores(page)
    assert page.get_by_placeholder("Search 61 pictures").is_visible()
    page.get_by_placeholder("Search 61 pictures").fill("a red kangaroo")
    page.keyboard.press("Enter")
    page.wait_for_url("**text=*")
    settled(page)
    found = scores(page)
    assert len(found) == 24 and found == sorted(found, reverse=True)
    assert page.title() == "a red kangaroo" and "text=a+red+kangaroo" in page.url
    assert page.locator("#status").inner_text() == "1–24 of 61 pictures, nearest first"
    before = names(page)
    page.get_by_label("What it shall not show").fill("a dog")
    page.keyboard.press("Enter")
    page.wait_for_url("**without=a+dog*")
    settled(page)
    assert names(page) != before
    page.go_back()
    page.wait_for_function("!location.search.includes('without')")
    settled(page)
    assert names(page) == before


def test_clicking_a_result_finds_more_like_it(open_page):
    page = open_page("?text=a+dog")
    settled(page)
    clicked = names(page)[3]
    page.locator(".hit > button").nth(3).click()
    page.wait_for_selector("#chip:not([hidden])")
    page.wait_for_url("**like=*")
    settled(page)
    assert names(page)[0] == clicked == page.locator("#chip-name").inner_text()
    assert scores(page)[0] == 1
    page.locator("#text").fill("a cat")
    page.keyboard.press("Enter")
    page.wait_for_url("**text=a+cat*like=*")
    page.get_by_label("Do not look for this picture").click()
    page.wait_for_selector("#chip", state="hidden")
    assert "like" not in page.url and page.locator("#text").input_value() == "a cat"


def test_uploading_a_picture(open_page, folder):
    page = open_page()
    settled(page)
    page.locator("#file").set_input_files(folder / "photos" / "below" / "017.png")
    page.wait_for_url("**uploaded=*")
    settled(page)
    assert names(page)[0] == "017.png" and scores(page)[0] == 1
    page.get_by_role("button", name="Next").click()
    page.wait_for_url("**page=2*")
    settled(page)
    assert scores(page)[0] < 1 and "25–48" in page.locator("#status").inner_text()
    page.reload()
    page.get_by_text("This picture is no longer here").wait_for()


def test_dropping_a_picture(open_page, folder):
    page = open_page()
    settled(page)
    data = (folder / "photos" / "below" / "005.png").read_bytes()
    transfer = page.evaluate_handle(
        "bytes => { const t = new DataTransfer(); "
        "t.items.add(new File([new Uint8Array(bytes)], 'mine.png', {type: 'image/png'})); "
        "return t; }",
        list(data),
    )
    page.dispatch_event("body", "dragenter", {"dataTransfer": transfer})
    assert page.locator("#drop").is_visible()
    page.dispatch_event("body", "drop", {"dataTransfer": transfer})
    page.wait_for_url("**uploaded=*")
    settled(page)
    assert names(page)[0] == "005.png" and page.locator("#chip-name").inner_text() == "mine.png"
    assert page.locator("#drop").is_hidden()


def test_the_keyboard_alone(open_page):
    page = open_page("?text=a+dog")
    settled(page)
    page.keyboard.press("/")
    assert focused(page) == "text" and page.locator("#text").input_value() == "a dog"
    page.keyboard.press("ArrowDown")
    assert focused(page) == 0
    tops = page.locator(".hit").evaluate_all("all => all.map(e => e.offsetTop)")
    columns = tops.count(tops[0])
    assert columns > 3
    for key, place in (
        ("ArrowRight", 1),
        ("ArrowDown", columns + 1),
        ("ArrowLeft", columns),
        ("ArrowUp", 0),
        ("ArrowLeft", 0),
        ("ArrowUp", "text"),
    ):
        page.keyboard.press(key)
        assert focused(page) == place, key
    page.keyboard.press("Escape")
    page.keyboard.press("n")
    page.wait_for_url("**page=2*")
    settled(page)
    page.keyboard.press("p")
    page.wait_for_url("**?text=a+dog")
    settled(page)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    wanted = names(page)[1]
    with page.context.expect_page() as opened:
        page.keyboard.press("o")
    assert re.search(r"/pictures/\d+\?v=", opened.value.url)
    page.bring_to_front()
    page.keyboard.press("Enter")
    page.wait_for_url("**like=*")
    page.wait_for_function("document.activeElement.matches('.hit > button')")
    assert names(page)[0] == wanted and focused(page) == 0


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_nothing_sticks_out_at_any_width(open_page, width):
    page = open_page("?text=a+dog", width)
    settled(page)
    page.locator(".hit > button").first.click()
    page.wait_for_selector("#chip:not([hidden])")
    settled(page)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    tops = page.locator(".hit").evaluate_all("all => all.map(e => e.offsetTop)")
    assert tops.count(tops[0]) >= 2
    for name in ("Next", "Do not look for this picture"):
        box = page.get_by_role("button", name=name).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width and box["height"] >= 24


def test_a_name_is_text_whatever_it_holds(open_page):
    page = open_page()
    settled(page)
    assert HOSTILE in names(page) and page.title() == "Pictures"
    page.locator(".hit > button").nth(names(page).index(HOSTILE)).click()
    page.wait_for_url("**like=*")
    settled(page)
    assert page.locator("#chip-name").inner_text() == HOSTILE
    assert page.title() == f"like {HOSTILE}"


def test_what_goes_wrong_is_said(open_page, tmp_path, folder):
    page = open_page("?like=99999&name=x")
    page.get_by_text("There is no picture 99999 in this index.").wait_for()
    (tmp_path / "words.png").write_text("no picture")
    page.locator("#file").set_input_files(tmp_path / "words.png")
    page.get_by_text("it is no picture of a format that is read here").wait_for()
    page.context.set_offline(True)
    page.locator("#text").fill("a dog")
    page.keyboard.press("Enter")
    page.get_by_text("The server does not answer.").wait_for()
    page.context.set_offline(False)
    page.get_by_role("button", name="Try again").click()
    settled(page)
    assert page.locator("#notice").is_hidden()
    page = open_page("?text=a+dog&page=99")
    page.get_by_role("button", name="To the first page").click()
    settled(page)
    assert page.url.endswith("?text=a+dog")


def test_an_empty_index_says_so(open_page, tmp_path):
    from searching import described
    from serving import live

    from vlrep_jax.search.writer import writing

    with writing(tmp_path / "index", described(), 16) as writer:
        writer.begin([])
        writer.publish([])
    with live(tmp_path / "index") as empty:
        for path in ("", "?text=a+dog"):
            page = open_page(path, at=empty)
            page.get_by_text("This index is empty").wait_for()


def test_a_file_that_is_gone_leaves_its_thumbnail(open_page, folder, address):
    path = folder / "photos" / "below" / "059.png"
    shutil.move(path, path.with_suffix(".away"))
    try:
        page = open_page("?page=3")
        settled(page)
        assert "059.png" in names(page)
        link = page.locator(".hit", has_text="059.png").locator("a").get_attribute("href")
        assert page.request.get(address + link.removeprefix("/")).status == 410
    finally:
        shutil.move(path.with_suffix(".away"), path)
