"""Compute the visual hull of objects from masks and cameras, as depth maps.

    python scripts/make_visual_hull.py DATA

DATA is a dataset in the multi-object layout, DATA/<class>/<model>/ with image/, mask/ and
cameras.npz. Written is visual_hull_depth/<name of the image>.exr beside them: for every view the
camera z of the hull, +inf where there is none. Train with data.depth_from_visual_hull=true.

Objects that have all their maps are skipped, so an interrupted run goes on where it stopped.
"""

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from im2mesh.data import ImagesField, MultiObjectDataset  # noqa: E402
from im2mesh.errors import InputError  # noqa: E402
from im2mesh.geometry import object_to_image  # noqa: E402
from im2mesh.synthetic import write_exr  # noqa: E402
from im2mesh.visual_hull import visual_hull_depth  # noqa: E402


def write_hull(images, folder_name, n_steps, overwrite, folder):
    """Write the maps of the object in ``folder``; returns why it could not be done, or None."""
    torch.set_num_threads(1)
    try:
        views = images.views(folder)
        names = [path.stem for path in images.images(folder)]
        targets = [folder / folder_name / f"{names[view]}.exr" for view in views]
        if not overwrite and all(path.exists() for path in targets):
            return None
        items = [images.load(folder, view) for view in views]
        masks = [item["mask"] for item in items]
        cameras = torch.stack([
            object_to_image(item["camera_mat"], item["world_mat"], item["scale_mat"])
            for item in items
        ])
        for i, path in enumerate(targets):
            if overwrite or not path.exists():
                write_exr(path, visual_hull_depth(masks, cameras, i, n_steps).numpy())
    except InputError as err:
        return str(err)
    return None


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", metavar="DATA", help="folder of classes")
    parser.add_argument("--classes", nargs="+", help="only these; all by default")
    parser.add_argument("--image-folder", default="image", help="(image)")
    parser.add_argument("--image-extension", default="png", help="(png)")
    parser.add_argument("--mask-folder", default="mask", help="(mask)")
    parser.add_argument("--mask-extension", default="png", help="(png)")
    parser.add_argument("--out-folder", default="visual_hull_depth", help="(visual_hull_depth)")
    parser.add_argument("--steps", type=int, default=256, help="samples along a ray (256)")
    parser.add_argument("--workers", type=int, default=1, help="processes (1)")
    parser.add_argument("--overwrite", action="store_true", help="write maps that exist again")
    args = parser.parse_args()
    images = ImagesField(
        img_folder=args.image_folder, img_extension=args.image_extension,
        mask_folder=args.mask_folder, mask_extension=args.mask_extension,
    )
    job = partial(write_hull, images, args.out_folder, args.steps, args.overwrite)
    try:
        dataset = MultiObjectDataset(args.data, {}, classes=args.classes)
    except InputError as err:
        print(f"error: {err}", file=sys.stderr)
        return 2
    folders = [entry.folder for entry in dataset.entries]
    n_failed = 0
    with ProcessPoolExecutor(args.workers) as pool:
        for folder, problem in zip(folders, tqdm(pool.map(job, folders), total=len(folders))):
            if problem:
                n_failed += 1
                tqdm.write(f"error: {folder}: {problem}", file=sys.stderr)
    return 2 if n_failed else 0


if __name__ == "__main__":
    sys.exit(main())
