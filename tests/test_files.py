"""Files are written in full or not at all."""

import errno
import os
import stat

import pytest

from im2mesh.errors import InputError
from im2mesh.files import atomic_path


@pytest.fixture
def target(tmp_path):
    path = tmp_path / "result.txt"
    path.write_text("before")
    return path


def test_a_file_appears_whole(tmp_path):
    path = tmp_path / "new" / "folder" / "mesh.ply"
    with atomic_path(path) as temporary:
        assert temporary.parent == path.parent and temporary.suffix == ".ply"
        temporary.write_text("half")
        assert not path.exists()
        temporary.write_text("whole")
    assert path.read_text() == "whole"
    assert os.listdir(path.parent) == ["mesh.ply"]


def test_a_file_is_replaced_at_the_end(target):
    with atomic_path(str(target)) as temporary:
        temporary.write_text("after")
        assert target.read_text() == "before"
    assert target.read_text() == "after"
    assert os.listdir(target.parent) == ["result.txt"]


def test_two_writers_do_not_share_a_temporary_file(target):
    with atomic_path(target) as one, atomic_path(target) as other:
        assert one != other
        one.write_text("one")
        other.write_text("other")
    assert target.read_text() == "one"  # the outer block ends last


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, InputError])
def test_an_interruption_leaves_what_was_there(target, error):
    with pytest.raises(error, match="^stop$"):
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise error("stop")
    assert target.read_text() == "before"
    assert os.listdir(target.parent) == ["result.txt"]


@pytest.mark.parametrize("function", ["fsync", "replace", "chmod"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_full_disk_leaves_what_was_there(target, monkeypatch, function, code):
    def fail(*args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(InputError) as err:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
    assert str(target) in str(err.value) and os.strerror(code) in str(err.value)
    assert isinstance(err.value.__cause__, OSError)
    assert target.read_text() == "before"
    assert os.listdir(target.parent) == ["result.txt"]


def test_a_full_disk_while_writing(target):
    with pytest.raises(InputError, match="No space left on device.*untouched"):
        with atomic_path(target):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert target.read_text() == "before"
    assert os.listdir(target.parent) == ["result.txt"]


def test_data_is_on_disk_before_the_name_changes(target, monkeypatch):
    order = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *args, f=original, name=name: (order.append(name), f(*args))
        )
    with atomic_path(target) as temporary:
        temporary.write_text("after")
    assert order == ["fsync", "replace"]


def test_a_folder_that_cannot_be_made(target):
    with pytest.raises(InputError, match="cannot write .*result.txt"):
        with atomic_path(target / "below" / "a.txt"):
            pytest.fail("the block must not run")


def test_a_folder_in_the_way(tmp_path):
    (tmp_path / "name").mkdir()
    with pytest.raises(InputError, match="cannot write .*name"):
        with atomic_path(tmp_path / "name") as temporary:
            temporary.write_text("x")
    assert os.listdir(tmp_path) == ["name"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_not_writable(tmp_path):
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o500)
    with pytest.raises(InputError, match="Permission denied"):
        with atomic_path(folder / "a.txt"):
            pytest.fail("the block must not run")


def test_others_may_read_as_the_umask_says(target):
    mask = os.umask(0o027)
    try:
        with atomic_path(target) as temporary:
            temporary.write_text("after")
        assert os.umask(0o027) == 0o027  # and is left as it was
    finally:
        os.umask(mask)
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
