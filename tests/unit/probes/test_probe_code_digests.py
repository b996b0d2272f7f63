"""A class has one digest in every run, and another one as soon as it computes something else."""

import logging
import subprocess
import sys
import textwrap
import types

import pytest
import torch

from bindkit.backbones.own import code_digest, is_own
from bindkit.probes import Linear

HEAD = """
import logging
import numpy as np
import torch
from torch import nn
from bindkit.probes import Probe
from bindkit.backbones.own import code_digest
logger = logging.getLogger("mine")
SCALE = 2
TABLE = {"a": [1, torch.ones(2, dtype=torch.bfloat16)], "b": np.arange(3)}
def helper(x):
    return x * SCALE
class Base(Probe):
    def offset(self):
        return 1
"""
MINE = '''
class Mine(Base):
    """Mine."""
    numbered = "k"
    def __init__(self, d_model, k=3, *, far=1.0):
        super().__init__(d_model, k=k)
        self.bias = nn.Parameter(torch.zeros(()))
    @torch.no_grad()
    def looks(self, kind):
        logger.info("looks")
        return kind in {"some", "other", "third"} and [TABLE[key] for key in "ab"]
    @property
    def rank(self):
        return self.options["k"]
    @staticmethod
    def plain(x):
        return x
    def pairwise(self, x, y):
        # how alike
        return helper(x) @ y.mT + self.bias * self.offset()
'''
SOURCE = HEAD + MINE


def digest_of(source):
    return code_digest(module_of(source).Mine)


def module_of(source):
    module = types.ModuleType("somebodys_own")
    exec(compile(source, "<a cell>", "exec"), vars(module))
    return module


def test_the_digest_is_the_same_in_another_run_whatever_its_hashes_and_places():
    code = "import types\n" + textwrap.dedent(
        f"""
        module = types.ModuleType("somebodys_own")
        exec({SOURCE!r}, vars(module))
        print(vars(module)["code_digest"](module.Mine))
        """
    )
    mine = digest_of(SOURCE)
    assert mine
    for seed in ("1", "2"):
        environment = {"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
        assert done.stdout.strip() == mine


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("@ y.mT +", "@ y.mT -"),
        ("k=3", "k=4"),
        ("far=1.0", "far=2.0"),
        ("SCALE = 2", "SCALE = 3"),
        ("return x * SCALE", "return x / SCALE"),
        ("torch.ones(2,", "torch.zeros(2,"),
        ("np.arange(3)", "np.arange(4)"),
        ('"third"', '"fourth"'),
        ("return 1", "return 2"),
        ('numbered = "k"', "numbered = None"),
        ('self.options["k"]', 'self.options["far"]'),
        ("@staticmethod\n    def plain(x)", "@classmethod\n    def plain(x)"),
        ('logger.info("looks")', 'logger.info("sees")'),
        ("torch.zeros(())", "torch.ones(())"),
    ],
)
def test_whatever_changes_what_a_class_computes_changes_its_digest(old, new):
    assert old in SOURCE
    assert digest_of(SOURCE.replace(old, new)) != digest_of(SOURCE)


@pytest.mark.parametrize(
    ("old", "new"), [("# how alike", "# how much alike\n\n"), ("import torch\n", "import torch\n\n")]
)
def test_what_changes_nothing_changes_no_digest(old, new):
    assert digest_of(SOURCE.replace(old, new, 1)) == digest_of(SOURCE)


def test_of_what_cannot_be_compared_there_is_no_digest():
    assert digest_of(SOURCE.replace("SCALE = 2", "class Scale: pass\nSCALE = Scale()")) is None
    assert digest_of(SOURCE.replace("SCALE = 2", "SCALE = nn.Linear(2, 2)")) is None


def test_a_class_of_an_installed_package_is_looked_into_as_well(monkeypatch):
    """Its version is in no record."""
    monkeypatch.setattr("bindkit.backbones.own.is_own", lambda module: False)
    assert digest_of(SOURCE) != digest_of(SOURCE.replace("return 1", "return 2"))


def test_only_code_of_ones_own_is_looked_into():
    assert is_own("__main__")
    assert is_own(__name__)
    assert not any(map(is_own, [Linear.__module__, torch.nn.Module.__module__, logging.__name__, "builtins", None]))
