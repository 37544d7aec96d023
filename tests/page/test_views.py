"""What the page shows: tiles as the model gets them, boxes in their places, code that asks the same again."""

import base64
import io
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.processes import run_command
from tests.serving.openai.openai_double import USAGE, Double
from tilewise.demo import picture_path
from tilewise.inputs.media.tiling import count_tiles
from tilewise.page import snippets, views
from tilewise.types import TilingParameters

SOURCE = Path(__file__).resolve().parents[2] / "src"
HOSTILE = "$(touch x) `id` \\ \\n \"' </script> 图 ${HOME}"


@pytest.mark.parametrize(
    ("size", "most", "grid"), [((600, 400), 12, "3×2"), ((448, 448), 12, "1×1"), ((1920, 1080), 24, "5×3")]
)
def test_a_picture_is_shown_cut_as_the_tower_gets_it(size: tuple[int, int], most: int, grid: str) -> None:
    tiling = TilingParameters(max_tiles=most)
    shown = views.show_tiles([Image.new("RGB", size, "red")], tiling, 256)
    tiles = count_tiles(*size, tiling)
    assert f"{grid}" in shown
    assert f"{tiles} × 256 = {tiles * 256:,}" in shown
    columns, rows = map(int, grid.split("×"))
    pictures = [Image.open(io.BytesIO(base64.b64decode(d))) for d in re.findall(r"base64,([^\"]+)", shown)]
    assert [p.width / p.height for p in pictures] == [columns / rows, 1.0][: 1 + (tiles > 1)]


def test_boxes_lie_where_the_answer_says_and_labels_are_only_text() -> None:
    picture = Image.new("RGB", (2000, 100), "red")
    shown = views.show_boxes(picture, "<ref><img src=x></ref><box>[[100, 0, 350, 1000]]</box>")
    assert "left:10.0%;top:0.0%;width:25.0%;height:100.0%" in shown
    assert "&lt;img src=x&gt;" in shown
    assert "<img src=x" not in shown
    assert views.show_boxes(picture, "no boxes") == views.show_boxes(None, "<ref>a</ref><box>[[1,2,3,4]]</box>") == ""
    assert picture.size == (2000, 100)


def test_an_answer_reads_without_its_marks() -> None:
    assert views.without_marks("a <ref>dog</ref><box>[[1, 2, 3, 4]]</box>.") == "a dog [[1, 2, 3, 4]]."


def test_facts_are_told_and_an_answer_of_one_token_has_no_speed() -> None:
    shown = views.show_facts(0.5, 0.25, USAGE, is_cut_off=True)
    for told in ("0.50 s", "8.0 tok/s", "1,831", "1,792", ">64<", "Cut off"):
        assert told in shown
    bare = views.show_facts(0.5, 0.0, {}, is_cut_off=False)
    assert "–" in bare
    assert "Cut off" not in bare


def test_a_models_name_is_only_text() -> None:
    assert "<b>x" not in views.show_head("<b>x", [("<i>", "<i>")]).replace("<b>Tilewise", "")


@pytest.fixture
def body(tmp_path: Path) -> dict[str, Any]:
    names = ["a picture's.png", "$HOME.png"]
    for name in names:
        shutil.copy(picture_path(), tmp_path / name)
    pictures = [{"type": "image_url", "image_url": {"url": f"/somewhere/else/{name}"}} for name in names]
    messages = [
        {"role": "system", "content": HOSTILE},
        {"role": "user", "content": [*pictures, {"type": "text", "text": HOSTILE}]},
    ]
    sampling = {"max_tokens": 4, "temperature": 0.7, "top_p": 0.8, "top_k": 50, "skip_special_tokens": False}
    return {"model": "demo", "messages": messages, **sampling}


def check_sent(sent: dict[str, Any], body: dict[str, Any]) -> None:
    data = base64.b64encode(picture_path().read_bytes()).decode()
    parts = sent["messages"][1]["content"]
    assert [part["image_url"]["url"].partition(",")[2] for part in parts[:2]] == [data] * 2
    assert parts[2] == body["messages"][1]["content"][2]
    assert sent["messages"][0] == body["messages"][0]
    assert {name: sent[name] for name in body if name != "messages"} == {n: body[n] for n in body if n != "messages"}


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not here")
def test_the_curl_command_asks_the_same_and_runs_nothing_else(tmp_path: Path, body: dict[str, Any]) -> None:
    with Double() as double:
        script = snippets.write_curl(double.url, body)
        environment = {**os.environ, "API_KEY": "secret", "NO_PROXY": "*"}
        done = run_command(["sh", "-c", script], cwd=tmp_path, env=environment)
    assert "The answer is 42." in done.stdout, done.stderr
    check_sent(double.bodies[0], body)
    assert double.asked[0][2] == "Bearer secret"
    assert len(list(tmp_path.iterdir())) == 2


def test_the_sdk_code_asks_the_same(tmp_path: Path, body: dict[str, Any]) -> None:
    pytest.importorskip("openai")
    with Double() as double:
        environment = {**os.environ, "API_KEY": "secret", "NO_PROXY": "*"}
        code = [sys.executable, "-c", snippets.write_sdk(double.url, body)]
        done = run_command(code, cwd=tmp_path, env=environment)
    assert done.stdout == "The answer is 42.\n", done.stderr
    check_sent(double.bodies[0], body)


@pytest.mark.parametrize("temperature", [0, pytest.param(0.7, marks=pytest.mark.slow)])
def test_the_pipelines_code_runs(tmp_path: Path, body: dict[str, Any], temperature: float) -> None:
    code = snippets.write_pipeline(None, {**body, "temperature": temperature})
    assert f"do_sample={temperature > 0}" in code
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "PYTHONUTF8": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    done = run_command(command, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
