"""Dataset rows: formats, checks, roles. Called by the trainer, and by the CLI before any run.

It knows neither tokenizers nor torch and imports almost nothing, so that checking a file stays quick.
`read` is the way in; a new format is one file and one line of `formats.FORMATS`.
"""

from .problems import DatasetRefused, Problem
from .read import read
from .rows import Dataset, Message, Role, Row, ToolCall

__all__ = ["Dataset", "DatasetRefused", "Message", "Problem", "Role", "Row", "ToolCall", "read"]
