"""The files that the pages below deploy/recipes show: the fenced blocks behind a line that ends with a file's name."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
RECIPES = ROOT / "deploy" / "recipes"
SHOWN = re.compile(r"`(/[\w./-]+)`:\n\n```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Wrong(Exception):
    """What was tried, and is not as the page says."""


def require(condition, message):
    if not condition:
        raise Wrong(message)


def files(page):
    """The files of a page by their names."""
    return dict(SHOWN.findall((RECIPES / page).read_text()))


def with_other(text, replacements):
    """A file with other addresses and paths. What is to be replaced must be there, or the page says something else."""
    for old, new in replacements.items():
        require(old in text, f"{old!r} is not in: {text}")
        text = text.replace(old, new)
    return text
