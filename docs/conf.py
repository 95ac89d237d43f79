"""Configuration of the documentation; `sphinx-build -W -b html docs docs/_build/html` needs no network."""

import os
import shutil
import sys
from importlib.metadata import metadata
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "extensions"))

# Sphinx wants the notebooks below its own folder. A link would do, but keeps them out of the sdist.
shutil.rmtree(HERE / "tutorials", ignore_errors=True)
if (HERE.parent / "tutorials").is_dir():
    shutil.copytree(HERE.parent / "tutorials", HERE / "tutorials")

package = metadata("tahoe-anndata")
project = "tahoe"
author = "the tahoe developers"
copyright = f"2026, {author}"
release = package["Version"]
links = dict(entry.split(", ", 1) for entry in package.get_all("Project-URL") or [])

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxcontrib.bibtex",
    "prose_returns",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "**.ipynb_checkpoints", "tutorials/README.md"]
nitpicky = False
default_role = "py:obj"

# API pages: one for each function and class, from its docstring.
autosummary_generate = True
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
napoleon_numpy_docstring = True
napoleon_google_docstring = False
napoleon_use_rtype = False
add_module_names = False
toc_object_entries_show_parents = "hide"

# Notebooks are committed with their outputs. TAHOE_DOCS_EXECUTE=1 runs them all anew, as continuous integration does.
nb_execution_mode = "force" if os.environ.get("TAHOE_DOCS_EXECUTE") == "1" else "off"
nb_execution_raise_on_error = True
nb_execution_timeout = 900
nb_merge_streams = True
# Bars are off in the tutorials, so nobody misses the package that would draw them in a notebook.
os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")
myst_enable_extensions = ["colon_fence", "deflist", "smartquotes"]
myst_heading_anchors = 3

bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# Links to other projects' references need their indexes: TAHOE_DOCS_INTERSPHINX=1 downloads them.
if os.environ.get("TAHOE_DOCS_INTERSPHINX") == "1":
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "anndata": ("https://anndata.readthedocs.io/en/stable/", None),
        "numpy": ("https://numpy.org/doc/stable/", None),
        "pandas": ("https://pandas.pydata.org/docs/", None),
        "python": ("https://docs.python.org/3/", None),
        "scanpy": ("https://scanpy.readthedocs.io/en/stable/", None),
        "torch": ("https://docs.pytorch.org/docs/stable/", None),
    }

html_theme = "sphinx_book_theme"
html_title = "tahoe"
html_static_path = ["_static"]
html_favicon = "_static/logo.svg"
html_css_files = ["tahoe.css"]
html_show_sourcelink = False
html_theme_options = {
    "logo": {"text": "tahoe", "image_light": "_static/logo.svg", "image_dark": "_static/logo-dark.svg"},
    "navbar_persistent": [],  # the sidebar has a search field already
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
}
if "Source" in links:
    html_theme_options |= {
        "repository_url": links["Source"],
        "path_to_docs": "docs",
        "use_repository_button": True,
        "use_issues_button": True,
    }


def setup(app: Sphinx) -> None:
    app.connect("source-read", _without_empty_list)


def _without_empty_list(app: Sphinx, page: str, source: list[str]) -> None:
    """A list of tutorials that finds none would be a warning, and so an error."""
    if page == "tutorials" and not any((HERE / "tutorials").glob("*.ipynb")):
        source[0] = source[0].partition("```{toctree}")[0] + "There are none in this copy of the source.\n"
