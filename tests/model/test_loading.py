from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch

from tahoe.errors import DeviceError
from tahoe.model.loading import choose_device


@pytest.mark.parametrize("device", [None, "cuda", "cuda:0", torch.device("cuda")])
def test_cuda_is_refused_in_a_process_forked_from_one_that_uses_it(monkeypatch, device):
    """What torch says there; with a GPU, tests/_run/test_processes.py forks."""
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    with pytest.raises(DeviceError, match=r"multiprocessing.get_context\('spawn'\), or pass device='cpu'"):
        choose_device(device)
    assert choose_device("cpu").type == "cpu"


@pytest.mark.parametrize("send", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_model_is_copied_while_another_thread_uses_it(tiny, send):
    """The vocabulary keeps its genes at their first use, which may come when it is half copied."""

    class UsedMeanwhile(dict):
        def __reduce__(self):
            assert len(tiny.vocabulary.genes)
            assert tiny.vocabulary.sha256
            return dict, (dict(self),)

    tiny.vocabulary.ids = UsedMeanwhile(tiny.vocabulary.ids)
    sent = send(tiny)
    np.testing.assert_array_equal(sent.vocabulary.genes, tiny.vocabulary.genes)
    assert sent.vocabulary.sha256 == tiny.vocabulary.sha256
    assert sent.fingerprint() == tiny.fingerprint()
