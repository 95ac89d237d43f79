from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

import tahoe
from tahoe.errors import DeviceError, InputError


def test_override_ends_with_its_block():
    before = tahoe.settings.dtype
    with tahoe.settings.override(dtype="bfloat16", progress=True):
        assert (tahoe.settings.dtype, tahoe.settings.progress) == ("bfloat16", True)
    assert tahoe.settings.dtype == before
    with pytest.raises(RuntimeError, match="inside"), tahoe.settings.override(dtype="float16"):
        raise RuntimeError("inside")  # noqa: EM101
    assert tahoe.settings.dtype == before


def test_unknown_fields_are_refused():
    with pytest.raises(InputError, match="no field 'devise'; it has device"):
        tahoe.settings.devise = "cpu"
    with pytest.raises(InputError, match="no field 'devise'"), tahoe.settings.override(devise="cpu"):
        pass


def test_settings_decide_where_models_go(reference):
    with tahoe.settings.override(dtype="bfloat16"):
        assert str(tahoe.load_model(reference / "tiny-model").dtype) == "torch.bfloat16"
        assert str(tahoe.load_model(reference / "tiny-model", dtype="float32").dtype) == "torch.float32"


def test_settings_decide_how_attention_is_computed(tiny, full_cells, reference):
    cells = full_cells[:3].copy()
    with tahoe.settings.override(attention="eager", token_budget=1000):
        tahoe.tl.embed(cells, reference / "tiny-model")
        tahoe.tl.embed(cells, tiny, key_added="X_loaded")
        assert tahoe.load_model(reference / "tiny-model", attention="sdpa").attention == "sdpa"
        assert tahoe.load_model(reference / "tiny-model", attention="auto").attention == tiny.attention
    assert cells.uns["X_tahoe"]["attention"] == "eager"
    assert cells.uns["X_loaded"]["attention"] == tiny.attention == "sdpa"
    assert cells.uns["X_tahoe"]["token_budget"] == 1000
    np.testing.assert_allclose(cells.obsm["X_tahoe"], cells.obsm["X_loaded"], atol=1e-6, rtol=0)
    tahoe.tl.embed(cells, tiny)
    assert "token_budget" not in cells.uns["X_tahoe"]
    with tahoe.settings.override(attention="fast"), pytest.raises(DeviceError, match="attention='fast' is unknown"):
        tahoe.load_model(reference / "tiny-model")


@pytest.mark.parametrize("value", [0, -1, 2.5, "1000"])
def test_a_budget_is_a_number_of_tokens(value):
    with pytest.raises(InputError, match=f"token_budget={value!r}: it must be a whole number, at least 1, or None"):
        tahoe.settings.token_budget = value
    assert tahoe.settings.token_budget is None


def test_how_to_compute_from_the_environment():
    code = "import tahoe; s = tahoe.settings; print(s.attention, s.token_budget + 1)"
    environment = os.environ | {"TAHOE_ATTENTION": "eager", "TAHOE_TOKEN_BUDGET": "5000"}
    out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["eager", "5001"]
    environment["TAHOE_TOKEN_BUDGET"] = "many"
    out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "token_budget='many': it must be a whole number" in out.stderr


@pytest.mark.parametrize(("value", "expected"), [("0", False), ("no", False), ("1", True), ("yes", True)])
def test_environment(value, expected):
    code = "import tahoe; s = tahoe.settings; print(s.progress, s.device, s.cache_dir.name)"
    environment = {"TAHOE_PROGRESS": value, "TAHOE_DEVICE": "cpu", "TAHOE_CACHE_DIR": "somewhere/weights"}
    out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert out.stdout.split() == [str(expected), "cpu", "weights"]
