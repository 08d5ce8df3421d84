"""The dataset of many objects, one folder each (layouts Shapes3D, NMR, DTU)."""

import contextlib
import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import yaml
from torch.utils.data import Dataset

from im2mesh.data.loading import Draw
from im2mesh.errors import InputError

logger = logging.getLogger(__name__)

SOURCES = ("img", "inputs")  # fields that have views; the others go by the view of img


@dataclass(frozen=True)
class Entry:
    """One item of a dataset: an object, or one view of it; ``number`` counts the objects."""

    category: str
    category_index: int
    model: str
    folder: Path
    number: int
    view: int | None = None

    @property
    def label(self):
        return f"{self.category}/{self.model}"


class MultiObjectDataset(Dataset):
    """Objects in ``<root>/<class>/<model>/``, each read by ``fields``.

    ``dataset[i]`` is a flat dict of tensors: the fields' keys behind the field's name, and
    ``idx``. With a cache the tensors belong to the dataset: do not write to them.

    Parameters
    ----------
    root : str or Path
        The folder of classes (key ``data.path``).
    fields : dict of str to field
        See ``im2mesh.data.fields``. The field ``img`` decides on the view of an item; the field
        ``inputs`` has a view of its own.
    split : str, optional
        Objects are the lines of ``<root>/<class>/<split>.lst``; all sub-folders of the class
        when None or when there is no such file.
    classes : list of str, optional
        All sub-folders of ``root`` when None.
    split_model_for_images : bool
        Each view is an item of its own.
    number_inputs : bool
        Give each item the key ``inputs``: the number of its object, an int64 scalar.
    skip_unreadable : bool
        Objects that cannot be read are left out with a warning (by the scan here, by the loader
        later on) instead of ending the program.
    cache : dict, optional
        Keeps what was read once. Datasets whose fields read the same files alike may share one.
    seed : int
        Of the random views: they depend on (seed, epoch, index) and on nothing else.

    Attributes
    ----------
    entries : list of Entry
    n_objects : int
        With those that were found but left out as unreadable.
    class_names : dict of str to str
        Readable names of the classes from ``<root>/metadata.yaml``; else the folder name.

    Raises
    ------
    InputError
        Here for a missing or empty folder or class and for a split file that names a missing
        object; by ``dataset[i]`` for whatever is wrong with the object's files.
    """

    def __init__(
        self,
        root,
        fields,
        split=None,
        classes=None,
        split_model_for_images=False,
        number_inputs=False,
        skip_unreadable=False,
        cache=None,
        seed=0,
    ):
        self.root = Path(root)
        self.fields = fields
        self.number_inputs = number_inputs
        self.skip_unreadable = skip_unreadable
        self.cache = cache
        self.seed = seed
        if not self.root.is_dir():
            raise InputError(
                f"data.path: there is no folder {self.root}. The section 'Data' of the README "
                "tells how to get the data; then set data.path"
            )
        self.entries, self.n_objects = [], 0
        classes = self._find_classes(classes)
        for index, category in enumerate(classes):
            for model, folder in self._find_models(category, split):
                entry = Entry(category, index, model, folder, self.n_objects)
                self.n_objects += 1
                self.entries += self._split(entry) if split_model_for_images else [entry]
        if not self.entries:
            raise InputError(f"data.path: no readable object in {self.root}")
        self.class_names = self._read_names(classes)

    def __len__(self):
        return len(self.entries)

    def __getitem__(self, key):
        """The item of an index (epoch 0) or of a ``Draw(index, epoch)``."""
        index, epoch = key if isinstance(key, Draw) else (key, 0)
        views = {source: self._draw_view(source, index, epoch) for source in SOURCES}
        item = {"idx": index}
        if self.number_inputs:
            item["inputs"] = torch.tensor(self.entries[index].number)
        for name in self.fields:
            item |= self._load(self.entries[index], name, views[_source(name)])
        return item

    def input_files(self, index):
        """The image files that the encoder sees of an item (in epoch 0); none without any."""
        if "inputs" not in self.fields:
            return []
        view = self._draw_view("inputs", index, epoch=0)
        return [self.fields["inputs"].images(self.entries[index].folder)[view]]

    def preload(self):
        """Read everything that can be drawn into the cache.

        A bad file is then found before the work starts, and every step takes the same time.
        """
        for entry in self.entries:
            try:
                for name in self.fields:
                    for view in self._views(_source(name), entry):
                        self._load(entry, name, view)
            except InputError:
                if not self.skip_unreadable:  # else the loader reports it when it is drawn
                    raise

    def _load(self, entry, name, view):
        """What one field gives to an item."""

        def read():
            values = self.fields[name].load(entry.folder, view)
            return {f"{name}.{key}" if key else name: value for key, value in values.items()}

        return self._once(entry, name, view, read)

    def _once(self, entry, name, what, read):
        """``read()``, something of a field of an object; from the cache where there is one."""
        place = name, entry.folder, what
        if self.cache is not None and place in self.cache:
            return self.cache[place]
        with _naming(entry, name):
            values = read()
        if self.cache is not None:
            self.cache[place] = values
        return values

    def _draw_view(self, source, index, epoch):
        views = self._views(source, self.entries[index])
        rng = np.random.default_rng((self.seed, epoch, index, SOURCES.index(source)))
        return views[rng.integers(len(views))]

    def _views(self, source, entry):
        """The views that a source is drawn from; [None] where the dataset does not have it."""
        if source == "img" and entry.view is not None:
            return [entry.view]
        if source not in self.fields:
            return [None]
        images = self.fields[source]
        views = self._once(entry, source, "views", lambda: images.views(entry.folder))
        return views if images.random_view else views[:1]

    def _split(self, entry):
        try:
            with _naming(entry, "img"):
                views = self.fields["img"].views(entry.folder)
        except InputError as err:
            if not self.skip_unreadable:
                raise
            logger.warning("left out: %s", err)
            return []
        return [replace(entry, view=view) for view in views]

    def _find_classes(self, classes):
        found = _subfolders(self.root)
        if not found:
            raise InputError(f"data.path: {self.root} has no class folders")
        for category in classes or ():
            if category not in found:
                raise InputError(
                    f"data.classes: there is no folder {self.root / category}; "
                    f"{self.root} has {', '.join(found)}"
                )
        return found if classes is None else classes

    def _find_models(self, category, split):
        """(name, folder) of the objects of a class, in the order of the split file."""
        folder = self.root / category
        split_file = folder / f"{split}.lst"
        if split is None or not split_file.is_file():
            models = [(model, folder / model) for model in _subfolders(folder)]
            if not models:
                raise InputError(f"data.path: the class folder {folder} has no objects")
            return models
        lines = enumerate(_read_text(split_file).splitlines(), start=1)
        models = []
        for number, model in ((number, line.strip()) for number, line in lines if line.strip()):
            if (folder / model).is_dir():
                models.append((model, folder / model))
                continue
            problem = f"{split_file}, line {number}: there is no object folder {folder / model}"
            if not self.skip_unreadable:
                raise InputError(problem)
            logger.warning("left out: %s", problem)
        if not models:
            raise InputError(f"{split_file}: lists no object of {folder}")
        return models

    def _read_names(self, classes):
        path = self.root / "metadata.yaml"
        if not path.is_file():
            return {category: category for category in classes}
        try:
            metadata = yaml.safe_load(_read_text(path)) or {}
            return {
                category: str(metadata.get(category, {}).get("name", category))
                for category in classes
            }
        except (yaml.YAMLError, AttributeError) as err:
            cause = " ".join(str(err).split())
            raise InputError(f"{path}: not of the form {{class: {{id, name}}}} ({cause})") from err


def _source(name):
    """The field whose view a field goes by."""
    return name if name in SOURCES else "img"


def _subfolders(folder):
    return sorted(
        path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )


def _read_text(path):
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise InputError(f"{path}: {err}") from err


@contextlib.contextmanager
def _naming(entry, field):
    try:
        yield
    except InputError as err:
        raise InputError(f"object {entry.label}, field {field}: {err}") from err
