"""The page and the JSON API over an index."""

import contextlib
import io
import threading
from importlib import resources
from pathlib import Path
from typing import Annotated

import anyio
from fastapi import FastAPI, File, Form, HTTPException, Query, Request, UploadFile
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from PIL import Image
from pydantic import BaseModel, Field

from vlrep_jax import __version__
from vlrep_jax.data.decoding import FORMATS, BadImage
from vlrep_jax.search.engine import Engine
from vlrep_jax.search.listing import read
from vlrep_jax.search.loading import decoded
from vlrep_jax.search.store import Picture, Store, reading
from vlrep_jax.serve.answering import Answers, Ask
from vlrep_jax.serve.batching import Batcher, Busy
from vlrep_jax.serve.docs_page import docs_page
from vlrep_jax.serve.limits import Limits
from vlrep_jax.weights import Pretrained

MAX_UPLOAD_BYTES = 20_000_000
MAX_UPLOAD_PIXELS = 50_000_000
MAX_DEPTH = 1000  # pictures that paging goes through
PAGE = 24
_FORM_BYTES = 20_000  # of an upload beside its picture
_DECODING = 2  # uploads decoded at a time: each may take some hundred megabytes
_STATIC = {"page.css": "text/css", "page.js": "text/javascript"}
_NOT_TAKEN = "Nothing to look for: give a text, a picture, or the id of one (like)."


class Hit(BaseModel):
    """A picture that was found."""

    id: int
    name: str = Field(description="path below the folder that all pictures share")
    score: float | None = Field(description="cosine; null where nothing was looked for")
    width: int
    height: int
    thumbnail: str = Field(description="where to get a small JPEG of it")
    original: str = Field(description="where to get its file")


class Found(BaseModel):
    """A page of pictures, best first."""

    total: int = Field(description="pictures in the index")
    reachable: int = Field(description="pictures that paging goes through")
    offset: int
    results: list[Hit]


class Health(BaseModel):
    """That the server answers, and what it serves."""

    status: str
    pictures: int
    model: str = Field(description="fingerprint of the model")
    approximate: bool


class Problem(BaseModel):
    """What was wrong, in a line."""

    detail: str


_TEXT = dict(max_length=1000, description="what the picture shows")
_WITHOUT = dict(max_length=1000, description="what it shall not show")
_ID = dict(ge=1, le=2**53 - 1)  # what JavaScript counts to
_LIKE = dict(_ID, description="id of a picture of the index that it shall be like")
_OFFSET = dict(ge=0, le=2**31, description="pictures to pass over")
_LIMIT = dict(ge=1, le=100, description="pictures to return, at most")
Id = Annotated[int, InPath(**_ID)]


class Site:
    """What requests are answered from: an engine, its model, and stores for threads.

    Args:
      path: of the index.
      engine: over it.
      model: that made it.
      batch: requests encoded as one, at most.
    """

    def __init__(self, path: Path, engine: Engine, model: Pretrained, batch: int):
        self.engine, self.model, self._path = engine, model, path
        self.answers = Answers(engine, model, batch)
        self.batcher = Batcher(self.answers, size=batch)
        first, last = engine.store.ends()
        # What the first and the last name share, all share.
        pairs = zip(first, last, strict=False)
        common = next((i for i, (a, b) in enumerate(pairs) if a != b), len(first))
        self._folder = len(first[:common].rpartition("/")[0]) + 1
        self._own = threading.local()
        self._decoding = anyio.Semaphore(_DECODING)

    def store(self) -> Store:
        """The index, for this thread."""
        if not hasattr(self._own, "store"):
            self._own.store = reading(self._path)
        return self._own.store

    def picture(self, id: int) -> Picture:
        """A picture of the index; a 404 where there is none."""
        found = self.store().pictures([id])
        if id not in found:
            raise HTTPException(404, f"There is no picture {id} in this index.")
        return found[id]

    async def pixels(self, data: bytes):
        """What the model takes of an uploaded picture."""
        async with self._decoding:
            try:
                pixels, _ = await anyio.to_thread.run_sync(
                    decoded, data, self.model.preprocess, MAX_UPLOAD_PIXELS
                )
            except BadImage as error:
                why = error.why
                if error.reason == "too_large":
                    why = f"it has more than {MAX_UPLOAD_PIXELS // 10**6} megapixels"
                raise HTTPException(422, f"This picture cannot be used: {why}.") from None
        return pixels

    async def found(self, text, without, pixels, like, offset, limit) -> Found:
        """A page of what is nearest."""
        text, without = text.strip(), without.strip()
        if not text and pixels is None and like is None:
            raise HTTPException(422, _NOT_TAKEN)
        end = min(offset + limit, MAX_DEPTH, len(self.engine))
        if end <= offset:
            return await self.page([], [], offset)
        try:
            ids, scores = await self.batcher.ask(Ask(text, without, pixels, like, depth(end)))
        except KeyError:
            raise HTTPException(404, f"There is no picture {like} in this index.") from None
        except ValueError as error:
            raise HTTPException(422, str(error)) from None
        except Busy as error:
            raise HTTPException(503, f"Too busy: {error}.", {"Retry-After": "1"}) from None
        return await self.page(ids[offset:end], scores[offset:end], offset)

    async def page(self, ids, scores, offset) -> Found:
        """Pictures with their scores, as they go out."""
        pictures = await anyio.to_thread.run_sync(lambda: self.store().pictures(ids))
        pairs = zip(ids, scores, strict=True)
        hits = [self._hit(pictures[id], score) for id, score in pairs if id in pictures]
        total = len(self.engine)
        return Found(total=total, reachable=min(total, MAX_DEPTH), offset=offset, results=hits)

    def _hit(self, picture, score):
        name = picture.found.name[self._folder :].encode("utf-8", "backslashreplace").decode()
        # With its digest, so that no browser shows the picture of another index for it.
        version = f"?v={picture.digest.hex()[:12]}"
        return Hit(
            id=picture.id,
            name=name,
            score=score,
            width=picture.width,
            height=picture.height,
            thumbnail=f"/thumbnails/{picture.id}{version}",
            original=f"/pictures/{picture.id}{version}",
        )


def depth(end: int) -> int:
    """For how many pictures to ask, of which `end` are wanted: a few sizes that are compiled."""
    size = PAGE
    while size < end:
        size *= 2
    return size


def create_app(site: Site) -> FastAPI:
    """The application; `site` is its own."""

    @contextlib.asynccontextmanager
    async def lifespan(_):
        async with site.batcher:
            yield

    app = FastAPI(
        title="vlrep serve",
        version=__version__,
        summary="Search the pictures of an index by text and by picture.",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's own loads scripts from elsewhere
        redoc_url=None,
        responses={422: {"model": Problem}},
    )
    app.add_middleware(Limits, max_bytes=MAX_UPLOAD_BYTES + _FORM_BYTES)
    _add_api(app, site)
    _add_files(app, site)
    _add_pages(app)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or "request"
        return JSONResponse({"detail": f"{where}: {first['msg']}."}, 422)

    return app


def _add_api(app, site):
    problems = {
        code: {"model": Problem, "description": text}
        for code, text in ((404, "no such picture"), (503, "too many requests wait"))
    }
    too_much = {code: {"model": Problem} for code in (400, 413)}

    @app.get("/api/search", tags=["search"], responses=problems)
    async def search(
        text: Annotated[str, Query(**_TEXT)] = "",
        without: Annotated[str, Query(**_WITHOUT)] = "",
        like: Annotated[int | None, Query(**_LIKE)] = None,
        offset: Annotated[int, Query(**_OFFSET)] = 0,
        limit: Annotated[int, Query(**_LIMIT)] = PAGE,
    ) -> Found:
        """The pictures nearest to a text, to a picture of the index, or to both."""
        return await site.found(text, without, None, like, offset, limit)

    @app.post("/api/search", tags=["search"], responses=problems | too_much)
    async def search_by_picture(
        image: Annotated[UploadFile, File(description="a picture file, of at most 20 MB")],
        text: Annotated[str, Form(**_TEXT)] = "",
        without: Annotated[str, Form(**_WITHOUT)] = "",
        like: Annotated[int | None, Form(**_LIKE)] = None,
        offset: Annotated[int, Form(**_OFFSET)] = 0,
        limit: Annotated[int, Form(**_LIMIT)] = PAGE,
    ) -> Found:
        """The pictures nearest to one that is sent along, and to a text too where there is one."""
        pixels = await site.pixels(await image.read())
        return await site.found(text, without, pixels, like, offset, limit)

    @app.get("/api/pictures", tags=["search"])
    async def browse(
        offset: Annotated[int, Query(**_OFFSET)] = 0,
        limit: Annotated[int, Query(**_LIMIT)] = PAGE,
    ) -> Found:
        """The pictures of the index, in its order."""
        ids = site.engine.ids[offset : offset + limit].tolist()
        page = await site.page(ids, [None] * len(ids), offset)
        return page.model_copy(update={"reachable": page.total})

    @app.get("/healthz", tags=["server"])
    async def healthz() -> Health:
        """Whether the server answers."""
        return Health(
            status="ok",
            pictures=len(site.engine),
            model=site.engine.store.about["model"]["fingerprint"],
            approximate=site.engine.recall is not None,
        )


def _add_files(app, site):
    missing = {404: {"model": Problem, "description": "no such picture"}}

    def gives(kind):
        content = {kind: {"schema": {"type": "string", "format": "binary"}}}
        return missing | {200: {"content": content, "description": "a picture file"}}

    options = dict(response_class=Response, tags=["pictures"])

    kept = {"Cache-Control": "private, max-age=86400"}

    @app.get("/thumbnails/{id}", responses=gives("image/jpeg"), **options)
    def thumbnail(id: Id):
        """A small JPEG of a picture."""
        jpeg = site.store().thumbnail(site.picture(id).digest)
        return Response(jpeg, media_type="image/jpeg", headers=kept)

    gone = {410: {"model": Problem, "description": "its file is gone or has changed"}}

    @app.get("/pictures/{id}", responses=gives("image/*") | gone, **options)
    def original(id: Id):
        """The file of a picture, as long as it is the one that was indexed."""
        picture = site.picture(id)
        try:
            data, now = read(picture.found)
        except (FileNotFoundError, BadImage):
            raise HTTPException(410, "The file of this picture is gone.") from None
        if now != picture.found:
            raise HTTPException(410, "The file of this picture has changed since it was indexed.")
        name = Path(picture.found.name).name.encode("ascii", "replace").decode().replace('"', "'")
        headers = kept | {"Content-Disposition": f'inline; filename="{name}"'}
        # As its bytes say, not its name: nothing but pictures was indexed.
        return Response(data, media_type=Image.MIME[_format(data)], headers=headers)


def _format(data):
    with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
        return picture.format


def _add_pages(app):
    @app.get("/", include_in_schema=False)
    async def page():
        return HTMLResponse(_static("page.html"))

    @app.get("/static/{name}", include_in_schema=False)
    async def static(name: str):
        if name not in _STATIC:
            raise HTTPException(404, "There is no such file.")
        return Response(_static(name), media_type=_STATIC[name])

    @app.get("/docs", include_in_schema=False)
    async def docs():
        return HTMLResponse(docs_page(app.openapi()))


def _static(name):
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
