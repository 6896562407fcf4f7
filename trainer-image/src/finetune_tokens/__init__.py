"""From rows to tokens and masks: chat templates, tokenisation, assistant-only targets.

Called by the trainer and by `finetune preview`. It imports neither torch nor transformers, so that what a
model is trained on can be seen without either.
"""

from .chat import ChatTokenizer
from .errors import StopTokenUntrained, TokenizerRefused
from .prepare import prepare
from .prepared import Prepared
from .preview import Segment, preview

__all__ = [
    "ChatTokenizer",
    "Prepared",
    "Segment",
    "StopTokenUntrained",
    "TokenizerRefused",
    "prepare",
    "preview",
]
