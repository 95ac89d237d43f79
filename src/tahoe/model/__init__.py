"""The Tahoe-x1 network: torch and numpy, no AnnData."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tahoe.model.config import ModelConfig
    from tahoe.model.loading import load_model
    from tahoe.model.model import TahoeModel
    from tahoe.model.network.network import Batch, Network
    from tahoe.model.tokens.tokenizer import Tokens, tokenize
    from tahoe.model.tokens.vocabulary import Vocabulary

__all__ = ["Batch", "ModelConfig", "Network", "TahoeModel", "Tokens", "Vocabulary", "load_model", "tokenize"]

# Loaded at the first use: a download (`tahoe.model.hub.download`) need not wait for torch.
_FROM = {
    "Batch": "network.network",
    "ModelConfig": "config",
    "Network": "network.network",
    "TahoeModel": "model",
    "Tokens": "tokens.tokenizer",
    "Vocabulary": "tokens.vocabulary",
    "load_model": "loading",
    "tokenize": "tokens.tokenizer",
}


def __getattr__(name: str) -> Any:
    if name not in _FROM:
        message = f"module 'tahoe.model' has no attribute {name!r}"
        raise AttributeError(message)
    value = getattr(import_module(f"tahoe.model.{_FROM[name]}"), name)
    globals()[name] = value
    return value
