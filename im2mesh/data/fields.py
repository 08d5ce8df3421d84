"""Fields: what is read from the folder of one object.

A field has ``load(folder, view) -> dict``, a pure function of the files, so its results can be
cached. ``view`` is the view of the item (index in the unfiltered list of images; None where the
dataset has no images). Fields of images have ``views(folder)`` as well, which the view is chosen
from. The dataset prefixes the keys with the field's name: ``mask`` of the field ``img`` becomes
``img.mask``, the key ``""`` becomes ``img``.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from im2mesh.data.images import (
    fit_square,
    read_depth,
    read_input,
    read_mask,
    read_npz,
    read_rgb,
    resize_nearest,
    resize_rgb,
)
from im2mesh.errors import InputError


@dataclass(frozen=True)
class _Views:
    """Images in a folder of each object: sorted by name they are its views 0, 1, ...

    Parameters
    ----------
    n_views : int
        Above 0: only the first so many of the views that ``ignore_image_idx`` leaves.
    random_view : bool
        An item that does not name a view gets a random one instead of the first.
    """

    img_folder: str
    img_extension: str
    n_views: int = 0
    ignore_image_idx: Sequence[int] = ()
    random_view: bool = False

    key_suffix: ClassVar[str] = ""  # of the config keys that stand for these images

    def images(self, folder):
        """The image files of an object, all views in order."""
        keys = f"data.img_folder{self.key_suffix} and data.img_extension{self.key_suffix}"
        return _files(folder / self.img_folder, self.img_extension, keys)

    def views(self, folder):
        """Indices, in the unfiltered list, of the views in use; at least one."""
        n_images = len(self.images(folder))
        views = [view for view in range(n_images) if view not in self.ignore_image_idx]
        if not views:
            raise InputError(
                f"{folder / self.img_folder}: data.ignore_image_idx leaves none of its "
                f"{n_images} images"
            )
        if self.n_views > len(views):
            raise InputError(
                f"{folder / self.img_folder}: data.n_views{self.key_suffix} is {self.n_views}, "
                f"but there are {len(views)} images in use; 0 takes them all"
            )
        return views[: self.n_views] if self.n_views > 0 else views


@dataclass(frozen=True)
class ImagesField(_Views):
    """The posed views of an object: image, mask, depth maps and camera.

    ``load`` gives ``""`` uint8 (H, W, 3), ``mask`` bool (H, W), ``depth`` and
    ``visual_hull_depth`` float32 (H, W) (camera z, +inf = no surface), ``world_mat``,
    ``camera_mat``, ``scale_mat`` float64 (4, 4), ``view`` int.

    The file of view i is the i-th one in every folder, whatever its name.

    Parameters
    ----------
    mask_folder, depth_folder, visual_hull_depth_folder : str, optional
        None: not read.
    n_views, random_view
        See ``_Views``.
    img_size : int or (height, width), optional
        Resize everything; cameras hold for any size.
    """

    img_folder: str = "image"
    img_extension: str = "png"
    mask_folder: str | None = "mask"
    mask_extension: str = "png"
    depth_folder: str | None = None
    visual_hull_depth_folder: str | None = None
    depth_extension: str = "exr"
    with_camera: bool = True
    img_size: int | Sequence[int] | None = None

    def __post_init__(self):
        size = self._target_size()
        if size is not None and not (
            len(size) == 2 and all(isinstance(pixels, int) and pixels >= 2 for pixels in size)
        ):
            raise InputError(
                f"data.img_size: {self.img_size} is neither null, nor a number of pixels, "
                "nor [height, width], each 2 or more"
            )

    def load(self, folder, view):
        images = self.images(folder)
        image = read_rgb(images[view])
        readers = {"mask": read_mask, "depth": read_depth, "visual_hull_depth": read_depth}
        maps = {
            kind: read(self._maps(folder, kind, len(images))[view])
            for kind, read in readers.items()
            if getattr(self, f"{kind}_folder") is not None
        }
        if "mask" in maps and not maps["mask"].any():
            self._require_object(folder, len(images))
        for key, values in maps.items():
            if values.shape != image.shape[:2]:
                raise InputError(
                    f"{images[view]}: the image is {_size(image)} pixels, its {key} {_size(values)}"
                )
        size = self._target_size()
        if size is not None:
            image = resize_rgb(image, size)
            maps = {key: resize_nearest(values, size) for key, values in maps.items()}
        data = {key: torch.from_numpy(values) for key, values in {"": image, **maps}.items()}
        if self.with_camera:
            data |= read_camera(folder / "cameras.npz", view)
        return data | {"view": view}

    def _target_size(self):
        """(height, width), or None."""
        if self.img_size is None or isinstance(self.img_size, Sequence):
            return self.img_size
        return self.img_size, self.img_size

    def _maps(self, folder, kind, n_images):
        """The files of ``kind``: mask, depth or visual_hull_depth; one for each image."""
        kind_of_file = "mask" if kind == "mask" else "depth"
        subfolder = folder / getattr(self, f"{kind}_folder")
        extension = getattr(self, f"{kind_of_file}_extension")
        files = _files(
            subfolder, extension, f"data.{kind}_folder and data.{kind_of_file}_extension"
        )
        if len(files) != n_images:
            raise InputError(
                f"{subfolder}: {len(files)} *.{extension} files for {n_images} images; "
                "each image needs one"
            )
        return files

    def _require_object(self, folder, n_images):
        """Some views may miss the object; were it all, there would be nothing to learn."""
        masks = self._maps(folder, "mask", n_images)
        if not any(read_mask(masks[view]).any() for view in self.views(folder)):
            raise InputError(
                f"{folder / self.mask_folder}: the masks of all views in use are empty; "
                "the object must be above 0"
            )


@dataclass(frozen=True)
class InputImagesField(_Views):
    """The images that the encoder reconstructs an object from, one of them for each item.

    ``load`` gives ``""`` uint8 (3, h, w), on white, with h = w = ``img_size`` (None: as stored).

    Parameters
    ----------
    n_views, random_view
        See ``_Views``.
    remove_background : bool
        See ``im2mesh.data.images.read_input``.
    """

    img_folder: str = "img_choy2016"
    img_extension: str = "jpg"
    img_size: int | None = 224
    remove_background: bool = False

    key_suffix: ClassVar[str] = "_input"

    def load(self, folder, view):
        pixels = read_input(self.images(folder)[view], self.remove_background)
        return {"": input_tensor(pixels, self.img_size)}


def input_tensor(image, size=None):
    """An input image, (H, W, 3) uint8, as the encoder takes it: uint8 (3, size, size)."""
    pixels = image if size is None else fit_square(image, size)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


@dataclass(frozen=True)
class SparseDepthField:
    """Sparse surface points, e.g. of structure from motion, that the item's view sees.

    ``load`` gives ``points`` float32 (M, 3) in WORLD space, only those inside the visual hull,
    and ``valid`` bool (M,), all true (``collate`` pads).
    """

    file: str = "pcl.npz"

    def load(self, folder, view):
        path, seen = folder / self.file, f"visibility_{view:04d}"
        arrays = read_npz(path, ["points", "is_in_visual_hull", seen])
        points = _vectors(path, "points", arrays["points"])
        in_hull = arrays["is_in_visual_hull"]
        if in_hull.shape != points.shape[:1]:
            raise InputError(
                f"{path}: is_in_visual_hull has shape {in_hull.shape} for {len(points)} points"
            )
        indices = arrays[seen].astype(np.int64)
        if indices.ndim != 1 or np.any((indices < 0) | (indices >= len(points))):
            raise InputError(f"{path}: {seen} is not a list of indices below {len(points)}")
        points = points[indices[in_hull[indices].astype(bool)]]
        return {
            "points": torch.from_numpy(points),
            "valid": torch.ones(len(points), dtype=torch.bool),
        }


@dataclass(frozen=True)
class PointCloudField:
    """The evaluation cloud: ``points`` and ``normals``, float32 (N, 3), object space."""

    file: str = "pointcloud.npz"

    def load(self, folder, view=None):
        path = folder / self.file
        arrays = read_npz(path, ["points", "normals"])
        points, normals = (_vectors(path, name, arrays[name]) for name in ("points", "normals"))
        if len(points) == 0 or len(points) != len(normals):
            raise InputError(f"{path}: {len(points)} points and {len(normals)} normals")
        return {"points": torch.from_numpy(points), "normals": torch.from_numpy(normals)}


def read_camera(path, view):
    """Matrices of one view: ``world_mat``, ``camera_mat``, ``scale_mat``, float64 (4, 4).

    The scale matrix is the identity where the file has none.
    """
    required = [f"world_mat_{view}", f"camera_mat_{view}"]
    arrays = read_npz(path, required, optional=[f"scale_mat_{view}"])
    matrices = {"scale_mat": torch.eye(4, dtype=torch.float64)}
    for name, matrix in arrays.items():
        if matrix.shape != (4, 4) or matrix.dtype.kind not in "fiu":
            raise InputError(f"{path}: {name} is no 4x4 matrix but {matrix.shape} {matrix.dtype}")
        matrix = matrix.astype(np.float64)
        if not np.isfinite(matrix).all():
            raise InputError(f"{path}: {name} has NaN or infinite entries")
        if not np.array_equal(matrix[3], [0, 0, 0, 1]):
            raise InputError(
                f"{path}: the last row of {name} is {matrix[3].tolist()}; an affine map has "
                "[0, 0, 0, 1] there"
            )
        if np.linalg.matrix_rank(matrix[:3, :3]) < 3:
            raise InputError(f"{path}: {name} is singular")
        matrices[name.removesuffix(f"_{view}")] = torch.from_numpy(matrix)
    return matrices


def _files(folder, extension, keys):
    """The files with that extension, sorted by name; at least one."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder (see {keys})")
    names = [name for name in os.listdir(folder) if name.endswith(f".{extension}")]
    files = [folder / name for name in sorted(names) if not name.startswith(".")]
    if not files:
        raise InputError(f"{folder}: no *.{extension} files (see {keys})")
    return files


def _vectors(path, name, array):
    if array.ndim != 2 or array.shape[1] != 3 or array.dtype.kind not in "fiu":
        raise InputError(f"{path}: {name} is {array.shape} {array.dtype}, not numbers (M, 3)")
    if not np.isfinite(array).all():
        raise InputError(f"{path}: {name} has NaN or infinite values")
    return array.astype(np.float32)


def _size(array):
    return f"{array.shape[1]}x{array.shape[0]}"
