"""What every test must leave behind is looked at."""

from pathlib import Path

import pytest
from conftest import nothing_left


def test_nothing_left_names_a_new_file_and_passes_over_those_of_tools(tmp_path: Path) -> None:
    (tmp_path / "before").touch()
    with nothing_left(tmp_path):
        (tmp_path / ".coverage").touch()
        (tmp_path / "before").unlink()
    with pytest.raises(AssertionError, match=r"got \['nonsense'\]"), nothing_left(tmp_path):
        (tmp_path / "nonsense").touch()
