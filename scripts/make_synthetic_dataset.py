"""Render procedural objects into a dataset folder with exact ground truth.

    python scripts/make_synthetic_dataset.py OUT_DIR
    python scripts/make_synthetic_dataset.py OUT_DIR --scene excavator --views 50 --size 200
    python scripts/make_synthetic_dataset.py OUT_DIR --layout shapenet --workers 8

The first makes one toy tugboat for multi-view reconstruction, OUT_DIR/scan1/scan1/: train on it
with `data.path=OUT_DIR` and `data.classes=[scan1]`. The second makes another scene in its place:

    excavator  thin and separate parts, with gaps that the background is seen through
    parcels    boxes, flat and with sharp edges, with fine print (36 views, --size 320)
    vessel     a mug that cameras look into, on a tin with a hollow that nobody sees

The third makes endless chairs, tables, lamps, airplanes, cars and mugs for single-view
reconstruction, OUT_DIR/<class>/<number>/, split into train, val and test; an interrupted run goes
on where it stopped.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from im2mesh.errors import InputError  # noqa: E402
from im2mesh.synthetic import (  # noqa: E402
    CATEGORIES, SCENES, Recipe, make_dtu_scene, make_shapenet_dataset,
)


DTU_ONLY = ("height", "scene", "shine")
SHAPENET_ONLY = ("classes", "objects_per_class", "input_views", "points", "workers")


def main():
    parser = _parser()
    options = vars(parser.parse_args())
    layout = options.pop("layout")
    for name in SHAPENET_ONLY if layout == "dtu" else DTU_ONLY:
        if name in options:
            parser.error(f"--{name.replace('_', '-')} does not go with --layout {layout}")
    start = time.perf_counter()
    try:
        made = make_scene(**options) if layout == "dtu" else make_objects(**options)
    except InputError as err:
        print(f"error: {err}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command goes on where this one stopped", file=sys.stderr)
        return 130
    print(f"{made} ({time.perf_counter() - start:.1f} s)")
    return 0


def make_scene(
    out_dir, views=32, size=160, height=None, scene="tugboat", shine=False, seed=0, overwrite=False
):
    height = size * 3 // 4 if height is None else height
    folder = make_dtu_scene(
        out_dir, n_views=views, size=(height, size), seed=seed, parts=SCENES[scene](), shine=shine,
        overwrite=overwrite,
    )
    return (
        f"{folder}: {views} views of {size}x{height} pixels, masks, depth, cameras, point clouds, "
        "mesh.ply"
    )


def make_objects(
    out_dir, objects_per_class=100, classes=None, workers=1, views=24, size=96, input_views=24,
    points=30_000, seed=0, overwrite=False,
):
    recipe = Recipe(seed, views, size, input_views, points)
    n_made = make_shapenet_dataset(
        out_dir, objects_per_class, classes, recipe, workers, overwrite
    )
    n_all = objects_per_class * len(classes or CATEGORIES)
    return f"{out_dir}: {n_made} objects made, {n_all - n_made} were there"


def _parser():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("out_dir", metavar="OUT_DIR")
    parser.add_argument("--layout", choices=["dtu", "shapenet"], default="dtu")
    parser.add_argument("--views", type=int, help="number of views (dtu 32, shapenet 24)")
    parser.add_argument("--size", type=int, help="image width in pixels (dtu 160, shapenet 96)")
    parser.add_argument("--seed", type=int, help="of all that is random (0)")
    parser.add_argument("--overwrite", action="store_true", help="make again what exists")
    dtu = parser.add_argument_group("only with --layout dtu")
    dtu.add_argument("--height", type=int, help="image height in pixels (3/4 of the width)")
    dtu.add_argument("--scene", choices=list(SCENES), help="what to render (tugboat)")
    dtu.add_argument("--shine", action="store_true", help="highlights that move with the camera")
    shapenet = parser.add_argument_group("only with --layout shapenet")
    shapenet.add_argument("--classes", nargs="+", help=f"of {', '.join(CATEGORIES)} (all)")
    shapenet.add_argument("--objects-per-class", type=int, metavar="N", help="(100)")
    shapenet.add_argument("--input-views", type=int, metavar="N", help="input pictures (24)")
    shapenet.add_argument("--points", type=int, metavar="N", help="of the evaluation cloud (30000)")
    shapenet.add_argument("--workers", type=int, metavar="N", help="processes (1)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
