from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tahoe.errors import InputError, ModelError, TahoeWarning
from tahoe.model import ModelConfig, Tokens, Vocabulary, tokenize
from tahoe.model.config import DrugEncoderConfig
from tahoe.model.network.network import Network
from tahoe.model.training import (
    TrainingPlan,
    evaluate,
    mask_tokens,
    masked_batch,
    masked_losses,
    new_network,
    train,
)

N_GENES = 30
IDS = {"<pad>": 0, "<cls>": 1, **{f"ENSG{i:011}": i + 2 for i in range(N_GENES)}}
VOCABULARY, WITH_DRUGS = Vocabulary(IDS), Vocabulary(IDS | {"<drug>": 32})
CONFIG = ModelConfig(
    32, 2, 2, 32, gene_norm=True, value_norm=True, decoder_layers=1, mvc_scaled=True, expansion_ratio=2
)
DRUG_CONFIG = dataclasses.replace(CONFIG, vocab_size=33, drug_encoder=DrugEncoderConfig(4, 8, "gelu"))


def draw(generator, n_cells=16, drugs=None):
    """Cells of two types, each with its own half of the genes high; or with the half high that their drug raises."""
    types = generator.integers(0, 2, n_cells) if drugs is None else drugs > 0
    rates = np.where((np.arange(N_GENES) < N_GENES // 2) == types[:, None], 20, 2)
    counts = generator.poisson(rates).astype(np.float32)
    indptr = np.arange(n_cells + 1) * N_GENES
    columns = np.tile(np.arange(N_GENES), n_cells)
    rows = (indptr, columns, counts.ravel(), np.arange(N_GENES) + 2)
    return tokenize(*rows, config=CONFIG, vocabulary=VOCABULARY if drugs is None else WITH_DRUGS, drugs=drugs)


def one_gene(vocabulary=VOCABULARY, drugs=None):
    """A cell with a single gene: half of it, rounded down, is nothing."""
    rows = (np.array([0, 1]), np.array([0]), np.ones(1), np.array([2]))
    return tokenize(*rows, config=CONFIG, vocabulary=vocabulary, drugs=drugs)


def test_masks_the_right_share_of_the_genes():
    tokens = draw(np.random.default_rng(0), 50)
    masked = mask_tokens(tokens, np.random.default_rng(1), 0.5)
    per_cell = np.add.reduceat(masked, tokens.bounds[:-1])
    assert per_cell.tolist() == ((tokens.lengths - 1) // 2).tolist()
    assert not masked[tokens.bounds[:-1]].any()
    share = np.bincount(tokens.ids[masked], minlength=32)[2:] / np.bincount(tokens.ids, minlength=32)[2:]
    assert (np.abs(share - 0.5) < 0.3).all()


def test_losses_are_the_formula():
    network = new_network(CONFIG).eval()
    tokens = draw(np.random.default_rng(0), 3)
    masked = mask_tokens(tokens, np.random.default_rng(1), 0.5)
    batch, targets = masked_batch(tokens, masked, CONFIG, torch.device("cpu"))
    assert (batch.values_T[masked] == -1).all()
    losses = masked_losses(network, batch, targets)
    output = network(batch)
    expression = ((network.decode(output)[masked] - torch.from_numpy(tokens.values[masked])) ** 2).mean()
    mvc = ((network.decode_mvc(output, batch)[masked] - torch.from_numpy(tokens.values[masked])) ** 2).mean()
    torch.testing.assert_close(losses.expression, expression)
    torch.testing.assert_close(losses.mvc, mvc)
    torch.testing.assert_close(losses.total, (expression + mvc) / 2)


def test_cells_with_nothing_to_mask_are_passed_over():
    network = new_network(CONFIG).eval()
    many = draw(np.random.default_rng(0), 32)
    together = evaluate(network, Tokens.joined([many, one_gene()]), cells_per_batch=32)
    assert together == evaluate(network, many, cells_per_batch=32)


@pytest.mark.parametrize("n_cells", [0, 1, 3])
def test_nothing_to_mask_is_an_error_that_says_so(n_cells):
    network = new_network(CONFIG).eval()
    nothing = Tokens.joined([one_gene()] * 3).cells(0, n_cells)
    with pytest.raises(InputError, match=f"nothing to mask in these {n_cells} cells"):
        evaluate(network, nothing)
    with pytest.raises(InputError, match=f"nothing to mask in these {n_cells} cells"):
        train(network, lambda _: nothing, TrainingPlan(steps=1), progress=False)


def test_drug_tokens_are_never_masked():
    tokens = draw(np.random.default_rng(0), 50, drugs=np.arange(50) % 4)
    masked = mask_tokens(tokens, np.random.default_rng(1), 0.5)
    assert np.add.reduceat(masked, tokens.bounds[:-1]).tolist() == ((tokens.lengths - 2) // 2).tolist()
    assert not masked[~tokens.is_gene].any()
    all_genes = mask_tokens(tokens, np.random.default_rng(1), 1.0)
    np.testing.assert_array_equal(all_genes, tokens.is_gene)


def test_the_network_sees_the_drugs():
    network = new_network(DRUG_CONFIG).eval()
    drugs = np.array([0, 3, 1])
    tokens = draw(np.random.default_rng(0), 3, drugs=drugs)
    masked = mask_tokens(tokens, np.random.default_rng(1), 0.5)
    batch, targets = masked_batch(tokens, masked, DRUG_CONFIG, torch.device("cpu"))
    assert batch.drugs_C.tolist() == drugs.tolist()
    assert (targets > 0).all()
    other, _ = masked_batch(
        dataclasses.replace(tokens, drugs=drugs[::-1].copy()), masked, DRUG_CONFIG, batch.ids_T.device
    )
    moved = (network(batch) != network(other)).any(1).numpy()
    assert moved.tolist() == np.repeat(drugs != drugs[::-1], tokens.lengths).tolist()


def test_learns_what_a_drug_does():
    """Nothing but the drug tells which genes are high, since few values are left to see."""
    config = dataclasses.replace(DRUG_CONFIG, mask_probability=1.0)
    network = new_network(config, seed=3)
    none = network.drug.fingerprints.weight[0].clone()

    def treated(generator, n_cells=16):
        return draw(generator, n_cells, drugs=generator.integers(0, 4, n_cells))

    train(network, treated, TrainingPlan(steps=150, learning_rate=3e-3), progress=False)
    after = evaluate(network, treated(np.random.default_rng(99), 64))
    assert after["expression_mse"] < 0.7 * after["constant_mse"]
    # drug 0 is none: its row of the table stays zero, as in the released checkpoints
    assert not none.any()
    assert not network.drug.fingerprints.weight[0].any()


def test_drugs_that_are_missing_are_told():
    network = new_network(DRUG_CONFIG).eval()
    with pytest.warns(TahoeWarning, match="a drug encoder sees cells without a drug token"):
        evaluate(network, draw(np.random.default_rng(0), 3))
    some, others = draw(np.random.default_rng(0), 3), draw(np.random.default_rng(0), 3, drugs=np.zeros(3, np.int64))
    for mixed in ([some, others], [others, some]):
        with pytest.raises(InputError, match="some of these cells carry a drug token and others do not"):
            Tokens.joined(mixed)
    with pytest.raises(InputError, match="no drug token"):
        one_gene(drugs=np.zeros(1, np.int64))
    with pytest.raises(ModelError, match="no drug encoder"):
        evaluate(new_network(dataclasses.replace(CONFIG, vocab_size=33)), others)


def test_scaled_targets():
    config = dataclasses.replace(CONFIG, scaled_targets=True)
    tokens = draw(np.random.default_rng(0), 3)
    masked = tokens.values > 0
    _, targets = masked_batch(tokens, masked, config, torch.device("cpu"))
    torch.testing.assert_close(targets, torch.from_numpy((tokens.values[masked] - 1) / 49 * 2 - 1))
    torch.testing.assert_close(config.bins_of(targets), torch.from_numpy(tokens.values[masked]))


def test_learns_what_can_be_learned():
    network = new_network(CONFIG, seed=3)
    held_out = draw(np.random.default_rng(99), 64)
    before = evaluate(network, held_out)
    train(network, draw, TrainingPlan(steps=150, learning_rate=3e-3), progress=False)
    after = evaluate(network, held_out)
    assert after["constant_mse"] == before["constant_mse"]
    for decoder in ("expression_mse", "mvc_mse"):
        assert after[decoder] < 0.65 * after["constant_mse"] < before[decoder]
    assert not any(weight.requires_grad for weight in network.parameters())


def test_the_same_seed_gives_the_same_weights():
    runs = [train(new_network(CONFIG), draw, TrainingPlan(steps=5, seed=s), progress=False) for s in (0, 0, 1)]
    same, again, other = (torch.cat([w.flatten() for w in network.parameters()]) for network in runs)
    assert torch.equal(same, again)
    assert not torch.equal(same, other)


def test_a_resumed_run_is_an_undisturbed_one(tmp_path):
    plan = TrainingPlan(steps=12, save_every=5)
    whole = train(new_network(CONFIG), draw, plan, progress=False)
    state = tmp_path / "state.pt"

    class Stop(Exception):
        pass

    def stop(step, losses):
        if step == 8:
            raise Stop

    with pytest.raises(Stop):
        train(new_network(CONFIG), draw, plan, state_file=state, report=stop, progress=False)
    steps = []
    resumed = train(
        new_network(CONFIG, seed=7), draw, plan, state_file=state, report=lambda s, _: steps.append(s), progress=False
    )
    assert steps == list(range(5, 12))
    for ours, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]


def test_the_state_of_another_network_is_refused(tmp_path):
    state = tmp_path / "state.pt"
    train(new_network(CONFIG), draw, TrainingPlan(steps=1), state_file=state, progress=False)
    other = Network(dataclasses.replace(CONFIG, d_model=16))
    with pytest.raises(ModelError, match="state of another network"):
        train(other, draw, TrainingPlan(steps=2), state_file=state, progress=False)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"\x80\x04N."], ids=["empty", "cut", "a pickle of None"])
def test_what_is_no_state_is_refused(tmp_path, content):
    state = tmp_path / "state.pt"
    state.write_bytes(content)
    with pytest.raises(ModelError, match=r"state\.pt is not the state of a training run .*; remove it to start anew"):
        train(new_network(CONFIG), draw, TrainingPlan(steps=2), state_file=state, progress=False)
    assert state.read_bytes() == content


def test_the_share_of_masked_genes_is_that_of_the_configuration():
    """Of 30 genes 4% is one, which is masked; 3% is none, and an error."""
    for share, masked in ((0.04, 1), (0.03, 0)):
        network = new_network(dataclasses.replace(CONFIG, mask_probability=share))
        if masked:
            train(network, draw, TrainingPlan(steps=1), progress=False)
            evaluate(network, draw(np.random.default_rng(0)))
            continue
        with pytest.raises(InputError, match=r"a share of 0\.03"):
            train(network, draw, TrainingPlan(steps=1), progress=False)
        with pytest.raises(InputError, match=r"a share of 0\.03"):
            evaluate(network, draw(np.random.default_rng(0)))


def test_learning_rate_rises_and_falls():
    plan = TrainingPlan(steps=100, warm_up=0.1, final_rate=0.05)
    rates = [plan.rate(step) for step in range(100)]
    assert rates[0] == 0.1
    assert max(rates) == rates[10] == 1
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert abs(rates[-1] - 0.05) < 0.01


def test_bfloat16_trains_too():
    network = train(new_network(CONFIG), draw, TrainingPlan(steps=3, bfloat16=True), progress=False)
    assert {w.dtype for w in network.parameters()} == {torch.float32}
    assert all(torch.isfinite(w).all() for w in network.parameters())
