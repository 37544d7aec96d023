"""`tilewise plan`: what it says, and that it loads nothing."""

import json
import os
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from tests.checkpoint.test_hub import Hub
from tests.checkpoint.test_hub import hub as hub  # the fixture
from tests.processes import run_command
from tilewise.checkpoint.hf_config import load_model_config
from tilewise.cli import main as cli
from tilewise.cli.plan import parse_bytes
from tilewise.config import DeviceConfig, EngineConfig
from tilewise.errors import ConfigError
from tilewise.plan import MemoryPlan, fit_memory

GIB = 1 << 30
SOURCE = Path(__file__).resolve().parents[2] / "src"


@pytest.fixture
def official(shipped_data: Path) -> str:
    return str(shipped_data / "internvl-chat-v1-5")


def test_a_model_that_fits_is_said_to_with_the_tokens_it_holds(
    official: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["plan", official, "--gpu", "80GiB"]) == 0
    out = capsys.readouterr().out
    fit = fit_memory(EngineConfig(), load_model_config(Path(official)), DeviceConfig("cuda"), 80 * GIB)
    assert fit.num_blocks > 0
    assert f"{fit.capacity:,} tokens of" in out
    assert f"{fit.total_bytes / GIB:.2f}" in out
    assert "It fits with the settings given." in out


def test_the_flags_that_a_plan_names_make_it_fit(official: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["plan", official, "--gpu", "51GiB"]
    assert cli.main(line) == 0
    _, found, flags = capsys.readouterr().out.partition("It fits with: ")
    assert found
    assert cli.main([*line, *flags.split()]) == 0
    assert "It fits with the settings given." in capsys.readouterr().out


def test_what_cannot_fit_is_status_2_with_what_is_missing(official: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", official, "--gpu", "24GiB", "--json"]) == 2
    out, err = capsys.readouterr()
    said = json.loads(out)
    assert not said["fits"]
    assert f"{said['missing_bytes'] / GIB:.1f} GiB are missing" in err
    assert err.count("\n") == 1


def test_a_plan_in_json_is_one_object_in_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "--gpu", "8GiB", "--json", "--session-len", "2048"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["fits"], said["device_bytes"], said["session_len"], said["changes"]) == (True, 8 * GIB, 2048, {})
    assert {field.name for field in fields(MemoryPlan)} <= set(said)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("plan", "--gpu 80GiB or --gpu 24GiB"),
        ("plan --gpu much", "'much' is no size; write for instance 24GiB"),
        ("plan --gpu 0GiB", "'0GiB' is no size"),
        ("plan --gpu -8GiB", "--gpu"),
        ("plan --gpu 8GiB --device cpu", "unknown argument '--device'"),
        ("plan --gpu 8GiB --sesion-len 8", "Did you mean --session-len?"),
        ("plan --gpu 8GiB --session-len 8 --tp 2", "leave tp=1"),
    ],
)
def test_a_plan_that_cannot_be_made_is_refused_in_one_line(
    line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = cli.main(line.split())
    except SystemExit as leaving:
        status = leaving.code
    out, err = capsys.readouterr()
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert message in err


@pytest.mark.parametrize(
    ("text", "size"),
    [("80GiB", 80 * GIB), ("80g", 80 * GIB), (" 0.5 GiB", GIB // 2), ("81559MiB", 81559 << 20), ("512", 512)],
)
def test_a_size_is_read_in_powers_of_1024(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "1e9", "-1", "0.1", "inf", "8 gigs", "9" * 40])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is no size"):
        parse_bytes(text)


def test_a_hub_s_model_is_planned_without_weights_and_without_torch(hub: Hub, official: str, tmp_path: Path) -> None:
    hub.files["config.json"] = (Path(official) / "config.json").read_bytes()
    script = (
        "import sys\n"
        "from tilewise.cli.main import main\n"
        "status = main(['plan', 'org/model', '--gpu', '80GiB'])\n"
        "sys.exit(status or 'torch' in sys.modules)"
    )
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hf")}
    environment |= {"PYTHONPATH": str(SOURCE), "HF_ENDPOINT": hub.url, "NO_PROXY": "*", "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONUTF8": "1"}
    done = run_command([sys.executable, "-c", script], env=environment)
    assert done.returncode == 0, done.stderr
    assert "It fits with the settings given." in done.stdout
    assert {Path(name).suffix for name in hub.names()} == {".json", ".model", ".txt"}
