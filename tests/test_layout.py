"""The house: where results are written, what importing costs, and the form of public functions.

Who may import whom is a contract in pyproject.toml, which `make lint` holds.
"""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tahoe

SOURCE = Path(tahoe.__file__).parent


def files():
    return [path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py" and "data" not in path.parts[-2:-1]]


def test_only_one_file_knows_where_results_lie():
    for path in files():
        if path.name != "slots.py" and path.parent.name not in ("pl",):
            tree = ast.parse(path.read_text())
            stores = [
                node
                for node in ast.walk(tree)
                if isinstance(node, ast.Subscript)
                and isinstance(node.ctx, ast.Store)
                and isinstance(node.value, ast.Attribute)
                and node.value.attr in ("obsm", "uns", "obs", "var", "varm", "varp", "layers")
            ]
            if path.name != "demo.py":
                assert not stores, f"{path.name}, line {stores[0].lineno}"


def test_importing_is_cheap():
    code = "import sys, tahoe; print(sorted({'torch', 'scanpy', 'matplotlib', 'anndata', 'pandas'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("use", ["import tahoe; tahoe.pp.map_genes", "from tahoe.model import hub"])
def test_what_needs_no_torch(use):
    code = f"{use}; import sys; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


VERBS = [(part, getattr(part, name)) for part in (tahoe.pp, tahoe.tl, tahoe.pl) for name in part.__all__]


@pytest.mark.parametrize(("part", "function"), VERBS)
def test_public_functions_have_scanpys_form(part, function):
    parameters = list(inspect.signature(function).parameters.values())
    assert parameters[0].name == ("table" if function is tahoe.pl.evaluation else "adata")
    assert sum(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters) <= 3
    document = inspect.getdoc(function)
    for section in ("Parameters", "Returns", "Examples"):
        assert f"{section}\n---" in document, f"{function.__name__} lacks {section}"
    for parameter in parameters:
        assert re.search(rf"^(\w+, )*{parameter.name}(, \w+)*$", document, flags=re.MULTILINE), parameter.name
    if part is tahoe.pl:
        assert "save" not in {p.name for p in parameters}
        assert "ax" in {p.name for p in parameters} or function is tahoe.pl.evaluation  # it draws several
    else:
        assert "copy" in {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
        assert "None" in str(inspect.signature(function).return_annotation)


def test_names():
    assert set(dir(tahoe)) == set(tahoe.__all__)
    for name in tahoe.__all__:
        assert getattr(tahoe, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        tahoe.nothing  # noqa: B018
    assert tahoe.settings.device == "cpu"
