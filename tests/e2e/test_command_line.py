"""The command line as a person meets it: a process, its output, its exit status."""

import json
import os
import signal
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.processes import PATIENCE_S, run_command, start_process
from tilewise.demo import model_folder, picture_path

SOURCE = Path(__file__).resolve().parents[2] / "src"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(SOURCE), "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"}


def start(*arguments: str) -> AbstractContextManager[subprocess.Popen[Any]]:
    command = [sys.executable, "-m", "tilewise", *arguments]
    pipe = subprocess.PIPE
    return start_process(command, stdout=pipe, stderr=pipe, encoding="utf-8", env=ENVIRONMENT)


def run(*arguments: str, cwd: Path | None = None) -> tuple[int, str, str]:
    done = run_command([sys.executable, "-m", "tilewise", *arguments], env=ENVIRONMENT, cwd=cwd)
    return done.returncode, done.stdout, done.stderr


def run_in_shell(line: str, **variables: str) -> tuple[int, str, str]:
    """Run `tilewise LINE` by a shell, in the embedded model's folder, with its output buffered as a user's is."""
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(SOURCE), "PYTHONUTF8": "1", **variables}
    command = ["sh", "-c", f'exec "$0" -m tilewise {line}', sys.executable]
    done = run_command(command, env=env, cwd=model_folder())
    return done.returncode, done.stdout, done.stderr


def assert_refused(done: tuple[int, str, str], *words: str) -> None:
    status, out, err = done
    assert (status, out) == (2, ""), err
    assert err.count("\n") == 1, err
    assert all(word in err for word in words), err


@pytest.fixture
def broken_model(tmp_path: Path) -> Path:
    folder = tmp_path / "broken"
    folder.mkdir()
    for path in model_folder().iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_an_unknown_command_is_refused() -> None:
    assert_refused(run("serv"), "serv", "generate")


def test_an_unknown_flag_is_refused_with_the_nearest_one() -> None:
    assert_refused(run("generate", "--prompt", "a", "--max-new-token", "8"), "--max-new-tokens")


def test_a_value_of_the_wrong_type_is_refused() -> None:
    assert_refused(run("generate", "--prompt", "a", "--session-len", "long"), "--session-len", "long")


def test_a_missing_picture_is_refused(tmp_path: Path) -> None:
    assert_refused(run("generate", "--prompt", "a", "--image", "none.png", cwd=tmp_path), "none.png")


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("not a picture")
    assert_refused(run("generate", "--prompt", "a", "--image", "notes.png", cwd=tmp_path), "picture")


def test_a_picture_of_too_many_pixels_is_refused(tmp_path: Path) -> None:
    Image.new("1", (10_000, 10_000)).save(tmp_path / "large.png")
    assert_refused(run("generate", "--prompt", "a", "--image", "large.png", cwd=tmp_path), "50")


def test_a_prompt_beyond_the_session_is_refused_with_numbers_and_knob() -> None:
    done = run("generate", "--prompt", "a", "--image", str(picture_path()), "--session-len", "512")
    assert_refused(done, "512", "7 tiles", "--session-len")


def test_a_model_that_is_nowhere_is_refused() -> None:
    assert_refused(run("generate", "no/such/folder", "--prompt", "a"), "no/such/folder")


def test_a_broken_config_is_refused(broken_model: Path) -> None:
    (broken_model / "config.json").write_text("{")
    assert_refused(run("generate", str(broken_model), "--prompt", "a"), "config.json")


def test_weights_cut_short_are_refused(broken_model: Path) -> None:
    weights = next(broken_model.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert_refused(run("generate", str(broken_model), "--prompt", "a"), weights.name)


def test_an_unknown_architecture_is_refused_by_name(broken_model: Path) -> None:
    config = json.loads((broken_model / "config.json").read_text())
    config["architectures"] = ["LlavaForConditionalGeneration"]
    (broken_model / "config.json").write_text(json.dumps(config))
    done = run("generate", str(broken_model), "--prompt", "a")
    assert_refused(done, "LlavaForConditionalGeneration", "InternVLChatModel")


def test_a_device_that_is_not_here_is_refused() -> None:
    assert_refused(run("generate", "--prompt", "a", "--device", "cuda:99"), "cuda:99")


def test_the_embedded_model_answers_the_bundled_picture() -> None:
    status, out, err = run("generate", "--max-new-tokens", "4")
    assert status == 0, err
    assert out.startswith("Response(text='")
    assert "answered in" in err


def test_a_symbolic_link_to_a_model_is_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(model_folder())
    status, out, err = run("generate", "link", "--prompt", "hi", "--max-new-tokens", "2", "--json", cwd=tmp_path)
    assert status == 0, err
    assert len(json.loads(out)["answers"][0]["token_ids"]) <= 2


def test_ctrl_c_ends_cleanly_with_130() -> None:
    with start("generate", "--prompt", "hi", "--max-new-tokens", "30000", "--ignore-eos", "--stream") as process:
        assert process.stdout is not None
        process.stdout.read(1)  # the answer has begun
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, err
    assert err == "tilewise: interrupted\n"


@pytest.mark.parametrize("command", ["download .", "--version", "check_env"])
@pytest.mark.parametrize(("stdout", "words"), [(">&-", "stdout is closed"), (">/dev/full", "No space left")])
def test_output_that_cannot_be_written_is_one_line_and_status_1(command: str, stdout: str, words: str) -> None:
    status, out, err = run_in_shell(f"{command} {stdout}")
    assert (status, out, err.count("\n")) == (1, "", 1), err
    assert words in err


def test_a_chat_without_stdin_is_refused() -> None:
    assert_refused(run_in_shell("chat <&-"), "stdin is closed")


def test_characters_that_the_output_lacks_become_question_marks() -> None:
    command = "generate --prompt 谢谢 --stream"
    status, out, err = run_in_shell(command, PYTHONIOENCODING="latin-1")
    assert status == 0, err
    assert set(out.strip()) == {"?"}


def test_a_reader_that_leaves_is_no_error() -> None:
    with start("download", str(model_folder())) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        err = process.stderr.read()
        process.wait(PATIENCE_S)
    assert (process.returncode, err) == (1, "")
