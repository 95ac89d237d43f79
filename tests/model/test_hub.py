from __future__ import annotations

import pytest

import tahoe
from tahoe.errors import ModelError
from tahoe.model import hub


def test_offline_without_a_cache_says_what_to_do(tmp_path, monkeypatch):
    """The real client, in its offline mode, with an empty cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with tahoe.settings.override(cache_dir=tmp_path), pytest.raises(ModelError) as caught:
        tahoe.load_model("70m")
    message = str(caught.value)
    assert "70m-model" in message
    assert hub.REVISION in message
    assert "hf download tahoebio/Tahoe-x1" in message
    assert "pass its path as model=" in message


def test_a_warm_cache_is_enough_offline(tmp_path, monkeypatch, reference):
    """A cache in the layout of the real client: snapshots by commit."""
    snapshot = tmp_path / "models--tahoebio--Tahoe-x1" / "snapshots" / hub.REVISION / "70m-model"
    snapshot.mkdir(parents=True)
    for file in (reference / "tiny-model").iterdir():
        (snapshot / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with tahoe.settings.override(cache_dir=tmp_path):
        model = tahoe.load_model("70m", device="cpu")
    assert model.name == "70m"
    assert model.revision == hub.REVISION
    assert model.folder == snapshot


@pytest.mark.parametrize("name", ["70m", "1b", "3b"])
def test_releases_are_pinned(name):
    release = hub.RELEASES[name]
    assert len(release.revision) == 40
    assert release.folder == f"{name}-model"
