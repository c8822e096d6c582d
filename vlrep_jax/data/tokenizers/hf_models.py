"""Models of Hugging Face `tokenizers`, and the files that `transformers` opens them from."""

import json

import tokenizers as hf

# What `transformers` splits CLIP's texts by; it ignores no case, for it lowers it before.
_CLIP_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
CLIP_START, CLIP_END = "<|startoftext|>", "<|endoftext|>"
_SPACES = hf.Regex(r"\s+")
_PUNCTUATION = hf.Regex(r"[!-/:-@\[-`{-~]")


def clip_model(vocabulary, merges, words):
    """CLIP's byte-level BPE of texts that were cleaned, split by the pattern `words`."""
    model = hf.Tokenizer(hf.models.BPE(vocabulary, merges, end_of_word_suffix="</w>"))
    model.pre_tokenizer = hf.pre_tokenizers.Sequence(
        [
            hf.pre_tokenizers.Split(hf.Regex(words), "removed", invert=True),
            hf.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return model


def clip_json(vocabulary, merges):
    """The tokenizer.json of a CLIP as `transformers` has it: NFC and lower case for cleaning.

    Raises:
        ValueError: the vocabulary has no start or end token.
    """
    for token in (CLIP_START, CLIP_END):
        if token not in vocabulary:
            raise ValueError(f"A CLIP's vocabulary has the token {token!r}; this one has not.")
    model = clip_model(vocabulary, merges, _CLIP_WORDS)
    model.normalizer = hf.normalizers.Sequence(
        [
            hf.normalizers.NFC(),
            hf.normalizers.Replace(_SPACES, " "),
            hf.normalizers.Lowercase(),
        ]
    )
    model.decoder = hf.decoders.ByteLevel()
    return with_special(model, bos=CLIP_START, eos=CLIP_END, pad=CLIP_END).to_str()


def clip_files(vocabulary, merges):
    """All that `transformers` may look for in the directory of a CLIP tokenizer."""
    config = {"tokenizer_class": "CLIPTokenizer", "unk_token": CLIP_END}
    special = {"bos_token": CLIP_START, "eos_token": CLIP_END, "pad_token": CLIP_END}
    return {
        "tokenizer.json": clip_json(vocabulary, merges),
        "vocab.json": vocabulary,
        "merges.txt": "\n".join(["#version: 0.2", *map(" ".join, merges)]) + "\n",
    } | config_files(config, special)


def config_files(config, special):
    """tokenizer_config.json and special_tokens_map.json."""
    special = {name: token for name, token in special.items() if token is not None}
    config = {"padding_side": "right", "clean_up_tokenization_spaces": False, **config, **special}
    return {"tokenizer_config.json": config, "special_tokens_map.json": special}


def fast_files(model, *, bos, eos, pad, clean, lower_case):
    """Files of any model, its tokens given as text, and its cleaning as normalizers."""
    model = with_special(hf.Tokenizer.from_str(model.to_str()), bos=bos, eos=eos, pad=pad)
    _put_before(model, _normalizers(clean, lower_case))
    special = {"bos_token": bos, "eos_token": eos, "pad_token": pad}
    files = config_files({"tokenizer_class": "PreTrainedTokenizerFast"}, special)
    return {"tokenizer.json": model.to_str()} | files


def with_special(model, *, bos, eos, pad):
    """The model, which now puts the tokens bos (None for none) and eos around a text."""
    tokens = list(dict.fromkeys(token for token in (pad, bos, eos) if token is not None))
    model.add_special_tokens([hf.AddedToken(token, normalized=False) for token in tokens])
    around = [token for token in (bos, eos) if token is not None]
    model.post_processor = hf.processors.TemplateProcessing(
        single=[*([bos] if bos is not None else []), "$A", eos],
        special_tokens=[(token, model.token_to_id(token)) for token in dict.fromkeys(around)],
    )
    return model


def _normalizers(clean, lower_case):
    """The nearest to a way of cleaning; of what ftfy does, straight quotes and NFC."""
    steps = []
    if clean in ("repair", "canonicalize"):
        steps.append(hf.normalizers.Replace(hf.Regex("[\u02bc\u2018-\u201b]"), "'"))
        steps.append(hf.normalizers.Replace(hf.Regex("[\u201c-\u201f]"), '"'))
        steps.append(hf.normalizers.NFC())
    if lower_case or clean in ("siglip", "canonicalize"):
        steps.append(hf.normalizers.Lowercase())
    if clean == "canonicalize":
        steps.append(hf.normalizers.Replace("_", " "))
    if clean in ("siglip", "canonicalize"):
        steps.append(hf.normalizers.Replace(_PUNCTUATION, ""))
    if clean != "none":
        steps += [hf.normalizers.Replace(_SPACES, " "), hf.normalizers.Strip()]
    return steps


def _put_before(model, steps):
    """Has the model normalize by these steps first."""
    own = [model.normalizer] if model.normalizer is not None else []
    if steps:
        model.normalizer = hf.normalizers.Sequence([*steps, *own])


def with_lower_case(model):
    """The model, which now lower-cases before all else."""
    _put_before(model, [hf.normalizers.Lowercase()])
    return model


def lowers_case(tokenizer_json):
    """Whether the normalizer of a tokenizer.json lower-cases."""
    normalizer = json.loads(tokenizer_json).get("normalizer") or {}
    steps = [normalizer, *normalizer.get("normalizers", [])]
    return any(step.get("type") == "Lowercase" or step.get("lowercase") for step in steps)
