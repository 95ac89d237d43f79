"""Faults that change numbers are planted in the running package, one at a time: tests that hold these numbers fail.

Each case has a fault and the very test of the suite that is to notice it. A fault whose function has moved is an error.
"""

from __future__ import annotations

import functools
from contextlib import nullcontext
from dataclasses import replace
from pkgutil import resolve_name

import numpy as np
import pytest
import torch

from tahoe.model.tokens import tokenizer
from tests._genes import test_mapping
from tests._store import test_resumed_drugs, test_shards
from tests.model import test_reference
from tests.model.network import test_network
from tests.model.tokens import test_edits, test_tokenizer
from tests.model.training import test_loop, test_mask_share
from tests.tl import test_attention, test_embed, test_embed_genes, test_predict_expression

FAULTS = {}
MODEL, NETWORK, TOKENS = "tahoe.model", "tahoe.model.network.network", "tahoe.model.tokens"


def fault(name, target, test, *arguments):
    """Register what takes the place of `target`: a function of `target` and its arguments, or of its value.

    `test` is called with `arguments`; those that are functions make their value, with a function that gives fixtures.
    """

    def register(around):
        assert name not in FAULTS
        FAULTS[name] = (target, around, test, arguments)
        return around

    return register


def fixture(name):
    return lambda get: get(name)


def case(name, result):
    """Load a reference and its model, when the fault is there already."""
    return lambda get: test_reference.Case(get("reference"), name, result)


CELLS = (fixture("tiny"), fixture("tiny_cells"), fixture("reference"))
GOLDEN, WITH_DRUG = case("tiny", "golden"), case("drug", "with_drug")


@pytest.mark.parametrize("planted", [True, False], ids=["planted", "as it is"])
@pytest.mark.parametrize("name", FAULTS)
def test_it_is_noticed(name, planted, request, monkeypatch):
    target, around, test, arguments = FAULTS[name]
    # in numpy, since functions that are compiled cannot be replaced
    monkeypatch.setattr(tokenizer, "_compiled", lambda: None)
    original = resolve_name(target)
    if planted:
        function = functools.wraps(original)(lambda *args, **options: around(original, *args, **options))
        monkeypatch.setattr(target, function if callable(original) else around(original))
    values = [argument(request.getfixturevalue) if callable(argument) else argument for argument in arguments]
    # what is raised where pytest.raises() is not met is no AssertionError
    with pytest.raises((AssertionError, pytest.fail.Exception)) if planted else nullcontext():
        test(*values)


# Tokens


@fault("bins from 0", f"{TOKENS}.tokenizer._bins", test_tokenizer.test_few_and_equal_values)
def _(bins, *arguments):
    return bins(*arguments) - 1


@fault(
    "a value on the edge of a bin",
    f"{TOKENS}.tokenizer._edges",
    test_tokenizer.test_bins_of_real_cells,
    fixture("heart"),
)
def _(edges, *arguments):
    return np.nextafter(edges(*arguments), np.float32(0))


@fault(
    "quantiles that are rounded once", f"{TOKENS}.tokenizer.QUANTILES", test_tokenizer.test_rank_rounds_as_in_float32
)
def _(quantiles):
    return (np.arange(50) / 49).astype(np.float32)


@fault(
    "stored zeros are genes",
    f"{TOKENS}.tokenizer._expressed",
    test_tokenizer.test_genes_outside_the_vocabulary_and_stored_zeros_change_nothing,
)
def _(expressed, indptr, indices, data, column_tokens):
    return expressed(indptr, indices, np.maximum(data, np.float32(1e-6)), column_tokens)


@fault(
    "genes above max_length chosen by position",
    f"{TOKENS}.tokenizer.hash_ranks",
    test_tokenizer.test_choice_above_max_length_is_the_cells_own,
)
def _(hash_ranks, cells, tokens, values, seed):
    return hash_ranks(cells, np.arange(len(tokens)), np.zeros_like(values), seed)


@fault("a seed that says nothing", f"{TOKENS}.tokenizer.hash_ranks", test_tokenizer.test_choice_keeps_bins_and_spreads)
def _(hash_ranks, cells, tokens, values, seed):
    return hash_ranks(cells, tokens, values, 0)


@fault(
    "each column has the token of its neighbour", f"{MODEL}.Vocabulary.tokens_of", test_reference.test_tokens, GOLDEN
)
def _(tokens_of, *arguments):
    return np.roll(tokens_of(*arguments), 1)


# Network


@fault("a lost bias", f"{NETWORK}.Linear.features", test_reference.test_short_cut_for_cells, GOLDEN, "sdpa")
def _(features, linear, x, some):
    return features(linear, x, some) - linear.bias[some]


@fault("no norm of the genes", f"{NETWORK}.Network.gene_inputs", test_reference.test_outputs, GOLDEN, "sdpa")
def _(gene_inputs, network, ids_T):
    return network.genes(ids_T).float()


@fault("no final norm", f"{NETWORK}.Network.embed_cells", test_reference.test_short_cut_for_cells, GOLDEN, "sdpa")
def _(embed_cells, network, *arguments):
    norm, network.norm = network.norm, torch.nn.Identity()
    try:
        return embed_cells(network, *arguments)
    finally:
        network.norm = norm


@fault("a lost residual path", f"{NETWORK}.TransformerBlock._finish", test_reference.test_outputs, GOLDEN, "sdpa")
def _(finish, layer, x_TD, context_TD):
    return finish(layer, torch.zeros_like(x_TD), context_TD)


@fault("the drug token one place late", f"{NETWORK}.Network.inputs", test_reference.test_outputs, WITH_DRUG, "sdpa")
def _(inputs, network, batch):
    found, starts = inputs(network, batch), batch.starts_C
    drugs, own = found[starts + 1], (network.gene_inputs(batch.ids_T) + network.value(batch.values_T))[starts + 1]
    return found.index_copy(0, starts + 1, own).index_copy(0, starts + 2, drugs)


@fault(
    "the scale of the scores",
    "torch.nn.functional.scaled_dot_product_attention",
    test_network.test_attention_functions_agree,
)
def _(sdpa, *arguments, **options):
    return sdpa(*arguments, **options, scale=1.0)


@fault(
    "who may see whom, turned round",
    f"{MODEL}.network.attention.allowed",
    test_network.test_the_network_is_what_the_book_says,
    "pre",
    True,
)
def _(allowed, masked_N):
    return allowed(masked_N).T


@fault("the other flag", f"{NETWORK}.Network.inputs", test_network.test_the_network_is_what_the_book_says, "pre", True)
def _(inputs, network, batch):
    network.flag.weight.copy_(network.flag.weight.flip(0))
    try:
        return inputs(network, batch)
    finally:
        network.flag.weight.copy_(network.flag.weight.flip(0))


@fault("predictions without their scale", f"{NETWORK}.MVCDecoder.forward", test_reference.test_outputs, GOLDEN, "sdpa")
def _(forward, decoder, *arguments):
    return forward(decoder, *arguments) / decoder.scale


@fault(
    "the two norms of a layer swapped", f"{MODEL}.checkpoint.weights.KEYS", test_reference.test_outputs, GOLDEN, "sdpa"
)
def _(keys):
    first, second = "transformer_encoder.layers.{i}.norm1", "transformer_encoder.layers.{i}.norm2"
    return keys | {first: keys[second], second: keys[first]}


# Predictions and training


@fault(
    "scaled predictions spread over the wrong width",
    f"{MODEL}.config.N_BINS",
    lambda tiny, cells: test_edits.test_scaled_targets_come_back_as_bins(
        tiny, tiny.tokenize(cells.X, tiny.vocabulary.tokens_of(cells.var_names))
    ),
    fixture("tiny"),
    fixture("full_cells"),
)
def _(n_bins):
    return n_bins + 1


@fault("scaled targets over the wrong width", f"{MODEL}.config.N_BINS", test_loop.test_scaled_targets)
def _(n_bins):
    return n_bins + 1


for work, where in (("train", "loop"), ("evaluate", "objective")):

    @fault(
        f"{work} hides a half, whatever the configuration says",
        f"{MODEL}.training.{where}.mask_tokens",
        test_mask_share.test_the_share_is_that_of_the_configuration,
        0.15,
        work,
    )
    def _(mask_tokens, tokens, generator, probability):
        return mask_tokens(tokens, generator, 0.5)


@fault(
    "hidden values that the network sees",
    f"{MODEL}.TahoeModel.batch",
    lambda tiny, cells: test_edits.test_hidden_values_do_not_reach_the_network(
        tiny, tiny.tokenize(cells.X, tiny.vocabulary.tokens_of(cells.var_names))
    ),
    fixture("tiny"),
    fixture("full_cells"),
)
def _(batch, model, tokens, masked=None):
    return batch(model, tokens)


# Cells, genes and files


@fault(
    "previous names and aliases change places",
    "tahoe._genes.name_repair.load_table",
    test_mapping.test_hard_names_mean_what_the_sources_say,
    "previous",
)
def _(load_table, organism):
    table = load_table(organism)
    previous, alias = (test_mapping.MATCHES.index(name) for name in ("previous", "alias"))
    other = np.arange(len(test_mapping.MATCHES))
    other[[previous, alias]] = alias, previous
    return replace(table, tiers=other[table.tiers])


@fault(
    "cells without genes have a vector",
    "tahoe._run.batches._unit_length",
    test_embed.test_matches_the_reference,
    *CELLS,
)
def _(unit_length, vectors):
    return np.nan_to_num(unit_length(vectors))


@fault(
    "means over all cells", "tahoe._run.means.GeneMeans.result", test_embed_genes.test_means_match_the_reference, *CELLS
)
def _(result, means):
    sums, n_cells = result(means)
    return sums * n_cells[..., None] / 64, n_cells


@fault(
    "the mean over the layers forgets one",
    "tahoe._run.means.AttentionMeans.result",
    test_attention.test_one_cell_matches_the_reference,
    *CELLS,
)
def _(result, means):
    means.sums *= len(means.layers) / (len(means.layers) + (len(means.layers) > 1))
    return result(means)


@fault(
    "drugs of the first block for all",
    "tahoe._run.batches.CellBatches._tokenised",
    test_predict_expression.test_drugs_match_the_reference,
    fixture("reference"),
    fixture("read_cells"),
    "expression",
    "drugs",
    "with_drug",
)
def _(tokenised, cell_batches, model):
    cell_batches.drugs = np.resize(cell_batches.drugs[:10], len(cell_batches.drugs))
    return tokenised(cell_batches, model)


@fault(
    "a shard out of its place",
    "tahoe._store.shards.Store.write",
    test_shards.test_each_shard_stands_in_its_place,
    fixture("tmp_path"),
)
def _(write, store, shard, vectors, n_genes):
    return write(store, shard, np.roll(vectors, 1, axis=0), n_genes)


@fault(
    "a run goes on with other drugs",
    "tahoe._store.embed_file._fingerprint",
    test_resumed_drugs.test_other_drugs_do_not_go_on,
    fixture("reference"),
    fixture("read_cells"),
    fixture("tmp_path"),
)
def _(fingerprint, *arguments):
    return {key: value for key, value in fingerprint(*arguments).items() if key != "drugs"}
