"""Render the pictures of single objects that the demo configs read.

    python scripts/make_demo_images.py media/demo

Objects of the test split of the synthetic categories, on white: ``choy_renderings/`` and
``synthetic/`` as Choy et al. 2016 saw ShapeNet (137x137 pixels, elevation 25 to 30 degrees),
``kato_renderings/`` as Kato et al. 2018 did (64x64, elevation 30 degrees, a lens of 30 degrees).
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from im2mesh.files import atomic_path  # noqa: E402
from im2mesh.geometry import look_at, perspective  # noqa: E402
from im2mesh.synthetic.categories import CATEGORIES  # noqa: E402
from im2mesh.synthetic.render import Camera, render  # noqa: E402
from im2mesh.synthetic.shapenet import (  # noqa: E402
    INPUT_SIZE,
    SPLITS,
    input_cameras,
    make_scene,
)
from im2mesh.synthetic.writers import save_image  # noqa: E402

# One object of every category; the folder, and the edge of the picture.
PICTURES = [
    ("choy_renderings", INPUT_SIZE), ("kato_renderings", 64),
    ("synthetic", INPUT_SIZE), ("synthetic", INPUT_SIZE),
]
KATO_ELEVATION, KATO_DISTANCE, KATO_VIEW = 30, 2.732, 30


def kato_camera(scene, rng):
    """A camera of the neural mesh renderer's data, which has objects of radius 1/2."""
    azimuth, elevation = np.radians([15 * rng.integers(24), KATO_ELEVATION])
    eye = [np.cos(elevation) * np.cos(azimuth), np.sin(elevation), np.cos(elevation) * np.sin(azimuth)]
    radius = np.linalg.norm(scene.corners, axis=1).max()
    world_mat = look_at(2 * radius * KATO_DISTANCE * np.array(eye), np.zeros(3)).numpy()
    return Camera(perspective(KATO_VIEW, 64, 64).numpy(), world_mat, np.eye(4))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out_dir", metavar="OUT_DIR", type=Path)
    args = parser.parse_args()
    unseen = [n for n in range(2 * len(SPLITS)) if SPLITS[n % len(SPLITS)] == "test"]
    for place, category in enumerate(tqdm(CATEGORIES, unit="category", disable=None)):
        for number, (folder, size) in zip(unseen, PICTURES):
            scene, rng = make_scene(category, number), np.random.default_rng([number, place])
            camera = kato_camera(scene, rng) if size == 64 else input_cameras(scene, 1, rng)[0]
            picture = render(scene, camera, (size, size), supersample=3, blend=True)
            with atomic_path(args.out_dir / folder / f"{category}_{number:04d}.png") as path:
                save_image(path, picture.image)
    return 0


if __name__ == "__main__":
    sys.exit(main())
