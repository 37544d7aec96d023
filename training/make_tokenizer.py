"""Train the tokenizer of the demo model: `python -m training.make_tokenizer OUT`.

SentencePiece BPE over what scenes ask and answer and over the sentences of sentences/. What may be printed in a
picture is left out, so that codes fall apart into single characters, as do numbers: reading is then learnt letter
by letter. The same inputs and the same sentencepiece give the same bytes.
"""

import argparse
import io
import json
import re
from pathlib import Path

import sentencepiece
from training.scenes import create_sample
from training.scenes.letters import CHINESE, LATIN, WORDS
from training.scenes.words import COLOURS, PLACES, SHAPES

# Source: tokenizer_config.json of OpenGVLab/InternVL-Chat-V1-5.
SPECIAL_NAMES = (
    *("<unk>", "<s>", "</s>", "<|plugin|>", "<|interpreter|>", "<|action_end|>", "<|action_start|>"),
    *("<|im_end|>", "<|im_start|>", "<img>", "</img>", "<IMG_CONTEXT>"),
    *("<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>"),
)
# With the special tokens behind the pieces, a vocabulary of 2,048.
NUM_PIECES = 2033
NUM_SAMPLES = 1500
_PRINTED = ("latin", "chinese", "lines", "small", "text box")
# Each of these stays a piece of its own: one piece for "red circle" would have to be learnt apart from both.
_APART = re.compile(
    "(" + "|".join([c[2] for c in COLOURS] + [s[2] for s in SHAPES] + [p[1] for p in PLACES]) + "|[大小])"
)
_SENTENCES = Path(__file__).parent / "sentences"


def read_corpus() -> list[str]:
    """Every kind of text that the model meets but what is printed in its pictures."""
    corpus = [line for name in ("en", "zh") for line in (_SENTENCES / f"{name}.txt").read_text("utf-8").splitlines()]
    for number in range(NUM_SAMPLES):
        sample = create_sample(f"tokenizer/{number}", (1, 1, 1, 2, 2, 0)[number % 6])
        for turn in sample.turns:
            if turn.task not in _PRINTED and "文字“" not in turn.answer and 'text "' not in turn.answer:
                # The special tokens are no text.
                corpus += [turn.question, *turn.answer.replace("</ref>", "<ref>").split("<ref>")[:2]]
    corpus += [word for word in WORDS for _ in range(8)]
    apart = [part for line in corpus for part in _APART.split(line) if part]
    return [*apart, *CHINESE, *LATIN.strip()]


def train() -> bytes:
    """The tokenizer.model: BPE with byte fallback that changes nothing of the text."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        # From memory to memory: a path would be written into the model.
        sentence_iterator=iter(read_corpus()),
        model_writer=model,
        model_type="bpe",
        vocab_size=NUM_PIECES,
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


def describe() -> dict[str, object]:
    """The tokenizer_config.json: ids 0 to 2 are pieces, the other special tokens come after the pieces."""
    ids = [0, 1, 2, *range(NUM_PIECES, NUM_PIECES + len(SPECIAL_NAMES) - 3)]
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
        "model_max_length": 8192,
    }


def main() -> None:
    """Write tokenizer.model and tokenizer_config.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder to write to")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    (out / "tokenizer.model").write_bytes(train())
    description = json.dumps(describe(), indent=2, ensure_ascii=False)
    (out / "tokenizer_config.json").write_text(description + "\n", "utf-8")


if __name__ == "__main__":
    main()
