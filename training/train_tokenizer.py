"""Train the embedded model's tokenizer on our own sentences: `python training/train_tokenizer.py`.

The same inputs and the same sentencepiece give the same bytes. The special tokens follow the pieces, in the
order in which InternVL-Chat-V1-5 has them.
"""

import argparse
import io
import json
from pathlib import Path

import sentencepiece
from sentences import patterned_sentences, written_sentences

from tilewise import demo
from tilewise.inputs.tokenizer import SPECIAL_NAMES

NUM_PIECES = 1600
NUM_PATTERNED = 150


def train(num_pieces: int = NUM_PIECES) -> bytes:
    """The tokenizer.model: BPE with byte fallback that changes nothing of the text."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        # From memory to memory: a path would be written into the model.
        sentence_iterator=iter(written_sentences() * 4 + patterned_sentences(NUM_PATTERNED)),
        model_writer=model,
        model_type="bpe",
        vocab_size=num_pieces,
        max_sentencepiece_length=8,
        character_coverage=1.0,
        byte_fallback=True,
        split_digits=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=1,
    )
    return model.getvalue()


def describe(num_pieces: int) -> dict[str, object]:
    """The tokenizer_config.json: ids 0 to 2 are pieces, the other special tokens come after the pieces."""
    ids = [0, 1, 2, *range(num_pieces, num_pieces + len(SPECIAL_NAMES) - 3)]
    tokens = {str(i): {"content": name, "special": True} for i, name in zip(ids, SPECIAL_NAMES, strict=True)}
    return {
        "added_tokens_decoder": tokens,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "</s>",
        "unk_token": "<unk>",
        "add_bos_token": True,
        "add_eos_token": False,
        "tokenizer_class": "InternLM2Tokenizer",
        "model_max_length": 32768,
    }


def main() -> None:
    """Write tokenizer.model and tokenizer_config.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=demo.model_folder(), help="folder to write to")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    (out / "tokenizer.model").write_bytes(train())
    description = json.dumps(describe(NUM_PIECES), indent=2, ensure_ascii=False)
    (out / "tokenizer_config.json").write_text(description + "\n", "utf-8")


if __name__ == "__main__":
    main()
