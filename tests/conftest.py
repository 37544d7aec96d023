"""What every test shares: the data beside the repository, Hypothesis profiles, and who needs a GPU."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

REPOSITORY = Path(__file__).resolve().parent.parent

# On a shared machine an example's time says nothing; a fixed seed keeps one change's failure out of another's.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The seed's picture, tokenizer and goldens, which are not part of the repository."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the folder ../shared/data with the seed's picture and tokenizer is not here")
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    needs = {"gpu": 1, "multigpu": 2}
    marked = [(item, count) for item in items for name, count in needs.items() if item.get_closest_marker(name)]
    if not marked:
        return
    import torch

    for item, count in marked:
        if torch.cuda.device_count() < count:
            item.add_marker(pytest.mark.skip(reason=f"needs {count} CUDA device(s)"))
