"""Killed, out of space, or twice at once: nothing half-written, and the same bytes in the end."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from make_inputs import omnilearned

from jetkern.cli import convert
from jetkern.convert import run as run_module
from jetkern.data import Shards

ROOT = Path(__file__).parents[2]
OPTIONS = [
    "--jobs",
    "1",
    "--jets-per-read",
    "16",
    "--jets-per-shard",
    "60",
    "--jets-per-block",
    "20",
]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    for split in ("train", "val"):
        for label in range(3):
            omnilearned(folder / split / f"{label}.h5", 100, label, seed=label, slots=40)
    return folder


@pytest.fixture(scope="module")
def expected(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("expected") / "out"
    assert convert.main([str(source), "--out", str(out), "--quiet", *OPTIONS]) == 0
    return contents(out)


def contents(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def in_child(action, seconds=None):
    """Runs ``action`` in a fork that a timer ends without warning; returns the wait status."""
    child = os.fork()
    if child == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            if seconds is not None:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.setitimer(signal.ITIMER_REAL, seconds)
            os._exit(action())
        finally:
            os._exit(99)
    return os.waitpid(child, 0)[1]


def test_killed_at_ten_random_points(source, expected, tmp_path):
    out = tmp_path / "out"

    def action():
        return convert.main([str(source), "--out", str(out), "--quiet", *OPTIONS])

    start = time.perf_counter()
    assert (
        in_child(lambda: convert.main([str(source), "--out", str(tmp_path / "x"), *OPTIONS])) == 0
    )
    whole = time.perf_counter() - start
    rng = random.Random(0)
    killed = 0
    for _ in range(10):
        status = in_child(action, rng.uniform(0.1, 0.5) * whole)
        killed += os.WIFSIGNALED(status)
        for manifest in out.rglob("manifest.json"):
            Shards(manifest.parent)  # what is there is complete
    assert killed
    assert in_child(action) == 0
    assert contents(out) == expected


def test_killed_while_it_removed_its_work_files(source, expected, tmp_path):
    out = tmp_path / "out"
    command = [str(source), "--out", str(out), "--quiet", *OPTIONS]

    def killed(folder, **_):
        (folder / "plan.json").unlink()
        os.kill(os.getpid(), signal.SIGKILL)

    def action():
        shutil.rmtree = killed
        return convert.main(command)

    assert os.WIFSIGNALED(in_child(action))
    assert (out / ".convert").exists()
    assert convert.main(command) == 0
    assert contents(out) == expected


@pytest.mark.parametrize("step", range(0, 100, 19))
def test_killed_at_every_kind_of_rename(source, expected, tmp_path, step):
    out = tmp_path / "out"

    def action():
        replace, calls = os.replace, iter(range(10**6))

        def counted(a, b):
            number = next(calls)
            if number == step:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(a, b)

        os.replace = counted
        return convert.main([str(source), "--out", str(out), "--quiet", *OPTIONS])

    status = in_child(action)
    assert os.WIFSIGNALED(status) or step > 60
    assert convert.main([str(source), "--out", str(out), "--quiet", *OPTIONS]) == 0
    assert contents(out) == expected


def command(source, out, *options):
    code = (
        "import sys; sys.path[:0] = ['.']\n"
        "if __name__ == '__main__':\n"
        "    from jetkern.cli import convert\n"
        "    from jetkern.convert import run\n"
        "    run.JETS_WORTH_A_PROCESS = 1\n"
        "    sys.exit(convert.main(sys.argv[1:]))"
    )
    return [sys.executable, "-c", code, str(source), "--out", str(out), "--quiet", *options]


def test_killing_the_parent_ends_its_processes_and_the_next_run_completes(
    source, expected, tmp_path
):
    out = tmp_path / "out"
    process = subprocess.Popen(
        command(source, out, "--jobs", "2", *OPTIONS), cwd=ROOT, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while len(list(out.glob(".convert/*.jets"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert convert.main([str(source), "--out", str(out), "--quiet", *OPTIONS]) == 0
    assert contents(out) == expected


def test_a_full_disk_is_said_and_loses_nothing(source, expected, tmp_path, capsys):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=900k", "none", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        arguments = [str(source), "--out", str(disk / "out"), "--quiet", *OPTIONS]
        assert convert.main(arguments) == 1
        error = capsys.readouterr().err
        assert "No space left on device" in error
        assert "run the same command again" in error
        assert not list(disk.rglob("*.part"))
        assert not list(disk.rglob("manifest.json"))
        kept = len(list(disk.rglob("*.jets")))
        assert kept > 0
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        assert convert.main(arguments) == 0
        assert contents(disk / "out") == expected
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_an_error_while_writing_is_said(source, expected, tmp_path, capsys, monkeypatch):
    """As a full disk, where none can be mounted."""
    import errno

    from jetkern.data.shards import AtomicFile

    out = tmp_path / "out"
    original = AtomicFile.write
    calls = iter(range(10**6))

    def failing(self, data):
        if next(calls) > 50:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        original(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(AtomicFile, "write", failing)
        assert convert.main([str(source), "--out", str(out), "--quiet", *OPTIONS]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert not list(out.rglob("*.part"))
    assert convert.main([str(source), "--out", str(out), "--quiet", *OPTIONS]) == 0
    assert contents(out) == expected


def test_two_conversions_into_one_folder(source, tmp_path, capsys):
    with run_module._locked(tmp_path):
        assert convert.main([str(source), "--out", str(tmp_path), "--quiet"]) == 1
    assert "another conversion is writing here" in capsys.readouterr().err


def test_an_unfinished_conversion_with_other_settings_is_refused(source, tmp_path, capsys):
    out = tmp_path / "out"
    in_child(lambda: _stop_after_first_pass(source, out))
    assert list(out.glob(".convert/*.jets"))
    assert convert.main([str(source), "--out", str(out), "--quiet", "--seed", "1"]) == 1
    assert "unfinished conversion" in capsys.readouterr().err
    again = ["--quiet", "--seed", "1", "--overwrite"]
    assert convert.main([str(source), "--out", str(out), *again]) == 0


def _stop_after_first_pass(source, out):
    run_module._second_pass = lambda *_: os._exit(0)
    return convert.main([str(source), "--out", str(out), "--quiet", *OPTIONS])


def test_a_damaged_work_file_is_found(source, tmp_path, capsys):
    out = tmp_path / "out"
    in_child(lambda: _stop_after_first_pass(source, out))
    work = sorted(out.glob(".convert/*.jets"))[2]
    content = bytearray(work.read_bytes())
    content[-100] ^= 1
    work.write_bytes(content)
    assert convert.main([str(source), "--out", str(out), "--quiet", *OPTIONS]) == 1
    assert f"{work}: damaged work file" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".json", ".jets"])
def test_work_files_that_a_power_cut_left_short_are_made_again(source, expected, tmp_path, suffix):
    out = tmp_path / "out"
    in_child(lambda: _stop_after_first_pass(source, out))
    for number, work in enumerate(sorted(out.glob(f".convert/unit-*{suffix}"))[:3]):
        os.truncate(work, number * work.stat().st_size // 3)
    assert convert.main([str(source), "--out", str(out), "--quiet", *OPTIONS]) == 0
    assert contents(out) == expected


def test_an_input_that_changes_on_the_way_is_noticed(source, tmp_path, capsys):
    local = tmp_path / "a.h5"
    omnilearned(local, 50, slots=40)
    out = tmp_path / "out"
    in_child(lambda: _stop_after_first_pass(local, out))
    omnilearned(local, 60, slots=40)
    assert convert.main([str(local), "--out", str(out), "--quiet", *OPTIONS]) == 1
    assert "unfinished conversion with other inputs" in capsys.readouterr().err


def test_foreign_tars_are_left_alone(source, tmp_path, capsys):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "mine.tar").write_bytes(b"x")
    assert convert.main([str(source), "--out", str(tmp_path), "--quiet"]) == 1
    assert "did not write" in capsys.readouterr().err
    assert (tmp_path / "train" / "mine.tar").read_bytes() == b"x"


def test_an_unwritable_place(source, capsys):
    assert convert.main([str(source), "--out", "/proc/shards", "--quiet"]) == 1
    assert "/proc/shards" in capsys.readouterr().err
