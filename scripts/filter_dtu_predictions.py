"""Keep of a baseline's point clouds what the object masks allow.

    python scripts/filter_dtu_predictions.py configs/other/clean_dtu.yaml --predictions FOLDER

FOLDER, or a folder in it, has clouds in the world space of the cameras, named like those of the
DTU release: camp065_l3.ply, furu065_l3.ply, tola065_l3.ply are of scan65. A cloud of another name
is given as --predictions scan65=CLOUD.ply; --predictions may be repeated.

A point stays if it lies in the mask, dilated by a disk, of every view that sees it: whose image it
projects into, in front of the camera, whether something hides it there or not. A point that no
view sees goes, for nothing shows that it belongs to the object. All properties of the points that
stay (normals, colours) stay as well. Written is <out_dir>/<class>/<model>/<name of the cloud>.
"""

import argparse
import logging
import re
import sys
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from im2mesh import cli, geometry  # noqa: E402
from im2mesh.commands.setup import get_dataset, output_folder  # noqa: E402
from im2mesh.errors import InputError  # noqa: E402
from im2mesh.files import atomic_path  # noqa: E402

log = logging.getLogger("im2mesh")

CHUNK = 2**20  # points at a time: bounds the memory
PLY_TYPES = dict(
    char="i1", uchar="u1", short="i2", ushort="u2", int="i4", uint="u4", float="f4", double="f8"
)
PLY_NAMES = {code: name for name, code in PLY_TYPES.items()}
PLY_TYPES |= {np.dtype(code).name: code for code in PLY_NAMES}  # int8 is another name of char
PLY_ORDERS = {"ascii": "=", "binary_little_endian": "<", "binary_big_endian": ">"}


def filter_predictions(config, device, args):
    """Write the filtered clouds of all objects of the config.

    Raises
    ------
    InputError
        When there is no cloud for any object, or a cloud, mask or camera cannot be read.
    """
    dataset = get_dataset(config, "render")
    images = dataset.fields["img"]
    clouds = find_clouds(args.predictions, [entry.model for entry in dataset.entries])
    for entry in dataset.entries:
        if not clouds[entry.model]:
            log.warning("%s: no cloud among the predictions", entry.label)
            continue
        matrices, masks = [], []
        for view in images.views(entry.folder):
            item = images.load(entry.folder, view)
            matrices.append(item["camera_mat"] @ item["world_mat"])
            masks.append(dilated(item["mask"].numpy(), args.radius))
        for path in clouds[entry.model]:
            cloud = read_cloud(path)
            points = np.stack([cloud[axis] for axis in "xyz"], axis=1).astype(np.float64)
            keep = in_all_masks(torch.from_numpy(points), matrices, masks)
            written = output_folder(config, entry.category, entry.model, path.name)
            write_cloud(written, cloud[keep.numpy()])
            log.info("%s: %d of %d points -> %s", path, keep.sum(), len(cloud), written)


def find_clouds(predictions, models):
    """Which clouds belong to which object.

    Parameters
    ----------
    predictions : list of str
        Folders, searched at any depth for ``*.ply``, and ``<model>=<file>``.
    models : list of str
        Names of the objects. A file in a folder belongs to the one with the same number as the
        first in its name: camp065_l3.ply to scan65. Files of other numbers are left alone.

    Returns
    -------
    dict of str to list of Path
    """
    clouds = {model: [] for model in models}
    by_number = {_number(model): model for model in models if _number(model) is not None}
    for prediction in predictions:
        model, equals, file = prediction.partition("=")
        if equals and model not in clouds:
            raise InputError(
                f"--predictions {prediction}: there is no object {model}, but {', '.join(models)}"
            )
        if equals:
            clouds[model].append(Path(file))
        elif not Path(prediction).is_dir():
            raise InputError(
                f"--predictions: {prediction} is no folder; a file is given as scan65={prediction}"
            )
        else:
            for path in sorted(Path(prediction).rglob("*.ply")):
                if _number(path.stem) in by_number:
                    clouds[by_number[_number(path.stem)]].append(path)
    if not any(clouds.values()):
        raise InputError(
            f"--predictions: no .ply file has the number of {', '.join(models)} in its name, as "
            "camp065_l3.ply has that of scan65; other files are given as scan65=CLOUD.ply"
        )
    for model, paths in clouds.items():
        names = [path.name for path in paths]
        for path in paths:
            if names.count(path.name) > 1:
                raise InputError(f"--predictions: two clouds of {model} are named {path.name}")
    return clouds


def _number(name):
    """The first number in a name, or None."""
    digits = re.search(r"\d+", name)
    return int(digits[0]) if digits else None


def dilated(mask, radius):
    """A mask (H, W), bool, dilated by a disk: all pixels within ``radius`` pixels of it."""
    if not mask.any():
        return mask  # the distance to nothing is undefined
    return distance_transform_edt(~mask) <= radius


def in_all_masks(points, world_to_image, masks):
    """Whether points lie in the mask of every view that sees them, and some view does.

    Parameters
    ----------
    points : float64 Tensor (N, 3)
        World space.
    world_to_image : list of Tensor (4, 4)
        ``camera_mat @ world_mat`` of each view.
    masks : list of bool arrays (H, W)

    Returns
    -------
    Tensor (N,), bool
    """
    keep = torch.zeros(len(points), dtype=torch.bool)
    for start in range(0, len(points), CHUNK):
        chunk = points[None, start : start + CHUNK]
        seen = torch.zeros(chunk.shape[1], dtype=torch.bool)
        stray = torch.zeros_like(seen)
        for matrix, mask in zip(world_to_image, masks):
            pixels, depth = geometry.project(chunk, matrix[None])
            # Image coordinates end at the centres of the border pixels.
            visible = (depth[0] > 0) & (pixels[0].abs() <= 1).all(dim=1)
            allowed = geometry.look_up(torch.from_numpy(mask)[None], pixels[:, visible])[0]
            seen |= visible
            stray[visible] |= ~allowed
        keep[start : start + CHUNK] = seen & ~stray
    return keep


def read_cloud(path):
    """The points of a PLY file, text or binary, with all their properties.

    Returns
    -------
    structured array (N,)
        Fields are named as the properties, x, y and z among them.

    Raises
    ------
    InputError
        When the file is missing, damaged, or no plain cloud.
    """
    try:
        with open(path, "rb") as file:
            order, count, fields = _read_header(file)
            if order == PLY_ORDERS["ascii"]:
                cloud = np.loadtxt(file, fields, max_rows=count, ndmin=1)
            else:
                dtype = np.dtype(fields).newbyteorder(order)
                cloud = np.frombuffer(file.read(count * dtype.itemsize), dtype, count)
    except OSError as err:
        raise InputError(f"{path}: cannot be read ({err.strerror})") from err
    except (ValueError, LookupError) as err:
        raise InputError(f"{path}: not a readable PLY point cloud ({err})") from err
    if len(cloud) < count:
        raise InputError(f"{path}: truncated, it has {len(cloud)} of {count} points")
    return cloud


def _read_header(file):
    """Byte order, number of points and (name, type) of their properties; ValueError for others."""
    if file.readline().strip() != b"ply":
        raise ValueError("it does not begin with 'ply'")
    order, counts, fields = None, {}, []
    for line in file:
        words = line.decode("ascii").split()
        if words == ["end_header"]:
            break
        if words[0] == "format":
            order = PLY_ORDERS[words[1]]
        elif words[0] == "element":
            counts[words[1]] = int(words[2])
        elif words[0] == "property" and list(counts) == ["vertex"]:
            if words[1] not in PLY_TYPES:
                raise ValueError(f"property {words[-1]} of the points is a {words[1]}")
            fields.append((words[2], PLY_TYPES[words[1]]))
    if counts.get("face"):
        raise ValueError("it holds a mesh; give its points alone")
    if order is None or not {"x", "y", "z"} <= dict(fields).keys() or counts["vertex"] < 1:
        raise ValueError("the header names no format, or no points with x, y, z before all else")
    return order, counts["vertex"], fields


def write_cloud(path, cloud):
    """Write a structured array as a binary PLY file; see :func:`read_cloud`."""
    cloud = cloud.astype(cloud.dtype.newbyteorder("<"))
    properties = [
        f"property {PLY_NAMES[cloud.dtype[name].str[1:]]} {name}" for name in cloud.dtype.names
    ]
    header = [
        "ply", "format binary_little_endian 1.0", f"element vertex {len(cloud)}", *properties,
        "end_header\n",
    ]  # fmt: skip
    with atomic_path(path) as temporary:
        temporary.write_bytes("\n".join(header).encode("ascii") + cloud.tobytes())


if __name__ == "__main__":
    parser = cli.argument_parser("filter_dtu_predictions", __doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--predictions",
        action="append",
        required=True,
        metavar="FOLDER",
        help="the baseline's clouds; or OBJECT=CLOUD.ply (may be repeated)",
    )
    parser.add_argument(
        "--radius", type=float, default=12.0, metavar="PIXELS", help="of the dilation (12)"
    )
    sys.exit(cli.run(filter_predictions, parser))
