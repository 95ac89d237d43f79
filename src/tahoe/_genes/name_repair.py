"""What single gene names mean: as the table has them, then ignoring case, then with the damage that files do undone."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from tahoe._genes.clean import clean_name
from tahoe._genes.table import AMBIGUOUS, ENSEMBL, MATCHES, ORTHOLOG, RETIRED, SYMBOL, UNMAPPED, GeneTable, load_table

# A stage of repair weighs more than any tier: a name that stands in the table as it is beats every repaired one.
STAGE = len(MATCHES)

# ENSG00000141510, ENSG00000141510.18, ENSG00000182378.15_PAR_Y, and ENSGR0000182378, as the Y copy was once written.
ENSEMBL_ID = re.compile(r"(ENS(?:MUS)?G)(R?)(\d{10,11})(?:\.\d+)?(_PAR_Y)?", re.IGNORECASE)
# The same inside another name: RGS5_ENSG00000143248, gene:ENSG00000143248, ENSG00000143248-1.
EMBEDDED_ID = re.compile(r"(?<![A-Z0-9])(ENS(?:MUS)?G\d{11})(?!\d)", re.IGNORECASE)
# Genomes that stand before the names in mixed experiments; the other organism's genes are not ours.
PREFIX = {
    "human": re.compile(r"(?:GRCh3[78]|hg19|hg38|human|gene)[_:-]+", re.IGNORECASE),
    "mouse": re.compile(r"(?:GRCm3[89]|mm10|mm39|mouse|gene)[_:-]+", re.IGNORECASE),
}
CHROMOSOME_SUFFIX = re.compile(r"__chr\w+$", re.IGNORECASE)
# What pandas, scanpy and R append when a name occurs again: TMBIM4-1, UQCR11.1.
UNIQUE_SUFFIX = re.compile(r"[-._]\d{1,2}$")
EXCEL_DATE = re.compile(r"(?:(\d{1,2})-(Mar|Sep|Dec)|(Mar|Sep|Dec)-(\d{1,2}))", re.IGNORECASE)
X_BEFORE_DIGIT = re.compile(r"X\d")


@dataclass(frozen=True)
class Resolved:
    """What each name means by itself, before several columns for one gene are settled."""

    genes: np.ndarray
    """The number in the Ensembl id, 0 where there is none."""
    tiers: np.ndarray
    """Codes of `MATCHES`."""
    certainty: np.ndarray
    """The lower, the more certain."""
    annotation: int | None
    """The older annotation that knows most of the names."""

    @property
    def missing(self) -> np.ndarray:
        """Positions of the names that are still unknown."""
        return np.flatnonzero(self.tiers == UNMAPPED)

    def enter(self, places: np.ndarray, genes: np.ndarray, tiers: np.ndarray, stage: int) -> None:
        """Write down what was found for the names at `places`; what was not found stays as it was."""
        found = tiers != UNMAPPED
        places = places[found]
        self.genes[places], self.tiers[places] = genes[found], tiers[found]
        self.certainty[places] = stage * STAGE + tiers[found]


def resolve_names(names: np.ndarray, organism: str, *, repair: bool = True) -> Resolved:
    """Look up each name in the table of `organism`, and repair those that it does not have unless told not to."""
    table = load_table(organism)
    n_names = len(names)
    rows = table.find(names)
    strange = np.flatnonzero(rows < 0)
    names = names.copy()
    names[strange] = [clean_name(name) for name in names[strange]]
    rows[strange] = table.find(names[strange])
    resolved = Resolved(
        genes=np.zeros(n_names, dtype=np.int64),
        tiers=np.full(n_names, UNMAPPED, dtype=np.int8),
        certainty=np.full(n_names, np.iinfo(np.int32).max, dtype=np.int32),
        annotation=_annotation(names, rows, table, organism),
    )
    resolved.enter(np.arange(n_names), *table.meaning(rows, resolved.annotation), stage=0)
    _read_ids(names, table, resolved, organism)
    if repair:
        _repair(names, table, resolved, organism)
    if organism == "mouse":
        resolved.tiers[resolved.tiers < AMBIGUOUS] = ORTHOLOG
    return resolved


def _annotation(names: np.ndarray, rows: np.ndarray, table: GeneTable, organism: str) -> int | None:
    """The older annotation that knows most of the names, without the genome that may stand before each of them."""
    behind = [
        (place, match.end()) for place in np.flatnonzero(rows < 0) if (match := PREFIX[organism].match(names[place]))
    ]
    bare = np.array([names[place][end:] for place, end in behind], dtype=object)
    known = np.concatenate([rows, table.find(bare)])
    return table.annotation(known[known >= 0])


def _read_ids(names: np.ndarray, table: GeneTable, resolved: Resolved, organism: str) -> None:
    """Ensembl ids: whole names first, then those that another name has inside it."""
    wanted = "ENSG" if organism == "human" else "ENSMUSG"
    for stage, read in ((0, _whole_id), (2, _embedded_id)):
        ids = {place: found for place in resolved.missing if (found := read(names[place]))}
        ids = {place: found for place, found in ids.items() if found[0].startswith(wanted)}
        if not ids:
            continue
        places = np.array(list(ids))
        genes, tiers = table.meaning(table.find(np.array([gene for gene, _ in ids.values()], dtype=object)))
        if organism == "human":  # an id without a successor stands for itself, whether any table knows it or not
            own = np.array([int(gene.removeprefix(wanted)) for gene, _ in ids.values()])
            genes, tiers = np.where(tiers == UNMAPPED, own, genes), np.where(tiers == UNMAPPED, ENSEMBL, tiers)
        resolved.enter(places, genes, tiers, stage)
        # The X copy of a pseudoautosomal gene goes before its Y copy.
        resolved.certainty[places] += np.array([is_copy for _, is_copy in ids.values()])


def find_id(name: str) -> tuple[str, bool] | None:
    """The Ensembl id that a name is or has inside it, without its version, and whether it is that of a Y copy."""
    return _whole_id(name) or _embedded_id(name) if "ENS" in name.upper() else None


def _whole_id(name: str) -> tuple[str, bool] | None:
    match = ENSEMBL_ID.fullmatch(name)
    if match is None or len(match[2] + match[3]) != 11:
        return None
    return match[1].upper() + match[3].zfill(11), bool(match[2] or match[4])


def _embedded_id(name: str) -> tuple[str, bool] | None:
    match = EMBEDDED_ID.search(name)
    return (match[1].upper(), False) if match else None


def _repair(names: np.ndarray, table: GeneTable, resolved: Resolved, organism: str) -> None:
    """Try other spellings of the names that are still unknown, the mildest change first."""
    missing = resolved.missing
    attempts = zip(*(_spellings(names[place], organism) for place in missing), strict=True)
    for position, spelled in enumerate(attempts):
        for ignoring_case in (False, True):
            tried = np.array([bool(name) for name in spelled]) & (resolved.tiers[missing] == UNMAPPED)
            if ignoring_case:
                tried &= np.array([_worth_ignoring_case(name) for name in spelled])
            if not tried.any():
                continue
            better = np.array(spelled, dtype=object)[tried]
            rows = table.find_ignoring_case(better) if ignoring_case else table.find(better)
            genes, tiers = table.meaning(rows, resolved.annotation)
            if position >= WITHOUT_SUFFIX:
                # Only a name that an annotation uses is ever made unique; an alias that remains would be chance.
                tiers = np.where(np.isin(tiers, (SYMBOL, RETIRED, AMBIGUOUS)), tiers, UNMAPPED)
            resolved.enter(missing[tried], genes, tiers, stage=3 + 2 * position + ignoring_case)


# Position of the first spelling that lacks the suffix of a repeated name.
WITHOUT_SUFFIX = 5


def _spellings(name: str, organism: str) -> tuple[str, ...]:
    """What a name may have been before files and tools changed it, the likeliest first; "" for nothing new."""
    clean = CHROMOSOME_SUFFIX.sub("", PREFIX[organism].sub("", name, count=1))
    base = UNIQUE_SUFFIX.sub("", clean)
    tried = (name, clean, _dashed(clean), _clone(clean), _from_date(clean), base, _dashed(base), _clone(base))
    return tuple(spelling if spelling not in tried[:position] else "" for position, spelling in enumerate(tried))


def _dashed(name: str) -> str:
    """HLA.A → HLA-A: R writes a dot for every other sign, and an X before a digit."""
    return (name[1:] if X_BEFORE_DIGIT.match(name) else name).replace(".", "-")


def _clone(name: str) -> str:
    """RP11.34P13.7 → RP11-34P13.7: clone names have one dot of their own."""
    head, dot, tail = name.rpartition(".")
    return f"{_dashed(head)}.{tail}" if dot else name


def _from_date(name: str) -> str:
    """7-Sep → SEPT7: what Excel makes of a gene. MARCH1 and MARC1 both become 1-Mar, so that is nobody's."""
    date = EXCEL_DATE.fullmatch(name)
    if date is None:
        return name
    day, month = int(date[1] or date[4]), (date[2] or date[3]).upper()
    if month == "DEC":
        return f"DEC{day}"
    if month == "SEP":
        return "SEP15" if day == 15 else f"SEPT{day}"
    return f"MARCH{day}" if day > 2 else name


def _worth_ignoring_case(name: str) -> bool:
    """Whether a human gene may be meant in another case: Actb and mt-Nd1 are mouse genes, actb and C12ORF57 not."""
    letters = [letter for letter in name if letter.isalpha()]
    return name.isupper() or name.islower() or "".join(letters[:2]).isupper()
