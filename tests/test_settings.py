from __future__ import annotations

import subprocess
import sys

import pytest

import tahoe
from tahoe.errors import InputError


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


@pytest.mark.parametrize(("value", "expected"), [("0", False), ("no", False), ("1", True), ("yes", True)])
def test_environment(value, expected):
    code = "import tahoe; s = tahoe.settings; print(s.progress, s.device, s.cache_dir.name)"
    environment = {"TAHOE_PROGRESS": value, "TAHOE_DEVICE": "cpu", "TAHOE_CACHE_DIR": "somewhere/weights"}
    out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert out.stdout.split() == [str(expected), "cpu", "weights"]
