"""`fmplex trace`: the file, what is drawn from it, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from fmplex.cli import plotting
from fmplex.cli.app import app
from fmplex.tracing.chart import COLOURED, Chart, make_chart
from fmplex.tracing.page import draw_page
from fmplex.tracing.picture import draw_picture
from fmplex.tracing.recorder import RecordingProgress
from fmplex.tracing.recording import Recording, RecordingHeader, RecordingWriter, read_recording
from fmplex.tracing.style import coloured_series
from fmplex_broker.errors import Conflict, FmplexError, InvalidInput
from fmplex_broker.wire.passes import TRAINING, PassPart, PassRecord

BEGIN_MS = 1_000_000
HEADER = RecordingHeader(BEGIN_MS, ["b"], ["w0"])


def ran(number: int, *parts: PassPart, worker: str = "w0", start_s: float = 0.0, seconds: float = 0.1) -> PassRecord:
    units = sum(part.units for part in parts)
    return PassRecord(
        worker, "b", number, "interactive", BEGIN_MS + 1000 * start_s, seconds, 0.1, units, 100, 0, list(parts)
    )


def run(passes: int, vfms: int = 3, workers: int = 1) -> Recording:
    """Passes back to back, with all vFMs in each; the first ones are charged most."""
    parts = [PassPart(f"v{i:02}", 1, 10, 0.1 / vfms + 0.001 * (vfms - i), 5.0 + i, 2.0) for i in range(vfms)]
    records = [ran(n, *parts, worker=f"w{w}", start_s=n / 10) for w in range(workers) for n in range(passes)]
    return Recording(HEADER, records)


def save(path: Path, recording: Recording) -> Path:
    writer = RecordingWriter(path, recording.header)
    writer.add(recording.passes)
    writer.close()
    return path


# --- what is drawn ----------------------------------------------------------------------------------------------------

names = st.sampled_from([f"v{i}" for i in range(COLOURED + 4)])
parts = st.builds(
    PassPart, names, st.integers(1, 9), st.integers(1, 99), st.floats(0, 9), st.floats(0, 1e4), st.floats(0.1, 9)
)
records = st.lists(
    st.builds(
        lambda parts, number, worker, start_s, seconds: ran(number, *parts, worker=worker, start_s=start_s, seconds=seconds),
        st.lists(parts, min_size=1, max_size=20, unique_by=lambda part: part.vfm), st.integers(1, 99),
        st.sampled_from(["w0", "w1"]), st.floats(0, 100), st.floats(1e-6, 5),
    ),
    min_size=1,
    max_size=12,
)  # fmt: skip


@given(records)
def test_nothing_is_lost_on_the_way_to_the_drawing(passes: list[PassRecord]) -> None:
    chart = make_chart(Recording(HEADER, passes))
    every = [part for record in passes for part in record.parts]
    bars = [bar for one in chart.series for bar in one.bars]
    assert sum(one.charged_s for one in chart.series) == pytest.approx(sum(part.charged_s for part in every))
    assert sum(bar.charged_s for bar in bars) == pytest.approx(sum(part.charged_s for part in every))
    assert sum(bar.units for bar in bars) == sum(part.units for part in every)
    assert chart.jobs == sum(bar.jobs for bar in bars) == sum(part.jobs for part in every)
    assert max(bar.wait_ms for bar in bars) == max(part.wait_ms for part in every)
    assert chart.passes == sum(row.passes for row in chart.timelines) == len(passes)
    for record in passes:  # stacked without gap or overlap
        mine = sorted((bar for bar in bars if bar.record is record), key=lambda bar: bar.bottom)
        assert [bar.bottom for bar in mine] == [sum(b.units for b in mine[:i]) for i in range(len(mine))]


@given(records)
def test_service_curves_never_fall_and_span_the_recording(passes: list[PassRecord]) -> None:
    chart = make_chart(Recording(HEADER, passes))
    for one in chart.series:
        assert one.curve == sorted(one.curve)
        assert [service for _, service in one.curve] == sorted(service for _, service in one.curve)
        assert (one.curve[0], one.curve[-1][0]) == ((0.0, 0.0), chart.seconds)


@given(records)
def test_so_many_vfms_are_told_apart_and_the_rest_is_one(passes: list[PassRecord]) -> None:
    chart = make_chart(Recording(HEADER, passes))
    charged: dict[str, float] = {}
    for part in (part for record in passes for part in record.parts):
        charged[part.vfm] = charged.get(part.vfm, 0.0) + part.charged_s
    apart = [one for one in chart.series if not one.several]
    assert [one.several for one in chart.series] == [False] * min(len(charged), COLOURED) + [True] * (
        len(charged) > COLOURED
    )
    rest = charged.keys() - {one.name for one in apart}
    assert all(charged[name] <= charged[one.name] for name in rest for one in apart)
    if rest:
        assert chart.series[-1].name == f"{len(rest)} others"


def test_training_is_a_series_of_its_own_colour_and_no_pass() -> None:
    passes = [ran(n, PassPart("a", 2, 10, 0.1, 5.0, 2.0), start_s=n * 0.3) for n in range(1, 4)]
    lent = [ran(0, PassPart("a", 4, 128, 0.2), start_s=0.1 + n * 0.3, seconds=0.2) for n in range(1, 4)]
    for record in lent:
        record.cls = TRAINING
    chart = make_chart(Recording(HEADER, [*passes, *lent]))
    (a, colour), (training, own) = coloured_series(chart)
    assert (a.training, training.training, training.name) == (False, True, "training")
    assert colour != own
    assert (chart.passes, chart.jobs, a.jobs) == (3, 6, 6)
    assert training.charged_s == pytest.approx(0.6)
    assert training.share == pytest.approx(2 / 3)
    assert [bar.units for bar in training.bars] == [128] * 3
    progress = RecordingProgress()
    progress.add([*passes, *lent])
    assert (progress.passes, progress.jobs, progress.missing) == (3, 6, 0)


def test_training_is_drawn_also_where_nothing_else_ran(tmp_path: Path) -> None:
    record = ran(0, PassPart("a", 4, 128, 0.2), seconds=0.2)
    record.cls = TRAINING
    for passes in ([record], [ran(1, PassPart("b", 1, 9, 0.1, 5.0), start_s=1), record]):
        chart = make_chart(Recording(HEADER, passes))
        draw_picture(chart, tmp_path / "a.png")
        draw_page(chart, tmp_path / "a.html")
        assert (tmp_path / "a.png").stat().st_size > 10_000


def test_vfms_that_are_served_by_their_weights_rise_equally() -> None:
    two = [
        ran(n, PassPart("a", 1, 10, 0.03, 1, 1.0), PassPart("b", 1, 30, 0.09, 1, 3.0), start_s=n / 10) for n in range(9)
    ]
    first, second = make_chart(Recording(HEADER, two)).series
    assert (first.name, first.share) == ("b", pytest.approx(9 * 0.09 / 0.9))
    assert [service for _, service in first.curve] == pytest.approx([service for _, service in second.curve])


def test_a_weight_that_changes_counts_from_then_on() -> None:
    changed = [ran(1, PassPart("a", 1, 10, 0.1, 1, 1.0)), ran(2, PassPart("a", 1, 10, 0.1, 1, 4.0), start_s=1)]
    (one,) = make_chart(Recording(HEADER, changed)).series
    assert [service for _, service in one.curve] == pytest.approx([0, 0.1, 0.125, 0.125])
    assert one.weight == 4.0


def test_the_line_of_waits_keeps_the_longest() -> None:
    waits = [ran(n, PassPart("a", 1, 10, 0.1, 50.0 if n == 37 else 1.0), start_s=n / 10) for n in range(100)]
    (one,) = make_chart(Recording(HEADER, waits)).series
    line = one.longest_waits(10)
    assert len(line) <= 11
    assert [point for point in line if point[1] > 1] == [(pytest.approx(3.7), 50.0)]


# --- the drawings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("passes", "vfms", "workers"), [(1, 1, 1), (30, 3, 2), (250, 14, 1)])
def test_both_drawings_are_made(tmp_path: Path, passes: int, vfms: int, workers: int) -> None:
    chart = make_chart(run(passes, vfms, workers))
    draw_picture(chart, tmp_path / "a.png")
    draw_page(chart, tmp_path / "a.html")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "a.html").read_text()
    assert "cdn.plot.ly" not in page.replace("plotly.js v", "").split("Plotly.newPlot")[-1], "it needs no network"
    assert all(one.name in page for one in chart.series)


def traces(chart: Chart, path: Path) -> int:
    draw_page(chart, path)
    return path.read_text().split("Plotly.newPlot")[-1].count('"type":"scatter')


def test_a_page_has_no_more_traces_for_more_passes(tmp_path: Path) -> None:
    short, long = make_chart(run(3)), make_chart(run(300))
    assert traces(short, tmp_path / "a.html") == traces(long, tmp_path / "b.html") > 0


def test_drawing_keeps_away_from_matplotlibs_global_state(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom tests.unit.client.test_tracing import make_chart, run, draw_picture\n"
        "draw_picture(make_chart(run(3)), Path(sys.argv[1]))\nassert 'matplotlib.pyplot' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "a.png"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


# --- the file ---------------------------------------------------------------------------------------------------------


def test_a_recording_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_recording(save(tmp_path / "a.jsonl", run(5))) == run(5)


def test_a_last_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jsonl", run(5))
    path.write_text(path.read_text()[:-40])
    assert read_recording(path) == Recording(HEADER, run(5).passes[:-1])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is not a recording of `fmplex trace`"),
        ('{"fmplex_trace": 1, "begin_ms": 1', "is not a recording"),
        ("[]\n", "is not a recording"),
        ('{"a": 1}\n', "is not a recording"),
        ("hello\n", "is not a recording"),
        ('{"fmplex_trace": 9, "begin_ms": 1, "backbones": [], "workers": []}\n', "format 9, this fmplex reads 1"),
        ('{"fmplex_trace": 1, "start": 1}\n', "format 1, this fmplex reads 1"),
        ('{"fmplex_trace": 1, "begin_ms": 1, "backbones": [], "workers": []}\nrubbish\n', "line 2, is no pass"),
        ('{"fmplex_trace": 1, "begin_ms": 1, "backbones": [], "workers": []}\n[]\n', "line 2, is no pass"),
        (
            '{"fmplex_trace": 1, "begin_ms": 1, "backbones": [], "workers": []}\n{"parts": []}\n{}\n',
            "line 2, is no pass",
        ),
        (b"\xff\xfe", "it is not text"),
    ],
)
def test_what_is_no_recording_is_refused(tmp_path: Path, content: str | bytes, says: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InvalidInput, match=says) as e:
        read_recording(path)
    assert e.value.field == "file"


def test_a_recording_is_never_overwritten(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jsonl", run(1))
    with pytest.raises(Conflict):
        RecordingWriter(path, HEADER)
    assert read_recording(path) == run(1)


# --- the command ------------------------------------------------------------------------------------------------------


def fails(*args: str | Path) -> FmplexError:
    error = CliRunner().invoke(app, ["trace", *map(str, args), "--broker", "redis://127.0.0.1:1"]).exception
    assert isinstance(error, FmplexError), error
    return error


def test_a_file_that_is_there_is_drawn_again_and_nothing_else(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jsonl", run(5))
    before = path.read_bytes()
    for args in ([], ["--seconds", "1"], ["--seconds", "1", "--plot", str(tmp_path / "b")]):
        assert "never overwritten" in fails(path, *args).message
    done = CliRunner().invoke(app, ["trace", str(path), "--plot", str(tmp_path / "b.png")])
    assert done.exit_code == 0, done.output
    assert {p.name for p in tmp_path.iterdir()} == {"a.jsonl", "b.png", "b.html"}
    assert path.read_bytes() == before


def test_what_cannot_work_is_refused_before_anything_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = tmp_path / "new.jsonl"
    assert "no folder" in fails(tmp_path / "nowhere" / "a.jsonl").message
    assert "no folder" in fails(new, "--plot", tmp_path / "nowhere" / "a").message
    assert "would overwrite the recording" in fails(tmp_path / "a.png", "--plot", tmp_path / "a").message
    assert fails(new).code == "broker_unavailable"
    monkeypatch.setattr(plotting, "find_spec", lambda name: None)
    assert "pip install 'fmplex[trace]'" in fails(new, "--plot", tmp_path / "a").message
    assert list(tmp_path.iterdir()) == []


def test_a_gateway_is_no_broker(tmp_path: Path) -> None:
    error = CliRunner().invoke(app, ["trace", str(tmp_path / "a.jsonl"), "--broker", "http://127.0.0.1:8080"]).exception
    assert isinstance(error, InvalidInput)
    assert "redis://" in error.message


def test_an_empty_recording_cannot_be_drawn(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jsonl", run(0))
    assert "holds no pass" in fails(path, "--plot", tmp_path / "b").message


def test_a_folder_is_no_recording(tmp_path: Path) -> None:
    assert "cannot be read" in fails(tmp_path, "--plot", tmp_path / "b").message


def test_every_line_of_the_file_is_an_object(tmp_path: Path) -> None:
    header, *lines = map(json.loads, save(tmp_path / "a.jsonl", run(2)).read_text().splitlines())
    assert header == {"fmplex_trace": 1, "begin_ms": BEGIN_MS, "backbones": ["b"], "workers": ["w0"]}
    assert [line["number"] for line in lines] == [0, 1]
