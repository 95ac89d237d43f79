"""The documentation names what exists, and all of it."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from pathlib import Path

import pytest

import tahoe

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts and "generated" not in page.parts)
GROUPS = ("pp", "tl", "pl", "get", "evaluate", "datasets")

pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="the documentation is not part of this copy")


def listed(page: str) -> set[str]:
    """Names in the tables of an API page."""
    return set(
        re.findall(r"^   (tahoe\.[\w.]+)$", (DOCS / "api" / f"{page}.md").read_text(encoding="utf-8"), re.MULTILINE)
    )


@pytest.mark.parametrize("group", GROUPS)
def test_each_public_function_has_a_page(group):
    module = getattr(tahoe, group)
    assert listed(group) == {f"tahoe.{group}.{name}" for name in getattr(module, "__all__", ())}


def test_the_model_page_names_what_exists():
    names = listed("model")
    assert {"tahoe.load_model", "tahoe.TahoeModel"} <= names
    assert listed("files") == {"tahoe.embed_file"}
    assert listed("reference") == {"tahoe.build_reference", "tahoe.load_reference", "tahoe.Reference"}
    assert "tahoe.fine_tune" in listed("fine_tuning")
    for name in names | listed("reference") | listed("fine_tuning"):
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_python_in_the_pages_parses(page):
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        ast.parse(block)


def test_the_way_to_gradients():
    text = (DOCS / "api" / "model.md").read_text(encoding="utf-8")
    names = {"tahoe": tahoe, "adata": tahoe.datasets.pbmc68k()}
    for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        exec(block, names)
    gradient = names["inputs"].grad
    inside = gradient[: names["tokens"].bounds[1]]
    assert inside.abs().sum() > 0
    assert gradient.abs().sum() == inside.abs().sum()


@pytest.mark.parametrize("page", [ROOT / "README.md", DOCS / "index.md"], ids=lambda page: page.name)
def test_the_first_example_needs_no_extra(page, tmp_path, monkeypatch):
    for name in ("igraph", "leidenalg", "dask", "distributed", "xarray"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it was not installed
    monkeypatch.chdir(tmp_path)
    tahoe.datasets.pbmc68k()[:60].copy().write_h5ad("cells.h5ad")
    code = re.search(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)[1]
    names: dict = {}
    exec(code.replace('model="70m"', 'model="demo"'), names)
    assert names["adata"].obsm["X_tahoe"].shape == (60, 128)
    assert names["adata"].obsm["X_umap"].shape == (60, 2)


def test_the_readme_points_to_what_exists():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "@@" not in text
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


def test_citations_are_in_the_bibliography():
    known = set(re.findall(r"^@\w+\{(\w+),", (DOCS / "references.bib").read_text(encoding="utf-8"), re.MULTILINE))
    texts = [*ROOT.joinpath("src").rglob("*.py"), *PAGES]
    cited = {key for text in texts for key in re.findall(r"cite:[pt]+[:}]*`(\w+)`", text.read_text(encoding="utf-8"))}
    assert cited <= known
    assert "Gandhi2025" in cited


def test_the_tests_that_keep_promises_exist():
    named = re.findall(
        r"`(tests/[\w/]+\.py)::(\w+)`", (DOCS / "guide" / "reproducibility.md").read_text(encoding="utf-8")
    )
    assert len(named) > 40
    for file, test in named:
        assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file}::{test}"
