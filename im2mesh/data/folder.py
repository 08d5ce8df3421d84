"""The dataset of one flat folder of images: one object each, nothing known but its picture."""

import logging
from pathlib import Path

from torch.utils.data import Dataset

from im2mesh.data.core import Entry
from im2mesh.data.fields import input_tensor
from im2mesh.data.images import read_input, white_border_share
from im2mesh.errors import InputError

logger = logging.getLogger(__name__)

EXTENSIONS = (".jpg", ".jpeg", ".png")
WHITE_SHARE = 0.75  # of the border; objects may touch it


class ImageFolderDataset(Dataset):
    """All images (jpg, jpeg, png in any case) of a folder, sorted by name, each an object.

    ``dataset[i]`` is ``{"inputs": uint8 (3, h, w), "idx": i}`` with h = w = ``img_size``; the file
    behind it may be of any Pillow mode. The class of the objects is ``na``; their names are those
    of the files without extension, or with it where two would have the same.

    Parameters
    ----------
    root : str or Path
        The folder (key ``data.path``).
    img_size : int, optional
        None: as stored.
    remove_background : bool
        See ``im2mesh.data.images.read_input``.

    Attributes
    ----------
    entries : list of Entry
    fields : dict
        Empty: there is nothing but the input.

    Raises
    ------
    InputError
        Here for a folder that is missing or without images, by ``dataset[i]`` for a file that is
        no image. An image whose background is not white, unlike those that networks are trained
        on, is warned of when it is read.
    """

    def __init__(self, root, img_size=224, remove_background=False):
        root = Path(root)
        if not root.is_dir():
            raise InputError(f"data.path: there is no folder {root} (dataset_name: images)")
        self.files = sorted(
            path
            for path in root.iterdir()
            if path.suffix.lower() in EXTENSIONS and path.is_file() and path.name[0] != "."
        )
        if not self.files:
            raise InputError(f"data.path: {root} has no images (jpg, jpeg or png)")
        self.fields = {}
        self.img_size = img_size
        self.remove_background = remove_background
        self.entries = [
            Entry("na", 0, name, root, number) for number, name in enumerate(_names(self.files))
        ]

    def __len__(self):
        return len(self.entries)

    def __getitem__(self, index):
        path = self.files[index]
        image = read_input(path, self.remove_background)
        share = white_border_share(image)
        if share < WHITE_SHARE:
            cure = (
                "its background is not plain: cut the object out by hand (png with alpha)"
                if self.remove_background
                else "cut the object out (png with alpha), or set data.remove_background: true"
            )
            logger.warning(
                "%s: the background is not white (%.0f%% of the border is), so that the mesh may "
                "be wrong; %s", path, 100 * share, cure,
            )
        return {"inputs": input_tensor(image, self.img_size), "idx": index}

    def input_files(self, index):
        """The image file of an item."""
        return [self.files[index]]


def _names(files):
    """A name of its own for each file: without the extension wherever that is enough."""
    stems, names = [path.stem for path in files], {path.name for path in files}
    return [
        path.stem if stems.count(path.stem) == 1 and path.stem not in names else path.name
        for path in files
    ]
