"""Directories of tokenizer files as `transformers` lays them out: reading and writing."""

import json
from pathlib import Path

import sentencepiece
import tokenizers as hf

from vlrep_jax.data.tokenizers.base import Tokenizer
from vlrep_jax.data.tokenizers.file import FileTokenizer
from vlrep_jax.data.tokenizers.hf_models import CLIP_END, clip_json, lowers_case, with_lower_case
from vlrep_jax.data.tokenizers.pieces import SentencePieceTokenizer
from vlrep_jax.data.tokenizers.wordpiece import WordPieceTokenizer

_PIECES = ("spiece.model", "tokenizer.model", "sentencepiece.model")
_KNOWN = ("tokenizer.json", "vocab.json with merges.txt", "vocab.txt", *_PIECES)


def save_huggingface(tokenizer: Tokenizer, directory) -> list[Path]:
    """Writes the files from which `transformers.AutoTokenizer` opens a tokenizer.

    There it gives the same ids, but for what it cannot be told: what ftfy repairs (CLIP's and
    OpenCLIP's cleaning), that a special token spelt in a text is text, and what a capital sigma
    at the end of a word becomes. CLIP's
    padding is the end token there, as in all of its published directories, instead of 0: behind
    the end of a causal text it is never looked at.

    Returns:
        The paths written.

    Raises:
        ValueError: it has no tokenizer that gives these ids; nothing is written.
    """
    files = tokenizer.huggingface_files()
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, content in files.items():
        if not isinstance(content, str | bytes):
            content = json.dumps(content, ensure_ascii=False, indent=2) + "\n"
        part = directory / f"{name}.part"
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        paths.append(part.replace(directory / name))
    return paths


def tokenizer_from_directory(
    path, *, lower_case: bool | None = None, clean: str | None = None, keep_sep: bool = True
):
    """Opens the tokenizer of a Hugging Face directory; the ids are those of `transformers`.

    Args:
        path: directory with a tokenizer.json, the vocab.json and merges.txt of a CLIP, the
            vocab.txt of a BERT, or a SentencePiece model; tokenizer_config.json and
            special_tokens_map.json beside it say which tokens start, end and pad a text.
        lower_case: whether texts are lower-cased; None is as the files say. SigLIP 2 was trained
            on lower case, whether or not its files say so.
        clean: of `cleaning.CLEANERS`; None is what `transformers` does.
        keep_sep: whether the [SEP] that ends a text stays, or becomes padding (OpenCLIP's CLIPA).

    Returns:
        Tokenizer.

    Raises:
        FileNotFoundError: nothing of these is there.
        ValueError: a file is damaged, or does not say how a text ends.
    """
    path = Path(path)
    config = _json(path / "special_tokens_map.json") | _json(path / "tokenizer_config.json")
    kind = str(config.get("tokenizer_class", "")).removesuffix("Fast")
    pieces = next((path / name for name in _PIECES if (path / name).is_file()), None)
    options = {} if clean is None else {"clean": clean}
    if pieces and (kind == "SiglipTokenizer" or not (path / "tokenizer.json").is_file()):
        return _from_pieces(pieces, config, kind, lower_case, options)
    if (path / "tokenizer.json").is_file():
        return _from_json(path / "tokenizer.json", config, kind, lower_case, keep_sep, options)
    if (path / "vocab.json").is_file() and (path / "merges.txt").is_file():
        return _from_merges(path, config, lower_case, options)
    if (path / "vocab.txt").is_file():
        lower = config.get("do_lower_case", True) if lower_case is None else lower_case
        return WordPieceTokenizer(
            path / "vocab.txt", lower_case=lower, keep_sep=keep_sep, **{"clean": "none", **options}
        )
    raise FileNotFoundError(f"{path} holds no tokenizer: none of {', '.join(_KNOWN)}.")


def _from_pieces(path, config, kind, lower_case, options):
    data = path.read_bytes()
    pieces = sentencepiece.SentencePieceProcessor()
    try:
        pieces.LoadFromSerializedProto(data)
    except Exception as error:  # the library raises what it likes
        raise ValueError(f"{path} is not a SentencePiece model: {error}") from error
    # Gemma's class starts a text with bos and does not end it, unless told.
    siglip = kind == "SiglipTokenizer"
    bos = None
    if not siglip:
        if not config.get("add_eos_token"):
            raise ValueError(f"{path.parent}: {kind or 'its tokenizer'} adds no end token.")
        bos = _token(config, "bos_token") if config.get("add_bos_token", True) else None
    eos = _token(config, "eos_token") or pieces.id_to_piece(max(pieces.eos_id(), 0))
    pad = _token(config, "pad_token") or eos
    lower = config.get("do_lower_case", False) if lower_case is None else lower_case
    if siglip and lower_case is False:
        raise ValueError(f"{path.parent}: a SiglipTokenizer always lower-cases here.")
    if siglip and options.get("clean") == "repair":
        options = {}  # its class cleans after that; only what ftfy would repair is lost
    return SentencePieceTokenizer(
        path,
        eos_id=_known_id(pieces.piece_to_id(eos), pieces.unk_id(), eos, path),
        pad_id=_known_id(pieces.piece_to_id(pad), pieces.unk_id(), pad, path),
        bos_id=None if bos is None else pieces.piece_to_id(bos),
        **{"clean": "siglip" if siglip else "none", **options},
        lower_case=bool(lower) and not siglip,
    )


def _known_id(number, unknown, token, path):
    if number == unknown:
        raise ValueError(f"{path} has no token {token!r}, which its directory names.")
    return number


def _from_json(path, config, kind, lower_case, keep_sep, options):
    text = path.read_text(encoding="utf-8")
    try:
        model = hf.Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{path} is not a Hugging Face tokenizer.json: {error}") from error
    padding = model.padding  # its own, where the directory names no token
    model.no_padding()
    model.no_truncation()
    bos, eos = _around(model, config, path)
    pad = _token(config, "pad_token")
    pad_id = eos if pad is None else model.token_to_id(pad)
    if pad is None and padding is not None:
        pad_id = padding["pad_id"]
    if pad_id is None:
        raise ValueError(f"{path} has no token {pad!r}, which its directory pads with.")
    if lower_case is None:
        lower_case = kind == "Siglip2Tokenizer" or config.get("do_lower_case", False)
    if lower_case and not lowers_case(text):
        # By the library, as transformers does it: Python's lower() knows a final sigma.
        text = with_lower_case(model).to_str()
    return FileTokenizer(
        tokenizer_json=text,
        pad_id=pad_id,
        eos_id=eos if keep_sep or _token(config, "sep_token") is None else pad_id,
        bos_id=bos,
        **{"clean": "none", **options},
    )


def _around(model, config, path):
    """(id that a text starts with or None, id that it ends with)."""
    encoding = model.encode("a")
    special = encoding.special_tokens_mask
    start = special.index(0) if 0 in special else len(special)
    before, after = encoding.ids[:start], encoding.ids[start:][special[start:].count(0) :]
    for name, found in (("bos", before), ("eos", after)):
        # Gemma's classes put them there as these say, whatever the file holds.
        wanted = config.get(f"add_{name}_token")
        token = _token(config, f"{name}_token")
        if wanted is not None and token is not None:
            found[:] = [model.token_to_id(token)] if wanted else []
    if len(before) > 1 or len(after) != 1 or None in (*before, *after):
        raise ValueError(
            f"{path} puts {before} before a text and {after} behind it; here a text has at most "
            "one start token and exactly one end token."
        )
    return (before[0] if before else None), after[0]


def _from_merges(path, config, lower_case, options):
    vocabulary = _json(path / "vocab.json")
    lines = (path / "merges.txt").read_text(encoding="utf-8").split("\n")
    merges = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
    if any(len(merge) != 2 for merge in merges):
        raise ValueError(f"{path / 'merges.txt'} holds a line that is not a pair of tokens.")
    if lower_case is False:
        raise ValueError(f"{path}: a CLIP tokenizer always lower-cases.")
    try:
        text = clip_json(vocabulary, merges)
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{path} holds no CLIP tokenizer: {error}") from error
    model = hf.Tokenizer.from_str(text)
    bos, eos = _around(model, config, path)
    pad = model.token_to_id(_token(config, "pad_token") or CLIP_END)
    return FileTokenizer(
        tokenizer_json=text, pad_id=pad, eos_id=eos, bos_id=bos, **{"clean": "none", **options}
    )


def _token(config, name):
    """A token's text: files hold the text itself, or an object with it."""
    token = config.get(name)
    return token.get("content") if isinstance(token, dict) else token


def _json(path):
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); it was changed or cut.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object but {type(content).__name__}.")
    return content
