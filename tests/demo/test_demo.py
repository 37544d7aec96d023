import json
import runpy
import sys
from pathlib import Path

import pytest
import sentencepiece
from PIL import Image
from safetensors.torch import save

from tilewise import demo
from tilewise.checkpoint.hf_config import load_model_config
from tilewise.inputs.tiling import count_tiles
from tilewise.types import TilingParameters

TRAINING = Path(__file__).parents[2] / "training"
needs_scripts = pytest.mark.skipif(not TRAINING.is_dir(), reason="training/ is not part of the package")


def test_embedded_model_says_that_it_is_random():
    model = load_model_config(demo.model_folder())
    assert model.is_random
    assert "random" in (demo.model_folder() / "README.md").read_text()


def test_embedded_model_has_the_familys_shape():
    model = load_model_config(demo.model_folder())
    assert (model.architecture, model.decoder.family, model.template) == (
        "InternVLChatModel",
        "internlm2",
        "internlm2-chat",
    )
    assert (model.tokens_per_tile, model.decoder.num_kv_heads) == (256, 4)
    assert all(dim & (dim - 1) == 0 for dim in (model.vision.head_dim, model.decoder.head_dim))


def test_embedded_files_stay_small():
    files = [path for path in demo.model_folder().iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 3_000_000
    assert demo.picture_path().stat().st_size < 60_000


def test_sample_picture_takes_seven_tiles():
    with Image.open(demo.picture_path()) as picture:
        assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (600, 400))
        assert count_tiles(*picture.size, TilingParameters()) == 7


def test_64_calibration_scenes_are_listed_with_questions_and_answers():
    lines = (demo.calibration_folder() / "scenes.jsonl").read_text("utf-8").splitlines()
    scenes = [json.loads(line) for line in lines]
    assert len(scenes) == 64
    assert all((demo.calibration_folder() / name).is_file() for scene in scenes for name in scene["images"])
    assert all(question and answer for scene in scenes for question, answer in scene["turns"])


@needs_scripts
def test_random_weights_regenerate_byte_for_byte():
    script = runpy.run_path(str(TRAINING / "make_random_demo.py"))
    vocab_size = load_model_config(demo.model_folder()).decoder.vocab_size
    made = save(script["make_weights"](vocab_size), metadata={"format": "pt"})
    assert made == (demo.model_folder() / "model.safetensors").read_bytes()


@needs_scripts
@pytest.mark.skipif(sentencepiece.__version__ != "0.2.3", reason="trained with sentencepiece 0.2.3")
def test_tokenizer_retrains_byte_for_byte(monkeypatch):
    monkeypatch.syspath_prepend(str(TRAINING))
    script = runpy.run_path(str(TRAINING / "train_tokenizer.py"))
    sys.modules.pop("sentences")
    assert script["train"]() == (demo.model_folder() / "tokenizer.model").read_bytes()
