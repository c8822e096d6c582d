"""A folder of pictures, each with a text of the same name beside it, at any depth."""

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence

from vlrep_jax.data.sources.reading import local, read_bytes
from vlrep_jax.data.sources.sample import Sample, key_hashes, picture_identity, text
from vlrep_jax.data.sources.stores import file_system, is_remote, persist
from vlrep_jax.data.sources.values import BadRow, json_object, value_at, value_texts

PICTURES = (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
TEXTS = (".txt", ".json")
_STAMP = ".utf8="  # between a language and its text
_LOG = logging.getLogger(__name__)


class Folder:
    """Picture files with `NAME.txt` or `NAME.json` beside each; the key is the path below `path`.

    Attributes:
        skipped: what was left out, by reason: `no_text` (a picture without a text), `no_picture`
            (a text without a picture), `svg` (drawings, which have no pixels), `outside` (a link
            that leads out of the folder), `unreadable` (a folder that cannot be listed).

    Args:
        path: directory, or an fsspec URL of one.
        captions: where a .json holds the text or texts: a dotted path. A .txt is one caption.
        lines: each line of a .txt is a caption of its own.
        language: of texts as Tux Paint's stamps have them, a first line in English and then lines
            such as `de.utf8=...`: "en", "de" or several; '' for any other text.
        identity: "image": pictures of equal bytes are never each other's negatives; '' for no.
        storage_options: for fsspec, such as {"endpoint_url": ...}.

    Raises:
        FileNotFoundError: there is no such directory.
        ValueError: it holds no picture with a text, or options do not fit together.
        StoreError: a store failed three times, here or when samples are read.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        captions: str = "caption",
        lines: bool = False,
        language: str | Sequence[str] = "",
        identity: str = "",
        storage_options: Mapping | None = None,
    ):
        self.path, self._options = local(os.fspath(path)), dict(storage_options or {})
        if not is_remote(self.path) and not os.path.isdir(self.path):
            raise FileNotFoundError(f"{path} is not a directory; expected a folder of pictures.")
        if identity not in ("", "image"):
            raise ValueError(f"identity={identity!r} must be 'image' or ''.")
        self._languages = (language,) if isinstance(language, str) else tuple(language)
        self._languages = tuple(filter(None, self._languages))
        if lines and self._languages:
            raise ValueError("lines=True does not go with a language, which chooses its line.")
        self._captions, self._lines, self._identity = captions, lines, identity
        self._pairs, self.skipped, self._content = _find_pairs(self.path, self._options)
        if not self._pairs:
            raise ValueError(
                f"{path} has no picture ({', '.join(PICTURES)}) with a .txt or .json of the same "
                f"name beside it; left out: {self.skipped}."
            )
        if not self._languages and any(_STAMP in text for text in self[0].captions):
            _LOG.warning(
                "%s: texts are in several languages at once, as Tux Paint's stamps are; "
                "language='en' takes one.",
                path,
            )

    def __len__(self):
        return len(self._pairs)

    def __getitem__(self, index):
        name, ending = self._pairs[index]
        try:
            captions = self._texts(self._bytes(_stem(name) + ending), ending)
            picture = self._bytes(name)
        except BadRow as error:
            return Sample(b"", (), _key(name), {}, problem=error.reason)
        identity = picture_identity(picture) if self._identity else ""
        return Sample(picture, captions, _key(name), {}, identity)

    def __getitems__(self, indices):
        return [self[int(index)] for index in indices]

    def _bytes(self, name):
        return read_bytes(self.path, name, self._options)

    def _texts(self, data, ending):
        if ending == ".json":
            return value_texts(value_at(json_object(data), self._captions))
        try:
            held = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise BadRow("not_utf8") from None
        if self._languages:
            return _translations(held.splitlines(), self._languages)
        parts = held.splitlines() if self._lines else [held]
        return tuple(part.strip() for part in parts if part.strip())

    def key_hashes(self):
        """uint64[n], as `sample.key_hashes`."""
        return key_hashes(_key(name) for name, _ in self._pairs)

    def fingerprint(self):
        """Stable hash of the files' names and sizes and of how texts are read."""
        held = [self._content, self._captions, self._lines, self._languages, self._identity]
        return hashlib.sha256(json.dumps(held).encode()).hexdigest()


def _find_pairs(top, storage_options):
    """Sorted (picture's path below top, ending of its text), what was left out, and a hash."""
    pairs, skipped, content = [], Counter(), hashlib.sha256()
    listed = _listed_in_store(top, storage_options) if is_remote(top) else _listed(top, skipped)
    for folder, names, size_of in listed:
        endings = {}
        for name in sorted(names):
            stem, ending = os.path.splitext(name)
            endings.setdefault(stem, []).append(ending)
        for stem, found in sorted(endings.items()):
            pictures = [ending for ending in found if ending.lower() in PICTURES]
            drawings = [ending for ending in found if ending.lower() == ".svg"]
            text = next((ending for ending in TEXTS if ending in found), "")
            skipped["svg"] += len(drawings)
            if text:
                skipped["no_picture"] += not pictures and not drawings
            else:
                skipped["no_text"] += len(pictures)
                continue
            place = os.path.join(folder, stem)
            pairs.extend((place + ending, text) for ending in pictures)
            sizes = [size_of(stem + ending) for ending in [*pictures, text]]
            content.update(f"{place!r} {pictures} {text} {sizes}\n".encode("utf-8", "replace"))
    return pairs, {reason: n for reason, n in skipped.items() if n}, content.hexdigest()


def _listed(top, skipped):
    """(path below top, names of its files, name -> bytes) of each folder, in order."""
    left = [""]
    while left:
        path = left.pop()
        folder = os.path.join(top, path)
        try:
            entries = list(os.scandir(folder))
        except OSError:
            skipped["unreadable"] += 1
            continue
        names = [entry.name for entry in entries if not entry.is_dir()]
        inside = [name for name in names if _is_inside(top, os.path.join(folder, name))]
        skipped["outside"] += len(names) - len(inside)
        yield path, inside, lambda name, folder=folder: os.path.getsize(os.path.join(folder, name))
        # Any file system lists in an order of its own; os.walk's depth is that of Python's stack.
        below = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        left.extend(os.path.join(path, name) for name in sorted(below, reverse=True))


def _listed_in_store(top, storage_options):
    """As `_listed`; a store follows no links."""
    system = file_system(top, storage_options)
    root = system._strip_protocol(top).rstrip("/")
    folders = {}
    for path, info in persist(top, lambda: system.find(root, detail=True)).items():
        folder, _, name = path[len(root) + 1 :].rpartition("/")
        folders.setdefault(folder, {})[name] = int(info["size"])
    for folder in sorted(folders, key=lambda path: path.split("/")):
        yield folder, folders[folder], folders[folder].__getitem__


def _is_inside(top, path):
    if not os.path.islink(path):
        return True
    target = os.path.realpath(path)
    return os.path.isfile(target) and target.startswith(os.path.realpath(top) + os.sep)


def _translations(lines, languages):
    """The texts that a stamp has in each language; '' is none."""
    held = {"en": lines[0] if lines else ""}
    for line in lines[1:]:
        language, equals, text = line.partition(_STAMP)
        if equals:
            held[language] = text
    return tuple(held[language].strip() for language in languages if held.get(language, "").strip())


def _stem(name):
    return os.path.splitext(name)[0]


def _key(name):
    return text(name.replace(os.sep, "/"))
