"""Make a model folder of a checkpoint's running mean: `python -m training.export CHECKPOINT OUT`."""

import argparse
from pathlib import Path

from training.checkpoints import copy_into, export, load_state
from training.network import create_model, describe, write_config

from tilewise.inputs.tokenizer import load_tokenizer


def main() -> None:
    """Write the folder; the checkpoint may be a light one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", type=Path, default=Path(__file__).parent / "tokenizer")
    arguments = parser.parse_args()
    description = describe(load_tokenizer(arguments.tokenizer).vocab_size)
    model = create_model(write_config(arguments.out, description))
    progress, tensors = load_state(arguments.checkpoint)
    copy_into(model.named_parameters(), tensors, "mean.")
    export(arguments.out, model, description, arguments.tokenizer)
    print(f"step {progress.step}: {arguments.out}")


if __name__ == "__main__":
    main()
