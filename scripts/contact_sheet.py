"""Put pictures into one: rows of equal tiles, each row below its label.

    python scripts/contact_sheet.py OUT.png --row LABEL IMAGE [IMAGE ...] [--row ...]
"""

import argparse
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from im2mesh.data.images import read_rgb, resize_rgb  # noqa: E402
from im2mesh.errors import InputError  # noqa: E402
from im2mesh.files import atomic_path  # noqa: E402

TILE_WIDTH = 240  # pixels
GAP, LABEL_HEIGHT, FONT_SIZE = 6, 24, 16  # pixels


def contact_sheet(rows):
    """Rows of pictures, each row below its label.

    Parameters
    ----------
    rows : dict of str to list of uint8 arrays (H, W, 3)
        As many pictures in each row. All get the size of the first row's first one, scaled to
        the tiles' width: a rendering of other proportions shows the same part of the scene.

    Returns
    -------
    PIL.Image.Image
    """
    pictures = list(rows.values())
    height, width = pictures[0][0].shape[:2]
    size = max(2, round(TILE_WIDTH * height / width)), TILE_WIDTH
    step_x, step_y = TILE_WIDTH + GAP, LABEL_HEIGHT + size[0] + GAP
    extent = GAP + step_x * len(pictures[0]), GAP + step_y * len(rows)
    sheet = Image.new("RGB", extent, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_SIZE)
    for i, (label, row) in enumerate(rows.items()):
        draw.text((GAP, GAP + i * step_y), label, "black", font)
        for j, picture in enumerate(row):
            tile = Image.fromarray(resize_rgb(picture, size))
            sheet.paste(tile, (GAP + j * step_x, GAP + i * step_y + LABEL_HEIGHT))
    return sheet


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", metavar="OUT.png")
    parser.add_argument(
        "--row", dest="rows", nargs="+", action="append", required=True,
        metavar=("LABEL", "IMAGE"), help="a label and the pictures below it",
    )
    args = parser.parse_args()
    try:
        if len({len(images) for _, *images in args.rows}) > 1 or len(args.rows[0]) < 2:
            raise InputError("--row: every row needs a label and as many pictures as the others")
        rows = {label: [read_rgb(Path(image)) for image in images] for label, *images in args.rows}
        with atomic_path(args.out) as path:
            contact_sheet(rows).save(path)
    except InputError as err:
        print(f"error: {err}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
