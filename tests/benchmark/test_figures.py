"""Figures from hand-made result records: the plotted numbers, what a sheet shows, the files."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import BboxBase

from benchmark.cli import FIGURES, main
from benchmark.errors import DataError, UsageError
from benchmark.experiments import load_experiment
from benchmark.figures import KINDS, energy, overview, plane, specific, write
from benchmark.figures.group import Group, groups
from benchmark.figures.sheet import SIZE, mark, text_width, wrapped
from benchmark.figures.spread import spread
from benchmark.protocol import Experiment
from benchmark.store import Store
from tests.benchmark.fake_runs import Record, experiment, hosts, many, only, record, records, sweep


def weakened(made: list[Record]) -> list[Record]:
    for item in made:
        for epoch in item["epochs"]:
            epoch["energy"] = {name: 1e-5 * value for name, value in epoch["energy"].items()}
    return made


def without_cosine(made: list[Record], method: str) -> list[Record]:
    for item in made:
        if item["cell"]["method"] == method:
            for epoch in item["epochs"]:
                epoch["cosine"] = None
                epoch["plane"] = [[share, balance, None] for share, balance, _ in epoch["plane"]]
    return made


def drawable(name: str) -> Experiment:
    """A small experiment that has this figure."""
    return {"modulation": hosts(4, 2), "sensitivity": sweep(4, 2)}.get(name) or experiment()


@pytest.fixture
def group() -> Group:
    return only(experiment(), records(experiment()))


def test_the_plane_shows_every_seed_in_the_order_of_progress(group: Group) -> None:
    panel = plane.plane(group).panels[0]
    assert (panel.row, panel.proposed, panel.seeds) == ("joint", False, (0, 1))
    assert panel.points[::2] == panel.points[1::2], "two seeds with the same steps"
    assert panel.points[::2] == ((25.0, 0.9, 0.25), (50.0, 0.8, -0.25), (75.0, 0.8, 0.25), (100.0, 0.7, -0.25))


def test_a_row_without_cosines_has_an_empty_panel() -> None:
    of = experiment()
    panels = plane.plane(only(of, without_cosine(records(of), "joint"))).panels
    assert [len(panel.points) for panel in panels] == [0, 8, 8]


def test_a_long_run_is_thinned_evenly_and_keeps_its_ends() -> None:
    points = [(float(step), 0.0, 0.0) for step in range(1000)]
    kept = [progress for progress, _, _ in plane.thinned(points, 4)]
    assert kept == [0.0, 333.0, 666.0, 999.0]
    assert plane.thinned(points[:4], 4) == points[:4]


def test_specific_information_is_the_points_lost_without_a_modality(group: Group) -> None:
    found = specific.specific(group)
    assert [(bar.row, bar.modality) for bar in found.bars[:3]] == [
        ("joint", "upper"),
        ("joint", "lower"),
        ("pcgrad (losses)", "upper"),
    ]
    upper, lower = found.bars[:2]
    assert (upper.mean, upper.sd) == pytest.approx((30, 0))
    assert lower.values == pytest.approx((10, 12))
    assert (lower.mean, lower.sd) == pytest.approx((11, math.sqrt(2)))


@pytest.mark.parametrize(
    ("rule", "shown", "drop"), [("best_val", "best_val", 30), ("last", "last", 50), ("best_test", "best_val", 30)]
)
def test_the_experiments_rule_selects_the_epoch_but_never_on_the_test_part(rule: str, shown: str, drop: float) -> None:
    of = experiment(selection=rule)
    made = records(of)
    for item in made:
        first, last = (epoch["test"]["missing"] for epoch in item["epochs"])
        last["upper"] = first["upper"] - 0.3
    found = specific.specific(only(of, made))
    assert found.bars[0].mean == pytest.approx(drop)
    assert any(f"selected by {shown}." in note for note in found.notes)


def test_a_single_seed_has_no_sd() -> None:
    of = experiment(seeds=1)
    found = specific.specific(only(of, records(of)))
    assert found.bars[0].sd is None
    assert found.notes[-1] == "One seed, no SD: joint, pcgrad (losses), rgm."


def test_energy_is_the_mean_over_seeds_between_the_smallest_and_the_largest(group: Group) -> None:
    panel = energy.energy(group).panels[0]
    assert panel.energy["upper"] == energy.Curve(mean=(1.5, 2.5), low=(1, 2), high=(2, 3))
    assert panel.energy["lower"] == energy.Curve(mean=(4.5, 5.5), low=(4, 5), high=(5, 6))
    assert panel.loss == energy.Curve(mean=(2, 1), low=(2, 1), high=(2, 1))


def test_a_modality_without_energy_is_named() -> None:
    of = experiment()
    made = records(of)
    for item in made:
        if item["cell"]["method"] == "joint":
            for epoch in item["epochs"]:
                epoch["energy"]["lower"] = 0.0
    found = energy.energy(only(of, made))
    assert found.notes[-1] == "No energy: joint: lower."
    assert isinstance(energy.draw(found), Figure)


@pytest.mark.parametrize(
    ("numbers", "logarithmic"),
    [((1, 99), False), ((1, 100), True), ((0, 1, 100), True), ((-1, 100), False), ((0,), False)],
)
def test_an_axis_is_logarithmic_when_its_positive_numbers_span_two_decades(
    numbers: tuple[float, ...], logarithmic: bool
) -> None:
    assert energy.spans_decades([energy.Curve(numbers, numbers, numbers)]) is logarithmic


def test_small_energies_have_their_power_of_ten_in_the_name_of_the_axis() -> None:
    of = experiment(baselines={"joint": None}, proposed={})
    made = weakened(records(of))
    figure = energy.draw(energy.energy(only(of, made)))
    assert "cumulative gradient energy ($10^{-5}$)" in [text.get_text() for text in figure.texts]
    figure.draw_without_rendering()
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()][:4] == ["0", "2", "4", "6"]


def test_the_overview_shows_the_end_of_training(group: Group) -> None:
    found = overview.overview(group)
    assert [(spot.number, spot.row, spot.proposed) for spot in found.spots] == [
        (1, "joint", False),
        (2, "pcgrad (losses)", False),
        (3, "rgm", True),
    ]
    spot = found.spots[0]
    assert (spot.balance, spot.cosine, spot.accuracy) == pytest.approx((0.5, 0.05, 81))


def test_the_overviews_cosine_is_the_mean_of_the_last_five_epochs() -> None:
    of = experiment(protocol={"epochs": 8})
    found = overview.overview(only(of, records(of)))
    assert found.epochs == 5
    assert found.spots[0].cosine == pytest.approx(0.1 * (3 + 4 + 5 + 6 + 7) / 5)


def test_a_row_without_cosines_is_no_spot_and_is_named() -> None:
    of = experiment()
    found = overview.overview(only(of, without_cosine(records(of), "joint")))
    assert [spot.row for spot in found.spots] == ["pcgrad (losses)", "rgm"]
    assert found.notes[-1] == "No cosine recorded, left out: joint."


def test_an_overview_without_any_cosine_says_so() -> None:
    of = experiment(baselines={"joint": None}, proposed={})
    figure = overview.draw(overview.overview(only(of, without_cosine(records(of), "joint"))))
    assert "no cosine recorded" in [text.get_text() for text in figure.axes[0].texts]


def test_a_spots_area_is_linear_in_the_accuracy() -> None:
    least, most = overview.AREAS
    assert [overview.area(value, 80, 90) for value in (80, 85, 90)] == [least, (least + most) / 2, most]
    assert overview.area(80, 80, 80) == (least + most) / 2


def test_rows_without_a_finished_cell_are_left_out_and_named() -> None:
    of = experiment()
    made = [item for item in records(of) if item["cell"]["method"] != "pcgrad"]
    found = only(of, made[:-1])
    assert [finished.row.label for finished in found.rows] == ["joint", "rgm"]
    assert found.notes() == (
        "Fixture: digits · small · concat.",
        "No finished cell, left out: pcgrad (losses).",
        "Fewer than 2 seeds finished: rgm (1).",
    )


def test_without_a_finished_cell_the_error_says_what_to_run() -> None:
    with pytest.raises(UsageError, match=r"'fixture' has no finished cell to draw.*`equipoise grid fixture`"):
        groups(experiment(), [])


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("plane", "plane"),
        ("specific", "missing"),
        ("specific", "modalities"),
        ("energy", "energy"),
        ("energy", "epochs"),
        ("overview", "cosine"),
        ("overview", "balance_factor"),
        ("trajectories", "notes"),
        ("sensitivity", "options"),
    ],
)
def test_a_record_without_the_numbers_is_named(name: str, field: str) -> None:
    of = drawable(name)
    made = records(of)
    for place in (*made[0]["epochs"], *(epoch["test"] for epoch in made[0]["epochs"]), made[0]):
        place.pop(field, None)
    with pytest.raises(DataError, match=r"key-digits/small/concat/joint seed 0 has no usable .* run the cell again"):
        KINDS[name].numbers(only(of, made))


def test_modalities_differ_in_colour_in_hatch_and_in_line() -> None:
    for one, other in combinations(map(mark, range(5)), 2):
        assert one.colour != other.colour
        assert one.hatch != other.hatch
        assert one.line != other.line


def test_labels_are_broken_where_they_can_be() -> None:
    assert wrapped("diagnosing_relearning", text_width("diagnosing_"), " _") == ["diagnosing_", "relearning"]
    assert wrapped("one two three", text_width("one two")) == ["one two", "three"]
    assert wrapped("indivisible", 0.1) == ["indivisible"]


def test_labels_of_crowded_spots_neither_overlap_nor_leave_the_panel() -> None:
    source = random.Random(0)
    circles = [(100 + source.gauss(0, 8), 90 + source.gauss(0, 8), 5.0) for _ in range(25)]
    places = spread(circles, (10, 7), (200, 180))
    for (x, y), (u, v) in combinations(places, 2):
        assert abs(x - u) >= 10 or abs(y - v) >= 7
    for x, y in places:
        assert 5 <= x <= 195
        assert 3.5 <= y <= 176.5
        assert all(math.hypot(max(abs(x - u) - 5, 0), max(abs(y - v) - 3.5, 0)) >= r for u, v, r in circles)


def texts(figure: Figure) -> list[Text]:
    """Every text that is drawn; ticks beyond the ends of an axis are not."""
    axes = [axis for each in figure.axes for axis in (each.xaxis, each.yaxis)]
    beyond = {
        label
        for axis in axes
        for tick in axis.get_major_ticks()
        for label in (tick.label1, tick.label2)
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
    }
    found = [text for text in figure.findobj(Text) if isinstance(text, Text) and text not in beyond]
    return [text for text in found if text.get_text() and text.get_visible()]


def overlap(one: BboxBase, other: BboxBase) -> float:
    """How far the boxes would have to be moved apart; negative where there is room between them."""
    return min(min(one.x1, other.x1) - max(one.x0, other.x0), min(one.y1, other.y1) - max(one.y0, other.y0))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("rows", [2, 5, 25])
def test_no_text_is_cut_off_too_small_or_over_another(name: str, rows: int) -> None:
    of = {"modulation": hosts, "sensitivity": sweep}.get(name, many)(rows)
    figure = KINDS[name].draw(KINDS[name].numbers(only(of, weakened(records(of)[:-1]))))
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    page = figure.bbox
    shown = texts(figure)
    # A label with a leader line has its line in its box.
    boxes = [Text.get_window_extent(text) for text in shown]
    for text, box in zip(shown, boxes, strict=True):
        assert float(text.get_fontsize()) >= SIZE
        inside = page.x0 <= box.x0 and page.y0 <= box.y0 and box.x1 <= page.x1 and box.y1 <= page.y1
        assert inside, text
    panels = [axes.get_window_extent() for axes in figure.axes]
    for text, box in zip(shown, boxes, strict=True):
        own = text.axes.get_window_extent().bounds if text.axes else None
        assert not any(overlap(box, panel) > 1 for panel in panels if panel.bounds != own), text
    for (text, box), (other, beside) in combinations(zip(shown, boxes, strict=True), 2):
        # A box has room for ascenders and descenders, which a line does not need in full.
        assert overlap(box, beside) <= 0.25 * SIZE * figure.dpi / 72, (text, other)


@pytest.mark.parametrize("name", KINDS)
def test_the_same_records_give_the_same_files_whatever_matplotlib_is_set_to(name: str, tmp_path: Path) -> None:
    of = drawable(name)
    files = write(name, of, records(of), tmp_path / "one")
    with matplotlib.rc_context({"font.size": 20, "svg.hashsalt": None, "svg.fonttype": "none", "savefig.dpi": 50}):
        again = write(name, of, records(of), tmp_path / "two")
    assert [file.name for file in files] == [f"fixture_{name}.{suffix}" for suffix in ("png", "svg", "json")]
    for file, other in zip(files, again, strict=True):
        assert file.read_bytes() == other.read_bytes()
    assert "<dc:date>" not in files[1].read_text()


def test_several_column_groups_have_a_file_each(tmp_path: Path) -> None:
    of = experiment(fusions=["concat", "sum", "film"])
    made = [item for item in records(of) if item["cell"]["fusion"] != "film"]
    assert [file.name for file in write("plane", of, made, tmp_path) if file.suffix == ".json"] == [
        "fixture_plane_concat.json",
        "fixture_plane_sum.json",
    ]


def test_the_numbers_are_stored_with_their_origin(tmp_path: Path) -> None:
    of = experiment()
    made = [item for item in records(of) if item["cell"]["method"] != "pcgrad"]
    [file] = [file for file in write("specific", of, made, tmp_path) if file.suffix == ".json"]
    stored: Mapping[str, Any] = json.loads(file.read_text())
    assert stored["command"] == "equipoise figure specific fixture"
    assert (stored["selection"], stored["seeds"], stored["column"]) == (
        "best_val",
        [0, 1],
        ["digits", "small", "concat"],
    )
    assert stored["origin"]["commits"] == ["c0ffee"]
    assert stored["left_out"] == ["pcgrad (losses)"]
    assert [bar["row"] for bar in stored["numbers"]["bars"]] == ["joint", "joint", "rgm", "rgm"]
    assert stored["numbers"]["bars"][1]["values"] == pytest.approx([10, 12])


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    fields = experiment().model_dump(mode="json", exclude={"name"}, exclude_defaults=True)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"experiments": {"digits": fields}}))
    monkeypatch.setenv("EQUIPOISE_HOME", str(tmp_path))
    return tmp_path


def test_the_command_offers_every_figure() -> None:
    assert tuple(KINDS) == FIGURES


def test_figure_all_draws_what_there_is_and_names_the_files_and_the_rest(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store()
    for cell in load_experiment("digits").cells():
        store.write(cell, record(cell))
    assert main(["figure", "all"]) == 0
    files = sorted((home / "results" / "figures").iterdir())
    said = capsys.readouterr()
    assert sorted(map(Path, said.out.split())) == files
    lacking = {"sensitivity", "modulation"}
    assert {file.stem for file in files} == {f"digits_{name}" for name in KINDS.keys() - lacking}
    for name in lacking:
        assert f"No {name}: Experiment 'digits' has no" in said.err
        assert main(["figure", name, "digits"]) == 2
        assert "Error: Experiment 'digits' has no" in capsys.readouterr().err
    assert main(["figure", "plane", "digits", "--out", str(home / "elsewhere")]) == 0
    assert (home / "elsewhere" / "digits_plane.png").exists()


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plain"], f"Invalid value for '{{{'|'.join(FIGURES)}|all}}'"),
        (["plane", "digit"], "Unknown experiment 'digit'. Did you mean 'digits'?"),
        (
            ["plane"],
            "Experiment 'digits' has no finished cell to draw. Train its cells first: `equipoise grid digits`.",
        ),
    ],
)
def test_a_wrong_call_ends_in_one_sentence(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["figure", *arguments]) == 2
    assert message in capsys.readouterr().err
