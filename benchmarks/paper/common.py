"""What the benchmarks share: which files they need, what is done already, and how a table is printed."""

from __future__ import annotations

import argparse
import hashlib
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import anndata
import numpy as np
import pandas as pd

from tahoe.errors import TahoeError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Needed:
    """A file, or several, that must be in the data folder."""

    patterns: tuple[str, ...]
    """Any of these, relative to the folder."""
    what: str
    where: str
    size: str
    sha256: str = ""
    checked: bool = True
    """Whether others name this address for this file, too; nobody has fetched it from here."""

    def find(self, folder: Path) -> list[Path]:
        return sorted({path for pattern in self.patterns for path in folder.glob(pattern)})


def run(main: Callable[[], object]) -> None:
    """Call it, and end with the message alone if the cells, the model or an option cannot be used."""
    try:
        main()
    except TahoeError as error:
        sys.exit(str(error))


def parse(doc: str | None, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="70m", help="70m, 1b, 3b, demo, or the folder of a checkpoint")
    parser.add_argument("--data", type=Path, required=True, help="folder with the files that are needed")
    parser.add_argument("--device", help="by default a GPU if there is one")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    options.results = options.data / "results" / Path(str(options.model)).name
    return options


def require(folder: Path, needed: Sequence[Needed]) -> list[list[Path]]:
    """The files, or an end with a list of all that is missing and where to get it."""
    found = [need.find(folder) for need in needed]
    problems = [
        f"- {' or '.join(need.patterns)}: {need.what} ({need.size})\n  from {need.where}"
        + ("" if need.checked else " (unchecked)")
        for need, paths in zip(needed, found, strict=True)
        if not paths
    ]
    problems += [
        f"- {path.name}: its sha256 is not {need.sha256}; fetch it again from {need.where}"
        for need, paths in zip(needed, found, strict=True)
        for path in paths
        if need.sha256 and digest(path) != need.sha256
    ]
    if problems:
        sys.exit(f"In {folder} these files are missing or wrong:\n" + "\n".join(problems))
    return found


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def array_once(path: Path, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """An array that is computed, or read if an earlier call has computed it."""
    if not path.exists():
        _write(path, lambda part: np.save(part, compute()), ".npy")
    return np.load(path)


def table_once(path: Path, compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """A table that is computed, or read if an earlier call has computed it."""
    if not path.exists():
        _write(path, lambda part: compute().to_csv(part, index=False), ".csv")
    return pd.read_csv(path, keep_default_na=False, na_values=["", "nan", "NaN"])


def cells_once(path: Path, compute: Callable[[], anndata.AnnData]) -> anndata.AnnData:
    """An AnnData that is computed, or read if an earlier call has computed it."""
    if not path.exists():
        _write(path, lambda part: compute().write_h5ad(part), ".h5ad")
    return anndata.read_h5ad(path)


def _write(path: Path, write: Callable[[Path], object], ending: str) -> None:
    """A file that is there is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"unfinished-{path.stem}{ending}")
    log.info("computing %s", path)
    write(part)
    part.replace(path)


def show(title: str, table: pd.DataFrame) -> None:
    """Print a table as it comes out: value, and its standard error where it has one."""
    table = table.assign(
        shown=[
            "–" if np.isnan(value) else f"{value:.3f}" + ("" if np.isnan(error) else f" ± {error:.3f}")
            for value, error in zip(table["value"], table["standard_error"].astype(float), strict=True)
        ]
    )
    wide = table.pivot(index="metric", columns="representation", values="shown").fillna("")
    wide = wide.loc[table["metric"].unique(), table["representation"].unique()]
    print(f"\n{title}\n\n| | {' | '.join(wide.columns)} |\n|{'---|' * (wide.shape[1] + 1)}")
    for name, row in wide.iterrows():
        print(f"| {name} | {' | '.join(row)} |")
