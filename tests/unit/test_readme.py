"""README is read in five minutes and leads to what is there; what it and CITATION.cff state is so."""

from __future__ import annotations

import re
import tomllib

import pytest
import yaml

import bindkit
from bindkit.scenes.opening import FORMATS

PAGES = ("README.md", "bindkit/README.md", "figures/README.md")


def anchors(text):
    """Anchors of a page's headings, as code-hosting pages make them."""
    found = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in found}


def test_readme_is_a_page(root):
    assert (root / "README.md").stat().st_size <= 9_000


def test_its_two_commands_stand_as_they_are_tested(root):
    text = (root / "README.md").read_text(encoding="utf-8")
    for command in ("python -m pip install -e . && bindkit run", "python -m pip install -e '.[test]' && pytest"):
        assert f"```bash\n{command}\n```" in text
    assert "python -m pip install -e '.[test]' && pytest" in (root / ".ci/run").read_text()


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(root, page):
    place = root / page
    text = place.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    links += [f"{root}/notebooks/{name}.ipynb" for name in re.findall(r"`(\d\d_\w+)`", text)]
    links += [f"{root}/{name}" for name in re.findall(r"`((?:bindkit|tests|notebooks)/[\w/]+\.(?:py|ipynb))`", text)]
    for link in links:
        name, _, anchor = link.partition("#")
        target = place.parent / name if name else place
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link


def test_every_picture_is_shown_somewhere(root):
    shown = (root / "figures/README.md").read_text(encoding="utf-8")
    pictures = [path.name for path in (root / "figures").iterdir() if path.suffix in (".png", ".gif")]
    assert pictures and all(f"]({name})" in shown for name in pictures)
    assert (root / "figures/explorer.gif").stat().st_size <= 1_500_000


def test_every_scene_format_has_its_row(root):
    section = (root / "bindkit/README.md").read_text(encoding="utf-8").split("\n## Scenes\n")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `([\w-]+):", section, re.MULTILINE)) == set(FORMATS)


def test_the_citation_is_of_this_version_and_names_the_paper(root):
    cited = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert project["dynamic"] == ["version"] and cited["version"] == bindkit.__version__
    assert cited["cff-version"] == "1.2.0" and cited["type"] == "software" and cited["message"]
    assert (cited["title"], cited["license"]) == (project["name"], project["license"])
    assert [author["name"] for author in cited["authors"]] == [author["name"] for author in project["authors"]]
    (paper,) = cited["references"]
    names = [author["family-names"] for author in paper["authors"]]
    assert (names, paper["year"]) == (["Li", "Salehi", "Ungar", "Kording"], 2025)
    bibtex = (root / "README.md").read_text(encoding="utf-8").split("```bibtex")[1]
    assert f"title     = {{{paper['title']}}}" in bibtex and paper["identifiers"][0]["value"] in bibtex
