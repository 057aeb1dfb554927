"""`python -m tools.peers`: a training epoch of ours, of OGM-GE's script and of BalanceBenchmark, on the same clips."""

from __future__ import annotations

import platform
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import mkdtemp

import click

from benchmark.errors import CellError, EquipoiseError, UsageError
from benchmark.paths import SOURCE_ROOT
from benchmark.run import provenance
from datasets.cremad import CREMAD
from tools.peers import adapters
from tools.peers.adapters import Recipe
from tools.peers.clips import Clips, chosen, spread, write_sources
from tools.peers.clones import BALANCE, OGM_GE, Clone, opened
from tools.peers.table import Figures, Turn, rendered, with_table
from tools.peers.turns import Answer, Contestant, EndedError

FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
FRAMES = CREMAD.card.shapes["video"][1]
OURS = "Equipoise"
FEW = 8
"""Clips whose preparing is subtracted from that of all, with the start of its processes."""
PREPARATIONS = 3
"""Differences of which the median counts: the start of processes takes longer than a clip, and varies."""


def launched(python: Path, kind: str, copy: Path, arguments: Sequence[str], log: Path) -> Contestant:
    """Return a peer that waits for its turns."""
    command = [str(python), "-m", "tools.peers.launch", kind, str(copy), *arguments]
    return Contestant(kind, command, SOURCE_ROOT, log)


def turn_of(contestant: Contestant, clips: int) -> Turn:
    """Have a contestant train an epoch; raises CellError where it trained on other than so many clips."""
    answer = contestant.turn()
    if answer["clips"] != clips:
        raise CellError(
            f"{contestant.name} trained on {answer['clips']} clips and not on {clips}: one of them cannot be read, or "
            f"has fewer than {FRAMES} frames. What it said is in {contestant.log}."
        )
    return Turn(**answer)


def our_side(clips: Sequence[Clips], recipe: Recipe, work: Path) -> Contestant:
    """Return ourselves, who first prepare each of the selections of clips, and train on the last."""
    homes = [str(own.folder.parents[1]) for own in clips]
    command = [sys.executable, "-m", "tools.peers.ours", str(recipe.batch), *homes]
    return Contestant(OURS, command, SOURCE_ROOT, work / "ours.log")


def preparing(ours: Contestant, selections: Sequence[Clips]) -> float:
    """Have us prepare few clips and all of them in turn; returns seconds per clip without the start of processes."""
    seconds = [float(ours.turn()["prepared"]) for _ in selections]
    pairs = range(0, len(selections), 2)
    more = len(selections[1].names) - len(selections[0].names)
    return statistics.median(seconds[first + 1] - seconds[first] for first in pairs) / more


def measured(
    clones: Sequence[Clone], selections: Sequence[Clips], recipe: Recipe, rounds: int, python: Path, work: Path
) -> tuple[list[Figures], Mapping[str, Answer]]:
    """Prepare few clips and all of them in turn, then train on all in turns; returns figures, ours first, and devices.

    Devices come with the versions of what runs on them.
    """
    clips = selections[-1]
    write = {OGM_GE: adapters.ogm_ge, BALANCE: adapters.balance}
    arguments = {c.peer: write[c.peer](c, clips, recipe, work / c.peer.key) for c in clones}
    count, everything = len(clips.parts["train"]), len(clips.names)
    with ExitStack() as running:
        ours = running.enter_context(our_side(selections, recipe, work))
        our_seconds = preparing(ours, selections)
        options = [str(clips.folder), str(recipe.frames)]
        with launched(python, "frames", work / OGM_GE.key, options, work / "frames.log") as extraction:
            answer = extraction.turn()
        prepared = {
            OURS: our_seconds,
            OGM_GE.title: answer["frames"] / everything,
            BALANCE.title: (answer["frames"] + answer["spectrograms"]) / everything,
        }
        contestants = {OURS: ours}
        for peer, own in arguments.items():
            contestant = launched(python, peer.key, work / peer.key, own, work / f"{peer.key}.log")
            contestants[peer.title] = running.enter_context(contestant)
        for contestant in contestants.values():
            contestant.turn()  # a batch, to warm up
        turns: dict[str, list[Turn]] = {title: [] for title in contestants}
        for number in range(rounds):
            order = list(contestants.items())
            shift = number % len(order)
            for title, contestant in order[shift:] + order[:shift]:
                turns[title].append(turn_of(contestant, count))
                click.echo(f"round {number + 1}: {title}: {turns[title][-1].epoch:.1f} s", err=True)
        runs_on = {"frames": extraction.hello, **{title: own.hello for title, own in contestants.items()}}
    return [Figures(title, own, prepared[title]) for title, own in turns.items()], runs_on


def notes(
    clones: Sequence[Clone], clips: Clips, recipe: Recipe, rounds: int, runs_on: Mapping[str, Answer]
) -> dict[str, str]:
    """Return what the table's footer says."""
    device = runs_on[OURS]["device"]
    cpu = f"one thread of a CPU ({platform.machine()}), CPU time"
    commits = [f"{c.peer.repository} {c.commit[:12]}{' with changes' if c.changed else ''}" for c in clones]
    versions: dict[str, dict[str, None]] = {}
    for hello in runs_on.values():
        for name, text in hello.items():
            versions.setdefault(name, {})[text] = None
    del versions["device"]
    made = provenance()
    own = f"{str(made['commit'] or 'without a commit')[:12]}{' with changes' if made['dirty'] else ''}"
    return {
        "Work": f"OGM-GE with ResNet-18, {len(clips.parts['train'])} clips of {recipe.frames} frames, batch "
        f"{recipe.batch}; median of {rounds} rounds in which all take turns, after a batch to warm up",
        "Device": cpu if device == "CPU" else f"{device}, time on the wall",
        "Code": ", ".join([f"Equipoise {own}", *commits]),
        "Versions": ", ".join(f"{name} {' and '.join(found)}" for name, found in versions.items()),
    }


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folder", type=FOLDER)
@click.option(OGM_GE.option, type=FOLDER, required=True, help=f"A clone of {OGM_GE.repository}.")
@click.option(BALANCE.option, type=FOLDER, required=True, help=f"A clone of {BALANCE.repository}.")
@click.option("--python", type=FILE, default=sys.executable, help="The Python of the peers. Default: this one.")
@click.option(
    "--clips", "count", type=click.IntRange(min=2 * FEW), default=96, show_default=True, help="Clips to train on."
)
@click.option("--batch", type=click.IntRange(min=2), default=16, show_default=True)
@click.option("--rounds", type=click.IntRange(min=1, max=adapters.FOREVER - 2), default=3, show_default=True)
@click.option("--write", "page", type=FILE, help="Page to write the table into.")
def cli(
    folder: Path, ogm_ge: Path, balance: Path, python: Path, count: int, batch: int, rounds: int, page: Path | None
) -> None:
    """Time an epoch of everybody on the clips in FOLDER, which has AudioWAV and VideoFlash as CREMA-D has."""
    if count % batch:
        raise UsageError(
            f"{count} clips are no whole number of batches of {batch}, and BalanceBenchmark drops the rest. Use "
            f"--clips {count - count % batch or batch}."
        )
    clones = [opened(OGM_GE, ogm_ge), opened(BALANCE, balance)]
    spread(folder, count)  # refused before anything is written
    recipe = Recipe(batch, FRAMES)
    work = Path(mkdtemp(prefix="peers-"))
    homes = [(n, work / f"{n}-{number}") for number in range(PREPARATIONS) for n in (FEW, count)]
    selections = [chosen(folder, n, home / "raw/cremad") for n, home in homes]
    for own in selections:
        write_sources(own)
    adapters.write_summary(selections[-1])
    found, runs_on = measured(clones, selections, recipe, rounds, python.absolute(), work)
    shutil.rmtree(work)  # where it failed, what everybody said is left
    table = rendered(found, notes(clones, selections[-1], recipe, rounds, runs_on))
    click.echo(table)
    if page is not None:
        page.write_text(with_table(page.read_text(encoding="utf-8"), table), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; an error ends in one sentence and a status."""
    try:
        cli.main(arguments, prog_name="python -m tools.peers", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (EquipoiseError, EndedError) as error:
        click.echo(f"Error: {error}", err=True)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
