import dataclasses
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from safetensors.torch import load_file
from training.batches import BatchDataset, build_mask, collate, cut_tiles
from training.checkpoints import Progress, export, load_model, load_state, to_official
from training.evaluate import main as evaluate
from training.greedy import generate
from training.make_tokenizer import train as train_tokenizer
from training.network import Network, create_model, describe, write_config
from training.optimizer import Optimizer
from training.scenes import create_question, create_sample
from training.scenes.letters import CHINESE, CODE
from training.scenes.sample import Canvas, Chance
from training.train import Settings, run

from tests.processes import run_command
from tests.training import small
from tilewise import GenerationConfig, pipeline
from tilewise.config import ModelConfig
from tilewise.inputs.conversation import parse_prompt
from tilewise.inputs.media.policy import ImagePolicy
from tilewise.inputs.request_builder import RequestBuilder
from tilewise.inputs.text.profiles import PROFILES
from tilewise.kernels import AttentionBatch, PrefillChunk, normalize_tiles
from tilewise.kernels import cut_tiles as cut_in_engine
from tilewise.types import TilingParameters

TOLERANCE = 2e-5


def test_the_demo_model_stays_within_its_size(tmp_path):
    config = write_config(tmp_path, describe(small.load().vocab_size))
    with torch.device("meta"):
        number = sum(parameter.numel() for parameter in create_model(config).parameters())
    assert 13e6 < number < 14e6
    assert config.tokens_per_tile == 256
    assert config.vision.use_qk_norm
    widths = (config.vision.hidden_size, config.vision.intermediate_size, config.decoder.intermediate_size)
    assert all(width % 128 == 0 for width in (*widths, config.decoder.hidden_size))


def test_codes_and_numbers_fall_apart_into_characters():
    tokenizer = small.load()
    chance = Chance("codes")
    for _ in range(200):
        code = "".join(chance.pick(CODE) for _ in range(8))
        assert len(tokenizer.encode(code)) == 8
        assert len(tokenizer.encode(f'"{code}"')) == 10
    assert len(tokenizer.encode("[[421, 96, 511, 207]]")) == 21


def test_every_character_to_read_is_one_piece():
    tokenizer = small.load()
    assert all(len(tokenizer.encode(character)) == 1 for character in CHINESE)
    assert tokenizer.vocab_size == 2048


@pytest.mark.skipif(sentencepiece.__version__ != "0.2.3", reason="trained with sentencepiece 0.2.3")
def test_tokenizer_retrains_byte_for_byte():
    assert train_tokenizer() == (small.TOKENIZER / "tokenizer.model").read_bytes()


def make_builder(config: ModelConfig) -> RequestBuilder:
    profile = PROFILES["internvl-internlm2"]
    return RequestBuilder(config, 8192, small.load(), profile, ImagePolicy(), TilingParameters())


@pytest.mark.parametrize("task", ["colour", "pair", "talk"])
def test_a_training_prompt_has_the_engines_ids(tmp_path, task):
    model, encoder = small.make_model(tmp_path)
    sample = create_question(task, "zh", 1)
    cut = [len(cut_tiles(picture, 448)) for picture in sample.pictures]
    prompt = (sample.turns[0].question, [p.image for p in sample.pictures]) if cut else sample.turns[0].question
    request = make_builder(model.config).build(parse_prompt(prompt), GenerationConfig(), "")
    ids, start = encoder.prompt(sample.turns[0].question, cut)
    assert tuple(ids) == request.token_ids
    assert start == (request.spans[-1].end + 1 if cut else 1)


def test_a_conversation_has_the_engines_ids(tmp_path):
    model, encoder = small.make_model(tmp_path)
    sample = create_sample("talk", 0)
    row = encoder.sequence(sample, [], small.Never(""))
    messages = [{"role": "system", "content": PROFILES["internvl-internlm2"].meta_instruction}]
    for turn in sample.turns[:-1]:
        messages += [{"role": "user", "content": turn.question}, {"role": "assistant", "content": turn.answer}]
    messages.append({"role": "user", "content": sample.turns[-1].question})
    request = make_builder(model.config).build(parse_prompt(messages), GenerationConfig(), "")
    assert tuple(row.ids) == (*request.token_ids, *encoder.answer(sample.turns[-1].answer))


@pytest.mark.parametrize("count", [1, 3, 7])
def test_training_cuts_tiles_as_the_engine_does(count):
    picture = create_sample("cut", count).pictures[0]
    tiles = cut_tiles(picture, 448)
    pixels = torch.from_numpy(np.asarray(picture.image).copy())
    columns, rows = Canvas(*picture.image.size, picture.max_tiles).grid
    expected = cut_in_engine(pixels, columns, rows, columns * rows > 1, 448).numpy()
    difference = np.abs(tiles.astype(int) - expected)
    assert difference.max() <= 2
    assert (difference > 0).mean() < 0.01


def engine_logits(model, ids: list[int], tiles: torch.Tensor, context_id: int) -> torch.Tensor:
    """The package's own forward pass with a paged cache, as one prefill."""
    config, number = model.config.decoder, len(ids)
    blocks = -(-number // 64)
    cache = torch.zeros(config.num_layers, blocks, 64, config.num_kv_heads, config.head_dim)
    positions = torch.arange(number)
    chunk, table = PrefillChunk(0, 0, number), torch.arange(blocks, dtype=torch.int32)[None]
    none, lengths = torch.zeros(0, 0, dtype=torch.int32), torch.zeros(0, dtype=torch.int32)
    batch = AttentionBatch(positions, positions, 0, none, lengths, (chunk,), table)
    x = model.decoder.embedding(torch.tensor(ids))
    x[torch.tensor(ids) == context_id] = model.encode_tiles(tiles).flatten(0, 1)
    return model.decoder.logits(model.decoder(x, cache, cache.clone(), batch))


@torch.no_grad()
def test_dense_logits_of_side_by_side_turns_are_the_engines_of_each_alone(tmp_path):
    model, encoder = small.make_model(tmp_path)
    sample = create_sample("logits", 3)
    cut = cut_tiles(sample.pictures[0], 448)
    row = encoder.sequence(sample, [len(cut)], small.Never(""))
    assert max(row.groups) == len(sample.turns)
    batch = collate([row, row], [cut, cut], 7, encoder.context_id)
    network = Network(model)
    pixels = normalize_tiles(batch["tiles"], torch.float32)
    x = network.embed(batch["ids"], batch["slots"], network.encode_tiles(pixels))
    dense = model.decoder.logits(network.decode(x, batch["positions"], build_mask(batch["groups"])))
    groups = batch["groups"][1]
    for number, turn in enumerate(sample.turns, 1):
        ids = [*encoder.prompt(turn.question, [len(cut)])[0], *encoder.answer(turn.answer)]
        alone = engine_logits(model, ids, pixels[: len(cut)], encoder.context_id)
        seen = dense[1][(groups == 0) | (groups == number)]
        assert torch.allclose(seen, alone, atol=TOLERANCE, rtol=TOLERANCE)


def test_labels_are_the_answers_and_nothing_else(tmp_path):
    _, encoder = small.make_model(tmp_path)
    sample = create_sample("labels", 1)
    for number in range(8):
        row = encoder.sequence(sample, [1], Chance(f"labels/{number}"))
        learnt = [label for label in row.labels if label >= 0]
        assert learnt == [i for turn in sample.turns for i in encoder.answer(turn.answer)]
        following = [row.ids[i + 1] for i, label in enumerate(row.labels) if label >= 0]
        assert learnt == following


def test_export_reverses_loading(tmp_path):
    model, _ = small.make_model(tmp_path)
    tensors = to_official(model)
    twin = create_model(model.config)
    for name, slot in twin.slots().items():
        slot.load(tensors.pop(name))
    assert not tensors
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def settings(folder, **changes) -> Settings:
    base = Settings(out=folder, tiles=2, accumulate=1, warmup=2, rate=2e-3, eval_questions=0, tokenizer=small.TOKENIZER)
    return dataclasses.replace(base, **changes)


def test_resumed_training_is_training_without_a_break(tmp_path):
    torch.set_num_threads(1)
    whole = run(settings(tmp_path / "whole", steps=5), small.CHANGES)
    run(settings(tmp_path / "parts", steps=2), small.CHANGES)
    parts = run(settings(tmp_path / "parts", steps=5), small.CHANGES)
    assert whole.progress == parts.progress
    for (name, a), (_, b) in zip(whole.model.named_parameters(), parts.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    _, state = load_state(tmp_path / "whole" / "state")
    _, other = load_state(tmp_path / "parts" / "state")
    assert all(torch.equal(state[name], other[name]) for name in state)


@pytest.mark.slow
def test_two_ranks_step_as_one_that_accumulates_twice(tmp_path):
    torch.set_num_threads(1)
    alone = run(settings(tmp_path / "alone", steps=3, accumulate=2), small.CHANGES)
    script = tmp_path / "rank.py"
    lines = ("from tests.training.test_network import *", f"folder = Path({str(tmp_path)!r}) / 'both'")
    script.write_text("\n".join((*lines, "run(settings(folder, steps=3), small.CHANGES)")))
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root}:{root / 'src'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    run_command(command, check=True, env=environment)
    progress, state = load_state(tmp_path / "both" / "state")
    assert progress == alone.progress
    # Momenta are sums of gradients; Adam makes a whole step of a gradient's last bit, so weights differ by more.
    for name, momentum in alone.optimizer.momenta.items():
        assert (state[f"momentum.{name}"] - momentum).norm() < 1e-4 * momentum.norm(), name


def test_training_goes_on_from_a_model_folder_with_a_fresh_optimiser(tmp_path):
    torch.set_num_threads(1)
    first = run(settings(tmp_path / "a", steps=2), small.CHANGES)
    sizes = [path.stat().st_size for path in (tmp_path / "a" / "model").iterdir()]
    assert max(sizes) < 16_000_000
    twin = create_model(first.model.config)
    assert load_model(tmp_path / "a" / "model", twin) == first.progress
    mean = to_official(first.model)  # which the run ended with
    assert all(torch.equal(tensor, mean[name].bfloat16().float()) for name, tensor in to_official(twin).items())
    after = run(settings(tmp_path / "b", steps=3, resume=tmp_path / "a" / "model"), small.CHANGES)
    assert after.progress.step == 3
    assert after.first_step == 2


def test_batches_are_the_same_drawn_by_workers(tmp_path):
    _, encoder = small.make_model(tmp_path)
    dataset = BatchDataset(encoder, (0, "full"), 14, 0, 448)
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, sampler=range(4, 6), num_workers=1)
    for number, batch in zip(range(4, 6), loader, strict=True):
        assert all(torch.equal(batch[name], tensor) for name, tensor in dataset[number].items())


@pytest.mark.slow
def test_training_learns_eight_samples_and_the_pipeline_gives_their_answers(tmp_path):
    torch.set_num_threads(2)
    model, encoder = small.make_model(tmp_path)
    samples = [create_question(("colour", "shape", "position", "count")[n % 4], "en", n) for n in range(40)]
    # With one tile each, for speed; and of each question only one, so that only the picture tells.
    samples = [sample for sample in samples if len(cut_tiles(sample.pictures[0], 448)) == 1][:8]
    cut = [cut_tiles(sample.pictures[0], 448) for sample in samples]
    rows = [encoder.sequence(sample, [1], small.Never("")) for sample in samples]
    batch = collate(rows, cut, len(cut), encoder.context_id)
    network = Network(model)
    optimizer = Optimizer(model)
    pixels = normalize_tiles(batch["tiles"], torch.float32)
    mask = build_mask(batch["groups"])
    for step in range(120):
        x = network.embed(batch["ids"], batch["slots"], network.encode_tiles(pixels))
        hidden = network.decode(x, batch["positions"], mask).flatten(0, 1)[batch["targets"]]
        loss = torch.nn.functional.cross_entropy(model.decoder.logits(hidden), batch["labels"])
        loss.backward()
        optimizer.step(3e-3 * min(1.0, (step + 1) / 10))
        if loss.item() < 0.01:
            break
    assert loss.item() < 0.05
    prompts = [encoder.prompt(sample.turns[0].question, [1])[0] for sample in samples]
    expected = [encoder.answer(sample.turns[0].answer) for sample in samples]
    answers = generate(network, prompts, pixels, encoder)
    assert [ids[: len(meant)] for ids, meant in zip(answers, expected, strict=True)] == expected

    description = describe(small.load().vocab_size, **small.CHANGES)
    export(tmp_path, model, description, small.TOKENIZER, Progress())
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert set(load_file(tmp_path / next(iter(index["weight_map"].values())))) == set(index["weight_map"])
    with pipeline(str(tmp_path), device="cpu", dtype="float32", kv_cache_bytes=1 << 24) as pipe:
        responses = pipe([(sample.turns[0].question, sample.pictures[0].image) for sample in samples])
    texts = [response.text for response in responses]
    assert texts == [sample.turns[0].answer for sample in samples]


def test_evaluation_scores_and_compares_a_model_through_the_pipeline(tmp_path, capsys):
    torch.set_num_threads(1)
    model, _ = small.make_model(tmp_path)
    export(tmp_path, model, describe(small.load().vocab_size, **small.CHANGES), small.TOKENIZER, Progress())
    options = ["device=cpu", "dtype=float32", "kv_cache_bytes=16777216"]
    words = ["--number", "2", "--tasks", "pair", "box", "--max-tiles", "1", "--options", *options]
    evaluate([str(tmp_path), *words, "--compare", str(tmp_path), "--compare-options", *options])
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["scores"] == {"pair": {"en": [0, 1], "zh": [0, 1]}, "box": {"en": [0, 1], "zh": [0, 1]}}
    assert summary["paired"]["number"] == summary["paired"]["equal"] == 4
