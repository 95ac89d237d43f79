"""What parameters mean that several functions have: written once, and inserted into their docstrings."""

from __future__ import annotations

import functools
import inspect
import re
import textwrap
import warnings
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., Any]")

# In the order in which functions have them. `tests/test_keywords.py` holds the order, the defaults and the types.
TEXTS = {
    "adata": (
        "Annotated data matrix, cells × genes, human. In memory (array, CSR, CSC), backed (CSR or dense), or lazy, as"
        " `anndata.experimental.read_lazy` gives it (CSR or dense). Columns that are not gene expression by"
        ' ``var["feature_types"]`` take no part.'
    ),
    "model": (
        '``"70m"``, ``"1b"`` or ``"3b"`` (downloaded once), ``"demo"`` (ships with the package, not for science), a'
        " folder in the released layout, or what `tahoe.load_model` gave. Load it once to call several functions."
    ),
    "cell": "Name of the cell in ``adata.obs_names``, or its number, from 0.",
    "network_layer": (
        "Which layer of the network: a number from 0, or from the end if negative. Several are averaged; `None` takes"
        " all."
    ),
    "heads": "Which attention heads to average, by their numbers from 0; `None` takes all.",
    "min_cells": (
        "Omit what fewer cells express: the mean of a few cells is mostly noise, and the strongest values are often of"
        " this kind."
    ),
    "gene_key": (
        'Column of ``var`` with the identifiers, or ``"var_names"``; `None` takes the one that resolves most genes.'
    ),
    "normalize": "Scale each embedding to length 1, as the authors do.",
    "groupby": "Column of ``adata.obs``; one result for each of its groups instead of one for all cells.",
    "layer": "Use ``layers[layer]`` instead of ``X``.",
    "use_raw": "Use ``raw``, with its own genes.",
    "mask_var": (
        "Which genes to use: a boolean array, or the name of a boolean column of ``var``. `None` takes all, as the"
        " models were trained: a selection of highly variable genes takes from them what they know."
    ),
    "drug_key": (
        "Column of ``obs`` with the drug that each cell was treated with, for a model with a drug encoder (of the"
        ' released ones, ``"3b"``). Every cell then carries a drug token; a missing value means no drug, as in'
        " training. Without `drug_key` no cell carries one."
    ),
    "drugs": (
        "Ids of the drugs by name, or a JSON file of them, if the checkpoint's folder has none; see `TahoeModel.drugs`."
    ),
    "max_length": (
        "Maximum number of tokens per cell, one of which is the CLS token. A cell that expresses more genes keeps a"
        " subset that depends on `seed` and on its own content only."
    ),
    "min_coverage": (
        "Minimum share of the counts (of the genes that take part) that must fall on genes that the model knows; below"
        " it nothing is computed. Below 0.9 there is a warning. 0 switches this off."
    ),
    "seed": "Random seed for choosing genes in cells above `max_length`.",
    "device": (
        '``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``. `None` picks CUDA, then MPS, then the CPU, and logs which.'
    ),
    "dtype": (
        '``"float32"``, ``"bfloat16"``, ``"float16"`` or, on some CPUs, ``"int8"``. `None`: see `tahoe.load_model`.'
    ),
    "copy": "Return a changed copy instead of changing `adata`.",
    "group": "Which group of cells, if the result was made with `groupby`.",
    "ax": "Where to draw; `None` makes a new figure.",
}


def document_parameters(function: F) -> F:
    """Complete the section "Parameters" of a docstring, in the order of the signature.

    What stands there wins; the rest comes from `TEXTS`. So a verb describes only what is its own.

    Raises
    ------
    KeyError
        If a parameter is described nowhere.
    ValueError
        If a parameter is described that the function does not have.
    """
    if function.__doc__ is None:  # python -OO
        return function
    before, own, after = _split(inspect.cleandoc(function.__doc__))
    names = list(inspect.signature(function).parameters)
    unknown = own.keys() - set(names)
    if unknown:
        message = f"{function.__qualname__} describes parameters that it does not have: {', '.join(sorted(unknown))}"
        raise ValueError(message)
    entries = [f"{name}\n{own[name] if name in own else _wrapped(TEXTS[name])}" for name in names]
    function.__doc__ = "\n".join([before.rstrip(), "", "Parameters\n----------", *entries, "", after])
    return function


def accept_former_names(**names: str) -> Callable[[F], F]:
    """Take parameters by the names that they had before, with a warning; ``former="present"``."""

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def call(*arguments: Any, **keywords: Any) -> Any:
            for former in names.keys() & keywords.keys():
                message = f"{former}= of {function.__name__}() is now called {names[former]}="
                warnings.warn(message, FutureWarning, stacklevel=2)
                if names[former] in keywords:
                    raise TypeError(message)
                keywords[names[former]] = keywords.pop(former)
            return function(*arguments, **keywords)

        return call  # type: ignore[return-value]

    return decorate


def _split(text: str) -> tuple[str, dict[str, str], str]:
    """A docstring up to its parameters, their descriptions by name, and the sections behind them."""
    head, sections = re.split(r"^(?=\w+\n-+$)", text, maxsplit=1, flags=re.MULTILINE)
    if not sections.startswith("Parameters\n"):
        return head, {}, sections
    own, after = re.split(r"\n(?=\w+\n-+$)", sections, maxsplit=1, flags=re.MULTILINE)
    described = re.split(r"^(\w+)\n", own.partition("\n----------\n")[2], flags=re.MULTILINE)[1:]
    return head, {name: text.rstrip() for name, text in zip(described[::2], described[1::2], strict=True)}, after


def _wrapped(text: str) -> str:
    margin = " " * 4
    return textwrap.fill(
        text, 112, initial_indent=margin, subsequent_indent=margin, break_long_words=False, break_on_hyphens=False
    )
