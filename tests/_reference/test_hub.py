"""References on a Hub on 127.0.0.1, which speaks the Hub's protocol to the real client."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import tahoe
from tahoe.errors import InputError

_spec = importlib.util.spec_from_file_location("hub_of_models", Path(__file__).parents[1] / "model" / "conftest.py")
assert _spec
assert _spec.loader
hub_of_models = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(hub_of_models)

CLIENT = """
import json, sys
import tahoe
from tahoe.errors import TahoeError

what, place, told = sys.argv[1], sys.argv[2], {}
try:
    if what == "push":
        told["commit"] = tahoe.load_reference(place).push_to_hub("somebody/cells", about="Clouds, CC0.")
    else:
        reference = tahoe.load_reference(place, revision=sys.argv[3] or None)
        told = {"folder": str(reference.folder), "labels": reference.labels("type"), "n_cells": reference.n_cells}
        reference.check()
except TahoeError as error:
    told = {"error": str(error)}
print(json.dumps(told))
"""


class OfDataSets(hub_of_models.Handler):
    """The same Hub, whose repository is one of data."""

    def noted(self):
        parts, body = super().noted()
        if parts[:2] == ["api", "datasets"]:
            parts[1] = "models"
        return parts[1:] if parts[0] == "datasets" else parts, body


@pytest.fixture
def hub():
    hub = hub_of_models.LoopbackHub()
    hub.RequestHandlerClass = OfDataSets
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield hub
    hub.shutdown()
    thread.join()
    hub.server_close()


@pytest.fixture
def call(hub, tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_x"}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

    def run(what, place, revision="", **more):
        command = [sys.executable, "-c", CLIENT, what, str(place), revision]
        ran = subprocess.run(command, env=environment | more, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout)

    return run


def test_there_and_back(built, hub, call):
    commit = call("push", built.folder)["commit"]
    assert commit == hub.main
    files = hub.commits[commit]
    assert set(files) == {"README.md", "reference.json", *built.manifest["files"]}
    card = files["README.md"].decode()
    assert "300 cells × 16" in card
    assert "Clouds, CC0." in card
    assert "obs_key='type'" in card
    told = call("load", "somebody/cells", commit)
    assert told["labels"] == built.labels("type")
    assert call("load", "somebody/cells", commit, HF_HUB_OFFLINE="1") == told
    again = tahoe.load_reference(told["folder"])
    assert again.fingerprint == built.fingerprint
    assert again.obs([3]).equals(built.obs([3]))


def test_what_is_not_there(hub, call):
    assert "is no folder here, and could not be downloaded from the Hub" in call("load", "nobody/nothing")["error"]
    hub.commit({"README.md": b"a model"})
    assert "is no reference: the folder has no reference.json" in call("load", "somebody/cells")["error"]


def test_a_revision_is_of_the_hub(built):
    with pytest.raises(InputError, match="revision='main' goes with a reference on the Hub"):
        tahoe.load_reference(built.folder, revision="main")
