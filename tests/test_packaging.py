"""What the package says of itself is the same wherever it is said."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
RECIPE = yaml.safe_load((ROOT / "recipe" / "recipe.yaml").read_text(encoding="utf-8"))
ENTRY = yaml.safe_load((ROOT / "ecosystem" / "meta.yaml").read_text(encoding="utf-8"))
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
CONDA_NAMES = {"torch": "pytorch", "huggingface-hub": "huggingface_hub"}
# Groups that constraints.txt covers: what the commands of the Makefile install.
PINNED = [
    *PROJECT["dependencies"],
    *(entry for extra in PROJECT["optional-dependencies"].values() for entry in extra),
    *(entry for group in ("test", "lint", "doc") for entry in PYPROJECT["dependency-groups"][group]),
]


def test_the_recipe_asks_for_what_the_package_asks_for():
    requirements = [Requirement(entry) for entry in PROJECT["dependencies"]]
    expected = {f"{CONDA_NAMES.get(entry.name, entry.name)} {entry.specifier}" for entry in requirements}
    python, *others = RECIPE["requirements"]["run"]
    assert set(others) == expected
    assert python == "python >=${{ python_min }}"
    assert PROJECT["requires-python"] == f">={RECIPE['context']['python_min']}"
    assert set(PYPROJECT["build-system"]["requires"]) <= set(RECIPE["requirements"]["host"])


def test_the_recipe_makes_the_same_commands():
    scripts = {f"{name} = {target}" for name, target in PROJECT["scripts"].items()}
    assert set(RECIPE["build"]["python"]["entry_points"]) == scripts


def test_one_version_name_and_licence():
    assert RECIPE["context"]["version"] == CITATION["version"] == PROJECT["version"]
    assert RECIPE["package"]["name"] == ENTRY["install"]["pypi"] == PROJECT["name"]
    assert RECIPE["about"]["license"] == ENTRY["license"] == CITATION["license"] == PROJECT["license"]
    assert (ROOT / RECIPE["about"]["license_file"]).is_file()


def test_one_address():
    assert RECIPE["about"]["repository"] == RECIPE["about"]["homepage"] == ENTRY["project_home"]
    assert RECIPE["source"]["url"].startswith(ENTRY["project_home"] + "/")
    assert ENTRY["documentation_home"].rstrip("/") == RECIPE["about"]["documentation"]
    assert all(ENTRY[field].startswith(ENTRY["documentation_home"]) for field in ("tutorials_home", "inventory"))
    for name, url in PROJECT.get("urls", {}).items():
        assert url.rstrip("/").startswith((ENTRY["project_home"], RECIPE["about"]["documentation"])), name


def test_links_of_the_readme_are_addresses_on_pypi():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    hook = PYPROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    for change in hook["substitutions"]:
        text = re.sub(change["pattern"], change["replacement"], text)
    links = [*re.findall(r"\]\(([^)\s]+)\)", text), *re.findall(r'src="([^"]+)"', text)]
    assert all(link.startswith("https://") for link in links)
    account = ENTRY["project_home"].removeprefix("https://github.com/")
    pictures = [link for link in links if link.endswith((".png", ".svg"))]
    assert len(pictures) == 2
    assert all(link.startswith(f"https://raw.githubusercontent.com/{account}/v$HFPR_VERSION/") for link in pictures)
    pages = [link for link in links if link.endswith((".md", ".ipynb"))]
    assert all(link.startswith(f"{ENTRY['project_home']}/blob/v$HFPR_VERSION/") for link in pages)


def test_badges_say_what_holds():
    badges = re.findall(r"img\.shields\.io/badge/([^)]+)", (ROOT / "README.md").read_text(encoding="utf-8"))
    promised = [entry.split(" :: ")[-1] for entry in PROJECT["classifiers"] if re.search(r"3\.\d+$", entry)]
    assert badges == [
        f"licence-{PROJECT['license'].replace('-', '--')}-blue",
        f"python-{'%20%7C%20'.join(promised)}-blue",
    ]


def test_the_registry_entry_has_the_fields_of_the_registry():
    text = {"name", "description", "project_home", "documentation_home", "license", "category"}
    optional = {"tutorials_home", "inventory", "publications", "primary_category", "language", "test_command"}
    assert text | {"install", "tags", "contact"} <= set(ENTRY) <= text | optional | {"install", "tags", "contact"}
    assert all(isinstance(ENTRY[field], str) and ENTRY[field].strip() for field in text)
    assert ENTRY["category"] == "ecosystem"
    for field in ("tags", "contact"):
        assert len(set(ENTRY[field])) == len(ENTRY[field]) > 0
    assert ENTRY["publications"] == [reference["doi"] for reference in CITATION["references"]]
    assert all(re.fullmatch(r"10\.\d{4,9}/[-._;()/:A-Za-z0-9]+", doi) for doi in ENTRY["publications"])
    group = re.search(r"--group (\w+)", ENTRY["test_command"])
    assert group
    assert group[1] in PYPROJECT["dependency-groups"]


@pytest.mark.parametrize("entry", sorted(set(PINNED)))
def test_constraints_pin_what_is_installed(entry):
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    versions = {canonicalize_name(name): version for name, version in pins.items()}
    requirement = Requirement(entry)
    assert versions[canonicalize_name(requirement.name)] in requirement.specifier


def test_the_pythons_that_are_promised_are_tested():
    prefix = "Programming Language :: Python :: "
    promised = [entry.removeprefix(prefix) for entry in PROJECT["classifiers"] if re.match(rf"{prefix}3\.\d+", entry)]
    assert promised[0] == RECIPE["context"]["python_min"]
    workflow = ROOT / ".github" / "workflows" / "test.yaml"
    if not workflow.is_file():
        pytest.skip("the workflows are not part of this copy")
    jobs = yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"]
    assert jobs["test"]["strategy"]["matrix"]["python"] == jobs["make"]["strategy"]["matrix"]["python"] == promised
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"PYTHON_NEWEST ?= {' '.join(f'python{version}' for version in reversed(promised[1:]))}\n" in makefile


def test_a_python_of_pyenv_is_found(tmp_path):
    """pyenv puts commands on PATH that fail until they are switched on."""
    switched_off = tmp_path / "bin" / "python3.98"
    of_pyenv = tmp_path / "pyenv" / "versions" / "3.98.1" / "bin" / "python3.98"
    for path in (switched_off, of_pyenv):
        path.parent.mkdir(parents=True)
    switched_off.write_text("#!/bin/sh\nexit 127\n", encoding="utf-8")
    switched_off.chmod(0o755)
    of_pyenv.symlink_to(sys.executable)
    script = ["sh", str(ROOT / "scripts" / "find_python.sh")]
    environment = {"PATH": f"{switched_off.parent}:/usr/bin:/bin", "PYENV_ROOT": str(tmp_path / "pyenv")}
    found = subprocess.run([*script, "python3.99", "python3.98"], env=environment, capture_output=True, text=True)
    assert (found.returncode, found.stdout.strip()) == (0, str(of_pyenv))
    assert subprocess.run([*script, "python3.99"], env=environment).returncode == 1
