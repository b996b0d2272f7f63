"""The numbered notebooks, for tests that walk them."""

from __future__ import annotations

from pathlib import Path

import pytest

PATHS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("[0-9][0-9]_*.ipynb"))
NONE_YET = "notebooks/ holds no numbered notebook yet"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes `path` once for each notebook."""
    if "path" in metafunc.fixturenames:
        entries = PATHS or [pytest.param(None, marks=pytest.mark.skip(reason=NONE_YET))]
        metafunc.parametrize("path", entries, ids=[path.stem for path in PATHS] or ["none"])


@pytest.fixture(scope="session")
def notebook_paths() -> list[Path]:
    """Every numbered notebook, in order."""
    if not PATHS:
        pytest.skip(NONE_YET)
    return PATHS
