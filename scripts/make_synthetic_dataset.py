"""Render a toy tugboat into a dataset folder: images, masks, depth maps, cameras, point clouds.

    python scripts/make_synthetic_dataset.py OUT_DIR

Then train on it with `data.path=OUT_DIR` and `data.classes=[scan1]`.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from im2mesh.errors import InputError  # noqa: E402
from im2mesh.synthetic import make_dtu_scene  # noqa: E402


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out_dir", metavar="OUT_DIR", help="gets OUT_DIR/scan1/scan1/")
    parser.add_argument("--layout", choices=["dtu"], default="dtu")
    parser.add_argument("--views", type=int, default=32, help="number of views (32)")
    parser.add_argument("--size", type=int, default=160, help="image width in pixels (160)")
    parser.add_argument("--height", type=int, help="image height in pixels (3/4 of the width)")
    parser.add_argument("--seed", type=int, default=0, help="of cameras and points (0)")
    parser.add_argument("--overwrite", action="store_true", help="replace a scene that exists")
    args = parser.parse_args()
    height = args.size * 3 // 4 if args.height is None else args.height
    start = time.perf_counter()
    try:
        folder = make_dtu_scene(
            args.out_dir, n_views=args.views, size=(height, args.size), seed=args.seed,
            overwrite=args.overwrite,
        )
    except InputError as err:
        print(f"error: {err}", file=sys.stderr)
        return 2
    print(
        f"{folder}: {args.views} views of {args.size}x{height} pixels, masks, depth, cameras, "
        f"point clouds, mesh.ply ({time.perf_counter() - start:.1f} s)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
