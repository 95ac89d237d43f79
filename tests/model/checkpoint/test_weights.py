from __future__ import annotations

import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import tahoe
from tahoe import load_model
from tahoe.errors import DeviceError, ModelError
from tahoe.model import ModelConfig
from tahoe.model.checkpoint.weights import KEYS, our_name, released_name
from tahoe.model.config import ACTIVATIONS as NAMED
from tahoe.model.cpu.linear import has_bfloat16
from tahoe.model.network.encoders import ACTIVATIONS
from tahoe.model.network.network import Network


@pytest.fixture(params=["tiny", "drug"])
def folder(request, reference, tmp_path):
    return shutil.copytree(reference / f"{request.param}-model", tmp_path / request.param)


def change_yaml(path, **values):
    content = yaml.safe_load(path.read_text())
    for key, value in values.items():
        *outer, last = key.split("__")
        inner = content
        for name in outer:
            inner = inner[name]
        inner[last] = value
    path.write_text(yaml.safe_dump(content))


def change_weights(path, change):
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


def test_every_weight_arrives_under_its_name(folder):
    model = load_model(folder, device="cpu")
    ours = model.network.state_dict()
    released = load_file(folder / "model.safetensors")
    assert {released_name(name) for name in ours} == {name.removeprefix("model.") for name in released}
    for name, weight in released.items():
        torch.testing.assert_close(ours[our_name(name)], weight, rtol=0, atol=0)


def test_key_map_is_one_to_one():
    assert len(set(KEYS.values())) == len(KEYS)
    for released in KEYS:
        key = released.replace("{i}", "11") + ".weight"
        assert released_name(our_name(key)) == key
    assert set(NAMED) == set(ACTIVATIONS)


def test_saved_loads_bit_for_bit(folder, tmp_path):
    model = load_model(folder, device="cpu")
    model.save(tmp_path / "again")
    again = load_model(tmp_path / "again", device="cpu")
    assert again.config == model.config
    assert list(again.vocabulary.ids.items()) == list(model.vocabulary.ids.items())  # order, too
    assert again.vocabulary.sha256 == model.vocabulary.sha256
    assert again.drugs == model.drugs
    for name, weight in model.network.state_dict().items():
        torch.testing.assert_close(again.network.state_dict()[name], weight, rtol=0, atol=0)


def test_saved_gives_the_same_vectors(tmp_path):
    model = load_model("demo", device="cpu").copy("mine")
    model.save(tmp_path / "mine")
    again = load_model(tmp_path / "mine", device="cpu")
    assert {weight.data_ptr() % 64 for weight in again.network.state_dict().values()} == {0}
    cells = tahoe.datasets.pbmc68k()[:20]
    tokens = model.tokenize(cells.X, model.vocabulary.tokens_of(tahoe.pp.map_genes(cells, copy=True).var["tahoe_gene"]))
    torch.testing.assert_close(again.embed_cells(tokens), model.embed_cells(tokens), rtol=0, atol=0)


def test_keys_without_prefix_are_accepted(folder):
    path = folder / "model.safetensors"
    # copies: weights are mapped from the file, which is written over next
    before = {name: weight.clone() for name, weight in load_model(folder, device="cpu").network.state_dict().items()}
    save_file({name.removeprefix("model."): weight for name, weight in load_file(path).items()}, path)
    for name, weight in load_model(folder, device="cpu").network.state_dict().items():
        torch.testing.assert_close(weight, before[name], rtol=0, atol=0)


def test_half_precision_file_is_computed_in_float32(reference, tmp_path):
    half = load_model(reference / "tiny-model", device="cpu", dtype="float16")
    half.save(tmp_path / "half")
    written = load_file(tmp_path / "half" / "model.safetensors")
    assert {w.dtype for name, w in written.items() if "norm" not in name} == {torch.float16}
    assert {w.dtype for name, w in written.items() if "norm" in name} == {torch.float32}
    again = load_model(tmp_path / "half", device="cpu")
    assert again.dtype == torch.float32
    for name, weight in half.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], weight.float())


@pytest.mark.parametrize("name", ["model.safetensors", "model_config.yml", "collator_config.yml", "vocab.json"])
def test_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(ModelError, match=f"no {name}"):
        load_model(folder)


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.999])
def test_truncated_weights(folder, share):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ModelError, match=r"not a whole safetensors file.*download it again"):
        load_model(folder)


def test_corrupt_header(folder):
    path = folder / "model.safetensors"
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        load_model(folder)


def test_missing_weight_is_named(folder):
    change_weights(folder / "model.safetensors", lambda w: w.pop("model.transformer_encoder.layers.1.norm2.bias"))
    with pytest.raises(ModelError, match=r"model\.transformer_encoder\.layers\.1\.norm2\.bias is missing"):
        load_model(folder)


@pytest.mark.parametrize("name", ["model.extra.weight", "norm.weight", "model.layers.0.qkv.weight"])
def test_unexpected_weight_is_named(folder, name):
    change_weights(folder / "model.safetensors", lambda w: w.update({name: torch.ones(3)}))
    with pytest.raises(ModelError, match=rf"{name.removeprefix('model.')} is unexpected"):
        load_model(folder)


def test_weight_that_is_there_twice(folder):
    key = "model.flag_encoder.weight"
    change_weights(folder / "model.safetensors", lambda w: w.update({key.removeprefix("model."): w[key] + 1}))
    with pytest.raises(ModelError, match=r"has model\.flag_encoder\.weight twice"):
        load_model(folder)


def test_weight_of_another_shape_is_named(folder):
    key = "model.flag_encoder.weight"
    change_weights(folder / "model.safetensors", lambda w: w.update({key: torch.ones(2, 3)}))
    with pytest.raises(ModelError, match=r"flag_encoder\.weight has shape \(2, 3\) instead of \(2, "):
        load_model(folder)


def test_whole_number_weights_are_refused(folder):
    key = "model.flag_encoder.weight"
    change_weights(folder / "model.safetensors", lambda w: w.update({key: w[key].to(torch.int32)}))
    with pytest.raises(ModelError, match=r"flag_encoder\.weight has dtype torch.int32"):
        load_model(folder)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("model_config.yml", {"cell_emb_style": "avg-pool"}, "cell_emb_style is 'avg-pool'"),
        ("model_config.yml", {"norm_config__norm_type": "rmsnorm"}, "norm_type is 'rmsnorm'"),
        ("model_config.yml", {"transformer_activation": "swish"}, "transformer_activation is 'swish'.*one of relu"),
        ("model_config.yml", {"attn_config__kv_n_heads": 1}, "kv_n_heads is 1"),
        ("model_config.yml", {"attn_config__attn_type": "multiquery_attention"}, "attn_type"),
        ("model_config.yml", {"gene_encoder__embeddings": {"esm": {}}}, "embeddings is"),
        ("model_config.yml", {"mvc__arch_style": "concat query"}, "arch_style is 'concat query'"),
        ("model_config.yml", {"n_heads": 3}, "not a multiple of n_heads 3"),
        ("model_config.yml", {"n_layers": "two"}, "n_layers is 'two'; it must be a whole number"),
        ("model_config.yml", {"d_model": -64}, "d_model is -64"),
        ("model_config.yml", {"d_model": 1 << 40}, "d_model is"),
        ("model_config.yml", {"n_layers": None}, "n_layers is missing"),
        ("model_config.yml", {"vocab_size": 100}, "ids up to"),
        ("model_config.yml", {"norm_config__eps": "tiny"}, "eps is 'tiny'; it must be a number"),
        ("model_config.yml", {"use_glu": "yes"}, "use_glu is 'yes'; it must be true or false"),
        ("model_config.yml", {"mvc": 3}, "mvc is 3; it must be keys and values"),
        ("collator_config.yml", {"num_bins": 11}, "num_bins is 11"),
        ("collator_config.yml", {"right_binning": True}, "right_binning is True"),
        (
            "collator_config.yml",
            {"mlm_probability": [0.5, "half"]},
            r"mlm_probability is \[0.5, 'half'\]; it must be a number",
        ),
        ("collator_config.yml", {"pad_value": -2.5}, "must be whole numbers"),
        ("collator_config.yml", {"log_transform": True}, "do_binning and log_transform are both true"),
    ],
)
def test_configuration_that_would_compute_otherwise_is_refused(reference, tmp_path, file, change, message):
    folder = shutil.copytree(reference / "tiny-model", tmp_path / "tiny")
    change_yaml(folder / file, **change)
    with pytest.raises(ModelError, match=message):
        load_model(folder)


def test_unknown_keys_and_text_numbers_are_fine(reference, tmp_path):
    folder = shutil.copytree(reference / "tiny-model", tmp_path / "tiny")
    change_yaml(folder / "model_config.yml", wandb_id="x", brand_new={"a": 1}, norm_config__eps="1e-5")
    change_yaml(folder / "collator_config.yml", mlm_probability=[0.25, 0.75, 0.2])
    config = load_model(folder).config
    assert config.norm_eps == 1e-5
    assert config.mask_probability == pytest.approx(0.4)


def test_drug_token_and_drug_encoder_must_agree(reference, tmp_path):
    folder = shutil.copytree(reference / "drug-model", tmp_path / "drug")
    change_yaml(folder / "collator_config.yml", use_chem_token=False)
    with pytest.raises(ModelError, match="the two must agree"):
        load_model(folder)


@pytest.mark.parametrize("content", ["{", "- 1", "a: [", "3", "", "\x00"])
def test_broken_yaml(folder, content):
    (folder / "model_config.yml").write_text(content)
    with pytest.raises(ModelError, match=r"model_config\.yml"):
        load_model(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update({"<pad>": 1}), "same id 1"),
        (lambda v: v.update({"ENSG1": -4}), "id of 'ENSG1' is -4"),
        (lambda v: v.update({"ENSG1": "4"}), "id of 'ENSG1' is '4'"),
        (lambda v: v.update({"ENSG1": True}), "id of 'ENSG1' is True"),
        (lambda v: v.update({"ENSG1": 10**6}), "ids up to 1000000"),
        (lambda v: v.pop("<cls>"), "<cls> is missing"),
    ],
)
def test_broken_vocabulary(folder, change, message):
    path = folder / "vocab.json"
    ids = json.loads(path.read_text())
    change(ids)
    path.write_text(json.dumps(ids))
    with pytest.raises(ModelError, match=message):
        load_model(folder)


@pytest.mark.parametrize("content", ["[]", "{", "null"])
def test_vocabulary_that_is_no_mapping(folder, content):
    (folder / "vocab.json").write_text(content)
    with pytest.raises(ModelError, match=r"vocab\.json"):
        load_model(folder)


@pytest.mark.parametrize(("name", "near"), [("70M", "70m"), ("tahoe-x1-3b", "3b"), ("demmo", "demo")])
def test_unknown_name_suggests_the_nearest(name, near):
    with pytest.raises(ModelError, match=f"did you mean '{near}'"):
        load_model(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the machine has CUDA")
def test_no_cuda(folder):
    with pytest.raises(DeviceError, match=r"device='cuda'.*use device='cpu'"):
        load_model(folder, device="cuda")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "tpu9"}, "device='tpu9'"),
        ({"device": "meta"}, "not supported"),
        ({"dtype": "int4"}, "dtype='int4'"),
        ({"attention": "varlen"}, "needs a CUDA device"),
        ({"attention": "flash"}, "needs a CUDA device"),
        ({"attention": "fast"}, "attention='fast' is unknown"),
    ],
)
def test_what_this_machine_cannot_do(reference, options, message):
    with pytest.raises(DeviceError, match=message):
        load_model(reference / "tiny-model", **{"device": "cpu", **options})


def test_a_loaded_model_comes_back(tiny):
    assert load_model(tiny) is tiny
    assert load_model(tiny, device="cpu", dtype="float32") is tiny
    assert load_model(tiny, device="cpu:0") is tiny
    with pytest.raises(ModelError, match="model= is a loaded model"):
        load_model(tiny, revision="main")
    with pytest.raises(DeviceError, match=r"dtype=.*load it again"):
        load_model(tiny, dtype="bfloat16")


def test_published_shapes():
    """Parameter counts of the three released models, from their configurations."""
    common = {"gene_norm": True, "value_norm": True, "decoder_layers": 1, "mvc_scaled": True}
    shapes = {
        70_996_993: ModelConfig(512, 12, 8, 62_720, activation="relu", **common),
        1_353_854_977: ModelConfig(2048, 24, 16, 62_720, activation="relu", **common),
        2_704_463_361: ModelConfig(2560, 32, 20, 62_721, activation="gelu", **common),
    }
    for parameters, config in shapes.items():
        with torch.device("meta"):
            network = Network(config)
        assert sum(weight.numel() for weight in network.parameters()) == parameters


def test_precision_is_the_checkpoints_own_where_the_device_has_it(reference):
    with tahoe.settings.override(dtype=None):
        trained_in_bfloat16 = load_model(reference / "tiny-model", device="cpu")
        assert trained_in_bfloat16.dtype == (torch.bfloat16 if has_bfloat16() else torch.float32)
        assert load_model("demo", device="cpu").dtype == torch.float32
