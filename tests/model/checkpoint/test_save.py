from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from scipy import sparse

import tahoe
from tahoe._run.cluster import ModelReference
from tahoe.errors import ModelError
from tahoe.model.files import FILES, WEIGHTS_FILE, file_sha256

PUSH = """
import sys, tahoe
model = tahoe.load_model(sys.argv[1], device="cpu")
print(model.push_to_hub("somebody/cells", folder=sys.argv[2], private=True, about="Fine-tuned on *hearts*."))
"""
SAVE = """
import sys, torch, tahoe
model = tahoe.load_model(sys.argv[1], device="cpu")
for weight in model.network.parameters():
    weight.zero_()
print("saving", flush=True)
while True:
    model.save(sys.argv[2])
"""


def same_weights(first, second):
    ours, others = first.network.state_dict(), second.network.state_dict()
    return ours.keys() == others.keys() and all(torch.equal(ours[key], others[key]) for key in ours)


def test_a_model_can_be_saved_over_its_own_files(reference, tmp_path):
    """Its weights may still be read from the file that is being replaced."""
    folder = shutil.copytree(reference / "drug-model", tmp_path / "drug")
    model = tahoe.load_model(folder, device="cpu")
    model.save(folder)
    assert same_weights(model, tahoe.load_model(reference / "drug-model", device="cpu"))
    assert same_weights(model, tahoe.load_model(folder, device="cpu"))
    assert {path.name for path in folder.iterdir()} == {*FILES, "drug_to_id_pad.json"}


def test_what_was_saved_is_the_model_of_its_folder(reference, tmp_path):
    """For provenance and for workers, whatever it was before, and again after the next change."""
    mine = tahoe.load_model(reference / "tiny-model", device="cpu", dtype="float32").copy("mine")
    hashes = set()
    for place in ("first", "second", "second"):
        mine.network.norm.weight[0] += 1
        mine.save(tmp_path / place)
        found = tahoe.load_model(tmp_path / place, device="cpu")
        assert (mine.name, mine.folder, mine.revision) == ("mine", tmp_path / place, None)
        assert mine.weights_sha256 == file_sha256(tmp_path / place / WEIGHTS_FILE) == found.weights_sha256
        assert mine.fingerprint() == found.fingerprint()
        assert ModelReference.to(mine).model == str(tmp_path / place)
        hashes.add(mine.weights_sha256)
    assert len(hashes) == 3
    demo = tahoe.load_model("demo", device="cpu", dtype="float32")
    demo.save(tmp_path / "demo")
    assert (demo.is_registered, demo.folder) == (False, tmp_path / "demo")


def test_a_loaded_model_keeps_its_hash(reference, tmp_path):
    """Also when nobody asked for it before another model was saved to its folder."""
    folder = shutil.copytree(reference / "tiny-model", tmp_path / "tiny")
    loaded, other = (tahoe.load_model(folder, device="cpu", dtype="float32") for _ in range(2))
    before = file_sha256(folder / WEIGHTS_FILE)
    other.network.norm.weight[0] += 1
    other.save(folder)
    assert loaded.weights_sha256 == before != other.weights_sha256


def test_models_and_tokens_may_be_keys(reference, tiny):
    again = tahoe.load_model(reference / "tiny-model", device="cpu", dtype="float32")
    assert {tiny: 1, again: 2}[tiny] == 1
    assert tiny != again
    tokens = tiny.tokenize(sparse.csr_array(np.ones((2, 3), np.float32)), np.array([3, 4, 5]))
    assert len({tokens, tokens.cells(0, 2), tiny.batch(tokens), tiny.config}) == 4


def test_drugs_of_another_model_do_not_stay(reference, tmp_path):
    model = tahoe.load_model(reference / "drug-model", device="cpu")
    model.save(tmp_path)
    model.drugs = {}
    model.save(tmp_path)
    assert tahoe.load_model(tmp_path, device="cpu").drugs == {}


def test_a_save_that_failed_leaves_nothing_that_loads(reference, tmp_path, monkeypatch):
    model = tahoe.load_model(reference / "tiny-model", device="cpu")
    monkeypatch.setattr(model.vocabulary, "ids", {"<pad>": object()})
    with pytest.raises(TypeError):
        model.save(tmp_path)
    with pytest.raises(ModelError, match=r"has no model\.safetensors"):
        tahoe.load_model(tmp_path)


@pytest.mark.parametrize("seconds", [0.0, 0.013])
def test_a_killed_save_leaves_the_old_model_the_new_or_none(reference, tmp_path, seconds):
    folder = shutil.copytree(reference / "tiny-model", tmp_path / "tiny")
    command = [sys.executable, "-c", SAVE, str(reference / "tiny-model"), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as saving:
        assert saving.stdout.readline() == "saving\n"
        time.sleep(seconds)
        saving.send_signal(signal.SIGKILL)
    try:
        found = tahoe.load_model(folder, device="cpu")
    except ModelError as error:
        assert "has no model.safetensors" in str(error)  # noqa: PT017
        return
    old = tahoe.load_model(reference / "tiny-model", device="cpu")
    assert same_weights(found, old) or not any(weight.any() for weight in found.network.parameters())


@pytest.mark.parametrize("folder", ["", "70m-model"])
def test_push(loopback, client, reference, tmp_path, folder):
    """Through the real client: large file, small files and card in one commit, which then loads bit for bit."""
    loopback.commits.clear()
    command = [sys.executable, "-c", PUSH, str(reference / "drug-model"), folder]
    environment = client.environment | {"HF_TOKEN": "hf_secret", "TAHOE_DTYPE": "float32"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == loopback.main
    assert len(loopback.commits) == 1
    prefix = f"{folder}/" if folder else ""
    files = loopback.commits[loopback.main]
    assert set(files) == {"README.md", *(prefix + name for name in (*FILES, "drug_to_id_pad.json"))}
    for name in FILES:
        (tmp_path / name).write_bytes(files[prefix + name])
    assert same_weights(tahoe.load_model(tmp_path), tahoe.load_model(reference / "drug-model"))
    if folder:
        assert "error" not in client.download()

    head, card = files["README.md"].decode().split("---\n")[1:]
    assert yaml.safe_load(head)["library_name"] == "tahoe"
    assert "Fine-tuned on *hearts*." in card
    assert tahoe.load_model(tmp_path).weights_sha256 in card
    created = next(headers for _, path, headers in loopback.requests if path == "/api/repos/create")
    assert created["authorization"] == "Bearer hf_secret"


def test_push_without_a_hub(tiny, monkeypatch, reference):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="could not be uploaded to 'somebody/cells'"):
        tiny.push_to_hub("somebody/cells")
    # nor is it now the model of a folder that is gone
    assert tiny.folder == reference / "tiny-model"


def test_nothing_is_unpickled_and_no_code_comes_with_a_model(reference):
    code = (
        "import pickle, torch, tahoe\n"
        "def refuse(*_, **__): raise SystemExit('unpickled')\n"
        "torch.load = pickle.load = pickle.loads = refuse\n"
        f"tahoe.load_model({str(reference / 'drug-model')!r}, device='cpu')\n"
        "tahoe.load_model('demo', device='cpu')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    forbidden = re.compile(
        r"\bimport pickle\b|\bpickle\.|torch\.load\((?!.*weights_only=True)|\byaml\.(unsafe_|full_)?load\("
        r"|(?<!\.)\b(eval|exec)\(|allow_pickle=True"
    )
    for path in Path(tahoe.__file__).parent.rglob("*.py"):
        assert not forbidden.search(path.read_text()), path


def test_a_copy_is_trained_and_the_model_stays_as_it_is(reference, tmp_path):
    """Nor do the files change that its weights may be read from."""
    folder = shutil.copytree(reference / "drug-model", tmp_path / "drug")
    model = tahoe.load_model(folder, device="cpu", dtype="bfloat16")
    mine = model.copy("mine")
    assert (mine.name, mine.folder, mine.weights_sha256, mine.is_registered) == ("mine", None, "", False)
    assert mine.dtype == torch.float32
    assert mine.drugs == model.drugs
    for weight in (*mine.network.parameters(), *tahoe.load_model(folder, device="cpu").network.parameters()):
        weight.add_(1)
    assert same_weights(model, tahoe.load_model(reference / "drug-model", device="cpu", dtype="bfloat16"))
    assert same_weights(model, tahoe.load_model(folder, device="cpu", dtype="bfloat16"))
