"""Training on labels: losses, scores, when it stops, and what is kept."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, r2_score

from tahoe.model.fine_tuning.labels import Truth, scores
from tahoe.model.fine_tuning.supervised import Fit, fit, train_embedding_weights, weight_groups
from tahoe.model.training import FineTuningPlan, Head, Target, TrainingReport

KIND = Target("kind", "classes", ("a", "b", "c"))
AGE = Target("age", "quantities", ("age",))
PROTEINS = Target("proteins", "quantities", ("CD3", "CD4"), "obsm")


def drawn(seed=0, n=60, width=5):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(n, width)).astype(np.float32), generator


def learnable(n=60):
    embeddings, generator = drawn(n=n)
    kind = embeddings[:, :3].argmax(axis=1)
    age = (embeddings @ generator.normal(size=5) * 10 + 50).astype(np.float32)[:, None]
    return embeddings, {"kind": kind, "age": age}


def trained(embeddings, values, targets=(KIND, AGE), *, plan=None, seed=0, outputs=None, head=None):
    train, held = np.arange(0, 40), np.arange(40, len(embeddings))
    if head is None:
        head = Head(targets, embeddings.shape[1])
        head.standardise(embeddings[train])
    truth, report = Truth(head, values, train, "balanced"), TrainingReport()
    x = torch.from_numpy(embeddings)
    outputs = outputs or (lambda rows: head(x[torch.from_numpy(rows)]))
    plan = plan or FineTuningPlan(epochs=40, patience=40, batch_size=16)
    what = Fit(outputs, weight_groups(head, 0.05, 0.0), plan, lambda rows: np.array_split(rows, 3), "head")
    told = fit(what, truth, train, held, report, seed=seed, progress=False)
    return head, told, report


def test_it_learns():
    embeddings, values = learnable()
    _, told, report = trained(embeddings, values)
    last = {row["target"]: row for row in report.epochs if row["epoch"] == report.best_epoch}
    assert last["kind"]["accuracy"] > 0.8
    assert last["age"]["r2"] > 0.9
    assert told.shape == (20, 4)


def test_the_same_seed_gives_the_same_bits():
    embeddings, values = learnable()
    one, other, third = (trained(embeddings, values, seed=seed)[0].linear.weight for seed in (0, 0, 1))
    assert torch.equal(one, other)
    assert not torch.equal(one, third)


def test_no_draw_from_torchs_own_generator():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    trained(*learnable())
    assert torch.equal(before, torch.get_rng_state())


def test_parts_add_up_to_the_loss_of_the_batch():
    embeddings, values = learnable()
    values["kind"][[0, 5]] = -1
    values["age"][[1, 7]] = np.nan
    head = Head((KIND, AGE), 5)
    truth = Truth(head, values, np.arange(60), "balanced")
    outputs = torch.from_numpy(np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32))
    rows = np.arange(20)
    whole = truth.loss(outputs[:20], rows, rows)
    parts = sum(truth.loss(outputs[part], part, rows) for part in np.array_split(rows, 3))
    torch.testing.assert_close(whole, parts)


def test_the_loss_by_hand():
    """Balanced: the mean over classes of their mean cross-entropy; missing cells count nothing."""
    codes = np.array([0, 0, 0, 1, 2, -1])
    head = Head((KIND,), 2)
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32))
    rows = np.arange(6)
    errors = -logits.log_softmax(-1)
    by_class = [errors[:3, 0].mean(), errors[3, 1], errors[4, 2]]
    balanced = Truth(head, {"kind": codes}, rows, "balanced").loss(logits, rows, rows)
    torch.testing.assert_close(balanced, torch.stack(by_class).mean())
    plain = Truth(head, {"kind": codes}, rows, None).loss(logits, rows, rows)
    torch.testing.assert_close(plain, (errors[:3, 0].sum() + errors[3, 1] + errors[4, 2]) / 5)
    weighted = Truth(head, {"kind": codes}, rows, {"b": 3.0}).loss(logits, rows, rows)
    torch.testing.assert_close(weighted, (errors[:3, 0].sum() + 3 * errors[3, 1] + errors[4, 2]) / 7)


def test_scores_are_those_of_scikit_learn():
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 4, 50)
    answers = generator.normal(size=(50, 5))
    found = scores("classes", answers, np.append(truth[:-1], -1))
    told = answers.argmax(axis=1)[:-1]
    assert found["accuracy"] == pytest.approx(accuracy_score(truth[:-1], told))
    assert found["macro_f1"] == pytest.approx(f1_score(truth[:-1], told, average="macro"))
    quantity = generator.normal(size=(50, 2))
    close = quantity + 0.3 * generator.normal(size=(50, 2))
    assert scores("quantities", close, quantity)["r2"] == pytest.approx(r2_score(quantity, close))
    expected = np.mean([np.corrcoef(close[:, i], quantity[:, i])[0, 1] for i in range(2)])
    assert scores("quantities", close, quantity)["pearson"] == pytest.approx(expected)


def test_quantities_come_back_on_their_scale():
    embeddings, values = learnable()
    head, told, _ = trained(embeddings, values)
    ages = head.answers(told)["age"][:, 0]
    assert np.abs(ages - values["age"][40:, 0]).max() < 5


def test_a_loss_that_is_no_number_stops_it_and_the_best_state_is_kept():
    embeddings, values = learnable()
    reference, _, before = trained(embeddings, values, plan=FineTuningPlan(epochs=2, batch_size=16, warm_up=0))
    assert before.best_epoch == 2
    head = Head((KIND, AGE), 5)
    head.standardise(embeddings[:40])
    x, calls = torch.from_numpy(embeddings), []

    def breaks(rows):
        outputs = head(x[torch.from_numpy(rows)])
        calls.append(torch.is_grad_enabled())
        return outputs * math.nan if sum(calls) > 3 * 3 * 2 else outputs  # three parts of three batches, two epochs

    plan = FineTuningPlan(epochs=2, batch_size=16, warm_up=0)
    _, told, report = trained(embeddings, values, plan=plan, outputs=breaks, head=head)
    assert report.stopped == before.stopped  # not yet
    calls.clear()
    head = Head((KIND, AGE), 5)
    head.standardise(embeddings[:40])
    plan = FineTuningPlan(epochs=4, batch_size=16, warm_up=0)
    _, told, report = trained(embeddings, values, plan=plan, outputs=breaks, head=head)
    assert report.stopped.startswith("diverged at step 7 (epoch 3)")
    assert report.best_epoch == 2
    assert torch.isfinite(head.linear.weight).all()
    assert all(row["epoch"] <= 2 for row in report.epochs)


def test_it_stops_when_held_out_cells_are_told_no_better():
    embeddings, generator = drawn()
    values = {"kind": generator.integers(0, 3, 60)}  # nothing to learn
    plan = FineTuningPlan(epochs=50, patience=3, batch_size=8)
    head, told, report = trained(embeddings, values, (KIND,), plan=plan)
    losses = {row["epoch"]: row["validation_loss"] for row in report.epochs}
    assert min(losses, key=losses.get) == report.best_epoch < 47
    assert max(losses) == report.best_epoch + 3
    again = Truth(head, values, np.arange(40), "balanced").loss(told, np.arange(40, 60), np.arange(40, 60))
    assert again.item() == pytest.approx(losses[report.best_epoch])


def test_a_target_that_a_batch_lacks():
    embeddings, values = learnable()
    values["kind"][:40] = np.where(np.arange(40) < 37, -1, values["kind"][:40])
    values["kind"][37:40] = [0, 1, 2]
    head, _, report = trained(embeddings, values)
    assert torch.isfinite(head.linear.weight).all()
    assert "diverged" not in report.stopped


def test_tables_of_quantities():
    embeddings, generator = drawn()
    table = (embeddings[:, :2] * [1, 100] + [0, 1000]).astype(np.float32)
    table[::7, 0] = np.nan
    head, told, report = trained(embeddings, {"proteins": table}, (PROTEINS,))
    assert report.epochs[-1]["r2"] > 0.9
    assert np.isfinite(head.answers(told)["proteins"]).all()


def test_gradients_only_where_an_embedding_depends(tiny, full_cells):
    columns = tiny.vocabulary.tokens_of(full_cells.var["tahoe_gene"])
    tokens = tiny.tokenize(full_cells.X[:4].tocsr(), columns, max_length=50)
    network = train_embedding_weights(tiny.copy("mine").network)
    network.embed_cells(tiny.batch(tokens), "sdpa").square().sum().backward()
    with_gradient = {name.partition(".")[0] for name, weight in network.named_parameters() if weight.grad is not None}
    assert with_gradient == {"genes", "gene_norm", "value", "layers", "norm"} - (
        set() if tiny.config.gene_norm else {"gene_norm"}
    )
    wanted = {name for name, weight in network.named_parameters() if weight.requires_grad}
    assert wanted == {name for name, weight in network.named_parameters() if weight.grad is not None}
    decayed, rest = weight_groups(network, 1e-3, 0.1)
    assert any(weight is network.genes.weight for weight in rest["params"])
    assert all(weight.ndim == 2 for weight in decayed["params"])
    assert rest["weight_decay"] == 0
