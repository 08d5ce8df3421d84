"""Compute the visual hull of objects from masks and cameras, as depth maps.

    python scripts/make_visual_hull.py DATA --workers 8

DATA is a dataset in the multi-object layout, DATA/<class>/<model>/ with image/, mask/ and
cameras.npz. Written is visual_hull_depth/<name of the image>.exr beside them: for every view the
camera z of the hull, +inf where there is none. Train with data.depth_from_visual_hull=true.

Maps that exist are kept, so an interrupted run goes on where it stopped; --overwrite makes them
again. An object with bad files is reported and left out. Exit codes: 0 when every object has its
maps, 2 when one has not or DATA is no dataset, 130 after Ctrl-C.
"""

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from im2mesh.data import ImagesField, MultiObjectDataset  # noqa: E402
from im2mesh.errors import InputError  # noqa: E402
from im2mesh.geometry import object_to_image  # noqa: E402
from im2mesh.synthetic import write_exr  # noqa: E402
from im2mesh.visual_hull import visual_hull_depths  # noqa: E402


def write_hull(images, folder_name, overwrite, folder):
    """Write the maps of the object in ``folder``: how many, or why it could not be done."""
    torch.set_num_threads(1)  # objects run in parallel
    try:
        views = images.views(folder)
        names = [path.stem for path in images.images(folder)]
        targets = {view: folder / folder_name / f"{names[view]}.exr" for view in views}
        missing = [view for view in views if overwrite or not targets[view].exists()]
        if not missing:
            return 0
        items = [images.load(folder, view) for view in views]
        masks = [item["mask"] for item in items]
        cameras = torch.stack([
            object_to_image(item["camera_mat"], item["world_mat"], item["scale_mat"])
            for item in items
        ])
        for view, depth in zip(missing, visual_hull_depths(masks, cameras, missing)):
            write_exr(targets[view], depth.numpy())
    except InputError as err:
        return str(err)
    return len(missing)


def write_all(job, folders, n_workers):
    """Run ``job`` on all folders, report problems; returns the number of objects that failed."""
    n_maps = n_kept = n_failed = 0
    pool = ProcessPoolExecutor(n_workers)
    try:
        bar = tqdm(pool.map(job, folders), total=len(folders), unit="object", disable=None)
        for folder, result in zip(folders, bar):
            if isinstance(result, str):
                n_failed += 1
                tqdm.write(f"error: {folder}: {result}", file=sys.stderr)
            else:
                n_maps += result
                n_kept += result == 0
    finally:
        pool.shutdown(cancel_futures=True)
    print(
        f"{len(folders)} objects: {n_maps} maps written, {n_kept} objects had all of theirs, "
        f"{n_failed} failed"
    )
    return n_failed


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
    parser.add_argument("--workers", type=int, default=1, help="processes, one object each (1)")
    parser.add_argument("--overwrite", action="store_true", help="make maps that exist again")
    args = parser.parse_args()
    if args.workers < 1:
        parser.error("--workers must be 1 or more")
    images = ImagesField(
        img_folder=args.image_folder, img_extension=args.image_extension,
        mask_folder=args.mask_folder, mask_extension=args.mask_extension,
    )
    job = partial(write_hull, images, args.out_folder, args.overwrite)
    try:
        dataset = MultiObjectDataset(args.data, {}, classes=args.classes)
        n_failed = write_all(job, [entry.folder for entry in dataset.entries], args.workers)
    except InputError as err:
        print(f"error: {err}", file=sys.stderr)
        return 2
    except BrokenProcessPool:
        print(
            "error: a worker process was killed, most likely for want of memory. Try fewer "
            "--workers; the same command goes on with the maps that are missing",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130
    return 2 if n_failed else 0


if __name__ == "__main__":
    sys.exit(main())
