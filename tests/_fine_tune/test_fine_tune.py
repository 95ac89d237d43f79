"""The verb: what it returns, what it leaves alone, and what it says of bad input."""

from __future__ import annotations

import errno

import numpy as np
import pandas as pd
import pytest
import torch

import tahoe
from tahoe.errors import InputError, ModelError, TahoeWarning
from tahoe.model.training import FineTuningPlan

OPTIONS = {"max_length": 60, "min_coverage": 0}


def tables(adata):
    return (
        adata.obs.copy(),
        {key: np.array(each) for key, each in adata.obsm.items()},
        dict(adata.uns),
        adata.var.copy(),
    )


def same_weights(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.network.parameters(), other.network.parameters(), strict=True))


@pytest.mark.parametrize("method", ["head", "lora", "full"])
def test_a_model_that_was_taught(labelled, tiny, short, method, reference):
    """It tells, `adata` and `model` stay as they are, and what has to be beaten stands beside it."""
    before = tables(labelled)
    mine = tahoe.fine_tune(labelled, "type", tiny, method=method, groups="donor", validation=0.3, plan=short, **OPTIONS)
    for one, other in zip(before, tables(labelled), strict=True):
        assert str(one) == str(other)
    assert same_weights(tiny, tahoe.load_model(reference / "tiny-model"))
    assert tiny.fine_tuned is None
    assert same_weights(tiny, mine) == (method == "head")
    assert not any(weight.requires_grad for weight in mine.network.parameters())

    report = mine.training_report
    assert report.n_train + report.n_validation == 63
    assert len(report.held_out_groups) == 2
    epochs = pd.DataFrame(report.epochs)
    assert set(epochs["stage"]) == ({"head"} if method == "head" else {"head", "network"})
    assert epochs[["validation_loss", "accuracy", "macro_f1"]].notna().all(axis=None)
    methods = [row["method"] for row in report.comparison]
    assert methods == [
        method,
        *([] if method == "head" else ["head alone"]),
        "logistic regression on embeddings",
        "logistic regression on PCA of log counts",
        "majority class",
    ]
    tahoe.tl.predict(labelled, mine, min_coverage=0)
    held = labelled.obs["donor"].isin(report.held_out_groups)
    right = (labelled.obs["type_predicted"].astype(str) == labelled.obs["type"].astype(str))[held].mean()
    assert right == pytest.approx(report.comparison[0]["accuracy"])


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_same_seed_gives_the_same_model(labelled, tiny, short, method):
    options = {**OPTIONS, "method": method, "plan": short}
    one, other, third = (tahoe.fine_tune(labelled, "type", tiny, seed=seed, **options) for seed in (0, 0, 1))
    assert one.fine_tuned.sha256() != third.fine_tuned.sha256()
    # how sums are rounded depends on where memory lies; the gradient of a key's bias is rounding alone
    for ours, theirs in zip(one.network.parameters(), other.network.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    for ours, theirs in zip(one.fine_tuned.head.parameters(), other.fine_tuned.head.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_held_out_groups_are_not_trained_on(labelled, tiny, short):
    """Their labels change nothing but the scores."""
    first = tahoe.fine_tune(labelled, "type", tiny, method="head", groups="donor", **OPTIONS)
    held = labelled.obs["donor"].isin(first.training_report.held_out_groups)
    labels = labelled.obs["type"].astype(str).to_numpy()
    # the classes that are held back decide which groups are chosen, so they stay as many
    labels[held] = np.roll(labels[held], 1)
    labelled.obs["type"] = labels
    second = tahoe.fine_tune(labelled, "type", tiny, method="head", groups="donor", **OPTIONS)
    assert second.training_report.held_out_groups == first.training_report.held_out_groups
    losses = [[row["train_loss"] for row in each.training_report.epochs] for each in (first, second)]
    shorter = min(map(len, losses))
    assert losses[0][1:shorter] == losses[1][1:shorter]


def test_several_targets(labelled, tiny, short):
    labelled.obs.loc[labelled.obs_names[:5], "type"] = None
    labelled.obs.loc[labelled.obs_names[3:6], "age"] = np.nan
    with pytest.warns(TahoeWarning, match="is missing for") as told:
        mine = tahoe.fine_tune(labelled, ["type", "age", "proteins"], tiny, plan=short, **OPTIONS)
    assert ["5 of 63" in str(each.message) for each in told][:1] == [True]
    assert mine.training_report.n_train + mine.training_report.n_validation == 63
    table = pd.DataFrame(mine.training_report.comparison)
    assert table.groupby("target").size().to_dict() == {"age": 5, "proteins": 5, "type": 5}
    assert table.loc[table["target"] == "age", "r2"].notna().all()
    assert {"ridge regression on embeddings", "mean"} < set(table.loc[table["target"] == "proteins", "method"])


def test_cells_without_labels_change_nothing(labelled, tiny):
    labelled.obs["some"] = labelled.obs["type"].where(np.arange(63) % 3 > 0)
    kept = labelled[labelled.obs["some"].notna()].copy()
    with pytest.warns(TahoeWarning, match=r"obs\['some'\] is missing for 21 of 63 cells, which are used for nothing"):
        one = tahoe.fine_tune(labelled, "some", tiny, method="head", **OPTIONS)
    other = tahoe.fine_tune(kept, "some", tiny, method="head", **OPTIONS)
    assert one.fine_tuned.sha256() == other.fine_tuned.sha256()


def test_cells_without_genes_are_left_out(tiny_cells, tiny):
    tiny_cells.obs["type"] = ["a", "b"] * 32
    with pytest.warns(TahoeWarning, match="1 of 64 labelled cells express no gene of the model's vocabulary: left out"):
        mine = tahoe.fine_tune(tiny_cells, "type", tiny, method="head", **OPTIONS)
    assert mine.training_report.n_train + mine.training_report.n_validation == 63


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"method": "peft"}, "choose from 'lora', 'full', 'head'"),
        ({"validation": 0}, "between 0 and 1"),
        ({"groups": "nobody"}, "groups='nobody' is not a column"),
        ({"groups": "missing"}, r"obs\['missing'\] is missing for 1 labelled cells"),
        ({"class_weight": "even"}, "pass 'balanced', None"),
        ({"class_weight": {"T": -1}}, "'T' has weight -1"),
        ({"class_weight": {"Z": 1}}, "'Z' is not a label"),
        ({"plan": 5}, "FineTuningPlan, not int"),
        ({"max_length": 1}, "max_length=1"),
        ({"target": "same"}, "nothing to tell apart"),
        ({"groups": "type"}, "a class has no cells left to train on"),
    ],
)
def test_bad_input(labelled, tiny, options, match):
    labelled.obs["same"] = "T"
    labelled.obs["missing"] = ["x", None] + ["y"] * 61
    before = tables(labelled)
    with pytest.raises(InputError, match=match):
        tahoe.fine_tune(labelled, options.pop("target", "type"), tiny, **{**OPTIONS, **options})
    assert str(before) == str(tables(labelled))


def test_rounded_weights_cannot_be_trained(labelled, tiny):
    tiny.network.is_quantized = True
    with pytest.raises(ModelError, match="weights in int8, which is for inference only; load it with dtype='float32'"):
        tahoe.fine_tune(labelled, "type", tiny, **OPTIONS)


def test_a_model_that_was_never_saved(labelled, tiny, short, tmp_path):
    mine = tiny.copy("mine")
    with pytest.raises(ModelError, match=r"never saved.*model\.save\(folder\)"):
        tahoe.fine_tune(labelled, "type", mine, **OPTIONS)
    assert tahoe.fine_tune(labelled, "type", mine, method="full", plan=short, **OPTIONS).fine_tuned.base.name == "mine"
    mine.save(tmp_path / "mine")
    tahoe.fine_tune(labelled, "type", mine, method="head", **OPTIONS)


def test_divergence_is_told_and_the_best_state_kept(labelled, tiny):
    """Here that of the head alone: the network diverges in its first epoch."""
    plan = FineTuningPlan(epochs=3, learning_rate=1e30, warm_up=0, clip=1e30, patience=9)
    with pytest.warns(TahoeWarning, match=r"training diverged (at|by) step \d+ \(epoch \d\).*best state from before"):
        mine = tahoe.fine_tune(labelled, "type", tiny, plan=plan, **OPTIONS)
    assert all(torch.isfinite(weight).all() for weight in mine.network.parameters())
    assert mine.training_report.best_epoch == 0
    assert same_weights(mine, tiny)


def test_a_full_disk_does_not_lose_the_model(labelled, tiny, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.write_bytes", full)
        with pytest.warns(TahoeWarning, match=r"returned, but not saved: .*the disk is full"):
            mine = tahoe.fine_tune(labelled, "type", tiny, method="head", output=tmp_path / "mine", **OPTIONS)
        with pytest.raises(ModelError, match="the disk is full; save it elsewhere"):
            mine.save(tmp_path / "mine")
    assert not list((tmp_path / "mine").iterdir())
    mine.save(tmp_path / "mine")
    assert tahoe.load_model(tmp_path / "mine").fine_tuned.sha256() == mine.fine_tuned.sha256()


def test_an_output_that_cannot_be(labelled, tiny, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        tahoe.fine_tune(labelled, "type", tiny, output=tmp_path / "file" / "mine", **OPTIONS)
    tiny.copy("mine").save(tmp_path / "base")
    with pytest.raises(InputError, match="holds the weights of a model"):
        tahoe.fine_tune(labelled, "type", tiny, output=tmp_path / "base", **OPTIONS)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_an_interrupt_leaves_everything_as_it_was(labelled, tiny, short, method, monkeypatch, reference, tmp_path):
    before, calls = tables(labelled), []

    def interrupted(self, *arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return step(self, *arguments, **options)

    step = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tahoe.fine_tune(labelled, "type", tiny, method=method, plan=short, output=tmp_path / "mine", **OPTIONS)
    assert str(before) == str(tables(labelled))
    assert same_weights(tiny, tahoe.load_model(reference / "tiny-model"))
    assert not (tmp_path / "mine").exists()


def test_modes_of_the_caller_change_nothing(labelled, tiny, short):
    plain = tahoe.fine_tune(labelled, "type", tiny, plan=short, **OPTIONS)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        inside = tahoe.fine_tune(labelled, "type", tiny, plan=short, **OPTIONS)
    assert plain.fine_tuned.sha256() == inside.fine_tuned.sha256()


def test_lazy_and_backed_cells(labelled, tiny, tmp_path):
    import anndata

    labelled.write_h5ad(tmp_path / "cells.h5ad")
    expected = tahoe.fine_tune(labelled, "type", tiny, method="head", **OPTIONS).fine_tuned.sha256()
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    assert tahoe.fine_tune(backed, "type", tiny, method="head", **OPTIONS).fine_tuned.sha256() == expected
    backed.file.close()
