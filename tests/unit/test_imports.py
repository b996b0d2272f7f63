"""``import bindkit`` is light, and every public name is there and explained."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
import time
from pathlib import Path

import pytest

import bindkit

HEAVY = {"torch", "transformers", "plotly", "pandas", "numpy", "scipy", "papermill", "IPython"}
HOMES = sorted({home for home in bindkit._HOME.values()})


def test_importing_bindkit_or_its_console_imports_nothing_heavy():
    code = f"import sys, bindkit, bindkit.cli, bindkit.pipeline.running; print(sorted({HEAVY} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_answers_within_half_a_second():
    """The best of five, so that a busy machine does not fail it; an import of torch alone takes longer."""
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "bindkit.cli", "--help"], capture_output=True, check=True)
        seconds.append(time.perf_counter() - started)
        if seconds[-1] < 0.5:
            return
    pytest.fail(f"bindkit --help took at best {min(seconds):.2f} s")


@pytest.mark.parametrize("name", sorted(bindkit._HOME))
def test_every_public_name_is_there_with_a_docstring_and_an_example(name):
    thing = getattr(bindkit, name)
    assert name in dir(bindkit)
    text = inspect.getdoc(thing) or ""
    assert len(text.split()) > 5, f"bindkit.{name} needs a docstring"
    is_error = inspect.isclass(thing) and issubclass(thing, Exception)
    has_example = ">>>" in text or "::\n" in text or "Examples\n" in text or "bk." in text or "``" in text
    assert is_error or has_example, f"bindkit.{name} needs an example in its docstring"


def test_an_unknown_name_says_what_there_is():
    with pytest.raises(AttributeError, match=r"no attribute 'opne_scenes'.*open_scenes"):
        _ = bindkit.opne_scenes


@pytest.mark.parametrize("home", HOMES)
def test_homes_say_what_they_are(home):
    assert (importlib.import_module(home).__doc__ or "").strip()


def test_no_public_name_is_also_a_submodule_which_would_shadow_it():
    """Importing bindkit.NAME would put the module where the lazy name belongs."""
    modules = {path.stem for path in Path(bindkit.__file__).parent.iterdir()}
    assert not modules & set(bindkit._HOME)
