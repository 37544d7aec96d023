"""Train the demo model: `python -m training.train --minutes 9 --out runs/demo`, on one GPU or, slowly, on the CPU.

On several GPUs of one host start it as `torchrun --nproc-per-node 2 -m training.train …`: each takes its own batches,
and their gradients are summed, so two of them with `--accumulate 1` step as one does with `--accumulate 2`.

Resumes from what `--out` holds, or from `--resume FOLDER`. Ends with held-out scores and a model folder,
`OUT/model`. `OUT/log.jsonl` has the curve. See README.md for a whole training.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from training.batches import MIXTURES, BatchDataset, Encoder, build_mask
from training.checkpoints import Progress, copy_into, export, load_model, load_state, save_state
from training.greedy import evaluate
from training.network import Network, create_model, describe, initialize, write_config
from training.optimizer import Optimizer
from training.scores import as_data, show_table

from tilewise.config import ModelConfig
from tilewise.inputs.text.tokenizer import load_tokenizer
from tilewise.kernels import normalize_tiles

_HERE = Path(__file__).parent
_LOG_SECONDS = 10.0
_AGREE_STEPS = 8  # hosts that agree at every step wait for each other at every step
_CLIP = 1.0


@dataclass(frozen=True, slots=True)
class Settings:
    """One call of the trainer. It ends after `minutes` or at optimiser step `steps`, whichever is given."""

    out: Path
    minutes: float | None = None
    steps: int | None = None
    resume: Path | None = None
    mixture: str = "start"
    start_batches: int = 0
    tiles: int = 64
    accumulate: int = 2
    rate: float = 2e-3
    warmup: int = 200
    decay: float = 0.0
    mean_decay: float = 0.998
    seed: int = 0
    workers: int = 0
    compiles: bool = False
    save_minutes: float = 2.0
    eval_questions: int = 200
    eval_seconds: float = 60.0
    tokenizer: Path = _HERE / "tokenizer"


class Trainer:
    """A model with its running mean, its optimiser and its place in the stream of batches."""

    def __init__(self, settings: Settings, config: ModelConfig, device: torch.device) -> None:
        """Start anew, or go on from a checkpoint. With torch.distributed set up, all ranks hold the same state."""
        self.settings, self.device = settings, device
        self.rank, self.num_ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        model = create_model(config)
        initialize(model, settings.seed)
        self.progress = Progress()
        own = settings.out / "state"
        source = settings.resume or (own if own.exists() else None)
        is_model = source is not None and (source / "config.json").exists()
        if source is not None and is_model:
            self.progress = load_model(source, model)
        self.first_step = self.progress.step  # a fresh optimiser warms up again
        self.model = model.to(device)
        self.network = Network(self.model, compiles=settings.compiles)
        self.means = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.optimizer = Optimizer(self.model)
        if source is not None and not is_model:
            self._load(source)
        if source is not None:
            print(f"resumed from {source} at step {self.progress.step}", flush=True)

    def _load(self, folder: Path) -> None:
        self.progress, tensors = load_state(folder)
        self.first_step = 0
        copy_into(self.model.named_parameters(), tensors, "weight.")
        copy_into(self.means.items(), tensors, "mean.")
        self.optimizer.load(tensors)

    def save(self, folder: Path) -> None:
        """Write a checkpoint."""
        tensors = {f"weight.{name}": p.detach() for name, p in self.model.named_parameters()}
        tensors |= {f"mean.{name}": mean for name, mean in self.means.items()}
        save_state(folder, self.progress, {**tensors, **self.optimizer.state()})

    def rate(self, remaining: float) -> float:
        """Warm-up, then constant, then linear to zero over the last `decay` of this call; `remaining` is its share."""
        warmup = min(1.0, (self.progress.step - self.first_step + 1) / max(1, self.settings.warmup))
        decay = min(1.0, remaining / self.settings.decay) if self.settings.decay else 1.0
        return self.settings.rate * warmup * max(0.0, decay)

    def step(self, batches: list[dict[str, Tensor]], rate: float) -> Tensor:
        """One optimiser step over the batches of all ranks; returns the mean loss of an answer's token."""
        # A batch of few, large pictures has fewer answers, but each cost more to come by.
        weights = [math.sqrt(len(batch["labels"])) for batch in batches]
        sums = torch.zeros(2, device=self.device)  # weighted loss, weight
        sums[1] += sum(weights)  # a scalar of the launch: a copy from the host would wait for the device
        for batch, weight in zip(batches, weights, strict=True):
            loss = self._loss(batch) * weight
            loss.backward()
            sums[0] += loss.detach()
        loss = self._share_gradients(sums)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), _CLIP)
        self.optimizer.step(rate)
        step = self.progress.step + 1
        decay = min(self.settings.mean_decay, step / (step + 10))
        parameters = [p.detach() for p in self.model.parameters()]
        torch._foreach_lerp_(list(self.means.values()), parameters, 1 - decay)
        self.progress = Progress(step, self.progress.batch + len(batches) * self.num_ranks)
        return loss

    def _share_gradients(self, sums: Tensor) -> Tensor:
        """Turn weighted sums of gradients into the mean over all ranks; returns that of the loss."""
        parameters = list(self.model.parameters())
        if self.num_ranks > 1:
            for parameter in parameters:  # a rank whose batch had no picture has none for the tower
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            flat = torch.cat([sums, *(parameter.grad.flatten() for parameter in parameters)])
            dist.all_reduce(flat)
            sums, *parts = flat.split([len(sums), *(parameter.numel() for parameter in parameters)])
            for parameter, part in zip(parameters, parts, strict=True):
                parameter.grad = part.view_as(parameter)
        torch._foreach_div_([p.grad for p in parameters if p.grad is not None], sums[1])
        return sums[0] / sums[1]

    def _loss(self, batch: dict[str, Tensor]) -> Tensor:
        on_device = {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            tiles = None
            if on_device["tiles"].numel():
                tiles = self.network.encode_tiles(normalize_tiles(on_device["tiles"], torch.float32))
            x = self.network.embed(on_device["ids"], on_device["slots"], tiles)
            hidden = self.network.decode(x, on_device["positions"], build_mask(on_device["groups"]))
            logits = self.model.decoder.logits(hidden.flatten(0, 1)[on_device["targets"]])
        return F.cross_entropy(logits, on_device["labels"])

    def agree(self, remaining: float) -> float:
        """The first rank's share of the call that remains: clocks differ, rates must not."""
        shared = torch.tensor(remaining)
        if self.num_ranks > 1:
            dist.broadcast(shared, 0)
        return shared.item()

    def use_means(self) -> None:
        """Put the running mean in the weights' place, for evaluation and export."""
        copy_into(self.model.named_parameters(), self.means, "")


def load_batches(trainer: Trainer, encoder: Encoder) -> Iterator[dict[str, Tensor]]:
    """This rank's stream of batches from where training stands."""
    settings = trainer.settings
    size = trainer.model.config.vision.image_size
    mixtures = (settings.start_batches, settings.mixture)
    dataset = BatchDataset(encoder, mixtures, settings.tiles, settings.seed, size)
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=range(trainer.progress.batch + trainer.rank, 2**40, trainer.num_ranks),
        num_workers=settings.workers,
        prefetch_factor=3 if settings.workers else None,
        pin_memory=trainer.device.type == "cuda",
        worker_init_fn=_start_worker,
    )
    return iter(loader)


def _start_worker(_: int) -> None:
    torch.set_num_threads(1)
    os.nice(5)  # the process that launches kernels, and compiles them first, goes before those that draw


def train(trainer: Trainer, encoder: Encoder) -> None:
    """Step until the time or the number of steps is up; the first rank saves and logs on the way."""
    settings = trainer.settings
    batches = load_batches(trainer, encoder)
    started = logged = saved = time.monotonic()
    first_step = trainer.progress.step
    losses: list[Tensor] = []
    num_tiles = waited = 0.0
    remaining = 1.0
    while True:
        now = time.monotonic()
        if settings.steps is not None:
            remaining = 1 - (trainer.progress.step - first_step) / max(1, settings.steps - first_step)
        elif trainer.progress.step % _AGREE_STEPS == first_step % _AGREE_STEPS:
            remaining = trainer.agree(1 - (now - started) / (60 * (settings.minutes or 1.0)))
        if remaining <= 0:
            break
        own = [next(batches) for _ in range(settings.accumulate)]
        waited += time.monotonic() - now
        rate = trainer.rate(remaining)
        losses.append(trainer.step(own, rate))
        num_tiles += sum(len(batch["tiles"]) for batch in own) * trainer.num_ranks
        if trainer.rank > 0:
            losses.clear()
            continue
        if now - logged > _LOG_SECONDS:
            loss = torch.stack(losses).mean().item()  # waits for the device
            seconds = time.monotonic() - logged
            line = {
                "step": trainer.progress.step,
                "loss": round(loss, 4),
                "rate": round(rate, 6),
                "tiles_per_s": round(num_tiles / seconds),
                "waited": round(waited / seconds, 2),
                "minutes": round((time.monotonic() - started) / 60, 2),
            }
            write_line(settings, line)
            logged, losses, num_tiles, waited = time.monotonic(), [], 0.0, 0.0
        if now - saved > 60 * settings.save_minutes:
            trainer.save(settings.out / "state")
            saved = time.monotonic()
    if trainer.rank == 0:
        trainer.save(settings.out / "state")


def write_line(settings: Settings, line: dict[str, object]) -> None:
    """Print one line of the curve or of scores, and append it to the log."""
    text = json.dumps(line)
    print(text, flush=True)
    with (settings.out / "log.jsonl").open("a", encoding="utf-8") as log:
        log.write(text + "\n")


def finish(trainer: Trainer, encoder: Encoder, description: dict[str, object]) -> None:
    """Export the running mean, and score it."""
    settings = trainer.settings
    trainer.use_means()
    export(settings.out / "model", trainer.model, description, settings.tokenizer, trainer.progress)
    if not settings.eval_questions:
        return
    network = Network(trainer.model)
    scores = evaluate(
        network,
        encoder,
        per_task=settings.eval_questions,
        num_workers=settings.workers,
        seconds=settings.eval_seconds,
    )
    print(show_table(scores), flush=True)
    write_line(settings, {"step": trainer.progress.step, "scores": as_data(scores)})


def run(settings: Settings, changes: dict[str, dict] | None = None) -> Trainer:
    """Train, export and score; `changes` make a model of another size, as for `network.describe`."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if "RANK" in os.environ:  # of torchrun
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    torch.set_float32_matmul_precision("high")
    # The decoder's masked attention is not known to be right there; the tower asks for cuDNN by name.
    torch.backends.cuda.enable_cudnn_sdp(False)
    tokenizer = load_tokenizer(settings.tokenizer)
    description = describe(tokenizer.vocab_size, **(changes or {}))
    config = write_config(settings.out / "model", description)
    trainer = Trainer(settings, config, device)
    encoder = Encoder(tokenizer, config.tokens_per_tile)
    number = sum(p.numel() for p in trainer.model.parameters())
    print(f"{number / 1e6:.2f} M parameters on {device}", flush=True)
    train(trainer, encoder)
    if dist.is_initialized():
        dist.destroy_process_group()
    if trainer.rank > 0:
        return trainer
    if device.type == "cuda":
        print(f"peak memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB", flush=True)
    finish(trainer, encoder, description)
    return trainer


def parse_settings(argv: list[str] | None = None) -> Settings:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--minutes", type=float, help="train so long")
    parser.add_argument("--steps", type=int, help="train up to this step")
    parser.add_argument("--resume", type=Path, help="go on from this state or model instead of OUT/state")
    parser.add_argument("--mixture", choices=list(MIXTURES), default="start", help="numbers of tiles to train on")
    parser.add_argument("--start-batches", type=int, default=0, help="so many batches have the mixture `start` first")
    parser.add_argument("--tiles", type=int, default=64, help="tiles in a batch")
    parser.add_argument("--accumulate", type=int, default=2, help="batches in a step")
    parser.add_argument("--rate", type=float, default=2e-3, help="learning rate")
    parser.add_argument("--warmup", type=int, default=200, help="steps up to the full rate")
    parser.add_argument("--decay", type=float, default=0.0, help="share of this call over which the rate falls to 0")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0, help="processes that draw scenes")
    parser.add_argument("--compile", dest="compiles", action="store_true", help="use torch.compile")
    parser.add_argument("--save-minutes", type=float, default=2.0, help="between two checkpoints")
    parser.add_argument("--eval-questions", type=int, default=200, help="a task at the end; 0 for none")
    parser.add_argument("--eval-seconds", type=float, default=60.0, help="the evaluation ends after so long")
    parser.add_argument("--tokenizer", type=Path, default=_HERE / "tokenizer", help="folder of the tokenizer")
    arguments = parser.parse_args(argv)
    if (arguments.minutes is None) == (arguments.steps is None):
        parser.error("give either --minutes or --steps")
    return Settings(**vars(arguments))


if __name__ == "__main__":
    run(parse_settings())
