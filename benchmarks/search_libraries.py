"""Libraries that search nearest neighbours, on the same vectors: what `tahoe.build_reference` chose from.

    python benchmarks/search_libraries.py vectors DATA vectors.npy --cells 200000   # where tahoe is installed
    python benchmarks/search_libraries.py measure faiss-ivf vectors.npy             # where the library is

`vectors` embeds the sets of a folder with the demo model (128 wide), turns the vectors into 512 dimensions (a random
rotation, which keeps all distances), and draws as many as are wanted between a cell and one of its ten nearest, with
noise of a quarter of that distance. They are real in their clusters and densities, and made up in their number.
`measure` builds the index; called again, it searches 1,000 other such vectors in a fresh process, and compares with
exact search. It asks for twice as many as are wanted, and takes the best by the stored vectors. Times are those of the
processor, so that other work on the machine is not in them; with OMP_NUM_THREADS=1 (and one thread for usearch,
hnswlib and voyager) they are also those of an idle core.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import numpy as np

N_QUERIES, K, WIDTH = 1000, 50, 512
MOST = 800  # cells of a set


def embedded(folder: Path) -> np.ndarray:
    """Unit vectors of all cells of the human sets below a folder."""
    import warnings

    import anndata

    import tahoe

    warnings.filterwarnings("ignore")
    model, parts = tahoe.load_model("demo", device="cpu"), []
    for path in sorted(folder.rglob("*.h5ad")):
        if "mouse" in path.name or "papalexi" in path.name:  # 299 genes
            continue
        adata = anndata.read_h5ad(path)
        adata = adata[:: -(-adata.n_obs // MOST)].copy()
        try:
            tahoe.tl.embed(adata, model, max_length=1024, min_coverage=0.1)
        except tahoe.errors.TahoeError as error:
            print(path.name, error)
            continue
        parts.append(adata.obsm["X_tahoe"])
        print(path.name, parts[-1].shape, flush=True)
    vectors = np.concatenate(parts)
    return vectors[np.isfinite(vectors).all(axis=1)]


def make(folder: Path, output: Path, n_cells: int, width: int) -> None:
    cache = output.with_name("embedded.npy")
    if not cache.exists():
        np.save(cache, embedded(folder))
    real = np.load(cache)
    rng = np.random.default_rng(0)
    some = real[rng.choice(len(real), 1000, replace=False)]
    squared = 2 - 2 * np.clip(some @ real.T, -1, 1)
    near = np.sqrt(np.median(np.sort(squared, axis=1)[:, 10]))  # the first is the cell itself
    neighbors = np.argpartition(-(real @ real.T), 11, axis=1)[:, :11]
    turned = np.linalg.qr(rng.standard_normal((max(width, real.shape[1]),) * 2))[0][: real.shape[1], :width]
    turned = turned.astype(np.float32)
    print(f"{len(real)} real vectors, noise of length {near / 4:.3f}")
    size = n_cells + N_QUERIES
    vectors = np.lib.format.open_memmap(output, "w+", np.float16, (size, width))
    for start in range(0, size, 50_000):
        cells = rng.integers(0, len(real), min(50_000, size - start))
        others = neighbors[cells, rng.integers(0, 11, len(cells))]
        share = rng.random((len(cells), 1), dtype=np.float32)
        block = (real[cells] + share * (real[others] - real[cells])) @ turned
        block += rng.standard_normal(block.shape, dtype=np.float32) * (near / 4 / np.sqrt(width))
        vectors[start : start + len(block)] = block / np.linalg.norm(block, axis=1, keepdims=True)
    vectors.flush()


def exact(vectors: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    """The nearest rows, by cosine."""
    best, rows = np.full((len(queries), k), -np.inf, np.float32), np.zeros((len(queries), k), np.int64)
    for start in range(0, len(vectors), 20_000):
        scores = np.concatenate([best, queries @ vectors[start : start + 20_000].astype(np.float32).T], axis=1)
        here = np.broadcast_to(np.arange(start, start + scores.shape[1] - k), (len(queries), scores.shape[1] - k))
        numbers = np.concatenate([rows, here], axis=1)
        top = np.argpartition(-scores, k, axis=1)[:, :k]
        best, rows = np.take_along_axis(scores, top, 1), np.take_along_axis(numbers, top, 1)
    return rows


class FaissIVF:
    """Inverted lists of half-precision vectors."""

    settings = (8, 16, 32, 64, 128)
    stored = "QT_fp16"

    def build(self, vectors: np.ndarray, path: Path) -> None:
        import faiss

        n_lists = int(2 ** round(np.log2(4 * np.sqrt(len(vectors)))))
        coarse = faiss.IndexFlatIP(vectors.shape[1])
        self.index = faiss.IndexIVFScalarQuantizer(
            coarse, vectors.shape[1], n_lists, getattr(faiss.ScalarQuantizer, self.stored), faiss.METRIC_INNER_PRODUCT
        )
        sample = np.random.default_rng(0).choice(len(vectors), min(len(vectors), 64 * n_lists), replace=False)
        self.index.train(np.asarray(vectors[np.sort(sample)], dtype=np.float32))
        for start in range(0, len(vectors), 20_000):
            self.index.add(np.asarray(vectors[start : start + 20_000], dtype=np.float32))
        faiss.write_index(self.index, str(path))

    def open(self, path: Path, width: int) -> None:
        import faiss

        self.index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)

    def search(self, queries: np.ndarray, k: int, setting: int) -> np.ndarray:
        self.index.nprobe = setting
        return self.index.search(queries, k)[1]


class FaissIVF8(FaissIVF):
    """The same with 8 bits a coordinate."""

    stored = "QT_8bit"


class FaissHNSW:
    """A graph over half-precision vectors."""

    settings = (64, 128, 256)

    def build(self, vectors: np.ndarray, path: Path) -> None:
        import faiss

        self.index = faiss.IndexHNSWSQ(vectors.shape[1], faiss.ScalarQuantizer.QT_fp16, 16, faiss.METRIC_INNER_PRODUCT)
        self.index.hnsw.efConstruction = 128
        self.index.train(np.asarray(vectors[:1000], dtype=np.float32))
        for start in range(0, len(vectors), 20_000):
            self.index.add(np.asarray(vectors[start : start + 20_000], dtype=np.float32))
        faiss.write_index(self.index, str(path))

    open = FaissIVF.open

    def search(self, queries: np.ndarray, k: int, setting: int) -> np.ndarray:
        self.index.hnsw.efSearch = setting
        return self.index.search(queries, k)[1]


class Usearch:
    """A graph over half-precision vectors, mapped into memory."""

    settings = (64, 128, 256)
    dtype, width = "f16", 0

    def _new(self, width: int) -> object:
        from usearch.index import Index

        return Index(ndim=width, metric="ip", dtype=self.dtype, connectivity=16, expansion_add=128)

    def build(self, vectors: np.ndarray, path: Path) -> None:
        self.index = self._new(vectors.shape[1])
        for start in range(0, len(vectors), 20_000):
            block = vectors[start : start + 20_000]
            self.index.add(np.arange(start, start + len(block)), np.asarray(block), threads=1)
        self.index.save(str(path))

    def open(self, path: Path, width: int) -> None:
        self.index = self._new(width)
        self.index.view(str(path))

    def search(self, queries: np.ndarray, k: int, setting: int) -> np.ndarray:
        self.index.expansion_search = setting
        return self.index.search(queries, k, threads=1).keys.astype(np.int64)


class UsearchInt8(Usearch):
    """The same with 8 bits a coordinate."""

    dtype = "i8"


class Hnswlib:
    """A graph over float32 vectors, all in memory."""

    settings = (64, 128, 256)

    def build(self, vectors: np.ndarray, path: Path) -> None:
        import hnswlib

        self.index = hnswlib.Index("ip", vectors.shape[1])
        self.index.init_index(len(vectors), M=16, ef_construction=128)
        for start in range(0, len(vectors), 20_000):
            self.index.add_items(np.asarray(vectors[start : start + 20_000], dtype=np.float32), num_threads=1)
        self.index.save_index(str(path))

    def open(self, path: Path, width: int) -> None:
        import hnswlib

        self.index = hnswlib.Index("ip", width)
        self.index.load_index(str(path))

    def search(self, queries: np.ndarray, k: int, setting: int) -> np.ndarray:
        self.index.set_ef(setting)
        return self.index.knn_query(queries, k, num_threads=1)[0].astype(np.int64)


class Voyager:
    """A graph over 8-bit vectors."""

    settings = (64, 128, 256)

    def build(self, vectors: np.ndarray, path: Path) -> None:
        import voyager

        self.index = voyager.Index(
            voyager.Space.InnerProduct, vectors.shape[1], M=16, ef_construction=128, max_elements=len(vectors),
            storage_data_type=voyager.StorageDataType.E4M3,
        )  # fmt: skip
        for start in range(0, len(vectors), 20_000):
            self.index.add_items(np.asarray(vectors[start : start + 20_000], dtype=np.float32), num_threads=1)
        self.index.save(str(path))

    def open(self, path: Path, width: int) -> None:
        import voyager

        self.index = voyager.Index.load(str(path))

    def search(self, queries: np.ndarray, k: int, setting: int) -> np.ndarray:
        return self.index.query(queries, k, num_threads=1, query_ef=setting)[0].astype(np.int64)


LIBRARIES = {
    "faiss-ivf": FaissIVF,
    "faiss-ivf8": FaissIVF8,
    "faiss-hnsw": FaissHNSW,
    "usearch": Usearch,
    "usearch-int8": UsearchInt8,
    "hnswlib": Hnswlib,
    "voyager": Voyager,
}


def best_of(found: np.ndarray, vectors: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """The best of twice as many candidates, by the stored vectors: so that a rough index can do."""
    best = np.empty((len(found), K), dtype=np.int64)
    for number, rows in enumerate(found):
        scores = vectors[np.maximum(rows, 0)].astype(np.float32) @ queries[number]
        best[number] = rows[np.argsort(-np.where(rows < 0, -np.inf, scores))[:K]]
    return best


def memory() -> float:
    """Most memory that this process has held, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def measure(name: str, path: Path) -> None:
    vectors = np.load(path, mmap_mode="r")
    vectors, queries = vectors[:-N_QUERIES], np.asarray(vectors[-N_QUERIES:], dtype=np.float32)
    known = path.with_suffix(".exact.npy")
    if not known.exists():
        np.save(known, exact(vectors, queries, K))
    truth, file = np.load(known), path.with_suffix(f".{name}")
    library = LIBRARIES[name]()
    before = memory()
    start = time.process_time()
    if not file.exists():
        library.build(vectors, file)
        seconds = time.process_time() - start
        print(
            f"{name}: {len(vectors):,} × {vectors.shape[1]} built in {seconds:.0f} s of one core"
            f" ({len(vectors) / seconds:,.0f}/s), peak {memory():.2f} GB ({before:.2f} before),"
            f" file {file.stat().st_size / 1e9:.2f} GB",
            flush=True,
        )  # fmt: skip
        return
    library.open(file, vectors.shape[1])
    opened = time.process_time() - start
    for setting in library.settings:
        start = time.process_time()
        found = library.search(queries, 2 * K, setting)
        found = best_of(found, vectors, queries)
        seconds = time.process_time() - start
        shares = [len(np.intersect1d(a, b)) / K for a, b in zip(found, truth, strict=True)]
        print(
            f"{name} at {setting}: recall@{K} {np.mean(shares):.4f} (lowest {np.min(shares):.2f}),"
            f" {N_QUERIES / seconds:,.0f} queries/s of one core, opened in {opened:.2f} s, peak {memory():.2f} GB",
            flush=True,
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    vectors = steps.add_parser("vectors")
    vectors.add_argument("data", type=Path)
    vectors.add_argument("output", type=Path)
    vectors.add_argument("--cells", type=int, default=200_000)
    vectors.add_argument("--width", type=int, default=WIDTH)
    library = steps.add_parser("measure", help="builds the index; called again, searches it in a fresh process")
    library.add_argument("library", choices=LIBRARIES)
    library.add_argument("vectors", type=Path)
    options = parser.parse_args()
    if options.step == "vectors":
        make(options.data, options.output, options.cells, options.width)
    else:
        measure(options.library, options.vectors)


if __name__ == "__main__":
    main()
