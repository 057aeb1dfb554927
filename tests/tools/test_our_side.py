"""Our side of the comparison, on clips with real codecs, in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.datasets.many import write_many
from tools.peers.__main__ import our_side, preparing, turn_of
from tools.peers.adapters import Recipe
from tools.peers.clips import HELD_OUT, Clips, chosen, write_sources
from tools.peers.turns import EndedError

FEW, MANY, BATCH = 4, 8, 4


def selections_of(folder: Path) -> list[Clips]:
    source = write_many(folder / "source", MANY + HELD_OUT, published_size=False).folder
    found = [chosen(source, count, folder / f"{count}/raw/cremad") for count in (FEW, MANY)]
    for own in found:
        write_sources(own)
    return found


@pytest.mark.slow
def test_we_prepare_every_selection_and_train_on_the_last(tmp_path: Path) -> None:
    selections = selections_of(tmp_path)
    with our_side(selections, Recipe(batch=BATCH, frames=3), tmp_path) as ours:
        assert set(ours.hello) == {"device", "python", "torch", "numpy", "av"}
        preparing(ours, selections)
        assert ours.turn()["clips"] == BATCH  # to warm up
        turn = turn_of(ours, MANY)
        assert 0 < turn.input < turn.epoch
    assert all((own.folder.parents[1] / "prepared/cremad").is_dir() for own in selections)


def test_clips_without_their_checksums_end_us_with_the_reason(tmp_path: Path) -> None:
    selections = selections_of(tmp_path)
    (selections[0].folder / "manifest.csv").unlink()
    with (
        our_side(selections, Recipe(batch=BATCH, frames=3), tmp_path) as ours,
        pytest.raises(EndedError, match=r"Equipoise ended: .*manifest\.csv"),
    ):
        preparing(ours, selections)


def test_preparing_is_the_median_of_differences_over_the_clips_that_differ() -> None:
    seconds: Iterator[float] = iter([5.0, 9.0, 5.0, 6.0, 8.0, 10.0])
    ours = SimpleNamespace(turn=lambda: {"prepared": next(seconds)})
    few, many = (Clips(Path(), {"train": tuple(map(str, range(count)))}) for count in (10, 30))
    assert preparing(ours, [few, many] * 3) == pytest.approx(0.1)  # type: ignore[arg-type]
