"""What TensorBoard shows of a training run."""

import contextlib
import math
import time

from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter

from im2mesh.errors import InputError


class Board:
    """An event file for TensorBoard.

    tensorboardX would write it from a thread, which dies on a full disk and leaves the program
    waiting for ever. Here every call writes at once or raises.

    Parameters
    ----------
    folder : Path
        Made when missing.
    iteration : int
        Where the run starts; what an earlier run wrote here after that iteration is forgotten.

    Raises
    ------
    InputError
        Here and by all methods, when the file cannot be written.
    """

    def __init__(self, folder, iteration):
        # Event files of a folder are read in the order of their names.
        self._path = folder / f"events.out.tfevents.{time.time():.6f}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = RecordWriter(str(self._path))
        except OSError as err:
            raise self._error(err) from err
        self._write(file_version="brain.Event:2")
        self._write(step=iteration + 1, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, group, values, iteration):
        """Write numbers as ``<group>/<name>``, but for those that are not finite."""
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        parts = [summary.scalar(f"{group}/{name}", value) for name, value in finite.items()]
        joined = summary.Summary(value=[part.value[0] for part in parts])
        self._write(step=iteration, summary=joined)

    def image(self, name, image, iteration):
        """Write a picture, uint8 array (H, W, 3)."""
        self._write(step=iteration, summary=summary.image(name, image, dataformats="HWC"))

    def mesh(self, name, vertices, faces, colors, iteration):
        """Write a mesh: arrays (V, 3), (F, 3) and, or None, uint8 (V, 3)."""
        vertices, faces = vertices[None].astype("float32"), faces[None]
        colors = None if colors is None else colors[None]
        self._write(step=iteration, summary=summary.mesh(name, vertices, colors, faces))

    def close(self):
        with contextlib.suppress(OSError):  # what a full disk did not take has been reported
            self._file.close()

    def _write(self, **content):
        try:
            self._file.write(Event(wall_time=time.time(), **content).SerializeToString())
            self._file.flush()
        except OSError as err:
            raise self._error(err) from err

    def _error(self, err):
        return InputError(
            f"cannot write {self._path}: {err.strerror or err}; check free space and permissions "
            "of the folder"
        )
