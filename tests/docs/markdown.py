"""What the tests read out of a Markdown page: files, blocks of code, commands with their output, links, paths."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"^`([^`\n]+)`:\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`\n]+)`")
_PADDING = re.compile(r"(?<= ) +|(?<=-)-+")
_RANKING = re.compile(r"\*\*|</?u>| ≈")
_NUMBER = re.compile(r"-?\d+\.\d+")
_PATH = re.compile(r"[\w.*-]*(?:/[\w.*-]+)*(?:/|\.(?:py|md|yaml|toml|ini|txt|csv|json|lock|cff))")


@dataclass(frozen=True)
class Command:
    """A line after the prompt, and the output that the page shows below it."""

    line: str
    output: str


def blocks(text: str, language: str) -> list[str]:
    """Return the fenced blocks of one language, in order."""
    return [body for found, body in _FENCE.findall(text) if found == language]


def files(text: str) -> dict[str, str]:
    """Return the files of a page: each fenced block below a line that is a file name in backquotes and a colon."""
    return dict(_FILE.findall(text))


def commands(text: str) -> list[Command]:
    """Return what follows every prompt of the `console` blocks."""
    found = []
    for block in blocks(text, "console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            line, _, output = part.partition("\n")
            found.append(Command(line, output))
    return found


def links(text: str) -> list[str]:
    """Return the targets of all links that stay inside the repository, without their anchors."""
    targets = (target.partition("#")[0] for target in _LINK.findall(_FENCE.sub("", text)))
    return [target for target in targets if target and "://" not in target and not target.startswith("mailto:")]


def paths(text: str) -> list[str]:
    """Return everything in backquotes that looks like the path of a file or folder."""
    return [code for code in _CODE.findall(_FENCE.sub("", text)) if _PATH.fullmatch(code)]


def difference(shown: str, printed: str, *, measured: bool = False) -> str:
    """Return what is wrong with an output that a page shows, or "".

    `...` stands for any text, on a line of its own for any lines; how columns are padded does not matter. Numbers that
    were measured are those of one machine: another one rounds in another way, and a sample falls to another class. They
    may differ a little, and the marks of the best rows may move.
    """
    if not shown:
        return ""
    if measured:
        shown, printed = (_RANKING.sub("", text) for text in (shown, printed))
    shown, printed = (_PADDING.sub("", text) for text in (shown, printed))
    pattern = re.escape(_NUMBER.sub("\0", shown)).replace("\0", f"({_NUMBER.pattern})").replace(r"\.\.\.", ".*?")
    match = re.fullmatch(pattern, printed, re.DOTALL)
    if match is None:
        return f"shown:\n{shown}\nprinted:\n{printed}"
    pairs = [(float(a), float(b)) for a, b in zip(_NUMBER.findall(shown), match.groups(), strict=True)]
    far = [(a, b) for a, b in pairs if abs(a - b) > (0.2 + 0.02 * abs(a) if measured else 0.0)]
    return f"numbers shown and printed: {far}" if far else ""


def pages(root: Path) -> list[Path]:
    """Return the Markdown files of the repository, without those of caches, environments and fetched data."""
    folders = [path for path in root.iterdir() if path.is_dir() and path.name != "data" and path.name[0] != "."]
    return sorted([*root.glob("*.md"), *(file for folder in folders for file in folder.rglob("*.md"))])
