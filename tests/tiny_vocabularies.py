"""Vocabularies trained on a handful of texts, in the formats of other libraries."""

import io
import json

import sentencepiece
import tokenizers as hf


def unigram_json(texts):
    """A tokenizer.json whose ids 0, 1, 2 are <pad>, </s>, <unk>."""
    model = hf.Tokenizer(hf.models.Unigram([("<unk>", 0.0), ("▁", -2.0)], unk_id=0))
    model.pre_tokenizer = hf.pre_tokenizers.Metaspace()
    model.decoder = hf.decoders.Metaspace()
    trainer = hf.trainers.UnigramTrainer(
        vocab_size=60,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        show_progress=False,
    )
    model.train_from_iterator(texts, trainer)
    return model.to_str()


def sentencepiece_model(texts, **options):
    """Bytes of a model whose ids 0, 1, 2 are <pad>, </s>, <unk>, as SigLIP's."""
    out = io.BytesIO()
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=out,
        minloglevel=2,
        vocab_size=60,
        hard_vocab_limit=False,
        **ids | options,
    )
    return out.getvalue()


def wordpiece_vocabulary(texts):
    """Tokens of a BERT, in the order of their ids."""
    model = hf.BertWordPieceTokenizer(lowercase=True)
    model.train_from_iterator(texts, vocab_size=120, show_progress=False)
    ids = model.get_vocab()
    return sorted(ids, key=ids.get)


def clip_files(directory):
    """Writes vocab.json and merges.txt of a BPE that knows 'red' and 'cat', as a CLIP has them."""
    letters = "abcdefghijklmnopqrstuvwxyz:"
    merges = ["r e", "re d</w>", "c a", "ca t</w>"]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += ["".join(merge.split()) for merge in merges] + ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    (directory / "vocab.json").write_text(json.dumps(vocabulary))
    (directory / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    return vocabulary
