"""One list of dependencies: environment.yml says who needs what pyproject.toml lists, and nothing else."""

from __future__ import annotations

import re
import tomllib

import pytest
import yaml


@pytest.fixture(scope="module")
def project(root):
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def text(root):
    return (root / "environment.yml").read_text()


@pytest.fixture(scope="module")
def environment(text):
    return yaml.safe_load(text)


def normalised(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def names(requirements):
    return {normalised(re.match(r"[A-Za-z0-9._-]+", requirement)[0]) for requirement in requirements}


def explained(part):
    """Names that comment lines of the form ``# name: who needs it`` explain."""
    return {normalised(name) for name, _ in re.findall(r"^# ([a-zA-Z0-9._-]+): (\S.*)$", part, re.MULTILINE)}


def test_python_and_pip_come_from_conda_forge_and_the_rest_from_pip(environment):
    assert environment["name"] == "bindkit"
    assert environment["channels"] == ["conda-forge"]
    python, pip, requirements = environment["dependencies"]
    assert python.startswith("python=")
    assert pip == "pip"
    assert requirements == {"pip": ["-e .[test]"]}


def test_the_python_is_one_that_the_package_allows(environment, project):
    lowest = tuple(map(int, re.fullmatch(r">=(\d+)\.(\d+)", project["requires-python"]).groups()))
    chosen = tuple(map(int, environment["dependencies"][0].removeprefix("python=").split(".")))
    assert chosen == lowest
    assert f"Programming Language :: Python :: {'.'.join(map(str, chosen))}" in project["classifiers"]


def test_every_dependency_is_explained_and_nothing_else_is(text, project):
    always, test_only = text.split("# test only:")
    assert explained(always) == names(project["dependencies"])
    assert explained(test_only) == names(project["optional-dependencies"]["test"])


def test_every_line_of_the_environment_says_who_needs_it(text):
    lines = [line for line in text.split("dependencies:")[1].splitlines() if line.strip().startswith("- ")]
    bare = [line for line in lines if "#" not in line and not line.rstrip().endswith("pip:")]
    assert len(lines) == 4
    assert not bare


def test_torch_stays_below_the_version_whose_cpu_build_is_not_at_hand(project):
    torch = next(requirement for requirement in project["dependencies"] if requirement.startswith("torch"))
    assert torch.endswith("<2.14")
