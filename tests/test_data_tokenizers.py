"""TOKENIZERS: one contract for all, CLIP's golden ids, and the ways to save and load."""

import base64
import gzip
import html
import pickle

import ftfy
import numpy as np
import pytest
from tiny_vocabularies import sentencepiece_model, unigram_json, wordpiece_vocabulary

from vlrep_jax.data.tokenizers import (
    TOKENIZERS,
    BpeTokenizer,
    ClipTokenizer,
    FileTokenizer,
    SentencePieceTokenizer,
    WordPieceTokenizer,
    cleaning,
    load_tokenizer,
    train_bpe,
)

TEXTS = [
    f"{size} {color} {thing}"
    for size in ("small", "large")
    for color in ("red", "blue")
    for thing in ("cat", "cathedral", "catalogue", "dog: light skin tone")
]


MAKERS = {
    "clip": ClipTokenizer,
    "bpe": lambda: train_bpe(TEXTS, 300),
    "file": lambda: FileTokenizer(
        tokenizer_json=unigram_json(TEXTS), pad_id=1, eos_id=1, lower_case=True
    ),
    "sentencepiece": lambda: SentencePieceTokenizer(
        model=base64.b64encode(sentencepiece_model(TEXTS)), clean="whitespace", lower_case=True
    ),
    "wordpiece": lambda: WordPieceTokenizer(vocabulary=wordpiece_vocabulary(TEXTS)),
}


@pytest.fixture(params=TOKENIZERS, scope="module")
def tokenizer(request):
    return MAKERS[request.param]()


def test_contract_covers_every_tokenizer():
    assert set(MAKERS) == set(TOKENIZERS)


def test_a_row_is_start_text_end_padding(tokenizer):
    ids = tokenizer(["red cat", ""], 12)
    assert ids.shape == (2, 12) and ids.dtype == np.int32
    assert ids.min() >= 0 and ids.max() < tokenizer.vocab_size
    start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    empty = [*start, tokenizer.eos_id]
    assert ids[1].tolist() == empty + [tokenizer.pad_id] * (12 - len(empty))
    one, truncated = tokenizer.encode("red cat", 12)
    np.testing.assert_array_equal(one, ids[0])
    assert not truncated


def test_a_long_text_is_cut_keeps_its_end_token_and_is_told(tokenizer):
    long = "red cat " * 50
    ids, truncated = tokenizer.encode_batch([long, "cat", long], 8)
    assert truncated.tolist() == [True, False, True]
    assert (ids[0] != tokenizer.pad_id).all() or tokenizer.pad_id == tokenizer.eos_id
    assert ids[0, -1] == tokenizer.eos_id
    whole = tokenizer(["red cat " * 50], 200)
    np.testing.assert_array_equal(ids[0, :7], whole[0, :7])


def test_a_long_text_is_an_error_by_choice(tokenizer):
    length = int((tokenizer(["red cat"], 60)[0] == tokenizer.eos_id).argmax()) + 1
    np.testing.assert_array_equal(
        tokenizer(["red cat"], length, on_long="error"), tokenizer(["red cat"], length)
    )
    message = rf"Text 1 has {length} tokens .* than context_length={length - 1}: 'red cat'"
    with pytest.raises(ValueError, match=message):
        tokenizer(["cat", "red cat", "red cat"], length - 1, on_long="error")
    with pytest.raises(ValueError, match="on_long='warn' is unknown"):
        tokenizer(["cat"], 9, on_long="warn")


def test_a_text_that_just_fits_is_not_cut(tokenizer):
    length = int((tokenizer(["red cat"], 40)[0] == tokenizer.eos_id).argmax()) + 1
    assert not tokenizer.encode("red cat", length)[1]
    assert tokenizer.encode("red cat", length - 1)[1]


def test_decoding_gives_the_text_back(tokenizer):
    for text in TEXTS:
        decoded = tokenizer.decode(tokenizer([text], 60)[0])
        assert decoded.replace(" ", "") == text.replace(" ", "")


def test_case_and_spacing_do_not_matter(tokenizer):
    plain, odd = tokenizer(["red cat", "  RED\n Cat "], 12)
    np.testing.assert_array_equal(plain, odd)


def test_special_tokens_spelt_in_a_text_are_plain_text(tokenizer):
    special = {tokenizer.eos_id, tokenizer.bos_id, tokenizer.pad_id} - {None}
    for text in ("<|endoftext|>", "<|startoftext|>", "</s>", "<pad>", "<s>"):
        row = tokenizer([f"red {text} cat"], 60)[0].tolist()
        start = 0 if tokenizer.bos_id is None else 1
        body = row[start : row.index(tokenizer.eos_id)]
        assert not special & set(body)
        assert tokenizer.decode(row).startswith("red") and tokenizer.decode(row).endswith("cat")


def test_pickled_or_saved_it_is_the_same(tokenizer, tmp_path):
    texts = [*TEXTS, "ünïcode 猫 </s>", ""]
    tokenizer.save(tmp_path / "tokenizer.json")
    for other in (
        pickle.loads(pickle.dumps(tokenizer)),
        load_tokenizer(tmp_path / "tokenizer.json"),
    ):
        assert type(other) is type(tokenizer)
        np.testing.assert_array_equal(other(texts, 40), tokenizer(texts, 40))
        assert other.fingerprint() == tokenizer.fingerprint()


def test_fingerprints_tell_apart():
    kinds = [make().fingerprint() for make in MAKERS.values()]
    kinds += [train_bpe(TEXTS, 290).fingerprint(), train_bpe(TEXTS[:5], 300).fingerprint()]
    text = unigram_json(TEXTS)
    kinds += [FileTokenizer(tokenizer_json=text, pad_id=1, eos_id=1).fingerprint()]
    assert len(set(kinds)) == len(kinds)


def test_no_text_is_an_empty_batch(tokenizer):
    ids, truncated = tokenizer.encode_batch([], 9)
    assert ids.shape == (0, 9) and truncated.shape == (0,)


def test_no_room_for_text_is_an_error(tokenizer):
    with pytest.raises(ValueError, match="context_length=1 must be more than"):
        tokenizer(["cat"], 1)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("a diagram", "320 22697"),
        ("a dog", "320 1929"),
        ("Hello World!", "3306 1002 256"),
        ("!!", "748"),
        ("?!?", "11395"),
        ("#@!x", "2 31 256 343"),
        ("café", "15304"),
        ("猫", "163 234 360"),
        ("🐱", "22979"),
        ("I'm 25 years-old", "328 880 273 276 1151 268 896"),
        ("&lt;b&gt;", "283 321 285"),
        ("a photo of a tench.", "320 1125 539 320 1149 634 269"),
        ('naïve "quotes" — dash', "1097 35689 563 257 5808 257 2005 10206"),
        ("", ""),
        ("a\u0345b", "320 321"),  # an accent that OpenAI's pattern leaves out
    ],
)
def test_clip_gives_openai_s_ids(text, ids):
    expected = [49406, *map(int, ids.split()), 49407]
    row = ClipTokenizer()([text], 77)[0].tolist()
    assert row == expected + [0] * (77 - len(expected))


def test_clip_vocabulary_is_whole():
    clip = ClipTokenizer()
    assert (clip.vocab_size, clip.bos_id, clip.eos_id, clip.pad_id) == (49408, 49406, 49407, 0)


def test_clip_repairs_text_and_its_short_cut_for_ascii_changes_nothing():
    clip = ClipTokenizer()
    np.testing.assert_array_equal(*clip(["schÃ¶n", "schön"], 12))  # mojibake
    np.testing.assert_array_equal(*clip(["it’s", "it's"], 12))  # curly quote
    np.testing.assert_array_equal(*clip(["a &amp;amp; b", "a & b"], 12))
    rng = np.random.default_rng(0)
    for _ in range(300):
        text = "".join(map(chr, rng.integers(32, 127, 20)))
        slow = clip.clean(text + "…").removesuffix("…").rstrip()  # not ASCII: the long way
        if "&" not in text:
            assert clip.clean(text) == slow.removesuffix("...").rstrip()


def test_bpe_training_is_deterministic_and_learns_words():
    one, other = train_bpe(TEXTS, 320), train_bpe(iter(TEXTS), 320)
    assert one.fingerprint() == other.fingerprint()
    assert one.vocab_size <= 320
    frequent = one.encode("large red", 60)[0]
    assert (frequent == one.eos_id).argmax() == 2  # a token a word
    with pytest.raises(ValueError, match="at least 258"):
        train_bpe(TEXTS, 200)


def test_bpe_ends_with_the_largest_id_and_pads_with_0():
    bpe = train_bpe(TEXTS, 300)
    ids = bpe([*TEXTS, "never seen: 猫 🐱 \x00"], 40)
    assert bpe.eos_id == bpe.vocab_size - 1 and bpe.pad_id == 0 and bpe.bos_id is None
    for row in ids:
        end = row.argmax()
        assert row[end] == bpe.eos_id and (row[end + 1 :] == 0).all() and (row[:end] > 0).all()


def test_bad_files_are_named(tmp_path):
    path = tmp_path / "t.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"t\.json is not a tokenizer saved by vlrep_jax"):
        load_tokenizer(path)
    with pytest.raises(ValueError, match=r"t\.json is not a Hugging Face tokenizer\.json"):
        FileTokenizer(path, pad_id=0, eos_id=1)
    path.write_bytes(gzip.compress(b"x"))
    with pytest.raises(ValueError, match="is not a tokenizer saved"):
        load_tokenizer(path)
    with pytest.raises(FileNotFoundError):
        load_tokenizer(tmp_path / "none.json")
    path.write_text(unigram_json(TEXTS))
    with pytest.raises(ValueError, match=r"eos_id=999 is outside the vocabulary of \d+"):
        FileTokenizer(path, pad_id=0, eos_id=999)
    assert isinstance(FileTokenizer(path, pad_id=0, eos_id=1), FileTokenizer)
    with pytest.raises(ValueError, match="is not a tokenizer saved"):
        load_tokenizer(path)


def test_kinds_are_named_by_the_table():
    assert {name: cls.kind for name, cls in TOKENIZERS.items()} == {n: n for n in TOKENIZERS}
    assert issubclass(BpeTokenizer, TOKENIZERS["bpe"])


def test_the_short_way_of_repairing_is_that_of_ftfy():
    """On each character it is for, beside some that make mojibake, and in random texts."""
    every = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    alone = [c for c in every if cleaning._UNTOUCHED.fullmatch(c)]
    # Of Han and Hangul, which are in blocks of thousands that nothing tells apart, every ninth.
    alone = [c for c in alone if c < "\u4e00" or ord(c) % 9 == 0]
    near = [f"{a}{c}{b}" for a, b in ("xy", "Ã ", " €", "â¬") for c in alone[:1000]]
    rng = np.random.default_rng(0)
    mixed = ["".join(rng.choice(alone, 12)) for _ in range(3000)]
    latin = ["".join(rng.choice(alone[:300], 6)) for _ in range(3000)]
    wrong = ["é, ü and ß".encode().decode(other) for other in ("latin-1", "cp1252", "macroman")]
    short = 0
    for text in [*alone, *near, *mixed, *latin, *wrong]:
        expected = html.unescape(html.unescape(ftfy.fix_text(text)))
        assert cleaning.repair(text) == cleaning.collapse(expected), repr(text)
        short += cleaning._is_whole(text)
    assert short > 10_000  # or nothing of it was tried
    assert not any(map(cleaning._is_whole, wrong))
