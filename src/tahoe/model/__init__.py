"""The Tahoe-x1 network: torch and numpy, no AnnData."""

from tahoe.model.config import ModelConfig
from tahoe.model.model import TahoeModel, load_model
from tahoe.model.network import Batch, Network
from tahoe.model.tokenizer import Tokens, tokenize
from tahoe.model.vocab import Vocabulary

__all__ = ["Batch", "ModelConfig", "Network", "TahoeModel", "Tokens", "Vocabulary", "load_model", "tokenize"]
