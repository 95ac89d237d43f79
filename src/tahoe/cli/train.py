"""`tahoe train`: continued training by a configuration file."""

from __future__ import annotations

import difflib
import inspect
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tahoe.errors import InputError

if TYPE_CHECKING:
    from tahoe.model.training import TrainingPlan


@click.command()
@click.argument("config", type=click.Path(exists=True, dir_okay=False))
@click.option("--resume", is_flag=True, help="Go on with a run that did not end.")
@click.option("--device", help="cpu, cuda or mps; by default the best there is.")
def train(config: str, resume: bool, device: str | None) -> None:
    """Continue the training of a model, as the YAML file CONFIG says.

    CONFIG has the parameters of tahoe.continue_training: sources (paths, or mappings of path and share), model, plan
    (a name, or a mapping of fields, with the recipe that they change as name) and output. Several processes train one
    model if torchrun starts them.

    \b
    tahoe train config.yaml
    tahoe train config.yaml --resume
    torchrun --nproc-per-node 8 -m tahoe train config.yaml
    """
    import tahoe

    asked = read_config(Path(config))
    if resume:
        asked["resume"] = True
    if device is not None:
        asked["device"] = device
    where = _own_gpu(asked.get("device"))
    tahoe.continue_training(**asked | ({} if where is None else {"device": where}))
    click.echo(asked["output"])


def read_config(path: Path) -> dict[str, Any]:
    """The parameters of `tahoe.continue_training` in a YAML file.

    Raises
    ------
    tahoe.errors.InputError
        If the file is no YAML mapping, or has keys that mean nothing.
    """
    import yaml

    import tahoe
    from tahoe.model.causes import first_line

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        message = f"{path} is not a YAML file: {first_line(error)}"
        raise InputError(message) from error
    known = list(inspect.signature(tahoe.continue_training).parameters)
    if not isinstance(content, dict):
        message = f"{path} holds no keys and values; it takes {', '.join(known)}"
        raise InputError(message)
    _refuse_unknown(path, "", content, known)
    missing = [name for name in known[:4] if name not in content]
    if missing:
        message = f"{path} has no {missing[0]!r}; sources, model, plan and output are needed"
        raise InputError(message)
    content["plan"] = _plan(path, content["plan"])
    return content | _sources(path, content)


def _sources(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Paths and shares of sources that are given as mappings."""
    given = content["sources"] if isinstance(content["sources"], list) else [content["sources"]]
    mappings = [source for source in given if isinstance(source, dict)]
    if not mappings:
        return {"sources": given}
    for source in mappings:
        _refuse_unknown(path, "a source in ", source, ["path", "share"])
    if len(mappings) < len(given) or any(len(source) < 2 for source in mappings) or "shares" in content:
        message = f"{path}: either each of the sources has a path and a share, or none has; shares: is then omitted"
        raise InputError(message)
    return {"sources": [source["path"] for source in mappings], "shares": [source["share"] for source in mappings]}


def _plan(path: Path, given: Any) -> TrainingPlan | str:
    from tahoe.model.training import TrainingPlan

    if not isinstance(given, dict):
        return str(given)
    names = [field.name for field in fields(TrainingPlan)]
    _refuse_unknown(path, "the plan in ", given, [*names, "name"])
    changes = {name: _number(path, name, value) for name, value in given.items() if name != "name"}
    if "betas" in changes:
        changes["betas"] = tuple(changes["betas"])
    if "name" in given:
        return TrainingPlan.named(given["name"], **changes)
    if "steps" not in changes:
        message = f"the plan in {path} has neither a name nor steps"
        raise InputError(message)
    return TrainingPlan(**changes)


def _number(path: Path, name: str, value: Any) -> Any:
    """A number that YAML takes for text, such as 3e-5 without a point."""
    if name == "schedule" or not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        message = f"the plan in {path} has {name}: {value!r}, which is not a number"
        raise InputError(message) from None


def _refuse_unknown(path: Path, where: str, given: dict[str, Any], known: list[str]) -> None:
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; it takes {', '.join(known)}"
            message = f"{where}{path} has the unknown key {key!r}{hint}"
            raise InputError(message)


def _own_gpu(device: str | None) -> str | None:
    """The GPU of this process, where torchrun starts one process for each."""
    import os

    import torch

    local = os.environ.get("LOCAL_RANK")
    if local is None or device not in (None, "cuda") or not torch.cuda.is_available():
        return None
    torch.cuda.set_device(int(local))
    return f"cuda:{local}"
