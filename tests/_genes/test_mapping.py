from __future__ import annotations

import warnings
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tahoe._genes.mapping import map_genes, resolve
from tahoe._genes.report import check_coverage
from tahoe._genes.table import MATCHES
from tahoe.errors import GeneError, InputError, TahoeWarning

DATA = Path(__file__).parents[1] / "data"
TRUTH = pd.read_csv(DATA / "gene_names.tsv", sep="\t", keep_default_na=False)
# A name that one annotation after the other gave to another gene: Ensembl 93 and later, and GRCh37.
CHANGED_HANDS, SINCE_93, ON_GRCH37 = "AL627309.1", "ENSG00000238009", "ENSG00000237683"


@pytest.fixture(scope="module")
def vocabulary() -> set[str]:
    return set(pd.read_csv(DATA / "genes" / "vocabulary.txt.xz", header=None)[0])


def real(name: str) -> tuple[pd.DataFrame, np.ndarray]:
    table = pd.read_csv(
        DATA / "genes" / f"{name}.tsv.xz", sep="\t", header=None, index_col=0, keep_default_na=False, quoting=3
    )
    return pd.DataFrame(index=table.index), table[1].to_numpy()


def var(*names: str, **columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame(columns, index=list(names))


@pytest.mark.parametrize("match", TRUTH["match"].unique())
def test_hard_names_mean_what_the_sources_say(match):
    rows = TRUTH[TRUTH["match"] == match]
    # One by one: names that changed hands are otherwise read as the others suggest.
    found = [tuple(value[0] for value in resolve([name])) for name in rows["name"]]
    wrong = [
        (name, gene, got)
        for name, gene, got in zip(rows["name"], rows["gene"], found, strict=True)
        if got != (gene, match)
    ]
    assert not wrong


def test_the_truth_table_is_as_large_as_promised():
    assert len(TRUTH) >= 300
    assert TRUTH["name"].is_unique
    assert {"symbol", "previous", "alias", "retired", "ambiguous", "unmapped", "ensembl"} == set(TRUTH["match"])


@pytest.mark.parametrize(
    ("name", "organism", "genes", "counts"),
    [
        ("pbmc_hao_rectangle", "human", 0.991, 0.9997),
        ("baron_pancreas_human", "human", 0.995, 0.9995),
        ("celltypist_sample", "human", 0.955, 0.967),
        ("pbmc_scvi_2x200", "human", 0.993, 0.999),
        ("lung_hlca_query", "human", 0.987, 0.998),
        ("heart_tf_human_val", "human", 1.0, 1.0),
        ("baron_pancreas_mouse", "mouse", 0.85, 0.90),
    ],
)
def test_real_data_keeps_its_genes(name, organism, genes, counts, vocabulary):
    frame, totals = real(name)
    mapping = map_genes(frame, totals, organism=organism)
    known = np.array([gene in vocabulary for gene in mapping.gene])
    assert known.mean() >= genes
    assert totals[known].sum() / totals.sum() >= counts
    mapped = mapping.gene[mapping.gene != ""]
    assert len(set(mapped)) == len(mapped)  # one column a gene
    assert mapping.report["n_in_vocabulary"] == known.sum()
    assert mapping.report["share_in_vocabulary"] == pytest.approx(totals[known].sum() / totals.sum())
    assert sum(mapping.report["genes"].values()) == len(frame)
    assert sum(mapping.report["counts"].values()) == pytest.approx(1)
    assert sum(mapping.report["genes_in_vocabulary"].values()) == known.sum()


def test_what_old_names_lose_is_said():
    mapping = map_genes(*real("celltypist_sample"))
    # Pseudogenes of mitochondrial ribosomal RNA, which GENCODE v44 no longer has, and ribosomal RNA.
    lost = mapping.report["lost"]
    assert lost[:5] == ["MTRNR2L12", "MTRNR2L8", "MTRNR2L2", "MTRNR2L1", "RNA28S5"]
    assert mapping.report["annotation"] == "Ensembl on GRCh37"
    assert "MTRNR2L12" in mapping.report["summary"]


def test_names_that_changed_hands_are_read_as_in_the_annotation_of_the_file():
    hao, celltypist = real("pbmc_hao_rectangle"), real("celltypist_sample")
    for (frame, totals), gene in ((hao, SINCE_93), (celltypist, ON_GRCH37)):
        mapping = map_genes(frame, totals)
        assert mapping.gene[frame.index.get_loc(CHANGED_HANDS)] == gene
        behind_a_genome = map_genes(frame.rename(index="GRCh38_{}".format), totals)
        np.testing.assert_array_equal(behind_a_genome.gene, mapping.gene)
        assert behind_a_genome.report["annotation"] == mapping.report["annotation"]
    assert resolve([CHANGED_HANDS])[0][0] == SINCE_93
    assert map_genes(*real("heart_tf_human_val")).report["annotation"] == ""  # ids tell of no annotation


def test_the_table_is_small_and_knows_the_vocabulary(vocabulary):
    tables = [file for file in files("tahoe").joinpath("data").iterdir() if file.name.startswith("genes_")]
    assert sum(len(table.read_bytes()) for table in tables) < 2_000_000
    genes, matches = resolve(sorted(vocabulary))
    assert set(genes) == vocabulary
    assert set(matches) == {"ensembl"}


def test_the_most_certain_name_keeps_the_gene_then_the_most_counts():
    names = ("ATP5A1", "ATP5F1A", "ENSG00000152234", "TP53", "tp53", "GAPDH", "GAPDH-1", "CD3E", "CD3E")
    mapping = map_genes(var(*names), np.array([90, 80, 1, 1, 99, 0, 9, 3, 4]))
    expected = [
        "duplicate",
        "duplicate",
        "ensembl",
        "symbol",
        "duplicate",
        "symbol",
        "duplicate",
        "duplicate",
        "symbol",
    ]
    assert list(mapping.match) == expected
    assert [gene != "" for gene in mapping.gene] == [match != "duplicate" for match in expected]


def test_the_x_copy_goes_before_the_y_copy():
    mapping = map_genes(var("ENSG00000169100.14_PAR_Y", "ENSG00000169100.14"), np.array([5, 1]))
    assert list(mapping.match) == ["duplicate", "ensembl"]


def test_ids_and_symbols_mix_entry_by_entry():
    mapping = map_genes(var("ENSG00000141510.18", "CD3E", "SEPT7", "nonsense"), None)
    assert list(mapping.match) == ["ensembl", "symbol", "previous", "unmapped"]


def test_an_id_that_no_table_has_stands_for_itself():
    assert resolve(["ENSG00000999999"])[0][0] == "ENSG00000999999"


def test_the_column_that_resolves_most_is_taken_and_named():
    frame = var(
        "0",
        "1",
        "2",
        gene_symbols=["CD3E", "TP53", "no"],
        gene_ids=["ENSG00000141510", "none_1", "none_2"],
        kind=["a"] * 3,
    )
    assert map_genes(frame, None).report["gene_key"] == "gene_symbols"
    assert map_genes(frame, None, gene_key="gene_ids").report["gene_key"] == "gene_ids"
    assert list(map_genes(frame, None, gene_key="gene_ids").match) == ["ensembl", "unmapped", "unmapped"]
    categorical = frame.astype({"gene_symbols": "category"})
    assert map_genes(categorical, None).report["gene_key"] == "gene_symbols"
    with pytest.raises(GeneError, match="numbers"):
        map_genes(frame, None, gene_key="var_names")


def test_var_names_win_a_tie():
    assert map_genes(var("CD3E", "TP53", feature_name=["CD3E", "TP53"]), None).report["gene_key"] == "var_names"


def test_missing_names_are_no_genes():
    mapping = map_genes(var("a", "b", "c", symbol=["CD3E", None, np.nan]), None, gene_key="symbol")
    assert list(mapping.match) == ["symbol", "unmapped", "unmapped"]


@pytest.mark.parametrize(
    ("names", "organism", "cure"),
    [
        (["Actb", "Gapdh", "mt-Nd1", "Cd3e"], "human", 'organism="mouse"'),
        (["ENSMUSG00000029580", "ENSMUSG00000025428"], "human", 'organism="mouse"'),
        (["1007_s_at", "1053_at", "117_at"], "human", "probes"),
        (["0", "1", "2"], "human", "gene_key="),
        (["", ""], "human", "gene_key="),
        (["ENSG00000141510", "ENSG00000152234"], "mouse", "human"),
    ],
)
def test_names_that_are_no_genes_are_refused_with_the_cure(names, organism, cure):
    with pytest.raises(GeneError, match=cure):
        map_genes(var(*names), None, organism=organism)


# Each of them leaves the same genes as the clean names.
DEBRIS = {
    "end of a line": "{}\r",
    "another end of a line": "{}\n",
    "both": "{}\r\n",
    "tab": "\t{}",
    "blanks": " {}  ",
    "no-break space": "{}\u00a0",
    "narrow no-break space": "{}\u202f",
    "ideographic space": "\u3000{}",
    "zero-width space": "{}\u200b",
    "byte-order mark": "\ufeff{}",
    "byte-order mark in Latin-1": "ï»¿{}",
    "byte-order mark in R": "X.U.FEFF.{}",
    "no-break space in Latin-1": "{}Â\u00a0",
    "direction": "\u202a{}\u202c",
    "soft hyphen": "{}\u00ad",
    "padding": "{}\0\0\0",
    "quotes": '"{}"',
    "doubled quotes": '""{}""',
    "single quotes": "'{}'",
    "one quote": "'{}",
    "curly quotes": "“{}”",
    "bytes": "b'{}'",
    "bytes in double quotes": 'b"{}"',
    "bytes with the end of a line": "b'{}\\r'",
    "quoted bytes": "\"b'{}'\"",
    "BD Rhapsody": "{}|NM_001234.5|Reference_end",
    "BD Rhapsody by transcripts": "{}|ENST00000300692.8|Reference_end",
    "BD Rhapsody in R": "{}.NM_001234.5.Reference_end",
    "TCGA": "{}|7157",
    "numbers first": "7157|{}",
    "a bar with blanks": "{} | 7157",
    "transcript first": "NM_001234.5|{}",
    "end of a cell of a table": "{},",
    "DepMap": "{} (7157)",
    "two species": "HUMAN_{}",
}


@pytest.mark.parametrize("debris", DEBRIS)
def test_debris_of_files_and_pipelines_leaves_the_same_genes(debris):
    frame, totals = real("pbmc_scvi_2x200")
    frame, totals = frame.iloc[::20], totals[::20]
    clean = map_genes(frame, totals)
    mapping = map_genes(frame.rename(index=DEBRIS[debris].format), totals)
    np.testing.assert_array_equal(mapping.gene, clean.gene)
    assert list(mapping.match) == list(clean.match)
    assert mapping.report["annotation"] == clean.report["annotation"]


@pytest.mark.parametrize("change", [str.encode, lambda name: np.bytes_(name)])
def test_names_that_are_bytes(change):
    frame, totals = real("pbmc_scvi_2x200")
    frame, totals = frame.iloc[::20], totals[::20]
    clean = map_genes(frame, totals)
    as_bytes = frame.set_axis(pd.Index([change(name) for name in frame.index], dtype=object))
    np.testing.assert_array_equal(map_genes(as_bytes, totals).gene, clean.gene)
    numbered = pd.DataFrame({"symbol": as_bytes.index}, index=[str(place) for place in range(len(frame))])
    mapping = map_genes(numbered, totals)
    assert mapping.report["gene_key"] == "symbol"
    np.testing.assert_array_equal(mapping.gene, clean.gene)


@pytest.mark.parametrize(
    ("name", "gene"),
    [
        ("HLA\u2013A", "ENSG00000206503"),  # a dash of a word processor
        ("\uff23\uff24\uff13\uff25", "ENSG00000198851"),  # full-width letters
        ("b'ENSG00000198851.3'", "ENSG00000198851"),
        ("\uff25\uff2e\uff33\uff2700000198851", "ENSG00000198851"),
        ("ENSG00000198851.3|CD3E|protein_coding", "ENSG00000198851"),
        ("CD3E_ENSG00000198851\r", "ENSG00000198851"),
        ("ENSG00000198851\tCD3E\tGene Expression", "ENSG00000198851"),
        ("b'actb'", "ENSG00000075624"),
        ("'7-Sep'", "ENSG00000122545"),
        ("'HLA.A'", "ENSG00000206503"),
        # antibodies of BD Rhapsody
        ("CD4:SK3|CD4|AHS0032|pAbO", ""),
        ("ITGAX|ITGAX|AHS0056|pAbO", ""),
        ("?|100130426", ""),
        ("|", ""),
        ("b''", ""),
        ("'", ""),
        ("\u200b", ""),
    ],
)
def test_what_is_left_of_a_name(name, gene):
    assert resolve([name])[0][0] == gene


def test_a_clean_name_goes_before_the_same_with_debris_only_by_counts():
    assert list(map_genes(var("CD3E\r", "CD3E"), np.array([1, 2])).match) == ["duplicate", "symbol"]
    assert list(map_genes(var("CD3E\r", "CD3E"), np.array([2, 1])).match) == ["symbol", "duplicate"]


def test_a_message_shows_what_cannot_be_seen():
    mapping = map_genes(var("CD3E", "nonsense\r"), np.array([1, 9]))
    assert "lost: 'nonsense\\r'" in mapping.report["summary"]
    assert mapping.report["lost"] == ["nonsense\r"]


def ids_and_names(n: int = 200) -> pd.DataFrame:
    frame, totals = real("pbmc_scvi_2x200")
    frame = frame.iloc[:: len(frame) // n][:n]
    mapping = map_genes(frame, totals[: len(frame)])
    ids = [gene or f"none{place}" for place, gene in enumerate(mapping.gene)]
    return frame.assign(gene_ids=ids, feature_types="Gene Expression")


@pytest.mark.parametrize("share", [0.08, 0.5, 1.0])
def test_ids_and_names_that_contradict_each_other_are_told(share):
    frame = ids_and_names()
    n_moved = int(share * len(frame))
    frame["gene_ids"] = [*np.roll(frame["gene_ids"].iloc[:n_moved], 1), *frame["gene_ids"].iloc[n_moved:]]
    told = map_genes(frame, None).report["contradiction"]
    assert "gene_ids and var_names name different genes" in told or "var_names and gene_ids" in told
    assert 'gene_key="var_names"' in told
    assert 'gene_key="gene_ids"' in told
    # whoever says which is right is not asked again
    for key in ("gene_ids", "var_names"):
        assert map_genes(frame, None, gene_key=key).report["contradiction"] == ""


def test_ids_and_names_of_one_annotation_do_not_contradict_each_other():
    frame = ids_and_names()
    assert map_genes(frame, None).report["contradiction"] == ""
    frame.iloc[:9, 0] = np.roll(frame.iloc[:9, 0], 1)  # a few may differ
    assert map_genes(frame, None).report["contradiction"] == ""
    assert map_genes(frame.assign(gene_ids=range(len(frame))), None).report["contradiction"] == ""


def test_wrong_arguments_are_refused():
    with pytest.raises(InputError, match="organism='rat'"):
        map_genes(var("CD3E"), None, organism="rat")
    with pytest.raises(InputError, match="'symbols' is not a column"):
        map_genes(var("CD3E"), None, gene_key="symbols")


def test_mouse_ids_and_symbols_go_to_their_orthologs():
    genes, matches = resolve(["Cd3e", "ENSMUSG00000029580.14", "Atp5a1", "H2.K1", "mt-Nd1", "no gene"], "mouse")
    assert genes[:3].tolist() == ["ENSG00000198851", "ENSG00000075624", "ENSG00000152234"]
    assert genes[4] == "ENSG00000198888"
    assert matches.tolist() == ["ortholog"] * 5 + ["unmapped"]


@pytest.mark.parametrize("totals", [np.array([-1.0, 2.0]), np.array([np.nan, 1.0]), np.zeros(2), None])
def test_values_without_meaningful_sums_give_genes_only(totals):
    report = map_genes(var("CD3E", "nonsense"), totals).report
    assert report["genes"]["symbol"] == 1
    assert "counts" not in report
    assert report["lost"] == ["nonsense"]


NAMES = st.lists(st.sampled_from(sorted(TRUTH["name"])), min_size=2, max_size=30, unique=True)


@settings(deadline=None, max_examples=25)
@given(names=NAMES, seed=st.integers(0, 1000))
def test_the_order_of_columns_says_nothing(names, seed):
    frame, totals = var("CD3E", *names), np.random.default_rng(seed).integers(0, 3, len(names) + 1)
    order = np.random.default_rng(seed).permutation(len(frame))
    straight = map_genes(frame, totals)
    shuffled = map_genes(frame.iloc[order], totals[order])
    np.testing.assert_array_equal(straight.gene[order], shuffled.gene)
    assert list(straight.match[order]) == list(shuffled.match)
    assert {**straight.report, "lost": 0, "summary": 0} == {**shuffled.report, "lost": 0, "summary": 0}


@settings(deadline=None, max_examples=25)
@given(names=NAMES)
def test_unrelated_columns_say_nothing(names):
    alone = map_genes(var("CD3E", *names), None)
    strangers = ["GFP", "SARSCoV2_S", "ERCC-00002", "antibody_1"]
    beside = map_genes(var("CD3E", *names, *strangers), None)
    np.testing.assert_array_equal(beside.gene[: -len(strangers)], alone.gene)
    assert list(beside.match[: -len(strangers)]) == list(alone.match)


@settings(deadline=None, max_examples=25)
@given(genes=st.lists(st.integers(3, 300_000), min_size=1, max_size=30, unique=True), version=st.integers(1, 99))
def test_versions_say_nothing(genes, version):
    ids = [f"ENSG{gene:011d}" for gene in genes]
    bare, versioned = resolve(ids), resolve([f"{gene}.{version}" for gene in ids])
    np.testing.assert_array_equal(bare, versioned)


def test_coverage_is_checked_against_the_model():
    gene = np.array(["ENSG1", "ENSG2", "ENSG3", ""], dtype=object)
    names, totals = np.array(["A", "B", "C", "D"], dtype=object), np.array([60, 30, 8, 2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = check_coverage(gene, totals, {"ENSG1", "ENSG2"}, names=names)
    assert found == {"n_in_vocabulary": 2, "share_in_vocabulary": pytest.approx(0.9), "lost": ["C", "D"]}
    with pytest.warns(TahoeWarning, match="60.0% of the counts; it does not know B, C, D"):
        check_coverage(gene, totals, {"ENSG1"}, names=names)
    with pytest.raises(GeneError, match="38.0% of the counts; it does not know A"):
        check_coverage(gene, totals, {"ENSG2", "ENSG3"}, names=names)
    with pytest.warns(TahoeWarning):
        check_coverage(gene, totals, {"ENSG2"}, names=names, refuse_below=0)
    with pytest.raises(GeneError, match="knows 0 of 4 genes"):
        check_coverage(gene, totals, {"ENSG9"}, names=names, warn_below=0, refuse_below=0)
    with pytest.warns(TahoeWarning, match="25.0% of the genes"):
        check_coverage(gene, None, {"ENSG1"}, names=names)


@pytest.mark.parametrize(("first", "blames"), [("ENSG1", "recognised"), ("", "gene_key")])
def test_a_loss_is_blamed_on_the_model_or_on_the_names(first, blames):
    """By counts: many small genes that the model does not know do not hide a large one that nobody can read."""
    gene = np.array([first, "ENSG2", "ENSG3", "ENSG4"], dtype=object)
    with pytest.warns(TahoeWarning, match=blames):
        check_coverage(gene, np.array([30, 1, 1, 68]), {"ENSG4"}, names=np.array(list("ABCD"), dtype=object))


@pytest.mark.parametrize("organism", ["human", "mouse"])
def test_the_question_is_about_the_organism_that_was_asked_for(organism):
    names = ["ACTB" if organism == "human" else "Actb", *(f"feature {place}" for place in range(9))]
    mapping = map_genes(var(*names), None, organism=organism)
    asked = f"is this a {organism} data set"
    assert asked in mapping.report["hint"]
    known = set(mapping.gene) - {""}
    with pytest.warns(TahoeWarning, match=asked):
        check_coverage(mapping.gene, None, known, names=np.array(names, dtype=object), organism=organism)


def test_matches_are_the_documented_ones():
    mapping = map_genes(var("CD3E"), None)
    assert tuple(mapping.match.categories) == MATCHES
