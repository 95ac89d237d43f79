"""`tahoe info` of models: from the configuration and the header of the weights, however large they are."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import yaml

import tahoe
from tahoe import cli
from tahoe.errors import ModelError
from tahoe.model import Network
from tahoe.model.checkpoint.config_files import contents_of
from tahoe.model.checkpoint.weights import PREFIX, read_checkpoint, released_name
from tahoe.model.config import DrugEncoderConfig
from tahoe.model.hub import download as hub


@pytest.fixture
def large(reference, tmp_path):
    """A folder of the size of 3b, whose weights take no room on the disk: the file has a header, and a hole."""
    tiny = tahoe.load_model(reference / "drug-model", device="cpu")
    drug = DrugEncoderConfig(378, 2048, "leaky_relu")
    config = replace(tiny.config, d_model=2560, n_layers=32, n_heads=20, vocab_size=62_721, drug_encoder=drug)
    folder = tmp_path / "large-model"
    shutil.copytree(reference / "drug-model", folder)
    for name, content in zip(("model_config.yml", "collator_config.yml"), contents_of(config), strict=True):
        (folder / name).write_text(yaml.safe_dump(content))
    with torch.device("meta"):
        weights = Network(config).state_dict()
    header, end = {}, 0
    for key, weight in weights.items():
        start, end = end, end + 4 * weight.numel()
        shape = list(weight.shape)
        header[PREFIX + released_name(key)] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    content = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(content)) + content)
        file.truncate(8 + len(content) + end)
    return folder, sum(weight.numel() for weight in weights.values())


# Of this process alone: ru_maxrss would start at what the process that runs the tests has held.
MEASURED = """
import re, sys
from pathlib import Path
from tahoe import cli
assert cli.main(["info", sys.argv[1]]) == 0
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="measures memory as Linux does, in a file with a hole")
def test_a_large_model_is_not_read(large):
    folder, n_parameters = large
    size = (folder / "model.safetensors").stat().st_size
    assert size > 10e9
    run = subprocess.run([sys.executable, "-c", MEASURED, str(folder)], capture_output=True, text=True, check=True)
    *printed, kilobytes = run.stdout.splitlines()
    told = dict(line.split("  ", 1) for line in printed)
    assert told["parameters"].strip() == f"{n_parameters:,}"
    assert told["layers × width"].strip() == "32 × 2560, 20 heads"
    assert told["drugs"].strip() == "378"
    assert told["sha256"].strip().startswith(f"of {size:,} bytes, not computed here: sha256sum ")
    assert int(kilobytes) < 1_500_000


def test_the_same_as_of_a_loaded_model(reference, capsys):
    model = tahoe.load_model(reference / "tiny-model", device="cpu")
    assert cli.main(["info", str(reference / "tiny-model")]) == 0
    printed = capsys.readouterr().out
    for told in (model.name, model.weights_sha256, model.vocabulary.sha256, f"{model.n_parameters:,}", "float32"):
        assert told in printed


def test_a_damaged_checkpoint_is_told(reference, tmp_path, capsys):
    shutil.copytree(reference / "tiny-model", tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert cli.main(["info", str(tmp_path / "model")]) == 1
    assert "is not a whole safetensors file" in capsys.readouterr().err
    shutil.copy(reference / "drug-model" / "model.safetensors", weights)
    with pytest.raises(ModelError, match="do not fit its model_config.yml"):
        read_checkpoint(tmp_path / "model", weights=False)


def test_the_folder_above(reference, capsys):
    assert cli.main(["info", str(reference)]) == 1
    assert "pass the folder below it that has" in capsys.readouterr().err


def test_a_large_registered_model_is_not_hashed(reference, tmp_path, capsys, monkeypatch):
    release = hub.Release("somebody/cells", "70m-model", "0" * 40, "tiny")
    monkeypatch.setitem(hub.RELEASES, "70m", release)
    folder = tmp_path / "models--somebody--cells" / "snapshots" / release.revision / release.folder
    shutil.copytree(reference / "tiny-model", folder)
    with tahoe.settings.override(cache_dir=tmp_path):
        assert cli.main(["info", "70m"]) == 0
        assert tahoe.load_model("70m", device="cpu").weights_sha256 in capsys.readouterr().out
        monkeypatch.setattr("tahoe.cli.info.HASHED", 0)
        monkeypatch.setattr("tahoe.cli.info.file_sha256", lambda path: pytest.fail(f"{path} was hashed"))
        assert cli.main(["info", "70m"]) == 0
    printed = capsys.readouterr().out
    assert "not computed here" in printed
    assert "revision" in printed
    assert release.revision in printed
