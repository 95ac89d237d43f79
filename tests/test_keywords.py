"""One vocabulary of keywords: what two functions both take has one name, one default, one type and one place.

A new verb needs an entry in `OWN`, with the keywords that are its own; a new shared keyword one in `NETWORK` or
`PLOT`, in the table of docs/guide/design.md, and in `tahoe._run.parameters.TEXTS`.
"""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING

import pytest

import tahoe
from tahoe._run.parameters import TEXTS, document_parameters
from tahoe.cli.main import commands

if TYPE_CHECKING:
    from collections.abc import Callable

DESIGN = Path(__file__).parents[1] / "docs" / "guide" / "design.md"
REQUIRED = inspect.Parameter.empty
ANY = object()

MODEL = "str | os.PathLike[str] | TahoeModel"
DEVICE, DTYPE = "str | torch.device | None", "str | torch.dtype | None"
DRUGS = "str | os.PathLike[str] | Mapping[str, int] | None"

# Default and type of what functions share, in the order in which they have it.
NETWORK = {
    "adata": (REQUIRED, "AnnData"),
    "model": ("70m", MODEL),
    "*": (),
    "groupby": (None, "str | None"),
    "layer": (None, "str | None"),
    "use_raw": (False, "bool"),
    "mask_var": (None, "str | np.ndarray | None"),
    "drug_key": (None, "str | None"),
    "drugs": (None, DRUGS),
    "max_length": (2048, "int"),
    "min_coverage": (0.5, "float"),
    "seed": (0, "int"),
    "key_added": (ANY, "str"),
    "device": (None, DEVICE),
    "dtype": (None, DTYPE),
    "copy": (False, "bool"),
}
PLOT = {
    "adata": (REQUIRED, "AnnData"),
    "gene": (REQUIRED, "str"),
    "*": (),
    "group": (None, "str | None"),
    "ax": (None, "Axes | None"),
}
# Keywords of one function alone, or of a few, which come first behind the star.
OWN = {
    "pp.map_genes": ["gene_key", "organism", "duplicates"],
    "tl.embed": ["normalize"],
    "tl.embed_genes": ["context"],
    "tl.attention": ["network_layer", "heads", "genes", "top_k", "min_cells"],
    "tl.predict_expression": ["genes", "mask_fraction", "decoder"],
    "tl.predict": [],
    "tl.perturb": [
        *("genes", "kind", "goal", "alternative", "method", "replicate_key", "min_cells", "n_cells", "n_null"),
        *("n_exact", "n_projections"),
    ],
    "tl.search": ["k", "exact", "model"],
    "tl.transfer_labels": ["obs_key", "k", "alpha", "cluster_key", "mostly_known", "exact", "model"],
    "get.gene_embeddings": ["cell"],
    "get.attention": ["cell", "network_layer", "heads"],
    "get.perturbation": ["key", "group", "sort_by", "ascending", "min_edited", "max_q"],
    "pl.attention": ["key", "genes", "kind", "n_pairs"],
    "pl.gene_mapping": [],
    "pl.gene_neighbors": ["key", "n_neighbors", "min_cells"],
    "pl.evaluation": ["metrics"],
    "pl.label_transfer": ["groupby"],
    "pl.perturbation": ["key", "y", "x", "n_genes", "min_edited"],
    "evaluate.cell_types": ["label_key", "groups", "batch_key", "layer", "use_raw", "n_folds", "seed"],
    "evaluate.essentiality": ["matched", "layer", "n_folds", "seed"],
    "evaluate.gene_sets": ["protocol", "layer", "seeds", "n_folds", "device"],
    "evaluate.perturbation": ["perturbation_key", "context_key", "train", "layer", "max_cells", "seed"],
    "datasets.pbmc68k": [],
    "datasets.pbmc68k_reference": [],
    "build_reference": [
        *("obs_keys", "use_rep", "groups", "index", "stored_dtype", "n_held_back", "seed"),
        *("cells_per_shard", "resume", "client"),
    ],
    "fine_tune": ["method", "groups", "validation", "class_weight", "plan", "output"],
    "load_reference": ["revision"],
    "continue_training": [
        *("shares", "validation", "resume", "sharded", "gene_key", "organism", "duplicates"),
    ],
    "embed_file": [
        *("normalize", "gene_key", "organism", "duplicates"),
        *("keep_metadata", "stored_dtype", "cells_per_shard", "resume", "client"),
    ],
    "load_model": ["revision", "base"],
}
# Where a function departs from the table, and why.
EXCEPT = {
    # no AnnData, but a file and what is made of it; a selection of genes must be in the file
    "embed_file": {"mask_var": (None, "str | None")},
    # what a long run begins with is named; a selection of genes must be in the files
    "continue_training": {"model": (REQUIRED, MODEL), "mask_var": (None, "str | None")},
    # the one door to weights: there is no default to what it opens, and only here the kernel is chosen
    "load_model": {"model": (REQUIRED, MODEL), "attention": (None, "str | None")},
    # the drugs themselves may be what is perturbed; and one gene less needs float32
    "tl.perturb": {"drugs": (None, f"{DRUGS.removesuffix(' | None')} | Sequence[str] | None"), "dtype": (None, DTYPE)},
    # training takes longer than embedding, and the released models were trained so; the seed is that of training, too
    "fine_tune": {"max_length": (1024, "int"), "seed": (0, "int")},
    # there is no model that everybody has taught; results are named by what it was taught
    "tl.predict": {"model": (REQUIRED, MODEL), "key_added": (None, "str | None")},
    # a result for each obs_key, named by it
    "tl.transfer_labels": {"key_added": (None, "str | None")},
}
FIRST = {
    "fine_tune": ["adata", "target"],
    "tl.predict": ["adata", "model"],
    "continue_training": ["sources", "model", "plan", "output"],
    "embed_file": ["source", "output"],
    "build_reference": ["source", "path"],
    "load_reference": ["reference"],
    "tl.search": ["adata", "reference"],
    "tl.transfer_labels": ["adata", "reference"],
    "evaluate.cell_types": ["adata", "use_rep"],
    "evaluate.essentiality": ["adata", "use_rep", "labels"],
    "evaluate.gene_sets": ["adata", "use_rep", "gmt"],
    "evaluate.perturbation": ["true", "predicted", "control"],
    "pl.evaluation": ["table"],
    "pl.label_transfer": ["adata", "key"],
    "datasets.pbmc68k_reference": ["path"],
}
# What functions may have with several defaults: names of slots; and a mapping that is there is not made anew.
VARYING = {"key", "key_added", "organism", "duplicates", "model", "mask_var", "source", "cells_per_shard"}
VARYING |= {"max_length", "output", "method"}  # of training: see EXCEPT; a folder for what is returned anyway
VARYING |= {"plan", "validation"}  # of training on files, and on an AnnData
VARYING |= {"genes", "kind", "drugs"}  # of a perturbation: combinations too, and kinds of its own
VARYING |= {"use_rep"}  # an evaluation compares several


def public_functions() -> dict[str, FunctionType]:
    """All functions that users call, by their names without ``tahoe.``."""
    found = {name: getattr(tahoe, name) for name in tahoe.__all__}
    for room in ("pp", "tl", "pl", "get", "evaluate", "datasets"):
        found |= {f"{room}.{name}": getattr(found[room], name) for name in found[room].__all__}
    return {name: value for name, value in found.items() if isinstance(value, FunctionType)}


FUNCTIONS = public_functions()


def expected(name: str, present: set[str]) -> list[str]:
    """The parameters of a function in their order, "*" being where keywords begin."""
    table = list(PLOT if name.startswith("pl.") else NETWORK)
    star = table.index("*")
    own = OWN[name]
    before = list(dict.fromkeys(FIRST.get(name, []) + [each for each in table[:star] if each not in own]))
    after = table[star + 1 :] + [*EXCEPT.get(name, {})]
    after = [each for number, each in enumerate(after) if each not in before and each not in after[:number]]
    kept = [each for each in before if each in present], [each for each in after if each in present and each not in own]
    return kept[0] + ["*"] * bool(own or kept[1]) + own + kept[1]


def check(name: str, function: Callable[..., object]) -> None:
    """Hold a function to the vocabulary."""
    assert name in OWN, f"{name} is new: list the keywords that are its own in OWN"
    parameters = inspect.signature(function).parameters
    keywords = [each.name for each in parameters.values() if each.kind is each.KEYWORD_ONLY]
    found = [each for each in parameters if each not in keywords] + ["*"] * bool(keywords) + keywords
    assert found == expected(name, set(parameters)), name
    table = {**NETWORK, **PLOT, **EXCEPT.get(name, {})}
    for each, parameter in parameters.items():
        if each in table and each not in OWN[name]:
            default, annotation = table[each]
            assert default is ANY or parameter.default == default, f"{name}: {each}={parameter.default!r}"
            assert parameter.annotation == annotation, f"{name}: {each}: {parameter.annotation}"
    documented = texts(function)
    assert list(documented) == list(parameters), name
    assert all(documented.values()), name


def texts(function: Callable[..., object]) -> dict[str, str]:
    """What the docstring says of each parameter, on one line."""
    text = inspect.cleandoc(function.__doc__ or "")
    section = re.search(r"^Parameters\n-+\n(.*?)(?=^\w+\n-+$)", text, re.MULTILINE | re.DOTALL)
    parts = re.split(r"^(\w.*)\n", section[1], flags=re.MULTILINE)[1:] if section else []
    return {name: " ".join(text.split()) for name, text in zip(parts[::2], parts[1::2], strict=True)}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_vocabulary_is_held(name):
    check(name, FUNCTIONS[name])


def test_no_entry_is_left_over():
    assert set(OWN) == set(FUNCTIONS)


def test_a_keyword_means_one_thing():
    """What several functions have, shared by all or not, has one default and one type."""
    seen: dict[str, dict[str, tuple]] = {}
    for name, function in FUNCTIONS.items():
        for each, parameter in inspect.signature(function).parameters.items():
            seen.setdefault(each, {})[name] = (repr(parameter.default), parameter.annotation)
    differing = {each: found for each, found in seen.items() if each not in VARYING and len(set(found.values())) > 1}
    assert not differing


def test_texts_stand_once():
    """A parameter that nothing is added to is described in the words of all others."""
    described = {name: texts(function) for name, function in FUNCTIONS.items() if name != "load_model"}
    for parameter, text in TEXTS.items():
        same = [found[parameter] == " ".join(text.split()) for found in described.values() if parameter in found]
        assert any(same), f"nobody says what TEXTS says of {parameter}"
    for parameter in [*NETWORK][[*NETWORK].index("*") + 1 :]:
        if parameter not in ("key_added", "mask_var"):
            shared = {
                name: found for name, found in described.items() if parameter not in [*OWN[name], *EXCEPT.get(name, {})]
            }
            assert len({found[parameter] for found in shared.values() if parameter in found}) == 1, parameter


@pytest.mark.parametrize("name", ["tl.embed", "tl.attention", "embed_file"])
@pytest.mark.parametrize("old", ["attention", "token_budget", "batch_size"])
def test_what_is_no_keyword_is_pythons_error(name, old):
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{old}'"):
        FUNCTIONS[name](*(["x", "y"] if name == "embed_file" else ["x"]), **{old: 1})


def stray(adata: AnnData, model: str | os.PathLike[str] | TahoeModel = "70m", *, batch: int = 1) -> None:  # noqa: F821
    """Say.

    Parameters
    ----------
    adata
        Data.
    model
        Model.
    batch
        Size.

    Returns
    -------
    Nothing.
    """


def changed(function: FunctionType, **parameters: inspect.Parameter | None) -> Callable[..., object]:
    """A stand-in for a function, some of whose parameters are replaced, or dropped if None."""

    def copy() -> None:
        pass

    copy.__doc__ = function.__doc__
    signature = inspect.signature(function)
    kept = [parameters.get(name, each) for name, each in signature.parameters.items()]
    copy.__signature__ = signature.replace(parameters=[each for each in kept if each is not None])
    return copy


def planted() -> dict[str, Callable[..., object]]:
    """Functions that depart from the vocabulary, each in one way."""
    embed = FUNCTIONS["tl.embed"]
    given = inspect.signature(embed).parameters
    swapped = changed(embed, seed=given["max_length"], max_length=given["seed"])
    undocumented = changed(embed)
    undocumented.__doc__ = re.sub(r"^seed\n(    .*\n)+", "", embed.__doc__, flags=re.MULTILINE)
    empty = changed(embed)
    empty.__doc__ = re.sub(r"^seed\n(    .*\n)+", "seed\n", embed.__doc__, flags=re.MULTILINE)
    positional = given["normalize"].replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return {
        "another name": changed(embed, max_length=given["max_length"].replace(name="max_len")),
        "another default": changed(embed, max_length=given["max_length"].replace(default=1024)),
        "another type": changed(embed, seed=given["seed"].replace(annotation="int | None")),
        "no default": changed(embed, model=given["model"].replace(default=REQUIRED)),
        "an own keyword is gone": changed(embed, normalize=None),
        "not by keyword only": changed(embed, normalize=positional),
        "another order": swapped,
        "an unknown keyword": stray,
        "not documented": undocumented,
        "without a text": empty,
    }


@pytest.mark.parametrize("deviation", planted())
def test_a_deviation_is_noticed(deviation):
    check("tl.embed", changed(FUNCTIONS["tl.embed"]))
    with pytest.raises(AssertionError):
        check("tl.embed", planted()[deviation])


def test_a_new_verb_is_noticed():
    with pytest.raises(AssertionError, match=r"tl\.new is new"):
        check("tl.new", FUNCTIONS["tl.embed"])


@pytest.mark.skipif(not DESIGN.is_file(), reason="the documentation is not part of this copy")
def test_the_documentation_has_the_table():
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", DESIGN.read_text(encoding="utf-8"), re.MULTILINE)
    told = {name: default.strip("`") for name, default in rows if name in NETWORK}
    defaults = {REQUIRED: "required", ANY: "the verb's own"}
    assert told == {
        name: defaults.get(entry[0], repr(entry[0]).replace("'", '"')) for name, entry in NETWORK.items() if entry
    }
    assert list(told) == [name for name in NETWORK if name != "*"]


def test_the_command_line_has_the_same_keywords():
    """An option of `tahoe embed` is a keyword of `embed_file` with its default, or one of the command line's own."""
    keywords = inspect.signature(tahoe.embed_file).parameters
    options = commands.commands["embed"].make_context("embed", ["source", "-o", "output"]).params
    own = {"workers", "scheduler", "like", "attention", "token_budget"}
    assert set(options) - own == set(keywords) - {"client"}
    for name in set(options) - own - {"source", "output"}:
        assert options[name] == keywords[name].default, name


def test_the_command_line_takes_former_names():
    given = ["source", "-o", "output", "--columns", "--shard-cells", "5"]
    options = commands.commands["embed"].make_context("embed", given).params
    assert (options["keep_metadata"], options["cells_per_shard"]) == (True, 5)


def test_parameters_that_are_inserted():
    def verb(adata, own, seed):
        """Do it.

        Parameters
        ----------
        own
            Its own:

            - in two lines

        Returns
        -------
        Nothing.
        """

    assert document_parameters(verb) is verb
    assert list(texts(verb)) == ["adata", "own", "seed"]
    assert texts(verb)["own"] == "Its own: - in two lines"
    assert texts(verb)["seed"] == " ".join(TEXTS["seed"].split())
    assert verb.__doc__.startswith("Do it.\n\nParameters\n----------\nadata\n    Annotated")
    assert verb.__doc__.endswith("\n\nReturns\n-------\nNothing.")
    assert "\n    Its own:\n\n    - in two lines\nseed\n" in verb.__doc__


def test_what_cannot_be_inserted():
    def verb(own):
        """Do it.

        Returns
        -------
        Nothing.
        """

    with pytest.raises(KeyError, match="own"):
        document_parameters(verb)

    def other():
        """Do it.

        Parameters
        ----------
        gone
            No more.

        Returns
        -------
        Nothing.
        """

    with pytest.raises(ValueError, match="describes parameters that it does not have: gone"):
        document_parameters(other)


def test_without_docstrings():
    """As under ``python -OO``."""
    code = "import tahoe; assert tahoe.tl.embed.__doc__ is None; assert tahoe.pl.attention.__doc__ is None"
    subprocess.run([sys.executable, "-OO", "-c", code + "; print('ok')"], check=True)
