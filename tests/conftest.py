"""What every test runs under: checked shapes, few threads, no network, no progress bars, skips that say why."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

ROOT = Path(__file__).resolve().parents[1]

os.environ["BINDKIT_PROGRESS"] = "off"
# Threads that spin while they wait make tests ten times slower beside one other busy process; beside another process of
# tests each has one core, and so have the kernels and consoles that it starts.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
if os.environ.get("BINDKIT_HUB_TESTS") != "1":
    os.environ["HF_HUB_OFFLINE"] = "1"
# Kernels and consoles that tests start find this checkout's bindkit, installed or not.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))

if any(name == "bindkit" or name.startswith("bindkit.") for name in sys.modules):
    raise RuntimeError("bindkit was imported before tests/conftest.py could install the checks of shapes and types")
install_import_hook("bindkit", "runtime_typechecker.check")

import torch  # noqa: E402  (only after the hook)
from hypothesis import settings  # noqa: E402

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or min(2, os.cpu_count() or 1)))

settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


def find_chromium() -> str | None:
    """The Chromium that tests use: BROWSER_PATH if set, else the usual names."""
    names = [os.environ.get("BROWSER_PATH"), "/usr/bin/chromium", "/usr/bin/google-chrome"]
    names += ["chromium", "chromium-browser", "google-chrome", "chrome"]
    return next((found for name in names if name and (found := shutil.which(name))), None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run, with the reason."""
    no_hub = pytest.mark.skip(reason="needs a model hub; set BINDKIT_HUB_TESTS=1 to run it")
    no_browser = pytest.mark.skip(reason="no Chromium found; install one or set BROWSER_PATH to its program")
    for item in items:
        if item.get_closest_marker("hub") and os.environ.get("BINDKIT_HUB_TESTS") != "1":
            item.add_marker(no_hub)
        if item.get_closest_marker("browser") and find_chromium() is None:
            item.add_marker(no_browser)


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of Chromium; use with ``@pytest.mark.browser``."""
    found = find_chromium()
    if found is None:
        pytest.skip("no Chromium found; install one or set BROWSER_PATH to its program")
    return found


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's root."""
    return ROOT
