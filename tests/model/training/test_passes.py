"""A step in one pass and in many, alone and with others, is the same; what ends a run leaves its state."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tahoe.errors import InputError, ModelError
from tahoe.model import ModelConfig, Vocabulary, tokenize
from tahoe.model.config import DrugEncoderConfig
from tahoe.model.training import TrainingPlan, mask_tokens, masked_batch, masked_losses, new_network, train
from tahoe.model.training.loop import run
from tahoe.model.training.objective import Objective
from tahoe.model.training.passes import made
from tahoe.model.training.state import StateFile

N_GENES = 40
IDS = {"<pad>": 0, "<cls>": 1, **{f"ENSG{i:011}": i + 2 for i in range(N_GENES)}, "<drug>": N_GENES + 2}
CONFIG = ModelConfig(16, 2, 2, N_GENES + 3, gene_norm=True, decoder_layers=1, mvc_scaled=True)
DRUGS = dataclasses.replace(CONFIG, drug_encoder=DrugEncoderConfig(3, 8, "gelu"))


def draw(generator, n_cells=12, drugs=False):
    counts = generator.poisson(2, (n_cells, N_GENES)) * (generator.random((n_cells, 1)) > generator.random(N_GENES))
    counts[:, :4] += 1
    rows, columns = np.nonzero(counts)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=n_cells))])
    arrays = (indptr, columns, counts[rows, columns].astype(np.float32), np.arange(N_GENES) + 2)
    ids = generator.integers(0, 3, n_cells) if drugs else None
    return tokenize(*arrays, config=CONFIG, vocabulary=Vocabulary(IDS), drugs=ids)


def without_key_biases(name, weight):
    """A bias of all keys changes no softmax: its gradient is rounding, which AdamW scales up."""
    return weight if not name.endswith("qkv.bias") else torch.cat([weight.chunk(3)[0], weight.chunk(3)[2]])


def weights(network):
    return torch.cat([weight.detach().flatten() for weight in network.parameters()])


@pytest.mark.parametrize("hide", [True, False])
@pytest.mark.parametrize("config", [CONFIG, DRUGS], ids=["no drugs", "drugs"])
def test_the_objective_is_that_of_masked_losses(config, hide):
    config = dataclasses.replace(config, hide_masked=hide)
    tokens = draw(np.random.default_rng(0), drugs=config.drug_encoder is not None)
    masked = mask_tokens(tokens, np.random.default_rng(1), 0.5)
    truth, network = new_network(config).requires_grad_(True), new_network(config).requires_grad_(True)
    losses = masked_losses(truth, *masked_batch(tokens, masked, config, torch.device("cpu")))
    losses.total.backward()
    for checkpointing in (False, True):
        network.zero_grad()
        part = made(tokens, masked, TrainingPlan(steps=1), config, torch.device("cpu"))
        errors = Objective(network, checkpointing)(part.batch, part.targets, part.who) / masked.sum()
        errors.mean().backward()
        torch.testing.assert_close(errors, torch.stack([losses.expression, losses.mvc]), rtol=1e-5, atol=0)
        for ours, theirs in zip(network.parameters(), truth.parameters(), strict=True):
            scale = theirs.grad.abs().max() if theirs.grad is not None else 1
            if theirs.grad is not None:
                torch.testing.assert_close(ours.grad / scale, theirs.grad / scale, rtol=0, atol=2e-5)


CHANGES = [{"tokens_per_pass": 60}, {"tokens_per_pass": 1}, {"activation_checkpointing": True}]


@pytest.mark.parametrize("change", CHANGES)
def test_passes_change_nothing_but_rounding(change):
    plan = TrainingPlan(steps=4)
    seen = []
    whole = train(new_network(CONFIG), draw, plan, report=lambda _, losses: seen.append(losses.total), progress=False)
    again = []
    parts = train(
        new_network(CONFIG),
        draw,
        dataclasses.replace(plan, **change),
        report=lambda _, losses: again.append(losses.total),
        progress=False,
    )
    torch.testing.assert_close(torch.stack(again), torch.stack(seen), rtol=1e-5, atol=0)
    for (name, ours), theirs in zip(parts.named_parameters(), whole.parameters(), strict=True):
        ours, theirs = without_key_biases(name, ours), without_key_biases(name, theirs)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_another_share_is_masked():
    told = []
    plan = TrainingPlan(steps=1, mask_share=1.0)
    tokens = draw(np.random.default_rng([0, 0]))

    def lots(first):
        yield tokens, mask_tokens(tokens, np.random.default_rng(0), 1.0)

    run(new_network(CONFIG), lots, plan, report=told.append, progress=False)
    assert [(step.n_cells, step.n_tokens) for step in told] == [(12, len(tokens.ids))]
    assert told[0].gradient_norm > 0
    assert told[0].learning_rate == plan.learning_rate


def test_a_diverging_run_stops_and_keeps_its_state(tmp_path):
    state = tmp_path / "state.pt"
    plan = TrainingPlan(steps=9, save_every=2)
    network = new_network(CONFIG)

    def spoil(step, _):
        if step == 4:
            with torch.no_grad():
                network.expression.out.bias.fill_(torch.nan)

    with pytest.raises(ModelError, match=r"loss of step 5 .* is nan, so training stops; the state after 4 steps is in"):
        train(network, draw, plan, state_file=state, report=spoil, progress=False)
    whole = train(new_network(CONFIG), draw, plan, progress=False)
    again = train(new_network(CONFIG), draw, plan, state_file=state, progress=False)
    assert torch.equal(weights(again), weights(whole))


def test_an_infinite_gradient_stops_too():
    network = new_network(CONFIG)
    network.layers[0].up.weight.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(ModelError, match=r"norm of the gradient of step 0 .* no state was saved|norm of the gradient"):
        train(network, draw, TrainingPlan(steps=1), progress=False)
    assert all(torch.isfinite(weight).all() for weight in network.parameters())


def test_control_c_saves_the_state(tmp_path):
    state = tmp_path / "state.pt"
    plan = TrainingPlan(steps=7, save_every=100)
    whole = train(new_network(CONFIG), draw, plan, progress=False)

    def press(step, _):
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(new_network(CONFIG), draw, plan, state_file=state, report=press, progress=False)
    assert signal.getsignal(signal.SIGINT) is before
    steps = []

    def note(step, _):
        steps.append(step)

    again = train(new_network(CONFIG), draw, plan, state_file=state, report=note, progress=False)
    assert steps == [4, 5, 6]
    assert torch.equal(weights(again), weights(whole))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_leaves_the_earlier_state(tmp_path):
    state, plan = tmp_path / "state.pt", TrainingPlan(steps=2, save_every=1)
    train(new_network(CONFIG), draw, TrainingPlan(steps=1), state_file=state, progress=False)
    before = state.read_bytes()
    (tmp_path / "state.partial").symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"after step 2 cannot be written .*that of step 1 stays"):
        train(new_network(CONFIG), draw, plan, state_file=state, progress=False)
    assert state.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]


def test_the_state_of_another_run_is_refused(tmp_path):
    def lots(first):
        for step in range(first, 2):
            generator = np.random.default_rng(step)
            tokens = draw(generator)
            yield tokens, mask_tokens(tokens, generator, 0.5)

    path, plan = tmp_path / "state.pt", TrainingPlan(steps=2)
    run(new_network(CONFIG), lots, plan, state=StateFile(path, {"model": "a", "seed": 0}), progress=False)
    with pytest.raises(ModelError, match=r"another run, which differs in model \(a then, b now\)"):
        run(new_network(CONFIG), lots, plan, state=StateFile(path, {"model": "b", "seed": 0}), progress=False)


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", 0), ("schedule", "linear"), ("mask_share", 0.0), ("tokens_per_pass", 0), ("betas", (0.9, 1.0))],
)
def test_impossible_plans_are_refused(name, value):
    with pytest.raises(InputError, match=f"the plan has {name}="):
        TrainingPlan(**{"steps": 5, name: value})


def test_the_recipes_of_the_authors():
    first, then = TrainingPlan.named("stage_1", steps=100), TrainingPlan.named("continuation", steps=100)
    assert (first.learning_rate, first.max_length, first.schedule, first.warm_up) == (3e-4, 1024, "cosine", 0.05)
    assert (then.learning_rate, then.max_length, then.weight_decay, then.clip) == (3e-5, 2048, 3e-6, 1)
    assert (then.betas, then.mask_share, then.bfloat16) == ((0.9, 0.95), 0.5, True)
    assert {then.rate(step) for step in range(100)} == {1.0}
    assert first.rate(0) == 0.2
    assert first.rate(99) < 0.05
    with pytest.raises(InputError, match="'stage_2' is unknown; there are 'stage_1', 'continuation'"):
        TrainingPlan.named("stage_2")
    with pytest.raises(InputError, match="no 'learning_rat'"):
        TrainingPlan.named("stage_1", learning_rat=1)


WORKER = """
import sys
import numpy as np, torch
torch.set_num_threads(1)
from tahoe.model.training.loop import run
from tahoe.model.training.plan import TrainingPlan
from tahoe.model.training.processes import started
from tahoe.model.training.objective import mask_tokens
from tahoe.model.training.passes import by_length
from tahoe.model.training import new_network
from tahoe.model.training.state import StateFile
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_passes import CONFIG, draw, weights
mode, out = sys.argv[1:3]
def main():
    with started(torch.device("cpu"), mode == "sharded") as processes:
        def lots(first):
            for step in range(first, 3):
                generator = np.random.default_rng(step)
                tokens = draw(generator)
                masked = mask_tokens(tokens, generator, 0.5)
                n = len(tokens) // processes.size
                # as unlike as possible, so that the processes have unlike numbers of passes
                tokens, masked = by_length(tokens, masked)
                here = slice(processes.rank * n, (processes.rank + 1) * n)
                bounds = tokens.bounds[[here.start, here.stop]]
                yield tokens.cells(here.start, here.stop), masked[bounds[0]:bounds[1]]
        network = new_network(CONFIG)
        state = StateFile(Path(out).with_suffix(".state"), processes=processes)
        plan = TrainingPlan(steps=3, tokens_per_pass=70, save_every=3)
        run(network, lots, plan, processes=processes, state=state, progress=False)
main()
"""


@pytest.mark.parametrize("mode", ["copies", "sharded"])
def test_two_processes_are_one(mode, tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(tests=str(Path(__file__).parent)))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, script, "alone", tmp_path / "one"], check=True, env=environment)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*launch, script, mode, tmp_path / "two"], check=True, env=environment, timeout=300)
    one, two = (torch.load(tmp_path / f"{name}.state", weights_only=True) for name in ("one", "two"))
    for name, weight in one["network"].items():
        ours, theirs = without_key_biases(name, two["network"][name]), without_key_biases(name, weight)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")
    assert one["step"] == two["step"] == 3
    assert one["optimizer"].keys() == two["optimizer"].keys()
