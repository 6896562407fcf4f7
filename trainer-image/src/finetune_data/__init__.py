"""Dataset rows: formats, checks, roles. Called by the trainer, and by the CLI before a run.

It imports neither tokenizers nor torch, so that checking a file is fast. The entry point is `read`; a new format is
one file and one entry in `formats.FORMATS`.
"""

from .problems import DatasetRefused, RowProblem
from .read import read
from .rows import Dataset, Message, Role, Row, ToolCall

__all__ = ["Dataset", "DatasetRefused", "Message", "Role", "Row", "RowProblem", "ToolCall", "read"]
