"""Files that appear are complete and on disk, and errors name the path that the user knows."""

import os
import threading

import pytest

from reground_jax.basics import atomic


def test_a_block_that_fails_leaves_the_old_file_or_folder_and_nothing_else(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/old").touch()
    with pytest.raises(KeyError), atomic.writing(tmp_path / "file") as file:
        file.write(b"new")
        raise KeyError
    with pytest.raises(KeyError), atomic.writing_folder(tmp_path / "folder") as folder:
        (folder / "new").touch()
        raise KeyError
    assert (tmp_path / "file").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
    assert os.listdir(tmp_path / "folder") == ["old"]


def test_a_folder_replaces_what_was_there(tmp_path):
    for name in ("old", "new"):
        with atomic.writing_folder(tmp_path / "above/folder") as folder:
            (folder / name).touch()
    assert os.listdir(tmp_path / "above/folder") == ["new"]
    assert os.listdir(tmp_path / "above") == ["folder"]


def test_content_reaches_the_disk_before_its_name_and_the_name_before_the_call_returns(
    tmp_path, monkeypatch
):
    events = []

    def named(descriptor: int) -> str:
        return os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), tmp_path)

    fsync, replace, rename, link = os.fsync, os.replace, os.rename, os.link
    monkeypatch.setattr(os, "fsync", lambda f: (events.append(named(f)), fsync(f)))
    for name, call in (("replace", replace), ("rename", rename), ("link", link)):
        monkeypatch.setattr(os, name, lambda a, b, call=call: (events.append("named"), call(a, b)))
    part = tmp_path / "part"
    with atomic.writing(tmp_path / "file", part) as file:
        file.write(b"new")
    assert events == ["part", "named", "."]
    events.clear()
    assert atomic.create(tmp_path / "created", b"new", part)
    assert events == ["part", "named", "."]
    events.clear()
    with atomic.writing_folder(tmp_path / "folder", part) as folder:
        (folder / "inside").mkdir()
        (folder / "inside/file").touch()
    assert events == ["part", "part/inside/file", "part/inside", "named", "."]
    events.clear()
    part.mkdir()
    atomic.publish(part, tmp_path / "published")
    assert events == ["part", "named", "."]


def test_only_one_of_several_threads_creates_a_file(tmp_path):
    made = []
    threads = [
        threading.Thread(
            target=lambda n: made.append(atomic.create(tmp_path / "file", str(n).encode())),
            args=(number,),
        )
        for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == [False] * 7 + [True]
    assert os.listdir(tmp_path) == ["file"]


def test_a_part_that_a_killed_process_left_is_no_obstacle(tmp_path):
    part = tmp_path / ".left.part"
    (part / "something").mkdir(parents=True)
    with atomic.writing(tmp_path / "file", part) as file:
        file.write(b"new")
    assert os.listdir(tmp_path) == ["file"]


def test_errors_name_the_final_place_unless_they_are_about_another(tmp_path):
    path = tmp_path / "file"
    with pytest.raises(OSError) as caught, atomic.writing(path):
        raise OSError(28, "No space left on device")
    assert caught.value.filename == str(path)
    with pytest.raises(FileNotFoundError) as caught, atomic.writing_folder(path) as folder:
        (folder / "no/such").touch()
    assert caught.value.filename == str(path)
    with pytest.raises(FileNotFoundError) as caught, atomic.writing(path):
        open(tmp_path / "input", "rb")
    assert caught.value.filename == str(tmp_path / "input")
    with pytest.raises(FileNotFoundError) as caught:
        atomic.publish(tmp_path / "part", path)
    assert caught.value.filename == str(path)


def test_json_is_written_with_a_line_end(tmp_path):
    atomic.write_json(tmp_path / "flat.json", {"a": [1, None]})
    atomic.write_json(tmp_path / "deep.json", {"a": "é"}, indent=2)
    assert (tmp_path / "flat.json").read_bytes() == b'{"a": [1, null]}\n'
    assert (tmp_path / "deep.json").read_bytes() == b'{\n  "a": "\\u00e9"\n}\n'
