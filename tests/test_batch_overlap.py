"""What `batch` does concurrently, and how it stops.

No test here depends on timing: the device of `Paced` waits for what must happen while it is busy.
"""

import json
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from reground_jax.batch import engine, unit
from reground_jax.batch.engine import run_units
from reground_jax.batch.index import Source, load_index
from reground_jax.batch.manifest import Entry, finished
from reground_jax.batch.run import Run
from reground_jax.batch.store import open_store
from reground_jax.batch.unit import Generator, Meter, UnitError
from reground_jax.batch.verify import verify
from reground_jax.cli import batch, main
from reground_jax.cli.sampling import Found
from reground_jax.settings import Settings
from tests.batch_cases import generate, layout, metadata, write_lines
from tests.batch_stub import Drawn, Stub

PATIENCE = 120  # seconds to wait for something before giving up


def generator(layouts: Path, out: Path, sampler, **changes) -> tuple[Generator, list[int]]:
    """A generator for the lines of a file, and its units."""
    store = open_store(str(out))
    source = Source(str(layouts), "")
    index = load_index(store, source, rules={"max_boxes": 30, "seeds": 1}, strict=False)
    facts = dict(
        settings=Settings(), wirings=("parallel",), gammas=(1.0,), seeds=(0,), unit_lines=4,
        batch_size=2, shards="imagefolder", image="png", quality=95, input_sha256="",
        checkpoint="", checkpoint_sha256="",
    )  # fmt: skip
    run = Run(**(facts | changes))
    return Generator(run, source, index, store, sampler), index.units(run.unit_lines)


class Paced(Stub):
    """Batch n, from 0, is ready once `needed(n)` holds."""

    def __init__(self, rows: int, needed):
        super().__init__(rows)
        self.needed, self.encoded = needed, 0
        self.changed = threading.Condition()

    def encode(self, layouts):
        with self.changed:
            self.encoded += 1
            self.changed.notify_all()
        return super().encode(layouts)

    def enqueue(self, encoded, rows, variants, seeds):
        with self.changed:
            number = len(self.enqueued)
            images = super().enqueue(encoded, rows, variants, seeds)
            self.changed.notify_all()
        return [Waiting(self, number, made) for made in images]


class Waiting(Drawn):
    def __init__(self, sampler: Paced, number: int, images: Drawn):
        super().__init__(images.future)
        self.sampler, self.number = sampler, number

    def block_until_ready(self):
        with self.sampler.changed:
            came = self.sampler.changed.wait_for(
                lambda: self.sampler.needed(self.sampler, self.number), PATIENCE
            )
        assert came, f"batch {self.number} was left alone on the device"
        super().block_until_ready()


def test_one_batch_is_always_enqueued_behind_the_one_that_runs(ten, tmp_path):
    def one_behind(sampler: Paced, number: int) -> bool:
        return len(sampler.enqueued) >= min(number + 2, 5)

    making, units = generator(ten, tmp_path / "out", Paced(2, one_behind))
    entries: list[Entry] = []
    run_units(making, units, on_entry=entries.append)
    making.close()
    assert sum(entry.images for entry in entries) == 10
    assert making.meter.batches == 5


def test_units_of_one_batch_are_read_and_encoded_while_two_others_are_on_the_device(tmp_path):
    def two_ahead(sampler: Paced, number: int) -> bool:
        return sampler.encoded >= min(number + 3, 8)

    lines = write_lines(tmp_path / "in.jsonl", [layout(i) for i in range(8)])
    sampler = Paced(1, two_ahead)
    making, units = generator(lines, tmp_path / "out", sampler, unit_lines=1, batch_size=1)
    run_units(making, units, on_entry=lambda entry: None)
    making.close()
    assert making.meter.batches == 8


def test_the_meter_counts_the_time_in_which_nothing_was_on_the_device(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(unit, "time", SimpleNamespace(monotonic=lambda: clock.now))
    meter = Meter()
    meter.enqueued()
    meter.enqueued()
    clock.now = 104.0
    meter.ready(3)
    clock.now = 105.0  # one is still under way
    meter.ready(3)
    assert meter.idle == 0
    clock.now = 107.0
    meter.enqueued()
    assert meter.idle == meter.longest == 2
    clock.now = 108.0
    meter.ready(4)
    assert meter.images == 10 and meter.rate == 10 / 8


def test_stopping_drops_units_that_are_not_on_the_device(ten, tmp_path):
    class Stopping(Stub):
        def enqueue(self, encoded, rows, variants, seeds):
            if len(self.enqueued) == 1:
                making.stop.set()
            return super().enqueue(encoded, rows, variants, seeds)

    making, units = generator(ten, tmp_path / "out", Stopping(2))
    entries: list[Entry] = []
    run_units(making, units, on_entry=entries.append)
    making.close()
    # Both batches of the first unit to get its turn were on the device, so it is finished.
    assert len(entries) == 1 and making.meter.batches == 2
    assert not list((tmp_path / "out").rglob(".*.part"))
    store = open_store(str(tmp_path / "out"))
    assert all(finished(store, [entry]) for entry in entries)


# ---- a unit that cannot be made


class Broken(Stub):
    """The image of "cat 5" is NaN; the texts of "cat 9" cannot be encoded."""

    def encode(self, layouts):
        if any(layout.prompt == "cat 9" for layout in layouts):
            raise TypeError("TextInputSequence must be str")
        return super().encode(layouts)

    def _draw(self, prompts, settings, seeds):
        images = super()._draw(prompts, settings, seeds)
        images[[prompt == "cat 5" for prompt in prompts]] = np.nan
        return images


def test_an_image_of_nan_is_an_error_that_names_its_unit_and_layout(ten, tmp_path):
    making, units = generator(ten, tmp_path / "out", Broken(2))
    expected = (
        r"unit 1 \(lines 5 to 8 of the input: 'cat-4' to 'cat-7'\): "
        "layout 'cat-5': image 1 of 1 holds NaN"
    )
    with pytest.raises(UnitError, match=expected):
        run_units(making, units[1:2], on_entry=lambda entry: None)
    making.close()
    assert not (tmp_path / "out/images/000000001").exists()
    assert not list((tmp_path / "out").rglob(".*.part"))


def test_units_that_cannot_be_made_are_named_and_cost_no_other(ten, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(batch, "find_model", lambda *_: Found(Path("stub"), "0" * 64, {}))
        patch.setattr(batch, "load_sampler", lambda *_: Broken(2))
        assert generate(ten, out) == 1
        said = capsys.readouterr().err
        assert "error: unit 1 (lines 5 to 8 of the input: 'cat-4' to 'cat-7'): layout" in said
        assert (
            "error: unit 2 (lines 9 to 10 of the input: 'cat-8' to 'cat-9'): "
            "unexpected TypeError: TextInputSequence must be str\n"
        ) in said
        assert "2 units were not made" in said and "Traceback" not in said
        assert [row["id"] for row in metadata(out)] == [f"cat-{i}" for i in range(4)]
        patch.setattr(batch, "load_sampler", lambda *_: Stub(2))
        assert generate(ten, out) == 0  # once mended, the others are made
    assert verify(open_store(str(out))).images == 10


def test_units_that_fail_one_after_the_other_end_the_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(engine, "FAILURES", 3)
    monkeypatch.setattr(batch, "FAILURES", 3)
    lines = write_lines(tmp_path / "in.jsonl", [layout(i, prompt="cat 9") for i in range(40)])
    monkeypatch.setattr(batch, "find_model", lambda *_: Found(Path("stub"), "0" * 64, {}))
    monkeypatch.setattr(batch, "load_sampler", lambda *_: Broken(2))
    assert generate(lines, tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert said.count("error: unit") == 3
    assert "stopped after 3 failed units in a row; finished units are kept" in said


def test_an_input_that_changes_under_way_is_named(ten, tmp_path):
    making, units = generator(ten, tmp_path / "out", Stub(2))
    write_lines(ten, [layout(i + 1) for i in range(10)])
    with pytest.raises(UnitError, match="unit 0 .lines 1 to 4 .*line 1 of the input has changed"):
        run_units(making, units[:1], on_entry=lambda entry: None)
    making.close()


@pytest.mark.parametrize(("number", "room"), [(28, True), (122, True), (17, False), (5, False)])
def test_room_is_spoken_of_only_where_the_disk_is_full(
    number, room, ten, tmp_path, capsys, monkeypatch
):
    """28 ENOSPC, 122 EDQUOT, 17 EEXIST, 5 EIO, as on Linux."""

    class Unwritable(Stub):
        def encode(self, layouts):
            raise OSError(number, "said by the system", str(tmp_path / "out/images"))

    monkeypatch.setattr(batch, "find_model", lambda *_: Found(Path("stub"), "0" * 64, {}))
    monkeypatch.setattr(batch, "load_sampler", lambda *_: Unwritable(2))
    assert generate(ten, tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert f"error: {tmp_path}/out/images: said by the system\n" in said
    assert ("when there is room" in said) == room
    assert "run the same command again to resume" in said


def test_counts_are_sentences_in_english(tmp_path, capsys, stub):
    lines = [layout(0), "{oops", layout(2)]
    source = write_lines(tmp_path / "in.jsonl", lines)
    assert generate(source, tmp_path / "out") == 0
    said = capsys.readouterr().err
    assert f"1 of 3 lines is not a valid layout; see {tmp_path}/out/rejected.jsonl\n" in said
    assert "generating 2 images (1 unit)\n" in said
    assert "device idle between batches: " in said and " s total, " in said
    assert generate(source, tmp_path / "out") == 0
    assert "nothing to do: all images exist\n" in capsys.readouterr().err
    (tmp_path / "out/images/000000000/000000000.png").unlink()
    assert main(["batch-verify", str(tmp_path / "out")]) == 1
    assert "1 problem; 0 of 2 images in 0 of 1 unit\n" in capsys.readouterr().out
    one = write_lines(tmp_path / "one.jsonl", [layout(0)])
    assert generate(one, tmp_path / "one", "--host-index", "0", "--host-count", "2") == 0
    assert "generating 1 image (1 unit) of share 0 of 2 (by options)\n" in capsys.readouterr().err
    assert generate(one, tmp_path / "one", "--host-index", "1", "--host-count", "2") == 0
    said = capsys.readouterr().err
    assert "nothing to do: all images of share 1 of 2 (by options) exist\n" in said
    assert json.loads((tmp_path / "one/index.json").read_text())["layouts"] == 1
