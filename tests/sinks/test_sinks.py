"""Each sink against the real package, read back with that package's own reader."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from gradkern import Finding, GradMonitor, Remedy
from gradkern.history.rows import EventRow, WeightsRow
from gradkern.sinks import JsonlSink, Sink, make_sinks
from gradkern.sinks.base import SinkFeed
from gradkern.sinks.heatmap import COLUMNS, Heatmap
from tests.support.loops import layout, small_model, step_row, train


class Kept(Sink):
    """A sink that stores what it receives."""

    def open(self, run_dir):
        self.lines, self.images, self.closed = [], [], False

    def log(self, step, time, values):
        self.lines.append((step, values))

    def image(self, step, key, pixels):
        self.images.append((step, key, pixels))

    def close(self):
        self.closed = True


def fed(*sinks):
    """A feed of these sinks, opened."""
    feed = SinkFeed(sinks)
    feed.open(None)
    return feed


def run(tmp_path, sinks, steps=12, **options):
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with GradMonitor(model, optimizer, tmp_path / "run", sinks=sinks, update_every=5, **options) as monitor:
        return train(model, monitor, optimizer, steps, max_norm=10.0)


def test_the_keys(tmp_path):
    sink = Kept(heatmap_every=5)
    stats = run(tmp_path, [sink])
    assert [step for step, v in sink.lines if "grad_norm" in v] == list(range(1, 13)) and sink.closed
    values = next(v for step, v in sink.lines if step == 5)
    names = stats[0].names
    clipped = [s.clip_coef.item() < 1 for s in stats]
    assert values["grad_norm"] == stats[4].total_norm.item() and values["lr"] == 0.01 and values["loss"] > 0
    assert values["clip/coef"] == stats[4].clip_coef.item()
    assert values["clip/rate"] == pytest.approx(np.mean(clipped[:5])) and values["grad_nonfinite"] == 0
    for i, name in enumerate(names):
        assert values[f"grad_norm/{name}"] == stats[4].norm[i].item()
        assert values[f"grad_rms/{name}"] == pytest.approx(stats[4].rms[i].item(), rel=1e-6)
    updates = {step: set(v) for step, v in sink.lines if "grad_norm" not in v}
    assert updates == {step: {f"update_ratio/{name}" for name in names} for step in (1, 2, 4, 5, 10)}
    assert [(step, key) for step, key, _ in sink.images] == [
        (5, "grad_rms_heatmap"), (10, "grad_rms_heatmap"), (12, "grad_rms_heatmap")
    ]  # fmt: skip


def test_thousands_of_parameters_make_few_charts():
    where, keys = layout(2000), set()
    sink, everything = Kept(top=8), Kept(all_params=True)
    feed = fed(sink, everything)
    generator = np.random.default_rng(0)
    for step in range(1, 30):  # the largest and smallest are others in every step
        feed.send([step_row(step, generator.random(2000), where)])
    feed.send([step_row(30, np.ones(2000), where), WeightsRow(30, where, True, np.ones(2000), np.ones(2000))])
    for _, values in sink.lines:
        keys |= set(values)
    assert len({k for k in keys if k.startswith("grad_rms/")}) == 32 and len(keys) < 110
    assert len({k for k in sink.lines[-1][1] if k.startswith("update_ratio/")}) == 32
    first = sink.lines[0][1]
    assert len([k for k in first if k.startswith("grad_rms/")]) == 16
    assert len([k for k in everything.lines[0][1] if k.startswith("grad_rms/")]) == 2000


def test_norms_from_after_clipping_have_another_name():
    sink = Kept()
    fed(sink).send([step_row(1, [1.0, 2.0], layout(2), phase="after_clip")])
    _, values = sink.lines[0]
    assert "grad_norm" not in values and "grad_norm_after_clip" in values
    assert not any(k.startswith(("grad_norm/", "grad_rms/")) for k in values)
    assert values["grad_norm_after_clip/layers.0.bias"] == 2.0


def test_every_nth_and_missing_gradients():
    sink = Kept(every=3)
    feed = fed(sink)
    feed.send([step_row(s, [1.0, -1.0], layout(2)) for s in range(1, 8)])
    assert [s for s, _ in sink.lines] == [3, 6]
    assert "grad_norm/layers.0.bias" not in sink.lines[0][1]


def test_a_step_that_was_not_recorded_is_replaced_by_the_next(tmp_path):
    """If every 10th step is recorded, or the caller numbers the steps, few or none are multiples of 3."""
    for steps, sent in ((range(10, 60, 10), [20, 30, 40, 50]), (range(1, 12, 2), [3, 7, 9])):
        sink = Kept(every=3)
        fed(sink).send([step_row(s, [1.0, 2.0], layout(2)) for s in steps])
        assert [s for s, _ in sink.lines] == sent
    sink = Kept(every=50)  # a continued run: it is unknown whether step 100 was sent
    fed(sink).send([step_row(s, [1.0, 2.0], layout(2)) for s in range(101, 160)])
    assert [s for s, _ in sink.lines] == [150]
    sink = Kept(every=25)
    run(tmp_path, [sink], steps=60, every=10)
    assert [s for s, v in sink.lines if "grad_norm" in v] == [30, 50]


def test_step_0_and_steps_recorded_again_are_sent():
    for every, steps, sent in (
        (1, [0, 1, 2], [0, 1, 2]),
        (1, [1, 2, 2, 3], [1, 2, 2, 3]),
        (10, range(31), [0, 10, 20, 30]),
        (10, [*range(1, 21), *range(17, 31)], [10, 20, 20, 30]),
        (3, [2, 4, 4, 5, 6, 6], [4, 4, 6, 6]),
        (3, [2, 4, 2, 4], [4, 4]),
    ):
        sink = Kept(every=every)
        fed(sink).send([step_row(s, [1.0, 2.0], layout(2)) for s in steps])
        assert [s for s, _ in sink.lines] == sent, (every, steps)


@pytest.mark.parametrize("records_first", [True, False])
def test_update_ratios_belong_to_their_step_and_none_is_lost(records_first):
    where, sink = layout(2), Kept(every=4)
    feed = fed(sink)
    for step in range(1, 6):
        rows = [step_row(step, [1.0, 2.0], where)]
        rows.insert(records_first, WeightsRow(step, where, True, np.ones(2), np.array([0.5 * step, np.nan])))
        feed.send(rows)
    feed.close()
    ratios = {step: values for step, values in sink.lines if "grad_norm" not in values}
    assert ratios == {step: {"update_ratio/layers.0.weight": 0.5 * step} for step in range(1, 6)}
    assert [step for step, values in sink.lines if "grad_norm" in values] == [4]


def test_a_sink_that_fails_is_left_out_and_named(tmp_path):
    class Bad(Kept):
        def log(self, step, time, values):
            raise ConnectionError("no network")

    good = Kept()
    with pytest.warns(RuntimeWarning, match=r"Bad failed and was removed: ConnectionError\('no network'\)"):
        run(tmp_path, [Bad(), good])
    assert {step for step, _ in good.lines} == set(range(1, 13))


def test_arguments_are_checked(tmp_path):
    with pytest.raises(ValueError, match=r"\[JsonlSink\] every: expected at least 1, got 0"):
        JsonlSink(every=0)
    with pytest.raises(TypeError, match=r"sinks\[1\]: expected a Sink or one of jsonl, .*, got 'wandbb'"):
        make_sinks(["jsonl", "wandbb"])
    for wrong in (None, JsonlSink(), 3):
        with pytest.raises(TypeError, match=r"\[GradMonitor\] sinks: expected a list of sinks, got "):
            GradMonitor(small_model(), None, tmp_path, sinks=wrong)
    GradMonitor(small_model(), None, tmp_path).close()


def test_a_sink_that_cannot_be_opened_is_named_and_the_others_are_closed(tmp_path):
    class Bad(Kept):
        def open(self, run_dir):
            raise ConnectionError("no network")

    first = Kept()
    with pytest.raises(
        RuntimeError, match=r"\[GradMonitor\] sinks: Bad.open\(\) failed: ConnectionError\('no network'\)"
    ):
        GradMonitor(small_model(), None, tmp_path / "run", sinks=[first, Bad()])
    assert first.closed
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [".lock", "history.db"]
    run(tmp_path, [first])  # both are free again
    assert first.lines


def test_a_sink_is_for_one_monitor_at_a_time(tmp_path):
    sink = JsonlSink()
    with (
        GradMonitor(small_model(), None, tmp_path / "a", sinks=[sink]),
        pytest.raises(ValueError, match=r"sinks: this JsonlSink is used by another monitor"),
    ):
        GradMonitor(small_model(), None, tmp_path / "b", sinks=[sink])
    run(tmp_path, [sink])
    assert (tmp_path / "run" / "metrics.jsonl").read_text()


def test_json_lines(tmp_path):
    stats = run(tmp_path, "jsonl")
    run(tmp_path, ["jsonl"], steps=3)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    ratios = [line["step"] for line in lines if "update_ratio/0.weight" in line]
    lines = [line for line in lines if "grad_norm" in line]
    assert [line["step"] for line in lines] == list(range(1, 16)) and ratios == [1, 2, 4, 5, 10, 15]
    assert lines[3]["grad_norm"] == stats[3].total_norm.item()
    sink = JsonlSink(tmp_path / "x.jsonl")
    sink.open(tmp_path)
    sink.log(1, 2.0, {"a": float("nan"), "b": float("inf"), "c": -float("inf")})
    sink.close()
    assert json.loads((tmp_path / "x.jsonl").read_text()) == {
        "step": 1, "time": 2.0, "a": "NaN", "b": "Infinity", "c": "-Infinity"
    }  # fmt: skip


FINDING = Finding(
    "vanishing_gradient", "severe", ("0.weight",), 1, 20, {"decades_over_depth": 9.0}, "It falls to 1e-09.",
    (Remedy("relu", "Use ReLU."),),
)  # fmt: skip
SAID = "It falls to 1e-09. Use ReLU."
#: What happens in a run: (kind, data) at steps 20, 21, …
EVENTS = (
    ("finding", FINDING.to_json()),
    ("skip", {"reason": "nonfinite", "parameters": ["0.weight", "0.bias"]}),
    ("skip", {"reason": "nonfinite"}),
    ("spike", {"norm": None, "limit": 2.0}),
    ("rollback", {"reason": "nonfinite", "count": 1, "budget": 3}),
    ("mine", {"note": "new data"}),
)


def happen(sink, folder):
    """Sends `EVENTS` to a sink, which is then closed."""
    folder.mkdir(exist_ok=True)
    feed = SinkFeed([sink])
    feed.open(folder)
    problems = feed.send([EventRow(20 + i, kind, data, 1e9 + i) for i, (kind, data) in enumerate(EVENTS)])
    feed.close()
    assert problems == []


def test_events_are_counted_by_a_sink_of_your_own(tmp_path):
    sink = Kept(every=100)
    happen(sink, tmp_path)
    counted = [(step, *values.items()) for step, values in sink.lines]
    assert counted[1:3] == [(21, ("gradkern/events/skip", 1.0)), (22, ("gradkern/events/skip", 2.0))]
    assert counted[-1] == (25, ("gradkern/events/mine", 1.0)) and len(counted) == len(EVENTS)
    happen(sink, tmp_path)
    assert sink.lines[1] == (21, {"gradkern/events/skip": 1.0})  # another monitor counts anew


def test_events_as_json_lines(tmp_path):
    happen(JsonlSink(), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["event"], line["data"]) for line in lines] == list(EVENTS)
    assert [line["step"] for line in lines] == [20, 21, 22, 23, 24, 25] and lines[0]["time"] == 1e9
    assert Finding.from_json(lines[0]["data"]) == FINDING


def test_findings_of_a_run_reach_its_sinks(tmp_path):
    model = torch.nn.Sequential(
        *[part for _ in range(10) for part in (torch.nn.Linear(8, 8), torch.nn.Sigmoid())],
        torch.nn.Linear(8, 2),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(32, 8)
    with GradMonitor(model, optimizer, tmp_path, sinks=["jsonl"], on_finding=lambda finding: None) as monitor:
        for _ in range(60):
            loss = torch.nn.functional.cross_entropy(model(x), (x[:, 0] > 0).long())
            optimizer.zero_grad()
            loss.backward()
            monitor.record(loss=loss)
            optimizer.step()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    found = [Finding.from_json(line["data"]) for line in lines if line.get("event") == "finding"]
    assert "vanishing_gradient" in {finding.kind for finding in found} and found[0].remedies


def test_the_heatmap_is_bounded():
    heatmap = Heatmap()
    names = tuple(f"p{i}" for i in range(3000))
    for step in range(1, 2001):
        heatmap.add(step, names, np.full(3000, float(step)))
        assert len(heatmap._columns) < COLUMNS
    matrix = heatmap.matrix()
    assert matrix.shape[0] == 3000 and COLUMNS // 2 <= matrix.shape[1] <= COLUMNS
    np.testing.assert_allclose(np.diff(10.0 ** matrix[0]), heatmap._stride, rtol=1e-3)
    pixels = heatmap.pixels()
    assert pixels.dtype == np.uint8 and pixels.shape[0] <= 1024 and pixels.shape[2] == 3
    assert Heatmap().pixels().shape == (256, 512, 3)  # nothing recorded


@pytest.mark.parametrize("count", [3000, 2])
def test_the_heatmap_hides_no_nonfinite_parameter(count):
    where, sink = layout(count), Kept(heatmap_every=1)
    norms = np.ones(count)
    healthy = np.unique(pixels_of(sink, step_row(1, norms, where)).reshape(-1, 3), axis=0)
    norms[1] = np.nan
    nonfinite = np.zeros(count, dtype=np.int64)
    nonfinite[1] = 7
    pixels = pixels_of(sink, step_row(2, norms, where, nonfinite=nonfinite))
    assert len(healthy) == 1 and (pixels[:, -1] == (0, 200, 255)).all(axis=1).any()


def pixels_of(sink, row):
    """The heatmap after one more row."""
    if not hasattr(sink, "feed"):
        sink.feed = fed(sink)
    sink.feed.send([row])
    return sink.images[-1][2]


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from gradkern.sinks import TensorBoardSink

    stats = run(tmp_path, [TensorBoardSink(heatmap_every=10)])
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    found = events.Scalars("grad_norm")
    assert [e.step for e in found] == list(range(1, 13))
    assert [e.value for e in found] == [s.total_norm.item() for s in stats]
    assert {
        "clip/coef",
        "clip/rate",
        "grad_rms/0.weight",
        "grad_norm/0.weight",
        "update_ratio/0.weight",
    } <= set(events.Tags()["scalars"])
    assert [e.step for e in events.Scalars("update_ratio/0.weight")] == [1, 2, 4, 5, 10]
    pictures = events.Images("grad_rms_heatmap")
    assert [p.step for p in pictures] == [10, 12]
    assert pictures[0].encoded_image_string.startswith(b"\x89PNG") and pictures[0].height == 256


def test_tensorboard_has_events_as_text(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from gradkern.sinks import TensorBoardSink

    happen(TensorBoardSink(), tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (found,) = events.Tensors("gradkern/finding/text_summary")
    text = found.tensor_proto.string_val[0].decode()
    assert found.step == 20 and text.startswith("**vanishing gradient** (severe, step 20)") and SAID in text
    assert [e.value for e in events.Scalars("gradkern/events/skip")] == [1, 2]


@pytest.mark.parametrize("place", [None, "mine"])
def test_tensorboard_drops_what_was_replaced_in_its_own_folder(tmp_path, place):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from gradkern.sinks import TensorBoardSink

    where = layout(2)
    folder = tmp_path / (place or "tensorboard")
    for steps in ([*range(1, 9), *range(5, 8)], range(4, 6)):  # back in one session, and in the next
        feed = SinkFeed([TensorBoardSink(place and folder, heatmap_every=0)])
        feed.open(tmp_path)
        feed.send([step_row(s, [1.0, 2.0], where) for s in steps])
        feed.close()
        time.sleep(1.01 - time.time() % 1)  # files are read in the order of their names, which hold seconds
    events = EventAccumulator(str(folder))
    events.Reload()
    dropped = [1, 2, 3, 4, 5]
    both = [*range(1, 9), *range(5, 8), 4, 5]
    assert [e.step for e in events.Scalars("grad_norm")] == (both if place else dropped)


def plain_loop(model, optimizer, monitor, steps=range(6)):
    """Norms from before torch's clip: only the third step shows whether `record` comes first."""
    for _ in steps:
        optimizer.zero_grad()
        model(torch.ones(2, 6)).square().sum().backward()
        monitor.record(after_clip=False)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        optimizer.step()


def every_tenth(model, optimizer, monitor):
    """Update ratios belong to the step after the last recorded one, and are known at the next."""
    for number in range(1, 41):
        optimizer.zero_grad()
        model(torch.ones(2, 6)).square().sum().backward()
        optimizer.step()
        if number % 10 == 0:
            monitor.record(step=number, after_clip=False)


def back_by_one(model, optimizer, monitor):
    plain_loop(model, optimizer, monitor, range(5))
    monitor.load_state_dict({"step": 4})
    plain_loop(model, optimizer, monitor, range(2))


@pytest.mark.parametrize("loop", [plain_loop, every_tenth, back_by_one])
@pytest.mark.parametrize("update_every", [1, 100])
def test_tensorboard_has_the_steps_that_the_history_has(tmp_path, loop, update_every):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with GradMonitor(model, optimizer, tmp_path, sinks=["tensorboard"], update_every=update_every) as monitor:
        loop(model, optimizer, monitor)
        steps = monitor.history().steps.tolist()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("grad_norm")] == steps
    assert steps == ([10, 20, 30, 40] if loop is every_tenth else [1, 2, 3, 4, 5, 6])


def test_sinks_are_told_where_the_run_begins_and_goes_back():
    class Told(Kept):
        def open(self, run_dir):
            super().open(run_dir)
            self.told = []

        def begin_at(self, step):
            self.told.append((step, len(self.lines)))

    where, sink = layout(2), Told(every=2)
    feed = fed(sink)
    weights = WeightsRow(2, where, True, np.ones(2), np.ones(2))
    steps = [step_row(s, [1.0, 2.0], where) for s in (1, 2, 3, 4, 4, 5, 3, 4)]
    feed.send([*steps[:3], weights, *steps[3:]])  # a late one is dropped
    assert sink.told == [(1, 0), (4, 3), (3, 4)]


def wandb_records(content: bytes):
    """Records of a .wandb file: seven bytes, then LevelDB's log format in blocks of 32 KiB."""
    assert content[:4] == b":W&B"
    at, parts = 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def wandb_file(folder):
    """Records of the one run in a folder, by their type, once it is written to its end."""
    from wandb.proto import wandb_internal_pb2

    (file,) = folder.rglob("*.wandb")
    found, deadline = {}, time.monotonic() + 60
    while (
        "exit" not in found and time.monotonic() < deadline
    ):  # another process writes it, after finish() too
        time.sleep(0.1)
        found = {}
        for data in wandb_records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            kind = record.WhichOneof("record_type")
            found.setdefault(kind, []).append(getattr(record, kind))
    assert "exit" in found, file.stat().st_size
    return found


def wandb_rows(folder):
    """Rows of the one run in a folder."""
    rows = wandb_file(folder).get("history", [])
    return [{i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in row.item} for row in rows]


@pytest.fixture
def wandb(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    return pytest.importorskip("wandb", reason="wandb is not installed")


@pytest.mark.integration
def test_wandb_offline(tmp_path, wandb):
    from gradkern.sinks import WandbSink

    (tmp_path / "run").mkdir()
    stats = run(tmp_path, [WandbSink(init={"project": "gradkern-test"}, heatmap_every=10)])
    rows = wandb_rows(tmp_path / "run")
    norms = {row["grad_step"]: row["grad_norm"] for row in rows if "grad_norm" in row}
    assert norms == {i + 1: pytest.approx(s.total_norm.item()) for i, s in enumerate(stats)}
    keys = set().union(*rows)
    assert any(key.startswith("grad_rms_heatmap") for key in keys), sorted(keys)
    assert {"clip/coef", "clip/rate", "grad_rms/0.weight", "gradkern/loss", "gradkern/lr"} <= keys
    assert [row["grad_step"] for row in rows if "update_ratio/0.weight" in row] == [1, 2, 4, 5, 10]


@pytest.mark.integration
def test_a_wandb_sink_used_again_has_another_run(tmp_path, wandb):
    from gradkern.sinks import WandbSink

    sink = WandbSink(init={"project": "gradkern-test"}, heatmap_every=0)
    for name in ("a", "b"):
        (tmp_path / name / "run").mkdir(parents=True)
        run(tmp_path / name, [sink], steps=3)
        assert [r["grad_step"] for r in wandb_rows(tmp_path / name) if "grad_norm" in r] == [1, 2, 3]


@pytest.mark.integration
def test_wandb_gets_alarms_as_alerts(tmp_path, wandb):
    from gradkern.sinks import WandbSink

    happen(WandbSink(init={"project": "gradkern-test"}), tmp_path)
    alerts = [(alert.title, alert.text, alert.level) for alert in wandb_file(tmp_path)["alert"]]
    assert alerts == [
        ("vanishing gradient (step 20)", SAID, "ERROR"),
        ("rolled back (step 24)", "inf or NaN in a gradient (1 of 3)", "WARN"),
    ]
    counted = [row["gradkern/events/skip"] for row in wandb_rows(tmp_path) if "gradkern/events/skip" in row]
    assert counted == [1, 2]


def test_wandb_beside_the_rows_of_the_user(tmp_path, wandb):
    from gradkern.sinks import WandbSink

    with wandb.init(project="gradkern-test", dir=str(tmp_path)) as theirs:
        sink = WandbSink()
        sink.open(tmp_path)
        for step in range(1, 6):
            theirs.log({"loss": float(step)})
            sink.log(step, 0.0, {"grad_norm": 1.0, "loss": -1.0})
        sink.close()
    rows = wandb_rows(tmp_path)
    assert [row["loss"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5]
    assert [row["grad_step"] for row in rows if row.get("gradkern/loss") == -1] == [1, 2, 3, 4, 5]


def test_wandb_steps_of_the_user_are_warned_of_and_not_dropped(tmp_path, wandb):
    from gradkern.sinks import WandbSink

    with wandb.init(project="gradkern-test", dir=str(tmp_path)) as theirs:
        sink = WandbSink()
        sink.open(tmp_path)
        theirs.log({"train/loss": 1.0}, step=1)
        with pytest.warns(RuntimeWarning, match=r"\[WandbSink\] run: something logs to this run with step="):
            sink.log(1, 0.0, {"grad_norm": 1.0})
        for step in range(2, 8):
            theirs.log({"train/loss": float(step)}, step=step)
            for late in range(3):
                sink.log(step, 0.0, {"grad_norm": float(late)})
        sink.close()
    rows = wandb_rows(tmp_path)
    assert [row["train/loss"] for row in rows if "train/loss" in row] == [1, 2, 3, 4, 5, 6, 7]
    assert [row["grad_step"] for row in rows if "grad_norm" in row] == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.integration
def test_mlflow_file_store(tmp_path, monkeypatch):
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow import MlflowClient

    from gradkern.sinks import MlflowSink

    uri = (tmp_path / "mlruns").as_uri()
    sink = MlflowSink(uri, heatmap_every=10)
    stats = run(tmp_path, [sink])
    client = MlflowClient(uri)
    found = client.get_metric_history(sink.run_id, "grad_norm")
    assert [m.step for m in found] == list(range(1, 13))
    assert [m.value for m in found] == pytest.approx([s.total_norm.item() for s in stats])
    finished = client.get_run(sink.run_id)
    assert finished.info.status == "FINISHED"
    ratios = client.get_metric_history(sink.run_id, "update_ratio/0.weight")
    assert [m.step for m in ratios] == [1, 2, 4, 5, 10]
    keys = {"clip/coef", "clip/rate", "grad_rms/0.weight", "grad_norm_of/0.weight", "gradkern/loss"}
    assert keys <= set(finished.data.metrics)
    assert [a.path for a in client.list_artifacts(sink.run_id, "gradkern")] == [
        "gradkern/grad_rms_heatmap.png"
    ]
    first = sink.run_id
    run(tmp_path / "again", [sink], steps=3)
    assert sink.run_id != first and len(client.get_metric_history(first, "grad_norm")) == 12
    assert len(client.get_metric_history(sink.run_id, "grad_norm")) == 3
    named = MlflowSink(uri, run_id=first)
    for name in ("b", "c"):
        run(tmp_path / name, [named], steps=1)
        assert named.run_id == first


@pytest.mark.integration
def test_mlflow_has_findings_as_tag_and_artifact(tmp_path, monkeypatch):
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow import MlflowClient

    from gradkern.sinks import MlflowSink

    uri = (tmp_path / "mlruns").as_uri()
    sink = MlflowSink(uri)
    happen(sink, tmp_path / "run")
    client = MlflowClient(uri)
    tags = client.get_run(sink.run_id).data.tags
    assert tags["gradkern.finding"] == f"vanishing gradient (severe, step 20): {SAID}"
    assert tags["gradkern.rollback"].startswith("rolled back") and "gradkern.skip" not in tags
    file = client.download_artifacts(sink.run_id, "gradkern/findings.json", str(tmp_path))
    with open(file) as stream:
        assert [Finding.from_json(f) for f in json.load(stream)["findings"]] == [FINDING]
    counted = client.get_metric_history(sink.run_id, "gradkern/events/skip")
    assert [m.value for m in counted] == [1, 2]


@pytest.mark.integration
def test_a_missing_package_names_the_extra():
    needed = {
        "TensorBoardSink": "tensorboard",
        "WandbSink": "wandb",
        "MlflowSink": "mlflow",
        "TrackioSink": "trackio",
    }
    code = (
        f"import sys; needed = {needed}\n"
        "for module in needed.values(): sys.modules[module] = None\n"
        "from gradkern import sinks\n"
        "for sink in needed:\n"
        "    try: getattr(sinks, sink)()\n"
        "    except ImportError as error: print(error)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    lines = out.stdout.splitlines()
    assert len(lines) == len(needed)
    for line, (sink, module) in zip(lines, needed.items()):
        assert (
            f"[{sink}] needs the package {module}, which is not installed: pip install gradkern[{module}]"
            in line
        )
