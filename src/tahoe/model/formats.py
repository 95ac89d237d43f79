"""What a file or a folder is that is not an AnnData, and the line of code that makes one of it."""

from __future__ import annotations

import zlib
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

# As many bytes tell all kinds below; the mark of a tar archive comes last.
HEAD = 512
HDF5 = b"\x89HDF\r\n\x1a\n"
ZIP = b"PK\x03\x04"
IN_R = 'in R: anndataR::write_h5ad(readRDS({name}), "cells.h5ad"), of a SingleCellExperiment or a Seurat object'
IN_PYTHON = "if you trust it, unpickle it, and call .write_h5ad('cells.h5ad') on the AnnData"
# What a file begins with, what it then is, and what to do; {name} is its name in quotes, {bare} without.
STAND_INS: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs.github.com", "is a pointer of Git LFS, not the file itself", "call `git lfs pull`"),
    (b"/annex/objects/", "is a pointer of git-annex, not the file itself", "call `git annex get {bare}`"),
    (b"<!doctype html", "is a page of a web site, not data", "download the file itself; the site may ask for a login"),
    (b"<html", "is a page of a web site, not data", "download the file itself; the site may ask for a login"),
    (b"<?xml", "is an answer in XML, not data, such as a server gives that refuses a download", "download it again"),
)
KINDS: tuple[tuple[bytes, str, str], ...] = (
    (b"BZh", "is compressed by bzip2", "call `bunzip2 -k {bare}`"),
    (b"\xfd7zXZ\x00", "is compressed by xz", "call `unxz -k {bare}`"),
    (b"\x28\xb5\x2f\xfd", "is compressed by zstd", "call `unzstd {bare}`"),
    (b"RDX", "is a file of R", IN_R),
    (b"X\n\x00\x00\x00", "is a file of R (rds)", IN_R),
    (b"%%MatrixMarket", "is a matrix of Matrix Market (mtx)", "{mtx}"),
    (b"PAR1", "is a Parquet table", "anndata.AnnData(pandas.read_parquet({name})).write_h5ad('cells.h5ad')"),
    (b"\x93NUMPY", "is an array of numpy", "anndata.AnnData(numpy.load({name}), obs, var).write_h5ad('cells.h5ad')"),
    *((b"\x80" + bytes([version]), "is a pickle of Python", IN_PYTHON) for version in (2, 3, 4, 5)),
)


def of_file(head: bytes, name: str) -> str:
    """Say what a file is that begins like this, and what to do; "" if that is unknown or it may be HDF5."""
    if head.startswith(b"\x1f\x8b"):
        return _packed(head, name)
    if head[257:262] == b"ustar":
        return _with_advice(name, "is a tar archive", "unpack it first: `tar xf {bare}`")
    for mark, what, todo in KINDS:
        if head.startswith(mark):
            return _with_advice(name, what, todo)
    return stand_in(head, name) or _table(head, name)


def stand_in(head: bytes, name: str) -> str:
    """Say what a failed download, or a checkout, has put in the place of a file; "" if it may be the file."""
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for mark, what, todo in STAND_INS:
        if start.startswith(mark):
            return _with_advice(name, what, todo)
    return ""


def _packed(head: bytes, name: str) -> str:
    """What lies in a file that is compressed by gzip."""
    try:
        inner = zlib.decompressobj(wbits=31).decompress(head, HEAD)
    except zlib.error:
        inner = b""
    if inner.startswith(HDF5):
        return _with_advice(name, "is compressed by gzip", "unpack it first: `gunzip -k {bare}`")
    if inner[257:262] == b"ustar":
        return _with_advice(name, "is a tar archive, compressed by gzip", "unpack it first: `tar xzf {bare}`")
    inside = of_file(inner, name) if not inner.startswith(b"\x1f\x8b") else ""
    return inside or _with_advice(name, "is compressed by gzip", "unpack it first: `gunzip -k {bare}`")


def _table(head: bytes, name: str) -> str:
    """Say how a table of text is read; the separator is the one that its first line has."""
    first = head.partition(b"\n")[0]
    is_text = bool(first) and not any(byte < 32 and byte not in b"\t\r" for byte in first)
    separator = max((b",", b"\t", b";"), key=first.count)
    if not is_text or not first.count(separator):
        return ""
    reader = "sc.read_csv({name}" if separator == b"," else f"sc.read_text({{name}}, delimiter={separator.decode()!r}"
    todo = f"{reader}, first_column_names=True).write_h5ad('cells.h5ad'), with .T before .write_h5ad if genes are rows"
    return _with_advice(name, "is a table of text", todo)


def _with_advice(name: str, what: str, todo: str) -> str:
    folder = str(Path(name).parent)
    mtx = f"sc.read_10x_mtx({folder!r}).write_h5ad('cells.h5ad'), which wants the barcodes and features beside it"
    return f"{name!r} {what}; {todo.format(name=repr(name), bare=name, mtx=mtx)}"


def of_zip(inside: list[str], name: str) -> str:
    """Say what a zip archive is that holds no zarr store, by the names of what is in it."""
    if inside and all(each.endswith(".npy") for each in inside):
        return _with_advice(
            name, "is a file of numpy or scipy (npz)", "anndata.AnnData(scipy.sparse.load_npz({name}), obs, var)"
        )
    if "[Content_Types].xml" in inside:
        return _with_advice(name, "is a table of Excel", "sc.read_excel({name}, sheet).write_h5ad('cells.h5ad')")
    return _with_advice(name, "is a zip archive without a zarr store", "unpack it first: `unzip {bare}`")


def of_hdf5(keys: Iterable[str], name: str) -> str:
    """Say what an HDF5 file or a zarr store is that has these elements and no obs and var with an index."""
    if part := _part_of_store(name):
        return part
    keys = set(keys)
    if "mod" in keys:
        return f"{name!r} is a MuData; mudata.read({name!r})['rna'].write_h5ad('rna.h5ad'), for the modality 'rna'"
    if {"matrix", "row_attrs", "col_attrs"} <= keys:
        how = f"sc.read_loom({name!r}).write_h5ad('cells.h5ad'), after `pip install loompy`"
        return f"{name!r} is a loom file; {how}"
    if "assays" in keys and keys & {"cell.names", "meta.data"}:
        return f'{name!r} is an h5Seurat file; in R: SeuratDisk::Convert({name!r}, dest = "h5ad")'
    if {"tables", "images", "points", "shapes", "labels"} & keys and "obs" not in keys:
        return f"{name!r} is a SpatialData store; pass its table, such as {name.rstrip('/') + '/tables/table'!r}"
    if {"obs", "var"} <= keys or {"X", "obs"} <= keys:
        how = f"anndata.read_h5ad({name!r}).write_h5ad('cells.h5ad')"
        return (
            f"{name!r} is not an AnnData, or in the format of an anndata before 0.7: obs or var have no index; {how}"
            " where anndata still reads it"
        )
    found = ", ".join(islice(map(repr, sorted(keys)), 8)) or "nothing"
    return f"{name!r} is not an AnnData: it has no obs and var, but {found}; read it with its own package, write h5ad"


def _part_of_store(name: str) -> str:
    """Say of which store something is a part, "" if it is not in one."""
    parents = Path(name).absolute().parents
    above = next((each for each in parents if (each / "obs").is_dir() and (each / "var").is_dir()), None)
    return "" if above is None else f"{name!r} is a part of {str(above)!r}; pass that"


def of_folder(name: str) -> str:
    """Say what a folder is that is no zarr store, and what in it may be meant."""
    place = Path(name)
    names = {path.name for path in place.iterdir()}
    if {"run.json", "store"} <= names:
        return f"{name!r} is an unfinished run; finish it with resume=True (--resume), and take its output"
    if "model.safetensors" in names:
        return f"{name!r} is the folder of a model; pass it as model= (--model), and cells as source"
    if names & {"matrix.mtx", "matrix.mtx.gz"}:
        return f"{name!r} is a folder of 10x Genomics (mtx); sc.read_10x_mtx({name!r}).write_h5ad('cells.h5ad')"
    if any(each.startswith("__tiledb_group") or each == "__group" for each in names):
        return f"{name!r} is a TileDB-SOMA experiment; write h5ad with tiledbsoma.io.to_h5ad"
    if part := _part_of_store(name):
        return part
    patterns = ("*.h5ad", "*.zarr", "*.zarr.zip", "*.h5", "matrix.mtx*")
    near = [path for depth in ("", "*/", "*/*/") for pattern in patterns for path in place.glob(depth + pattern)][:3]
    meant = [str(path.parent if path.name.startswith("matrix.mtx") else path) for path in near]
    hint = f"it has {', '.join(map(repr, meant))}: pass that" if meant else "it has neither zarr.json nor .zgroup"
    return f"{name!r} is a folder, and no zarr store; {hint}"
