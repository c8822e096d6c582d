"""Tokenizers in the directories of Hugging Face models: read, written, and read again."""

import base64
import json

import numpy as np
import pytest
import tokenizers as hf
from tiny_vocabularies import clip_files, sentencepiece_model, unigram_json, wordpiece_vocabulary

from vlrep_jax.data.tokenizers import (
    ClipTokenizer,
    FileTokenizer,
    SentencePieceTokenizer,
    WordPieceTokenizer,
    save_huggingface,
    tokenizer_from_directory,
    train_bpe,
)
from vlrep_jax.data.tokenizers.cleaning import CLEANERS

TEXTS = ["red cat", "large blue cathedral", "the dog: light skin tone", "small catalogue"]


def write(directory, **files):
    """Writes JSON files by their stems."""
    for stem, content in files.items():
        (directory / f"{stem}.json").write_text(json.dumps(content))


def ended_json(token="</s>"):
    """A tokenizer.json that ends a text."""
    model = hf.Tokenizer.from_str(unigram_json(TEXTS))
    model.post_processor = hf.processors.TemplateProcessing(
        single=f"$A {token}", special_tokens=[(token, model.token_to_id(token))]
    )
    return model.to_str()


@pytest.mark.parametrize(
    ("clean", "expected"),
    [
        ("none", " It’s A_b,  c&amp;d\t"),
        ("whitespace", "It’s A_b, c&amp;d"),
        ("repair", "It's A_b, c&d"),
        ("siglip", "it’s ab campd"),
        ("canonicalize", "its a b cd"),
    ],
)
def test_cleaning_by_hand(clean, expected):
    assert CLEANERS[clean](" It’s A_b,  c&amp;d\t") == expected


def test_clip_files_without_a_tokenizer_json(tmp_path):
    vocabulary = clip_files(tmp_path)
    made = tokenizer_from_directory(tmp_path)
    ids = [vocabulary[token] for token in ("<|startoftext|>", "red</w>", "ca", "t", "s</w>")]
    end = vocabulary["<|endoftext|>"]
    assert made.encode("Red cats", 7)[0].tolist() == [
        ids[0],
        ids[1],
        ids[2],
        ids[3],
        ids[4],
        end,
        end,
    ]
    write(tmp_path, tokenizer_config={"pad_token": {"content": "a", "lstrip": False}})
    assert tokenizer_from_directory(tmp_path).pad_id == vocabulary["a"]


def test_special_tokens_of_a_tokenizer_json_are_named_beside_it(tmp_path):
    (tmp_path / "tokenizer.json").write_text(ended_json())
    write(tmp_path, special_tokens_map={"pad_token": "<pad>", "eos_token": "</s>"})
    made = tokenizer_from_directory(tmp_path)
    assert (made.pad_id, made.eos_id, made.bos_id) == (0, 1, None)
    (tmp_path / "special_tokens_map.json").unlink()
    assert tokenizer_from_directory(tmp_path).pad_id == 1  # the end token


def test_start_and_end_follow_the_config_where_it_says(tmp_path):
    """Gemma's class adds what its config says, whatever the file holds."""
    (tmp_path / "tokenizer.json").write_text(unigram_json(TEXTS))
    with pytest.raises(ValueError, match=r"puts \[\] before a text and \[\] behind it"):
        tokenizer_from_directory(tmp_path)
    config = {"eos_token": "</s>", "bos_token": "<pad>", "add_eos_token": True}
    write(tmp_path, tokenizer_config=config)
    made = tokenizer_from_directory(tmp_path)
    assert (made.eos_id, made.bos_id) == (1, None)
    write(tmp_path, tokenizer_config=config | {"add_bos_token": True})
    assert tokenizer_from_directory(tmp_path).bos_id == 0


def test_siglip_2_is_lower_cased_by_its_class_or_by_choice(tmp_path):
    (tmp_path / "tokenizer.json").write_text(ended_json())
    lower, upper = "red cat", "RED Cat"

    def cased(**options):
        made = tokenizer_from_directory(tmp_path, **options)
        return not np.array_equal(*made([lower, upper], 12))

    assert cased() and not cased(lower_case=True)
    made = tokenizer_from_directory(tmp_path, lower_case=True)
    np.testing.assert_array_equal(*made(["\u039f\u03a3", "\u03bf\u03c3"], 12))  # ΟΣ, no final sigma
    for config in ({"tokenizer_class": "Siglip2TokenizerFast"}, {"do_lower_case": True}):
        write(tmp_path, tokenizer_config=config)
        assert not cased() and cased(lower_case=False)


def test_siglip_is_its_sentencepiece_model_even_beside_a_tokenizer_json(tmp_path):
    (tmp_path / "spiece.model").write_bytes(sentencepiece_model(TEXTS))
    (tmp_path / "tokenizer.json").write_text(ended_json())
    config = {"tokenizer_class": "SiglipTokenizer", "pad_token": "</s>", "eos_token": "</s>"}
    write(tmp_path, tokenizer_config=config)
    made = tokenizer_from_directory(tmp_path)
    assert isinstance(made, SentencePieceTokenizer)
    np.testing.assert_array_equal(*made(["Red, cat!", "red cat"], 12))
    (row,) = made(["red cat"], 64)
    assert (row[row.tolist().index(1) :] == 1).all()  # pads with its end token
    write(tmp_path, tokenizer_config=config | {"pad_token": "<none>"})
    with pytest.raises(ValueError, match=r"has no token '<none>', which its directory names"):
        tokenizer_from_directory(tmp_path)


def test_a_user_defined_piece_that_is_special_does_not_come_out_of_a_text(tmp_path):
    (tmp_path / "m.model").write_bytes(sentencepiece_model(TEXTS, user_defined_symbols=["<go>"]))
    made = SentencePieceTokenizer(tmp_path / "m.model", clean="none", bos_id=3)
    assert made(["<go>red <go>"], 12)[0].tolist().count(3) == 1


def test_a_bert_keeps_its_sep_and_clipa_does_not(tmp_path):
    vocabulary = wordpiece_vocabulary(TEXTS)
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    made = tokenizer_from_directory(tmp_path)
    assert (made.bos_id, made.eos_id) == (vocabulary.index("[CLS]"), vocabulary.index("[SEP]"))
    clipa = WordPieceTokenizer(tmp_path / "vocab.txt")
    bert, stripped = made(["red cat"], 12)[0], clipa(["red cat"], 12)[0]
    np.testing.assert_array_equal(np.where(bert == made.eos_id, made.pad_id, bert), stripped)


WRITTEN = {
    "bpe": lambda: train_bpe(TEXTS, 300),
    "file": lambda: FileTokenizer(tokenizer_json=ended_json(), pad_id=0, eos_id=1, lower_case=True),
    "sentencepiece": lambda: SentencePieceTokenizer(
        model=base64.b64encode(sentencepiece_model(TEXTS))
    ),
    "wordpiece": lambda: WordPieceTokenizer(
        vocabulary=wordpiece_vocabulary(TEXTS), keep_sep=True, clean="none"
    ),
}


@pytest.mark.parametrize("kind", WRITTEN)
def test_there_and_back(kind, tmp_path):
    made = WRITTEN[kind]()
    paths = save_huggingface(made, tmp_path / "new")
    assert {path.name for path in paths} >= {"tokenizer_config.json", "special_tokens_map.json"}
    assert {path.name for path in (tmp_path / "new").iterdir()} == {path.name for path in paths}
    again = tokenizer_from_directory(tmp_path / "new")
    texts = [*TEXTS, "  Red  CAT", ""]
    np.testing.assert_array_equal(again(texts, 40), made(texts, 40))
    assert (again.pad_id, again.eos_id, again.bos_id) == (made.pad_id, made.eos_id, made.bos_id)


def test_clip_comes_back_but_for_its_padding(tmp_path):
    save_huggingface(ClipTokenizer(), tmp_path)
    names = {"tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json"}
    assert {path.name for path in tmp_path.iterdir()} == names | {"special_tokens_map.json"}
    with_json = tokenizer_from_directory(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    for again in (with_json, tokenizer_from_directory(tmp_path)):
        assert (again.vocab_size, again.bos_id, again.eos_id) == (49408, 49406, 49407)
        theirs, ours = again(TEXTS, 12), ClipTokenizer()(TEXTS, 12)
        np.testing.assert_array_equal(np.where(ours == 0, 49407, ours), theirs)


def test_what_transformers_cannot_say_is_refused_and_nothing_written(tmp_path):
    model = base64.b64encode(sentencepiece_model(TEXTS))
    made = SentencePieceTokenizer(model=model, clean="none", lower_case=True)
    with pytest.raises(ValueError, match=r"drops punctuation .* clean='none', bos_id=None"):
        save_huggingface(made, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_damaged_directories_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no tokenizer: none of tokenizer\.json"):
        tokenizer_from_directory(tmp_path)
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match=r"vocab\.txt is not the vocab\.txt of a BERT: it lacks"):
        tokenizer_from_directory(tmp_path)
    (tmp_path / "vocab.json").write_text("[]")
    (tmp_path / "merges.txt").write_text("a b\n")
    with pytest.raises(ValueError, match=r"vocab\.json holds no JSON object but list"):
        tokenizer_from_directory(tmp_path)
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    with pytest.raises(ValueError, match=r"has the token '<\|startoftext\|>'; this one has not"):
        tokenizer_from_directory(tmp_path)
    (tmp_path / "merges.txt").write_text("a b c\n")
    with pytest.raises(ValueError, match=r"merges\.txt holds a line that is not a pair"):
        tokenizer_from_directory(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a Hugging Face"):
        tokenizer_from_directory(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "Sigl')
    with pytest.raises(ValueError, match=r"tokenizer_config\.json is not JSON"):
        tokenizer_from_directory(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "SiglipTokenizer"}')
    (tmp_path / "spiece.model").write_bytes(b"x" * 99)
    with pytest.raises(ValueError, match=r"spiece\.model is not a SentencePiece model"):
        tokenizer_from_directory(tmp_path)


def test_ids_outside_the_vocabulary_and_unknown_cleaning_are_told(tmp_path):
    (tmp_path / "spiece.model").write_bytes(sentencepiece_model(TEXTS))
    with pytest.raises(ValueError, match=r"pad_id=999 is outside the vocabulary of \d+"):
        SentencePieceTokenizer(tmp_path / "spiece.model", pad_id=999)
    with pytest.raises(ValueError, match="clean='ftfy' is unknown; known: none, whitespace"):
        SentencePieceTokenizer(tmp_path / "spiece.model", clean="ftfy")
    with pytest.raises(ValueError, match="path of the tokenizer is empty"):
        SentencePieceTokenizer()
    with pytest.raises(ValueError, match="path of the tokenizer is empty"):
        WordPieceTokenizer("")
