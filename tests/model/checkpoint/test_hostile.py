"""Files that are broken or something else: each is refused by name, at once, and takes no memory."""

from __future__ import annotations

import contextlib
import json
import pickle
import resource
import shutil
import struct
import subprocess
import sys

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import tahoe
from tahoe.errors import InputError, ModelError
from tahoe.model import Vocabulary
from tahoe.model.checkpoint.config_files import config_of, contents_of, read_yaml
from tahoe.model.checkpoint.weights import read_drugs

TEXTS = {
    "nothing": b"",
    "a word": b"hello",
    "a list": b"- 1\n- 2\n",
    "a file that was cut": b"attn_config: {attn_impl: tri",
    "a tabulator": b"\td_model: 8\n",
    "two documents": b"--- {a: 1}\n--- {b: 2}\n",
    "an unknown tag": b"d_model: !wild 1\n",
    "code to run": b"x: !!python/object/apply:os.system ['false']\n",
    "a number of 5,000 digits": b"d_model: " + b"9" * 5000,
    "latin-1": "x: é".encode("latin-1"),
    "a pickle": pickle.dumps({"d_model": 8}),
    "weights": b"\x58\x00\x00\x00\x00\x00\x00\x00{}",
    "a megabyte": b"# " + b"x" * (1 << 20),
}
MODEL = {
    "d_model": [0, 2.5, "8", None, True, 1 << 70, float("nan"), 65],
    "n_layers": [0, 3, 4096, "two"],
    "n_heads": [0, 3],
    "vocab_size": [5, 2004],
    "expansion_ratio": [-4, 1],
    "transformer_activation": ["swish", ["relu"]],
    "norm_scheme": ["middle"],
    "use_glu": ["yes", True],
    "cell_emb_style": ["avg-pool"],
    "precision": [["fp32"]],
    "attn_config": ["flash"],
    "attn_config__attn_type": ["multiquery_attention"],
    "attn_config__use_attn_mask": ["no"],
    "norm_config__norm_type": ["rmsnorm"],
    "norm_config__eps": ["tiny", 0, float("nan"), [1e-5, True]],
    "gene_encoder__use_norm": [0],
    "gene_encoder__embeddings": [{"esm": {}}],
    "expression_encoder__max_value": [-1],
    "expression_encoder__input_emb_style": ["category"],
    "expression_decoder__n_layers": [2],
    "mvc": [None, "inner product"],
}
COLLATOR = {
    "do_binning": [1],
    "log_transform": [True],
    "num_bins": [11],
    "pad_value": [-2.5, 60, -1e15, float("nan")],
    "mask_value": ["x"],
    "target_sum": [0],
    "mlm_probability": [2, [0.5, 3], [[0.5]]],
    "max_length": [-1, 1 << 40],
    "use_chem_token": [True],
}
IDS = ["", "[]", '{"<pad>": 0, "<c', '{"a": "1"}', '{"a": 1.5}', '{"a": -1}', '{"a": true}', '{"a": 1, "a": 2}']


def changed_yaml(path, key, value):
    content = yaml.safe_load(path.read_text())
    *outer, last = key.split("__")
    place = content
    for name in outer:
        place = place[name]
    place[last] = value
    path.write_text(yaml.safe_dump(content))


@pytest.fixture
def folder(reference, tmp_path):
    return shutil.copytree(reference / "tiny-model", tmp_path / "tiny")


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_text_of_a_configuration(folder, text):
    for file in ("model_config.yml", "collator_config.yml"):
        whole = (folder / file).read_bytes()
        (folder / file).write_bytes(text)
        with pytest.raises(ModelError, match=file) as caught:
            tahoe.load_model(folder)
        assert len(str(caught.value)) < 1000
        (folder / file).write_bytes(whole)


def cases(table):
    return [
        pytest.param(key, value, id=f"{key}={str(value)[:20]}") for key, values in table.items() for value in values
    ]


@pytest.mark.parametrize(("key", "value"), cases(MODEL))
def test_value_of_the_network(folder, key, value):
    changed_yaml(folder / "model_config.yml", key, value)
    with pytest.raises(ModelError):
        tahoe.load_model(folder)


@pytest.mark.parametrize(("key", "value"), cases(COLLATOR))
def test_value_of_the_tokens(folder, key, value):
    changed_yaml(folder / "collator_config.yml", key, value)
    with pytest.raises(ModelError):
        tahoe.load_model(folder)


@pytest.mark.parametrize("content", IDS)
def test_drugs_and_vocabulary(tmp_path, content):
    (tmp_path / "ids.json").write_text(content)
    with pytest.raises(ModelError, match=r"ids\.json"):
        read_drugs(tmp_path / "ids.json")
    with pytest.raises(ModelError, match=r"ids\.json"):
        Vocabulary.read(tmp_path / "ids.json")


@pytest.mark.parametrize("ids", [{"<pad>": 0, "<cls>": 0}, {"<pad>": 0, "<cls>": 1 << 62}, {"<pad>": 0}])
def test_ids(ids):
    with pytest.raises(ModelError):
        Vocabulary(ids)


def test_a_vocabulary_too_large_to_be_one(tmp_path):
    path = tmp_path / "vocab.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a hole: it takes no space on the disk, and would take a terabyte of memory
    with pytest.raises(ModelError, match="has 1,099,511,627,776 bytes"):
        Vocabulary.read(path)


def test_a_file_of_drugs_that_is_not_there(tiny, full_cells, reference):
    drug_model = tahoe.load_model(reference / "drug-model")
    full_cells.obs["drug"] = "a"
    with pytest.raises(InputError, match="there is no such file"):
        tahoe.tl.embed(full_cells, drug_model, drug_key="drug", drugs="nowhere.json")


HEADER = {"model.flag_encoder.weight": {"dtype": "F32", "shape": [2, 64], "data_offsets": [0, 512]}}


def entry(**changed):
    return {"model.flag_encoder.weight": HEADER["model.flag_encoder.weight"] | changed}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        struct.pack("<Q", 1 << 63),
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 4) + b"\xff\xff\xff\xff",
        pickle.dumps({"a": 1}),
        b"PK\x03\x04" + b"\x00" * 64,  # what torch.save writes
        entry(shape=[1 << 40, 1 << 40]),
        entry(shape=[2, 65]),
        entry(dtype="F65"),
        entry(dtype="I64", shape=[1, 64]),
        entry(data_offsets=[0, 1 << 63]),
        {"model.flag_encoder.weight": 3},
        HEADER,
    ],
)
def test_weights(folder, content):
    if isinstance(content, dict):
        header = json.dumps(content).encode()
        content = struct.pack("<Q", len(header)) + header + b"\x00" * 512
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError):
        tahoe.load_model(folder)


def test_layers_without_weights_are_not_made(folder):
    """A file that says 4,000 layers is refused before they are made, not after."""
    changed_yaml(folder / "model_config.yml", "n_layers", 4000)
    with pytest.raises(ModelError, match="has only .* weights"):
        tahoe.load_model(folder)


def test_hostile_sizes_take_no_memory(folder, tmp_path):
    """All of these with an address space of 6 GB, where torch alone wants a good part of it."""
    code = (
        "import sys, pathlib, tahoe\n"
        "for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):\n"
        "    try: tahoe.load_model(path)\n"
        "    except tahoe.errors.ModelError: print(path.name)\n"
    )
    for number, (key, value) in enumerate([("d_model", 65536), ("vocab_size", 1 << 24), ("expansion_ratio", 256)]):
        shutil.copytree(folder, tmp_path / "all" / str(number))
        changed_yaml(tmp_path / "all" / str(number) / "model_config.yml", key, value)
    shutil.copytree(folder, tmp_path / "all" / "pad")
    changed_yaml(tmp_path / "all" / "pad" / "collator_config.yml", "pad_value", -(10.0**12))

    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))

    command = [sys.executable, "-c", code, str(tmp_path / "all")]
    run = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["0", "1", "2", "pad"]


def test_weights_that_are_not_numbers_are_named(folder, full_cells):
    """They load, since nobody looks at three billion weights; the first cell tells."""
    weights = tahoe.load_model(folder).network.state_dict()
    weights = {f"model.{name}": weight for name, weight in torch_names(weights).items()}
    weights["model.transformer_encoder.norm.bias"] = torch.full_like(
        weights["model.transformer_encoder.norm.bias"], torch.nan
    )
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ModelError, match="the network gave NaN"):
        tahoe.tl.embed(full_cells, folder)
    assert "X_tahoe" not in full_cells.obsm


def torch_names(weights):
    from tahoe.model.checkpoint.weights import released_name

    return {released_name(name): weight.clone() for name, weight in weights.items()}


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
nested = st.recursive(plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_value_for_any_key(reference, data):
    """Whatever stands there: an error that names it, or a configuration within the limits."""
    model = yaml.safe_load((reference / "tiny-model" / "model_config.yml").read_text())
    collator = yaml.safe_load((reference / "tiny-model" / "collator_config.yml").read_text())
    for place in (model, collator, *(inner for inner in model.values() if isinstance(inner, dict))):
        if data.draw(st.booleans()):
            place[data.draw(st.sampled_from(sorted(place)))] = data.draw(nested)
    try:
        config = config_of(model, collator)
    except ModelError:
        return
    assert config.d_model % config.n_heads == 0
    assert config.norm_eps > 0
    again = config_of(*contents_of(config))
    assert again == config


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=200) | st.binary(max_size=200))
def test_any_text_as_yaml(tmp_path, text):
    path = tmp_path / "model_config.yml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    with contextlib.suppress(ModelError):
        assert isinstance(read_yaml(path), dict)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.text(max_size=6), st.integers(-1, 9) | plain, max_size=6))
def test_any_mapping_as_vocabulary(tmp_path, ids):
    path = tmp_path / "vocab.json"
    path.write_text(json.dumps({"<pad>": 0, "<cls>": 1} | ids))
    try:
        vocabulary = Vocabulary.read(path)
    except ModelError:
        return
    assert len(set(vocabulary.ids.values())) == len(vocabulary)
    assert vocabulary.tokens_of(list(vocabulary.genes)).tolist() == [vocabulary.ids[gene] for gene in vocabulary.genes]
    assert len(vocabulary.sha256) == 64
