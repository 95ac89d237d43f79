"""Folders that are nearly a checkpoint: errors name what is there, and the folder that was meant."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

import tahoe
from tahoe.errors import ModelError
from tahoe.model.files import FILES
from tahoe.model.hub import download as hub
from tahoe.model.tokens.vocabulary import read_ids


@pytest.fixture
def checkpoint(reference, tmp_path):
    folder = tmp_path / "downloads" / "70m-model"
    shutil.copytree(reference / "tiny-model", folder)
    return folder


def refusal(model) -> str:
    with pytest.raises(ModelError) as caught:
        tahoe.load_model(model)
    return str(caught.value)


def test_the_folder_above(checkpoint):
    """As `hf download --local-dir` leaves it."""
    assert f"pass the folder below it that has: {str(checkpoint)!r}" in refusal(checkpoint.parent)


def test_a_cache_of_the_hub(checkpoint, tmp_path):
    snapshot = tmp_path / "hub" / "models--tahoebio--Tahoe-x1" / "snapshots" / hub.REVISION
    snapshot.mkdir(parents=True)
    (snapshot.parent.parent / "blobs").mkdir()
    checkpoint.rename(snapshot / "70m-model")
    for above in (snapshot, snapshot.parent.parent, tmp_path / "hub"):
        assert f"{str(snapshot / '70m-model')!r}" in refusal(above)


def test_several_below(checkpoint):
    shutil.copytree(checkpoint, checkpoint.with_name("3b-model"))
    told = refusal(str(checkpoint.parent))
    assert "70m-model" in told
    assert "3b-model" in told


def test_a_file_of_the_folder(checkpoint):
    for name in FILES:
        assert f"it is a file: pass its folder, {str(checkpoint)!r}" in refusal(str(checkpoint / name))


@pytest.mark.parametrize(
    ("name", "instead", "told"),
    [
        ("model.safetensors", "pytorch_model.bin", "it has 'pytorch_model.bin', and only one whole model.safetensors"),
        ("model.safetensors", "best-model.pt", "it has 'best-model.pt'"),
        ("model.safetensors", "model-00001-of-00002.safetensors", "it has 'model-00001-of-00002.safetensors'"),
        ("model.safetensors", "ab12.incomplete", "it has 'ab12.incomplete'"),
        ("model_config.yml", "model_config.yaml", "call 'model_config.yaml' 'model_config.yml'"),
        ("vocab.json", "other.txt", "a checkpoint folder holds"),
    ],
)
def test_other_files_in_the_place(checkpoint, name, instead, told):
    (checkpoint / name).rename(checkpoint / instead)
    assert f"has no {name}; {told}" in refusal(checkpoint)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 283000000\n", "is a pointer of Git LFS"),
        (b"<!DOCTYPE html>\n<html>", "is a page of a web site"),
        (b"<?xml version='1.0'?><Error>", "is an answer in XML"),
    ],
)
def test_what_stands_in_the_place_of_a_file(checkpoint, name, content, told):
    (checkpoint / name).write_bytes(content)
    assert f"{str(checkpoint / name)!r} {told}" in refusal(checkpoint)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs permissions as POSIX has them")
def test_permission_denied(checkpoint):
    closed = []
    for number, name in enumerate([*FILES, ""]):
        folder = shutil.copytree(checkpoint, checkpoint.with_name(f"closed{number}"))
        (folder / name).chmod(0)
        closed.append(folder)
    # root may read everything: so another user tries
    code = (
        "import os, sys, tahoe, torch\n"
        "tahoe.load_model('demo', device='cpu')\n"
        "if os.geteuid() == 0: os.seteuid(65534)\n"
        "for folder in sys.argv[1:]:\n"
        "    try: tahoe.load_model(folder, device='cpu')\n"
        "    except tahoe.errors.ModelError as error: print(error)\n"
    )
    for parent in checkpoint.parents[:4]:
        parent.chmod(0o755)
    command = [sys.executable, "-c", code, *map(str, closed)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    closed[-1].chmod(0o755)
    told = run.stdout.splitlines()
    assert len(told) == len(closed), run.stderr
    assert all("cannot be read: Permission denied" in line for line in told)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("tahoebio/Tahoe-x1", "that repository has the models '70m', '1b', '3b'"),
        ("~/models/70m", "there is no such folder here"),
        ("models/70m-model", "there is no such folder here"),
        ("7m", "did you mean '70m'"),
        (None, "model= must be a name, a folder or a loaded model, not NoneType"),
        (70, "not int"),
    ],
)
def test_names_that_lead_nowhere(model, told):
    assert told in refusal(model)


def test_a_file_of_drugs_is_a_pointer_too(tmp_path):
    path = tmp_path / "drugs.json"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n")
    with pytest.raises(ModelError, match="is a pointer of Git LFS"):
        read_ids(path, "drugs")
