"""Work on many objects: how far it is, and what is done for good."""

import contextlib
import json
import math
import sys
import time

import pandas as pd
from tqdm import tqdm

from im2mesh.errors import InputError
from im2mesh.files import atomic_path


class Progress:
    """Counts ``total`` objects, with a bar on a terminal; a context manager."""

    def __init__(self, total):
        self.done, self.total = 0, total
        self.start = time.perf_counter()
        self.bar = tqdm(
            total=total, unit="object", disable=not sys.stderr.isatty(), dynamic_ncols=True
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.bar.close()

    def advance(self):
        """Count an object; returns where that is, for a line of the log: ``3/120, 02:10 left``."""
        self.done += 1
        self.bar.update()
        rest = self.total - self.done
        seconds = (time.perf_counter() - self.start) / self.done * rest
        left = f", {tqdm.format_interval(seconds)} left" if rest else ""
        return f"{self.done}/{self.total}{left}"


class Journal:
    """A file with a line for every generated mesh; the latest line of an object counts.

    The line is written after all files of the object, and lines are only ever added: a run that
    is killed loses nothing that was finished, and several may write to one journal.

    Raises
    ------
    InputError
        When the file cannot be read; by ``add`` when it cannot be written.
    """

    def __init__(self, path):
        self.path = path
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            lines = []
        except OSError as err:
            raise InputError(f"cannot read {path}: {err.strerror}") from err
        self.rows = {}
        for line in lines:
            with contextlib.suppress(json.JSONDecodeError):  # a kill may have cut it short
                row = json.loads(line)
                self.rows[row["class"], row["model"]] = row

    def find(self, entry):
        """The line of an object, a dict as in ``add``, or None."""
        return self.rows.get((entry.category, entry.model))

    def add(self, entry, source, mesh):
        """Note a mesh, a digest of what it was made from, its size and the time it took."""
        row = {
            "class": entry.category, "model": entry.model, "source": source,
            "faces": len(mesh.faces), "seconds": mesh.seconds,
        }
        self.rows[entry.category, entry.model] = row
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(f"\n{json.dumps(row)}")  # the line before may be cut short
        except OSError as err:
            raise InputError(f"cannot write {self.path}: {err.strerror}") from err

    def seconds(self, entry):
        """What the mesh of an object took in all; NaN without one."""
        row = self.find(entry)
        return sum(row["seconds"].values()) if row else math.nan

    def write_times(self, folder):
        """``time_generation_full.pkl``, all meshes of all runs, and the means of each class."""
        rows = [
            {"class": row["class"], "model": row["model"], **row["seconds"],
             "total": sum(row["seconds"].values())}
            for _, row in sorted(self.rows.items())
        ]
        if not rows:
            return
        times = pd.DataFrame(rows)
        with atomic_path(folder / "time_generation_full.pkl") as path:
            times.to_pickle(path)
        with atomic_path(folder / "time_generation.pkl") as path:
            times.groupby("class").mean(numeric_only=True).to_pickle(path)
