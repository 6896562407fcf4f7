"""Names of modules in a job: ends of names, or regular expressions of Python. Read by the plan and by the trainer."""

import re

LONGEST = 128
"""Characters of an expression."""


def is_pattern(target: str) -> bool:
    """Whether a target module is a regular expression: it has what no name of a module has."""
    return not all(letter.isalnum() or letter in "._-" for letter in target)


def whole_name(expression: str) -> re.Pattern[str]:
    """To be matched in full with a name. Raises ValueError, with a sentence."""
    return _compiled(expression, expression)


def end_of_name(expression: str) -> re.Pattern[str]:
    """The same, where the expression is of one or more of the last parts of a name."""
    return _compiled(expression, rf"(?:.*\.)?(?:{expression})")


def _compiled(expression: str, framed: str) -> re.Pattern[str]:
    if len(expression) > LONGEST:
        raise ValueError(f"it has more than {LONGEST} characters")
    try:
        return re.compile(framed)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(str(error) or type(error).__name__) from error
