"""Fine-tuned models saved, loaded, pushed, and switched on one base."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml

import tahoe
from tahoe.errors import ModelError
from tahoe.model.cpu.linear import has_int8
from tahoe.model.files import FILES, FINE_TUNED_FILE, WEIGHTS_FILE

OPTIONS = {"max_length": 60, "min_coverage": 0}
PUSH = """
import sys, tahoe
print(tahoe.load_model(sys.argv[1], device="cpu").push_to_hub("somebody/cells"))
"""


@pytest.fixture
def taught(labelled, tiny, short):
    def make(method, seed=0, target="type"):
        mine = tahoe.fine_tune(labelled, target, tiny, method=method, plan=short, seed=seed, validation=0.3, **OPTIONS)
        assert mine.training_report.best_epoch > 0
        return mine

    return make


def probabilities(adata, model, name="type"):
    adata = adata.copy()
    tahoe.tl.predict(adata, model, min_coverage=0)
    return adata.obsm[f"{name}_probabilities"]


@pytest.mark.parametrize("method", ["head", "lora", "full"])
def test_saved_and_loaded(labelled, tiny, taught, tmp_path, method):
    mine = taught(method)
    expected = probabilities(labelled, mine)
    mine.save(tmp_path / "mine")
    written = {path.name for path in (tmp_path / "mine").iterdir()}
    assert written == {FINE_TUNED_FILE, *(FILES if method == "full" else [])}
    loaded = tahoe.load_model(tmp_path / "mine", dtype="float32")
    assert np.array_equal(probabilities(labelled, loaded), expected)
    assert np.array_equal(probabilities(labelled, tmp_path / "mine"), expected)
    assert loaded.fingerprint() == mine.fingerprint()
    assert loaded.fine_tuned.base == mine.fine_tuned.base
    assert str(loaded.training_report) == str(mine.training_report)
    assert loaded.name == "mine"
    assert (loaded.weights_sha256 == tiny.weights_sha256) == (method == "head")
    # and it embeds, as any model does
    tahoe.tl.embed(labelled, loaded, max_length=60, min_coverage=0)
    assert labelled.uns["X_tahoe"]["model_sha256"] == loaded.weights_sha256


def test_adapters_are_small_and_name_their_base(tiny, taught, tmp_path):
    from safetensors import safe_open

    taught("lora").save(tmp_path / "mine")
    path = tmp_path / "mine" / FINE_TUNED_FILE
    assert path.stat().st_size < (tiny.folder / WEIGHTS_FILE).stat().st_size / 10
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["base_sha256"] == tiny.weights_sha256
        assert file.get_tensor("adapter.layers.0.qkv.a").shape == (2, tiny.config.d_model)


def test_several_on_one_base(labelled, tiny, taught, tmp_path):
    """Each is what it would be alone, the base stays as it is, and what they have in common is held once."""
    before = tiny.network.layers[0].qkv.weight.clone()
    expected = {}
    for seed in (0, 1):
        mine = taught("lora", seed)
        mine.save(tmp_path / str(seed))
        expected[seed] = probabilities(labelled, mine)
    models = {seed: tahoe.load_model(tmp_path / str(seed), base=tiny) for seed in (0, 1, 0)}
    for seed, model in models.items():
        assert np.array_equal(probabilities(labelled, model), expected[seed])
        assert model.network.genes.weight is tiny.network.genes.weight
    assert not np.array_equal(expected[0], expected[1])
    assert torch.equal(tiny.network.layers[0].qkv.weight, before)
    assert tiny.fine_tuned is None
    by_folder = tahoe.load_model(tmp_path / "0", base=tiny.folder)
    assert np.array_equal(probabilities(labelled, by_folder), expected[0])


def test_another_base_is_refused(tiny, taught, tmp_path, reference):
    taught("lora").save(tmp_path / "mine")
    other = tiny.copy("other")
    with pytest.raises(ModelError, match="have sha256 none, since they were never saved"):
        tahoe.load_model(tmp_path / "mine", base=other)
    other.network.norm.weight[0] += 1
    other.save(tmp_path / "other")
    for base in (other, tmp_path / "other"):
        with pytest.raises(ModelError, match=r"trained on 'tiny-model' with .*another model; pass that one as base="):
            tahoe.load_model(tmp_path / "mine", base=base)
    swapped = shutil.copytree(reference / "tiny-model", tmp_path / "swapped")
    ids = json.loads((swapped / "vocab.json").read_text())
    first, second = [name for name in ids if name.startswith("ENSG")][:2]
    ids[first], ids[second] = ids[second], ids[first]
    (swapped / "vocab.json").write_text(json.dumps(ids))
    with pytest.raises(ModelError, match="the vocabulary of 'swapped' is not that of 'tiny-model'"):
        tahoe.load_model(tmp_path / "mine", base=swapped)
    with pytest.raises(ModelError, match="goes with adapters or a head"):
        tahoe.load_model("demo", base=tiny)
    with pytest.raises(ModelError, match="which is loaded, needs none"):
        tahoe.load_model(tiny, base=tiny)


def test_a_base_that_is_gone(labelled, taught, tmp_path, reference, short):
    folder = shutil.copytree(reference / "tiny-model", tmp_path / "base")
    mine = tahoe.fine_tune(labelled, "type", folder, method="head", **OPTIONS)
    mine.save(tmp_path / "mine")
    moved = folder.rename(tmp_path / "moved")
    with pytest.raises(ModelError, match=r"what was taught to the model 'base'.*cannot be loaded from .*base="):
        tahoe.load_model(tmp_path / "mine")
    assert tahoe.load_model(tmp_path / "mine", base=moved).fine_tuned.sha256() == mine.fine_tuned.sha256()


def test_a_rounded_base_is_refused(tiny, taught, tmp_path):
    taught("lora").save(tmp_path / "mine")
    tiny.network.is_quantized = True
    with pytest.raises(ModelError, match="weights in int8"):
        tahoe.load_model(tmp_path / "mine", base=tiny)


@pytest.mark.skipif(not has_int8(), reason="needs a CPU that multiplies in eight bits")
def test_loaded_in_eight_bits(labelled, taught, tmp_path):
    """The adapters are merged before the weights are rounded."""
    mine = taught("lora")
    mine.save(tmp_path / "mine")
    rounded = tahoe.load_model(tmp_path / "mine", dtype="int8")
    assert rounded.network.is_quantized
    assert np.abs(probabilities(labelled, rounded) - probabilities(labelled, mine)).mean() < 0.05


def test_taught_again(labelled, taught, tmp_path, short):
    """What was taught can be the base of the next."""
    taught("lora").save(tmp_path / "first")
    first = tahoe.load_model(tmp_path / "first", dtype="float32")
    second = tahoe.fine_tune(labelled, "age", first, method="head", **OPTIONS)
    second.save(tmp_path / "second")
    loaded = tahoe.load_model(tmp_path / "second", dtype="float32")
    assert [target.name for target in loaded.fine_tuned.targets] == ["age"]
    tahoe.tl.predict(labelled, loaded, min_coverage=0)
    assert labelled.uns["age_predicted"]["base_weights_sha256"] == first.weights_sha256


def test_folders_are_not_mixed(tiny, taught, tmp_path):
    mine = taught("head")
    tiny.copy("whole").save(tmp_path / "whole")
    with pytest.raises(ModelError, match="holds the weights of a model"):
        mine.save(tmp_path / "whole")
    full = taught("full")
    full.save(tmp_path / "full")
    tiny.copy("whole").save(tmp_path / "full")  # without a head
    assert tahoe.load_model(tmp_path / "full").fine_tuned is None
    full.save(tmp_path / "full")
    shutil.copy(tiny.folder / WEIGHTS_FILE, tmp_path / "full" / WEIGHTS_FILE)
    with pytest.raises(ModelError, match="two models, or saving was cut short"):
        tahoe.load_model(tmp_path / "full")


def test_a_damaged_file(taught, tmp_path):
    taught("lora").save(tmp_path / "mine")
    path = tmp_path / "mine" / FINE_TUNED_FILE
    whole = path.read_bytes()
    for content in (whole[:-100], whole.replace(b'\\"method\\"', b'\\"mothed\\"'), b"", b"{}" * 50):
        path.write_bytes(content)
        with pytest.raises(ModelError, match="not a whole file of a fine-tuned model"):
            tahoe.load_model(tmp_path / "mine")
    path.write_bytes(whole.replace(b'"tahoe_fine_tuned":"1"', b'"tahoe_fine_tuned":"2"'))
    with pytest.raises(ModelError, match="has version '2'"):
        tahoe.load_model(tmp_path / "mine")


def test_info_says_what_was_taught(tiny, taught, tmp_path):
    from tahoe.cli.info import describe

    taught("lora").save(tmp_path / "mine")
    told = describe(str(tmp_path / "mine"))
    for part in ("tiny-model", tiny.weights_sha256, "type: B, NK, T", "type, majority class"):
        assert part in told


def test_a_copy_has_no_head(taught):
    assert taught("head").copy("mine").fine_tuned is None


@pytest.mark.parametrize("method", ["lora", "full"])
def test_push(loopback, client, taught, tiny, labelled, tmp_path, method):
    mine = taught(method)
    mine.save(tmp_path / "mine")
    loopback.commits.clear()
    command = [sys.executable, "-c", PUSH, str(tmp_path / "mine")]
    environment = client.environment | {"HF_TOKEN": "hf_secret", "TAHOE_DTYPE": "float32"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    files = loopback.commits[loopback.main]
    assert set(files) == {"README.md", FINE_TUNED_FILE, *(FILES if method == "full" else [])}
    assert str(tiny.folder).encode() not in files[FINE_TUNED_FILE]
    pulled = tmp_path / "pulled"
    pulled.mkdir()
    for name, content in files.items():
        (pulled / name).write_bytes(content)
    base = {"base": tiny} if method == "lora" else {}
    assert np.array_equal(
        probabilities(labelled, tahoe.load_model(pulled, dtype="float32", **base)), probabilities(labelled, mine)
    )
    head, card = files["README.md"].decode().split("---\n")[1:]
    assert yaml.safe_load(head)["library_name"] == "tahoe"
    for part in (
        tiny.weights_sha256,
        "`type` (classes: B, NK, T)",
        "majority class: accuracy",
        "tahoe.tl.predict(adata",
    ):
        assert part in card
