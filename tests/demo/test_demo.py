import json
from pathlib import Path

import pytest
from PIL import Image

from tilewise import demo
from tilewise.checkpoint.hf_config import load_model_config
from tilewise.inputs.media.tiling import count_tiles
from tilewise.types import TilingParameters

TOKENIZER = Path(__file__).parents[2] / "training" / "tokenizer"


def test_embedded_model_is_trained_and_its_card_says_what_it_cannot_do():
    model = load_model_config(demo.model_folder())
    assert not model.is_random
    card = (demo.model_folder() / "README.md").read_text("utf-8")
    assert "It knows its scenes and nothing else." in card
    assert "](curve.png)" in card
    assert (demo.model_folder() / "curve.png").is_file()


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
    sizes = [path.stat().st_size for path in demo.model_folder().iterdir()]
    assert sum(sizes) < 30_000_000
    assert max(sizes) < 16_000_000
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


@pytest.mark.skipif(not TOKENIZER.is_dir(), reason="training/ is not part of the package")
def test_embedded_tokenizer_is_the_one_that_training_makes():
    for name in ("tokenizer.model", "tokenizer_config.json"):
        assert (demo.model_folder() / name).read_bytes() == (TOKENIZER / name).read_bytes()
