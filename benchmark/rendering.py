"""A table as Markdown, LaTeX, CSV or JSON; the same table gives the same text, byte for byte."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from tabulate import tabulate

from benchmark.comparisons import Comparison
from benchmark.errors import unknown_name
from benchmark.footer import command, footer, reasons, short_names
from benchmark.tables import Entry, Measure, Table, TableRow

Format = Literal["md", "csv", "json", "latex"]


@dataclass(frozen=True)
class Style:
    """How a text format writes emphasis, and what it must escape."""

    tablefmt: str
    bold: str
    underline: str
    escapes: Mapping[str, str]

    def text(self, plain: str) -> str:
        """Return plain text with this format's special characters escaped."""
        return "".join(self.escapes.get(character, character) for character in plain)


MARKDOWN = Style("pipe", "**{}**", "<u>{}</u>", {"|": "\\|", "<": "&lt;", ">": "&gt;"})
LATEX = Style(
    "latex_raw",
    r"\textbf{{{}}}",
    r"\underline{{{}}}",
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": "$<$",
        ">": "$>$",
        "±": r"$\pm$",
        "†": r"$\dagger$",
        "‡": r"$\ddagger$",
        "↑": r"$\uparrow$",
        "↓": r"$\downarrow$",
        "≈": r"$\approx$",
        "·": r"$\cdot$",
    },
)


def render(table: Table, form: Format) -> str:
    """Return the table in one of the formats `md`, `csv`, `json`, `latex`; raises UsageError for another."""
    renderers: dict[str, Callable[[Table], str]] = {
        "md": _markdown,
        "csv": _csv,
        "json": _json,
        "latex": _latex,
    }
    if form not in renderers:
        raise unknown_name("table format", form, get_args(Format))
    return renderers[form](table)


def marks(table: Table, entry: Entry) -> list[str]:
    """Return an entry's marks: against the reference, against each proposed row, and a tie with the best."""
    signs = {"better": "†", "worse": "‡"}
    outcomes = [c.outcome for c in entry.comparisons if c.family == "reference"]
    found = [signs[outcome] for outcome in outcomes if outcome in signs]
    tags = {row.label: row.tag for row in table.rows}
    for arrow, outcome in (("↓", "worse"), ("↑", "better")):
        against = [tags[c.against] for c in entry.comparisons if (c.family, c.outcome) == ("proposed", outcome)]
        if against:
            found.append(arrow + ",".join(against))
    return [*found, "≈"] if entry.indistinguishable else found


def _number(table: Table, entry: Entry, style: Style) -> str:
    if not entry.expected:
        return "-"
    if entry.mean is None:
        return "missing"
    shown = style.text(f"{entry.mean:.2f}" if entry.sd is None else f"{entry.mean:.2f} ± {entry.sd:.2f}")
    if entry.best:
        shown = style.bold.format(shown)
    elif entry.second:
        shown = style.underline.format(shown)
    if not entry.complete:
        shown += f" (n={len(entry.values)})"
    return " ".join([shown, *(style.text(mark) for mark in marks(table, entry))])


def _published(table: Table, entry: Entry) -> str:
    if entry.published is None:
        return ""
    reason = entry.published.reason
    note = f" [{reasons(table).index(reason) + 1}]" if reason else ""
    return f"{entry.published.value:.2f} ({entry.published.outcome}{note})"


def _grid(table: Table, style: Style) -> str:
    names = short_names(table.columns)
    headers = ["method"]
    lines = [[style.text(f"{row.label} [{row.tag}]" if row.tag else row.label)] for row in table.rows]
    for column in table.columns:
        for measure in table.measures:
            entries = [table.entry(row.label, column, measure.name) for row in table.rows]
            headers.append(" · ".join(part for part in (names[column], measure.label) if part))
            for line, entry in zip(lines, entries, strict=True):
                line.append(_number(table, entry, style))
            if any(entry.published for entry in entries):
                headers.append(f"{headers[-1]}, published")
                for line, entry in zip(lines, entries, strict=True):
                    line.append(style.text(_published(table, entry)))
    if table.ranks:
        headers.append("mean rank")
        ranks = {rank.row: f"{rank.mean:.2f} [{rank.low:.2f}, {rank.high:.2f}]" for rank in table.ranks}
        for row, line in zip(table.rows, lines, strict=True):
            line.append(ranks.get(row.label, "-"))
    return tabulate(lines, [style.text(header) for header in headers], style.tablefmt, disable_numparse=True)


def _markdown(table: Table) -> str:
    notes = [f"- {MARKDOWN.text(line)}" for line in footer(table)]
    regenerate = f"- Regenerate: `{command(table, 'md')}`"
    return "\n".join([f"# {table.title}", "", _grid(table, MARKDOWN), "", *notes, regenerate, ""])


def _latex(table: Table) -> str:
    notes = [*footer(table), f"Regenerate: {command(table, 'latex')}"]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            f"\\caption{{{LATEX.text(table.title)}}}",
            _grid(table, LATEX),
            r"\par\medskip\footnotesize",
            *(f"{LATEX.text(note)}\\par" for note in notes),
            r"\end{table}",
            "",
        ]
    )


def _json(table: Table) -> str:
    content = {**table.to_json(), "command": command(table, "json")}
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _compared(prefix: str, comparison: Comparison | None) -> dict[str, object]:
    names = ("difference", "p", "p_holm", "hedges_g", "outcome")
    return {f"{prefix}_{name}": getattr(comparison, name) if comparison else None for name in names}


def _line(table: Table, row: TableRow, measure: Measure, entry: Entry) -> dict[str, object]:
    by_family = {(c.family, c.against): c for c in entry.comparisons}
    line: dict[str, object] = {
        "experiment": table.experiment,
        "row": row.label,
        "method": row.method,
        "variant": row.variant,
        "tag": row.tag,
        "dataset": entry.dataset,
        "backbone": entry.backbone,
        "fusion": entry.fusion,
        "measure": measure.name,
        "selection": measure.selection,
        "n": len(entry.values),
        "seeds_expected": entry.expected,
        "mean": entry.mean,
        "sd": entry.sd,
        "low": entry.low,
        "high": entry.high,
        "best": entry.best,
        "second": entry.second,
        "indistinguishable": entry.indistinguishable,
        **_compared("vs_reference", by_family.get(("reference", table.reference))),
    }
    for other in table.rows:
        if other.proposed:
            line |= _compared(f"vs_{other.tag}", by_family.get(("proposed", other.label)))
    verdict = entry.published
    return line | {
        "published": verdict.value if verdict else None,
        "verdict": verdict.outcome if verdict else None,
        "verdict_reason": verdict.reason if verdict else None,
        "values": " ".join(f"{seed}:{value!r}" for seed, value in zip(entry.seeds, entry.values, strict=True)),
    }


def _csv(table: Table) -> str:
    rows = {row.label: row for row in table.rows}
    measures = {measure.name: measure for measure in table.measures}
    lines = [_line(table, rows[entry.row], measures[entry.measure], entry) for entry in table.entries]
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return stream.getvalue()
