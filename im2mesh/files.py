"""Writing files so that nothing a user made is ever lost."""

import contextlib
import os
import tempfile
from pathlib import Path

from im2mesh.errors import InputError


@contextlib.contextmanager
def atomic_path(path):
    """Write a file in full or not at all.

    Yields a temporary path beside ``path`` with the same suffix (writers choose the format by
    it). When the block ends well the temporary file is flushed to disk and renamed over
    ``path``; when it raises, the temporary file is removed and ``path`` is as it was.

    Parameters
    ----------
    path : str or Path
        Where the file shall be; missing parent folders are made.

    Raises
    ------
    InputError
        When the disk is full, the folder not writable, or any other ``OSError`` occurs.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(
            prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent
        )
        os.close(handle)
        yield Path(temporary)
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes files only their owner can read
        os.replace(temporary, path)
        temporary = None
    except OSError as err:
        raise InputError(
            f"cannot write {path}: {err.strerror or err}. The previous file, if there was one, is "
            "untouched; check free space and permissions of the folder."
        ) from err
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask
