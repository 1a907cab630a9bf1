"""The spool keeps every event, in order, over crashes and restarts."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpm_tune.study.tracking.spool import Spool

finite = st.floats(allow_nan=False)
measurements = st.dictionaries(st.text(min_size=1), finite, max_size=4)
steps = st.lists(st.integers(0, 2**53), unique=True, max_size=30).map(sorted)


@settings(max_examples=50)
@given(data=st.data(), steps=steps, reopen_every=st.integers(1, 10))
def test_metrics_with_rising_steps_come_out_in_order(data, steps, reopen_every):
    recorded = [(step, data.draw(measurements)) for step in steps]
    read = []
    with tempfile.TemporaryDirectory() as folder:
        spool = Spool(Path(folder))
        for index, (step, values) in enumerate(recorded):
            assert spool.append_metrics(step, values)
            if index % reopen_every == 0:
                spool = Spool(Path(folder))
        while events := spool.pending(limit=7):
            read += [(event.payload["step"], event.payload["values"]) for event in events]
            spool.mark_delivered(len(events))
        assert spool.undelivered == 0
    assert read == recorded


def test_times_are_those_of_recording_and_never_change(tmp_path):
    Spool(tmp_path).append("tags", {"tags": {}})
    assert Spool(tmp_path).pending(1) == Spool(tmp_path).pending(1)
    assert Spool(tmp_path).pending(1)[0].time > 1_600_000_000_000


def test_later_events_have_later_times_whatever_the_clock_does(tmp_path, monkeypatch):
    now = [2_000_000_000_000 * 10**6]
    monkeypatch.setattr("gpm_tune.study.tracking.spool.time.time_ns", lambda: now[0])
    for passed in (0, 0, -(10**12), 10**12):
        now[0] += passed
        spool = Spool(tmp_path)
        spool.append("tags", {"tags": {}})
        spool.append("tags", {"tags": {}})
    times = [event.time for event in Spool(tmp_path).pending(9)]
    assert times == sorted(set(times))
    assert len(times) == 8


def test_what_holds_from_now_on_is_recorded_when_it_changes(tmp_path):
    for is_new in (True, False):
        spool = Spool(tmp_path)
        spool.append_once("best", {"step": 4, "values": {"best/fid": 0.1}})
        assert not spool.append_once("best", {"step": 4, "values": {"best/fid": 0.1}})
        assert spool.append_once("curve", {"name": "fid_by_nfe", "points": {"2": 3.0}}) is is_new
        spool.append_metrics(8, {"fid": 1.0})
    assert spool.undelivered == 3
    assert spool.append_once("best", {"step": 8, "values": {"best/fid": 0.05}})
    assert spool.append_once("best", {"step": 4, "values": {"best/fid": 0.1}}), "the last one counts"
    assert not Spool(tmp_path).append_metrics(8, {"fid": 1.0}), "the best's step is no measurement"


def test_replayed_steps_are_dropped_also_after_reopening(tmp_path):
    spool = Spool(tmp_path)
    assert spool.append_metrics(10, {"fid": 3.0})
    assert not spool.append_metrics(10, {"fid": 3.0})
    spool.append("tags", {"tags": {}})
    spool = Spool(tmp_path)
    assert not spool.append_metrics(5, {"fid": 4.0})
    assert not spool.append_metrics(10, {"fid": 4.0})
    assert spool.append_metrics(11, {"fid": 2.0})
    assert spool.undelivered == 3


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_line_cut_by_a_crash_does_not_count_and_is_overwritten(tmp_path, cut):
    spool = Spool(tmp_path)
    for step in (1, 2):
        spool.append_metrics(step, {"fid": 1.0 / step})
    file = tmp_path / "events.jsonl"
    file.write_bytes(file.read_bytes()[:-cut])

    spool = Spool(tmp_path)
    assert [event.payload["step"] for event in spool.pending(9)] == [1]
    assert spool.append_metrics(2, {"fid": 0.25})
    for reader in (spool, Spool(tmp_path)):
        assert [event.payload["values"] for event in reader.pending(9)] == [
            {"fid": 1.0},
            {"fid": 0.25},
        ]


def test_a_line_that_a_failing_disk_garbled_keeps_its_place(tmp_path):
    spool = Spool(tmp_path)
    spool.append_metrics(1, {"fid": 1.0})
    spool.append_metrics(2, {"fid": 2.0})
    file = tmp_path / "events.jsonl"
    _, second = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"\0" * 20 + b"\n" + second)
    assert [event.kind for event in Spool(tmp_path).pending(9)] == ["unreadable", "metrics"]


def test_delivery_is_remembered_and_can_start_again(tmp_path):
    spool = Spool(tmp_path)
    for step in range(5):
        spool.append_metrics(step, {"fid": 1.0})
    spool.mark_delivered(3)
    assert [event.payload["step"] for event in Spool(tmp_path).pending(9)] == [3, 4]
    spool.rewind()
    assert Spool(tmp_path).undelivered == spool.undelivered == 5
    assert [event.payload["step"] for event in spool.pending(2)] == [0, 1]


@pytest.mark.parametrize("content", ["", "many", "-3"])
def test_a_useless_count_of_delivered_events_delivers_again(tmp_path, content):
    Spool(tmp_path).append_metrics(1, {"fid": 1.0})
    (tmp_path / "delivered").write_text(content)
    assert Spool(tmp_path).undelivered == 1


def test_artifacts_keep_their_bytes(tmp_path):
    spool = Spool(tmp_path)
    spool.append_artifact("samples/grid.png", b"\x89PNG\n")
    assert Spool(tmp_path).artifact("samples/grid.png").read_bytes() == b"\x89PNG\n"
    assert spool.pending(1)[0].payload == {"path": "samples/grid.png"}


@pytest.mark.parametrize("path", ["", ".", "/etc/passwd", "../other/file", "a/../../b"])
def test_artifacts_stay_inside_the_run(tmp_path, path):
    spool = Spool(tmp_path)
    with pytest.raises(ValueError, match="relative"):
        spool.append_artifact(path, b"")
    assert spool.undelivered == 0


def test_folders_differ_where_readable_names_do_not(tmp_path):
    keys = ["a/b", "a-b", "a b", "A/b", "..", "x" * 500, "x" * 501, "é"]
    names = {Spool.folder_of(tmp_path, key).name.lower() for key in keys}
    assert len(names) == len(keys)
    assert all(len(name) < 120 and name.isascii() for name in names)
    assert all(Spool.folder_of(tmp_path, key).parent == tmp_path for key in keys)
