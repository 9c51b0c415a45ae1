"""Medians, ratios pair by pair, goals and limits, from figures that are made up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tools.bench.figures import (
    NOISY_CORES,
    Figure,
    as_line,
    from_lines,
    machine,
    ratio,
    ratios,
    rows,
    table,
)
from tools.bench.goals import PURGING, goals, judged, limit

NEAR = "20 connections"


def figure(rate: float, *, run: int = 1, who: str = "mailstrom", **more: object) -> Figure:
    values = {"rate": rate, "busy_cores": 1.9}
    made = Figure(bench="drain", case=NEAR, who=who, run=run, n=100, values=values)
    return replace(made, **more)  # type: ignore[arg-type]


def test_a_line_holds_the_figure_and_what_it_was_taken_on() -> None:
    one = figure(5.0, uvloop=True, at=20.0)
    line = as_line(one, machine())
    assert from_lines([line, ""]) == [one]
    for name in ("mailstrom", "python", "sqlite", "uvloop", "processors", "when"):
        assert f'"{name}":' in line


def test_failed_and_noisy_runs_do_not_count_where_there_are_others() -> None:
    noisy = NOISY_CORES + 0.01
    (row,) = rows(
        [
            figure(10.0, run=1),
            figure(30.0, run=2),
            figure(900.0, run=3, foreign_cores=noisy),
            figure(0.0, run=4, error="lost"),
        ]
    )
    assert row.median("rate") == 20.0
    assert (row.left_out, row.noisy, row.errors) == (2, False, ("lost",))
    assert row.text("rate") == "20 (10 to 30)"


def test_noisy_runs_count_where_there_are_no_others_and_are_marked() -> None:
    (row,) = rows([figure(10.0, foreign_cores=1.0)])
    assert (row.median("rate"), row.noisy, row.left_out) == (10.0, True, 0)
    assert any("1~" in line for line in table([figure(10.0, foreign_cores=1.0)]))


def test_a_row_of_failures_has_no_median() -> None:
    (row,) = rows([figure(1.0, error="lost")])
    assert (row.median("rate"), row.text("rate"), row.noisy) == (None, "", False)
    assert any("lost" in line for line in table([figure(1.0, error="lost")]))


def test_a_ratio_is_the_median_of_the_ratios_of_runs_side_by_side() -> None:
    ours = [figure(rate, run=run) for run, rate in ((1, 10.0), (2, 60.0), (3, 40.0), (4, 1e9))]
    theirs = [figure(rate, run=run) for run, rate in ((1, 10.0), (2, 10.0), (3, 20.0))]
    # 1, 6 and 2; the fourth has nobody beside it; the ratio of medians would be 5
    assert ratio(ours, theirs, "rate") == 2.0
    assert ratio(ours[3:], theirs, "rate") is None


def test_ratios_are_told_of_each_form_to_each_peer() -> None:
    found = rows(
        [
            figure(40.0, uvloop=True),
            figure(20.0, uvloop=False),
            figure(10.0, who="postfix"),
            figure(5.0, who="huey"),
        ]
    )
    assert ratios(found) == {
        ("drain", NEAR, "postfix", "uvloop"): 4.0,
        ("drain", NEAR, "huey", "uvloop"): 8.0,
        ("drain", NEAR, "postfix", "asyncio"): 2.0,
        ("drain", NEAR, "huey", "asyncio"): 4.0,
    }
    text = "\n".join(table([figure(40.0, uvloop=True), figure(10.0, who="postfix")]))
    assert "4.00 x postfix (uvloop)" in text


def test_goals_are_met_by_what_was_measured_alone() -> None:
    found = {
        row.key: row
        for row in rows(
            [
                figure(50.0, uvloop=True),
                figure(49.0, uvloop=False),
                figure(10.0, who="postfix"),
            ]
        )
    }
    read = {goal.what: (goal, numbers) for goal, numbers in judged(found, [True, False])}
    goal, numbers = read["drain, to Postfix"]
    assert numbers == [5.0, pytest.approx(4.9)]
    assert [goal.met(number) for number in numbers] == [True, False]
    missing, nothing = read["send_many"]
    assert nothing == [None, None]
    assert not missing.met(None)


def test_an_upper_bound_is_met_from_below() -> None:
    goal = next(goal for goal in goals([]) if goal.what.startswith("an idle engine"))
    assert goal.at_most
    assert goal.met(1.0)
    assert not goal.met(1.01)


def test_depth_is_judged_by_the_deepest_step_against_the_shallowest() -> None:
    steps = [
        Figure(bench="depth", case=f"{at} queued: delivery", uvloop=True, at=at,
               values={"cpu_s_per_1000": cpu, "stall_max_ms": stall})
        for at, cpu, stall in ((1000.0, 0.9, 70.0), (10.0, 0.1, 10.0), (100.0, 0.2, 90.0))
    ]  # fmt: skip
    again = replace(steps[0], run=2, values={"cpu_s_per_1000": 0.9, "stall_max_ms": 60.0})
    found = {row.key: row for row in rows([*steps, again])}
    read = {goal.what: numbers for goal, numbers in judged(found, [True])}
    assert read["deepest to shallowest queue: CPU a message"] == [pytest.approx(9.0)]
    assert read["worst wait of a sender beside the deepest queue"] == [70.0]


def test_a_worst_wait_is_the_worst_of_all_runs_and_its_median_is_told_beside_it() -> None:
    runs = [
        Figure(bench="stalls", case=PURGING, uvloop=True, run=run, values={"stall_max_ms": wait})
        for run, wait in enumerate((20.0, 51.0, 30.0), 1)
    ]
    found = {row.key: row for row in rows(runs)}
    what = "worst wait of a sender while finished mail is purged"
    goal, numbers = next(one for one in judged(found, [True]) if one[0].what == what)
    assert numbers == [51.0]
    assert not goal.met(numbers[0])
    assert goal.told(found, True) == "51.0 (median 30.0)"
    assert goal.told({}, True) == "not measured"


def test_the_worst_of_a_rate_is_the_lowest() -> None:
    (row,) = rows([figure(50.0), replace(figure(40.0), run=2)])
    assert row.worst("rate") == 40.0
    assert row.worst("p99_ms") is None


def test_a_dead_site_is_judged_by_what_the_others_keep() -> None:
    def at(case: str, rate: float) -> Figure:
        return Figure(bench="sites", case=case, uvloop=True, values={"rate": rate})

    found = {
        row.key: row
        for row in rows(
            [at("100 sites", 1000.0), at("99 sites beside 1 that never answers", 891.0)]
        )
    }
    read = {goal.what: numbers for goal, numbers in judged(found, [True])}
    assert read["99 sites beside a dead one, a site's share"] == [pytest.approx(0.9)]


def test_beside_a_dead_site_runs_of_one_number_are_compared() -> None:
    def at(case: str, run: int, rate: float) -> Figure:
        failed = "" if rate else "the sink ended"
        return Figure(
            bench="sites", case=case, uvloop=True, run=run, values={"rate": rate}, error=failed
        )

    whole, beside = "100 sites", "99 sites beside 1 that never answers"
    made = [(0.0, 1000.0), (500.0, 400.0), (1000.0, 900.0)]  # the machine was slow in the second
    runs = [
        at(case, number, rate)
        for number, pair in enumerate(made, 1)
        for case, rate in zip((whole, beside), pair, strict=True)
    ]
    found = {row.key: row for row in rows(runs)}
    read = {goal.what: numbers for goal, numbers in judged(found, [True])}
    share = (0.8 + 0.9) / 2 * 100 / 99
    assert read["99 sites beside a dead one, a site's share"] == [pytest.approx(share)]


@pytest.mark.parametrize(
    ("bench", "values", "begins"),
    [
        ("latency", {"rate": 390.0, "bound_rate": 400.0, "busy_cores": 2.0}, "the wire"),
        ("sites", {"rate": 390.0, "share": 0.9, "busy_cores": 2.0}, "the wire"),
        ("drain", {"rate": 9000.0, "busy_cores": 1.8}, "CPU"),
        ("accept", {"rate": 3000.0, "busy_cores": 1.0}, "the disk"),
        ("drain", {"rate": 3000.0, "busy_cores": 1.0}, "waits"),
        ("latency", {"rate": 65.0, "bound_rate": 100.0, "busy_cores": 0.1}, "the wire, in part"),
        ("drain", {"rate": 3000.0}, ""),
    ],
)
def test_the_limit_is_read_off_the_figures(
    bench: str, values: dict[str, float], begins: str
) -> None:
    (row,) = rows([Figure(bench=bench, case="one", values=values)])
    assert limit(row, 2, 4000.0).startswith(begins)


def test_beside_other_programs_no_limit_but_the_wire_is_told() -> None:
    values = {"rate": 3000.0, "busy_cores": 2.0}
    made = Figure(bench="drain", case="one", values=values, foreign_cores=1.0)
    assert limit(rows([made])[0], 2, None).startswith("not to be told")
    far = replace(made, values={**values, "bound_rate": 3100.0})
    assert limit(rows([far])[0], 2, None).startswith("the wire")
