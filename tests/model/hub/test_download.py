from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tahoe
from tahoe.errors import ModelError
from tahoe.model.files import weights_sha256
from tahoe.model.hub import download as hub

FILES = {"model.safetensors", "model_config.yml", "collator_config.yml", "vocab.json"}


def weights_of(loopback):
    return loopback.commits[loopback.main]["70m-model/model.safetensors"]


def cached_weights(client):
    return [path for path in Path(client.home).rglob("*.safetensors") if path.exists()]


def test_download(client, loopback, reference):
    found = client.download()
    folder = Path(found["folder"])
    assert found["commit"] == loopback.main
    assert {path.name for path in folder.iterdir()} == FILES
    for name in FILES:
        content = (reference / "tiny-model" / name).read_bytes()
        assert (folder / name).read_bytes() == content
    assert found["weights_sha256"] == hashlib.sha256(weights_of(loopback)).hexdigest()
    assert not any("payload" in path for path in loopback.paths())
    assert "%" not in found["stderr"], "progress bars are off"
    assert torch.equal(
        tahoe.load_model(folder).network.flag.weight, tahoe.load_model(reference / "tiny-model").network.flag.weight
    )

    # once it is there, nothing is asked: not even whether there is a connection
    loopback.requests.clear()
    assert client.download()["folder"] == found["folder"]
    assert client.download(HF_HUB_OFFLINE="1")["folder"] == found["folder"]
    assert loopback.requests == []


def test_a_bar_shows_the_progress(client):
    assert "%" in client.download(TAHOE_PROGRESS="1")["stderr"]


def test_a_cut_connection_is_resumed(client, loopback):
    # the client writes pieces of 10 MiB, and goes on behind the last of them
    content = os.urandom(24 << 20)
    loopback.commit(loopback.commits[loopback.main] | {"70m-model/model.safetensors": content})
    loopback.cuts = 1
    assert client.download()["weights_sha256"] == hashlib.sha256(content).hexdigest()
    ranges = [headers.get("range") for _, path, headers in loopback.requests if path.startswith("/large/")]
    assert ranges == [None, f"bytes={10 << 20}-"]


def test_a_file_that_the_package_knows_better(client, loopback):
    """Someone put another file at the same commit, with a name that fits: what the package knows decides."""
    wrong = {"model.safetensors": "0" * 64}
    for _ in range(2):  # nor is it taken from the cache later
        error = client.download(sha256=wrong)["error"]
        assert "model.safetensors is not the released file" in error
        assert "call again" in error
    assert cached_weights(client), "the cache belongs to others too"
    right = {"model.safetensors": hashlib.sha256(weights_of(loopback)).hexdigest()[:8]}
    assert "error" not in client.download(sha256=right)
    assert "is not the released file" in client.download(sha256={"vocab.json": "0" * 64})["error"]
    # what is known belongs to the pinned commit
    assert "error" not in client.download(sha256=wrong, pinned="0" * 40, revision=loopback.main)


@pytest.mark.parametrize("name", ["model.safetensors", "vocab.json"])
def test_verify_names_bytes_that_changed_on_their_way(client, loopback, tmp_path, name):
    """Two kinds of checksums: of weights the sha256, of small files that of git."""
    loopback.damaged = {f"70m-model/{name}"}
    error = client.download(verify=True, cache_dir=tmp_path / "cache")["error"]
    assert f"70m-model/{name} is not the file on the Hub" in error
    (path,) = (tmp_path / "cache").rglob(f"snapshots/*/70m-model/{name}")
    assert f"delete {path.resolve()} and run" in error
    loopback.damaged = set()
    path.resolve().unlink()  # as the error says
    assert "error" not in client.download(verify=True, cache_dir=tmp_path / "cache")


def test_verify_names_a_file_that_changed_in_the_cache(client, loopback):
    assert "error" not in client.download(verify=True)
    (weights,) = cached_weights(client)
    blob = weights.resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"!")
    error = client.download(verify=True)["error"]
    assert f"sha256 is {hashlib.sha256(blob.read_bytes()).hexdigest()}, not {blob.name}" in error
    assert "vocab.json" not in error
    assert "cannot be fetched" in client.download(verify=True, HF_HUB_OFFLINE="1")["error"]
    blob.unlink()
    assert "error" not in client.download(verify=True)


def test_weights_in_the_cache_are_known_by_their_name(client, loopback):
    """Loading does not read 11 GB twice; whether the content is still that of the name is for `verify`."""
    weights = Path(client.download()["folder"]) / "model.safetensors"
    blob = weights.resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"!")
    assert client.download()["weights_sha256"] == blob.name == hashlib.sha256(weights_of(loopback)).hexdigest()
    assert weights_sha256(weights.parent) == blob.name
    elsewhere = shutil.copytree(weights.parent, client.home / "elsewhere")
    assert weights_sha256(elsewhere) == hashlib.sha256(blob.read_bytes()).hexdigest() != blob.name


def test_revisions(client, loopback):
    first = loopback.main
    other = dict(loopback.commits[first])
    other["70m-model/model_config.yml"] += b"\n# later\n"
    second = loopback.commit(other)
    assert client.download(pinned=first)["commit"] == first
    assert client.download(pinned=first, revision="main")["commit"] == second, (
        "a branch becomes the commit it stands for"
    )
    error = client.download(revision="f" * 40)["error"]
    assert "there is no such revision" in error
    assert "omit revision=" in error
    third = loopback.commit({"README.md": b"moved"})
    assert "70m-model has no model.safetensors" in client.download(revision=third)["error"]


def test_gated(client, loopback):
    loopback.gated_for = "hf_secret"
    error = client.download()["error"]
    assert "does not let you in" in error
    assert "HF_TOKEN" in error
    wrong = client.download(HF_TOKEN="hf_wrong")["error"]
    assert "does not let you in" in wrong
    assert "hf_wrong" not in wrong
    assert "error" not in client.download(HF_TOKEN="hf_secret")
    elsewhere = [headers for _, path, headers in loopback.requests if path.startswith("/large/")]
    assert elsewhere
    assert not any("authorization" in headers for headers in elsewhere), "the token stays with the Hub"


def test_offline_or_out_of_reach(client, loopback):
    offline, out_of_reach = {"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}
    cold = client.download(**offline)["error"], client.download(revision="main", **out_of_reach)["error"]
    for error, revision in zip(cold, (loopback.main, "main"), strict=True):
        assert f"hf download somebody/cells --include '70m-model/*' --revision {revision}" in error
        assert "pass its path as model=" in error
        assert "\n" not in error
    client.download(revision="main")
    for environment in (offline, out_of_reach):
        assert client.download(**environment)["commit"] == loopback.main
        assert client.download(revision="main", **environment)["commit"] == loopback.main


def test_half_a_download_is_not_taken_for_a_whole_one(client, loopback):
    client.download()
    (weights,) = cached_weights(client)
    weights.unlink()
    assert "70m-model" in client.download(HF_HUB_OFFLINE="1")["error"]
    assert "error" not in client.download()


def test_cache_dir(client, tmp_path):
    found = client.download(cache_dir=tmp_path / "weights")
    assert Path(found["folder"]).is_relative_to(tmp_path / "weights")


def test_two_processes_at_once(client, loopback):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor() as pool:
        first, second = pool.map(lambda _: client.download(), range(2))
    assert first["folder"] == second["folder"]
    digest = hashlib.sha256((Path(first["folder"]) / "model.safetensors").read_bytes()).hexdigest()
    assert first["weights_sha256"] == second["weights_sha256"] == digest


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 64 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_full_disk(client, loopback, small_disk, tmp_path):
    assert len(weights_of(loopback)) > 64_000
    error = client.download(cache_dir=small_disk)["error"]
    assert f"no space is left on the disk of {small_disk}" in error
    assert "tahoe.settings.cache_dir" in error
    assert "error" not in client.download(cache_dir=tmp_path / "larger")


def test_a_full_disk_by_its_error_number():
    for number in (errno.ENOSPC, errno.EDQUOT):
        assert "no space is left" in hub.reason(OSError(number, "full"))


def test_a_loaded_model_tells_the_commit_and_the_hash(loopback, client, tmp_path, monkeypatch):
    """From a warm cache, without a connection: what goes into the provenance."""
    client.download(revision="main", cache_dir=tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setitem(hub.RELEASES, "70m", replace(hub.RELEASES["70m"], repository="somebody/cells", sha256={}))
    with tahoe.settings.override(cache_dir=tmp_path / "cache"):
        model = tahoe.load_model("70m", revision="main", device="cpu")
    assert model.name == "70m"
    assert model.revision == loopback.main
    assert model.weights_sha256 == hashlib.sha256(weights_of(loopback)).hexdigest()


def test_offline_without_a_cache_says_what_to_do(tmp_path, monkeypatch):
    """The registered names, with an empty cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with tahoe.settings.override(cache_dir=tmp_path), pytest.raises(ModelError) as caught:
        tahoe.load_model("70m")
    message = str(caught.value)
    assert "70m-model" in message
    assert hub.REVISION in message
    assert "hf download tahoebio/Tahoe-x1" in message


@pytest.mark.parametrize("name", ["70m", "1b", "3b"])
def test_releases_are_pinned(name):
    release = hub.RELEASES[name]
    assert len(release.revision) == 40
    assert release.folder == f"{name}-model"
    assert "vocab.json" in release.sha256
    assert all(len(digest) >= 8 for digest in release.sha256.values())
