"""Change the code in one place at a time, and list the changes that no test notices.

For example::

    python scripts/mutants.py tokens/rows shards --most 40

Without a name all modules of `TESTS` are taken. Each change runs in a process of its own, forked from one that has
imported everything, so that it takes as long as the tests of its module up to the first that fails. A change that
computes the same is no gap.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import os
import random
import signal
import sys
import time
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
NETWORK = ("tests/model/network", "tests/model/test_reference.py")
TRAINING = ("tests/model/training", "tests/model/tokens/test_edits.py")
# Modules whose numbers decide, below src/tahoe, and the tests that are to notice a change of them.
TESTS: dict[str, tuple[str, ...]] = {
    "model/tokens/tokenizer": ("tests/model/tokens/test_tokenizer.py", "tests/model/test_reference.py"),
    "model/tokens/rows": ("tests/model/tokens/test_tokenizer.py", "tests/_genes/test_duplicates.py"),
    "model/tokens/packed": ("tests/model/tokens",),
    "model/tokens/edits": ("tests/model/tokens/test_edits.py", "tests/tl/test_perturb.py"),
    "model/tokens/vocabulary": ("tests/model/tokens", "tests/model/checkpoint/test_weights.py"),
    "model/network/attention": NETWORK,
    "model/network/decoders": NETWORK,
    "model/network/encoders": NETWORK,
    "model/network/first_order": ("tests/model/network/test_first_order.py",),
    "model/network/network": NETWORK,
    "model/training/initialise": TRAINING,
    "model/training/loop": TRAINING,
    "model/training/objective": TRAINING,
    "_store/shards": ("tests/_store/test_shards.py", "tests/_store/test_resumed_drugs.py"),
    "_run/means": ("tests/_run/test_means.py", "tests/tl/test_attention.py", "tests/tl/test_embed_genes.py"),
    "_run/predictions": ("tests/tl/test_predict_expression.py",),
    "_perturbation/statistics": ("tests/_perturbation/test_statistics.py",),
    "_scores/permutation": ("tests/evaluate/test_perturbation.py",),
    "_scores/folds": ("tests/evaluate/test_cell_types.py",),
    "_reference/labels": ("tests/_reference/test_labels.py",),
}
SWAPPED: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitAnd,
}  # fmt: skip
BLOCKS = ("body", "orelse", "finalbody")
KILLED, SURVIVED, LATE = "killed", "survived", "late"


@dataclass(frozen=True)
class Mutant:
    """One changed function."""

    function: str
    line: int
    before: str
    after: str
    code: CodeType


def mutants_of(path: Path) -> list[Mutant]:
    """All changes of the functions of a module."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = []
    for name, function in _functions(tree.body, ""):
        for statement in _statements(function):
            for number, _ in enumerate(_changes(statement)):
                changed = deepcopy(tree)
                twin = dict(_functions(changed.body, ""))[name]
                same = [each for each in _statements(twin) if each.lineno == statement.lineno][0]
                before = ast.unparse(same).partition("\n")[0]
                list(_changes(same, number))
                after = ast.unparse(same).partition("\n")[0]
                module = compile(ast.fix_missing_locations(changed), str(path), "exec")
                found.append(Mutant(name, statement.lineno, before, after, _code_of(module, name)))
    return found


def _functions(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    for node in body:
        if isinstance(node, ast.FunctionDef):
            yield prefix + node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from _functions(node.body, f"{prefix}{node.name}.")


def _statements(function: ast.FunctionDef) -> Iterator[ast.stmt]:
    """What computes something: no words of errors, and no docstrings."""
    todo: list[ast.stmt] = list(function.body)
    while todo:
        node = todo.pop(0)
        text = ast.unparse(node)
        if isinstance(node, ast.Raise | ast.Import | ast.ImportFrom) or text.startswith(("message =", "warn(", "log.")):
            continue
        if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            yield node
        for name in BLOCKS:
            todo += _block(node, name)


def _block(node: ast.AST, name: str) -> list[Any]:
    block = getattr(node, name, [])
    return block if isinstance(block, list) else []


def _changes(statement: ast.stmt, chosen: int | None = None) -> Iterator[None]:
    """Each place of a statement that can be changed; the one with the number `chosen` is changed."""
    inner = {id(each) for name in (*BLOCKS, "handlers") for each in _block(statement, name)}
    todo: list[ast.AST] = [statement]
    number = -1
    while todo:
        node = todo.pop(0)
        for apply in _operators(node):
            number += 1
            if number == chosen:
                apply()
            yield
        if number != chosen or chosen is None:
            todo += [each for each in ast.iter_child_nodes(node) if id(each) not in inner and not _is_idle(node, each)]


def _is_idle(parent: ast.AST, node: ast.AST) -> bool:
    """Whether a part computes nothing: annotations, and texts."""
    return node is getattr(parent, "annotation", None) or isinstance(node, ast.JoinedStr)


def _operators(node: ast.AST) -> Iterator[Any]:
    """The ways to change one node in place."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPPED:
        yield lambda: node.ops.__setitem__(0, SWAPPED[type(node.ops[0])]())
    elif isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign) and type(node.op) in SWAPPED:
        yield lambda: setattr(node, "op", SWAPPED[type(node.op)]())
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield lambda: setattr(node, "op", ast.UAdd())
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield lambda: setattr(node, "operand", ast.UnaryOp(ast.Not(), node.operand))
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
        yield lambda: setattr(node, "value", not node.value if isinstance(node.value, bool) else node.value + 1)
    elif isinstance(node, ast.IfExp):
        yield lambda: (lambda one, other: (setattr(node, "body", other), setattr(node, "orelse", one)))(
            node.body, node.orelse
        )
    elif isinstance(node, ast.Call):
        for keyword in list(node.keywords):
            if not (isinstance(keyword.value, ast.Constant) and keyword.value.value is None):
                yield lambda keyword=keyword: node.keywords.remove(keyword)
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield lambda: setattr(node, "value", ast.Constant(None))


def _code_of(module: CodeType, name: str) -> CodeType:
    for part in name.split("."):
        module = next(each for each in module.co_consts if isinstance(each, CodeType) and each.co_name == part)
    return module


def _function(module: Any, name: str) -> FunctionType | None:
    """The function itself, below its decorators."""
    found = module
    for part in name.split("."):
        found = vars(found)[part]
    for attribute in ("fget", "func", "__func__"):
        found = getattr(found, attribute, found) if not isinstance(found, FunctionType) else found
    while hasattr(found, "__wrapped__"):
        found = found.__wrapped__
    return found if isinstance(found, FunctionType) else None


def run(module: Any, mutant: Mutant | None, tests: tuple[str, ...], seconds: int) -> str:
    """Whether a test fails with this change; without one, whether all pass."""
    import pytest

    child = os.fork()
    if not child:
        signal.alarm(seconds)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        if mutant is not None:
            _function(module, mutant.function).__code__ = mutant.code
        # what was imported before is not rewritten, which is no matter here
        options = ["-x", "-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
        os._exit(int(pytest.main([*options, *tests]) != 0))
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return LATE if os.WTERMSIG(status) == signal.SIGALRM else KILLED
    return KILLED if os.WEXITSTATUS(status) else SURVIVED


def main() -> int:
    """Try the changes, and print which survive."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("modules", nargs="*", help="names of TESTS, or how these end")
    parser.add_argument("--most", type=int, default=10_000, help="changes of a module, drawn at random")
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after so long")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.chdir(ROOT)
    import torch

    torch.set_num_threads(1)  # threads do not survive a fork
    for name in ("anndata", "scanpy", "tahoe.tl", "tahoe.pl", "tahoe.evaluate"):
        importlib.import_module(name)
    end, failed = time.monotonic() + options.seconds, False
    for name, tests in TESTS.items():
        if options.modules and not name.endswith(tuple(options.modules)):
            continue
        module = importlib.import_module(f"tahoe.{name.replace('/', '.')}")
        mutants = [
            each for each in mutants_of(ROOT / "src" / "tahoe" / f"{name}.py") if _function(module, each.function)
        ]
        start = time.monotonic()
        if run(module, None, tests, 600) != SURVIVED:
            print(f"{name}: its tests fail without any change")
            failed = True
            continue
        limit = 30 + 3 * int(time.monotonic() - start)
        chosen = random.Random(options.seed).sample(mutants, min(options.most, len(mutants)))
        results = []
        for mutant in sorted(chosen, key=lambda each: each.line):
            if time.monotonic() > end:
                break
            results.append(run(module, mutant, tests, limit))
            if results[-1] == SURVIVED:
                print(f"{name}:{mutant.line} {mutant.function}\n  - {mutant.before}\n  + {mutant.after}", flush=True)
        counts = ", ".join(f"{results.count(each)} {each}" for each in (KILLED, LATE, SURVIVED))
        print(f"{name}: {len(results)} of {len(mutants)} changes tried: {counts}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
