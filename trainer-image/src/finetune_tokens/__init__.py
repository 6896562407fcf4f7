"""From rows to tokens and masks: chat templates, tokenisation, assistant-only targets.

Called by the trainer. It imports neither torch nor transformers, so that tokens and masks can be inspected without
them.
"""

from .chat import ChatTokenizer
from .errors import StopTokenUntrained, TokenizerRefused
from .prepare import prepare
from .prepared import TokenizedDataset

__all__ = [
    "ChatTokenizer",
    "StopTokenUntrained",
    "TokenizedDataset",
    "TokenizerRefused",
    "prepare",
]
