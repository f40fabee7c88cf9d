"""Files whole or not at all, locks, bounds, and foreign text, on storage that lacks things."""

import errno
import json
import os
import subprocess
import sys

import pytest

from jetkern import io

UNSUPPORTED = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)


@pytest.fixture(autouse=True)
def _notes_anew():
    io.say.cache_clear()


def failing(number, when=lambda *_: True, instead=None):
    def call(*arguments):
        if when(*arguments):
            raise OSError(number, os.strerror(number))
        return instead(*arguments) if instead else None

    return call


def names(folder):
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_replaces_the_one_before(tmp_path, durable):
    path = tmp_path / "a"
    for content in (b"first", b"second"):
        with io.AtomicFile(path, durable=durable) as file:
            file.write(content)
            assert file.tell() == len(content)
        assert path.read_bytes() == content
        assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_failure_keeps_the_file_before_and_is_named(tmp_path, monkeypatch, call, number):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, call, failing(number))
    with pytest.raises(OSError) as caught:
        io.write_atomically(path, b"new")
    with pytest.raises(OSError), io.replacing(path) as part:
        part.write_bytes(b"new")
    assert io.explain(caught.value) == f"{path}: {os.strerror(number)}"
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_an_error_of_the_caller_leaves_nothing(tmp_path):
    def fail(writing):
        with writing:
            raise KeyError("a")

    for writing in (io.AtomicFile(tmp_path / "a"), io.replacing(tmp_path / "a")):
        with pytest.raises(KeyError):
            fail(writing)
    assert names(tmp_path) == []


def test_only_leftovers_are_removed(tmp_path):
    (tmp_path / ".a.123.part").write_text("x")
    (tmp_path / ".b.123.part").mkdir()
    (tmp_path / ".b.123.part" / "c").write_text("x")
    for mine in ("jets.part", ".hidden"):
        (tmp_path / mine).write_text("x")
    io.remove_leftovers(tmp_path)
    assert names(tmp_path) == [".hidden", "jets.part"]


@pytest.mark.parametrize("number", UNSUPPORTED)
def test_storage_without_sync_works_and_says_so_once(tmp_path, monkeypatch, capsys, number):
    monkeypatch.setattr(os, "fsync", failing(number))
    for content in (b"1", b"2"):
        io.write_atomically(tmp_path / "a", content)
    assert (tmp_path / "a").read_bytes() == b"2"
    assert capsys.readouterr().err == (
        f"note: the file system of {tmp_path} cannot sync: a power cut may lose files\n"
    )


@pytest.mark.parametrize("number", UNSUPPORTED)
def test_storage_without_locks_works_and_says_so_once(tmp_path, monkeypatch, capsys, number):
    monkeypatch.setattr(io.fcntl, "flock", failing(number))
    for _ in range(2):
        with io.locked(tmp_path):
            pass
    assert capsys.readouterr().err.count("has no locks") == 1
    assert names(tmp_path) == []


def test_a_lock_that_is_held_is_told_and_leaves_no_file(tmp_path):
    with io.locked(tmp_path), pytest.raises(io.FolderInUse, match="in use"), io.locked(tmp_path):
        pass
    assert names(tmp_path) == []
    with io.locked(tmp_path):
        pass


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    code = (
        "import os, pathlib, sys; from jetkern import io\n"
        "with io.locked(pathlib.Path(sys.argv[1])): os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == 9
    assert names(tmp_path) == [io.LOCK]
    with io.locked(tmp_path):
        pass
    assert names(tmp_path) == []


def test_a_lock_file_that_is_removed_while_waited_for_is_made_again(tmp_path, monkeypatch):
    """The holder before removes its file between our open and our lock."""
    flock, calls = io.fcntl.flock, []

    def removed(descriptor, operation):
        flock(descriptor, operation)
        if not calls:
            (tmp_path / io.LOCK).unlink()
        calls.append(descriptor)

    monkeypatch.setattr(io.fcntl, "flock", removed)
    with io.locked(tmp_path):
        assert len(calls) == 2
        assert (tmp_path / io.LOCK).exists()


def test_what_is_not_a_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path, words in (
        (tmp_path / "fifo", "is a pipe"),
        (tmp_path, "is a folder"),
        (io.Path("/dev/zero"), "is a device"),
        (tmp_path / "absent", "No such file"),
        (tmp_path / "null\0byte", "embedded null"),
    ):
        for read in (io.regular_file, io.read_bytes, io.read_json, io.read_toml):
            with pytest.raises(io.FileError, match=words):
                read(path)


def test_bounds(tmp_path):
    path = tmp_path / "a.h5"
    path.write_bytes(bytes(39_000))
    with pytest.raises(io.FileError, match=r"a\.h5 has 39,000 bytes; at most 100 are read"):
        io.read_bytes(path, limit=100)
    assert io.bounded(39_000 * 1032, path, "data") == 39_000 * 1032
    for claimed, limit in ((39_000 * 1032 + 1, None), (1001, 1000), (-1, None), (10**16, None)):
        with pytest.raises(io.FileError, match=r"a\.h5: data claims"):
            io.bounded(claimed, path, "data", limit=limit)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is damaged: Expecting"),
        (b"\xff\xfe", "is not text"),
        (b"[" * 100_000, "too deeply nested"),
        (b'{"a": NaN}', "NaN is not a number"),
        (b"[1]", r"must hold values by name, not \[1\]"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is damaged"),
    ],
)
def test_damaged_json_is_one_line_that_names_the_file(tmp_path, content, message):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(KeyError, match=rf"a\.json.*{message}") as caught:
        io.read_json(path, error=KeyError)
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_is_no_damage(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1}', encoding="utf-8-sig")
    (tmp_path / "a.toml").write_text("a = 1", encoding="utf-8-sig")
    assert io.read_json(tmp_path / "a.json").integer("a") == 1
    assert io.read_toml(tmp_path / "a.toml").integer("a") == 1


def test_values_are_taken_with_their_types(tmp_path):
    path = tmp_path / "a.json"
    content = {
        "n": 3, "x": 0.5, "s": "abc", "l": ["a", "b"], "d": {"n": True}, "r": [{"n": 1}, {"n": -1}],
    }  # fmt: skip
    path.write_text(json.dumps(content))
    document = io.read_json(path)
    assert (document.integer("n"), document.number("x"), document.text("s")) == (3, 0.5, "abc")
    assert (document.texts("l"), document.records("r")[0].integer("n")) == (["a", "b"], 1)
    wrong = {
        "has no 'm'": lambda: document.integer("m"),
        "n is 3, expected a text": lambda: document.text("n"),
        "n is 3, expected an integer from 0 to 2": lambda: document.integer("n", high=2),
        "x is 0.5, expected an integer from 0": lambda: document.integer("x"),
        "s is 'abc', expected a list": lambda: document.texts("s"),
        "s is 'abc', expected a number": lambda: document.number("s"),
        r"l\[0\] is 'a', expected an integer": lambda: document.integers("l"),
        r"r\[0\] is {'n': 1}, expected a text": lambda: document.texts("r"),
        "d.n is True, expected an integer": lambda: document.record("d").integer("n"),
        r"r\[1\].n is -1, expected an integer": lambda: document.records("r")[1].integer("n"),
        r"l\[0\] must hold values by name, not 'a'": lambda: document.records("l"),
    }
    for message, take in wrong.items():
        with pytest.raises(io.FileError, match=rf"a\.json.*{message}"):
            take()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Hbb → µ", "Hbb → µ"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("a\u202eb\x9b", r"a\u202eb\x9b"),
        (os.fsdecode(b"\xff"), r"\udcff"),
    ],
)
def test_control_characters_are_shown_not_acted_on(text, shown):
    assert io.printable(text) == shown


def test_errors_are_one_line_with_the_reason_and_the_file():
    assert io.explain(OSError(28, "No space left on device", "/a/b")) == (
        "/a/b: No space left on device"
    )
    assert io.explain(ValueError("two\n  lines\x1b")) == r"two lines\x1b"
    assert io.explain(ValueError()) == "ValueError"
