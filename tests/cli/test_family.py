import re

import pytest

from tests.family import NOT_YET, SERVED
from tilewise.catalogue import RELEASES
from tilewise.cli import main as cli
from tilewise.plan import count_weights

GIB = 1 << 30


@pytest.fixture
def rows(capsys: pytest.CaptureFixture[str]) -> dict[str, list[str]]:
    """The table's cells by the checkpoint's name."""
    assert cli.main(["list"]) == 0
    out = capsys.readouterr().out
    found = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if "│" in line]
    return {cells[0]: cells[1:] for cells in found if re.match(r"(?:Mini-)?InternVL.+B\b|InternVL-Chat-V1-5", cells[0])}


def test_list_shows_the_whole_family(rows: dict[str, list[str]]) -> None:
    assert rows.keys() == {release.name for release in RELEASES}
    assert all(rows[release.name][0] == release.language_model for release in RELEASES)


def test_list_shows_what_each_served_checkpoints_weights_take_in_bf16(rows: dict[str, list[str]]) -> None:
    for release in SERVED:
        assert float(rows[release.name][1]) == pytest.approx(
            count_weights(release.create_model()).total * 2 / GIB, abs=0.05
        )
    # 48,664 MiB, published.
    assert rows["InternVL-Chat-V1-5"][1] == "47.5"


def test_list_shows_how_each_was_tested_and_what_is_not_served_yet(rows: dict[str, list[str]]) -> None:
    for release in SERVED:
        assert release.tested.startswith(rows[release.name][2].rstrip(","))
        assert rows[release.name][2]
    assert all(rows[release.name][1:] == ["", "not yet"] for release in NOT_YET)
