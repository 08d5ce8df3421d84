"""A stack of parcels: flat faces, sharp edges, and prints as fine as the pixels of a view.

What is smooth here, the normals of a face, should come out flat; what is printed should come out
sharp. The front looks along +z, y points up.
"""

import numpy as np

from im2mesh.synthetic.shapes import prism

KRAFT, DARK_KRAFT, TAPE, CREAM = "#c79a63", "#a87a45", "#dcb887", "#f4ead2"
TEAL, NAVY = "#1f8a8c", "#24407c"
BLACK, WHITE, RED, YELLOW, ORANGE = "#1c1c22", "#fdfcf8", "#cf2f2b", "#f6c32c", "#ee7f2d"


def parcels():
    """Parts of the stack, all within 0.45 of the origin along every axis."""
    return [  # each sunk by 0.002 into what it stands on
        _crate().moved(0, -0.24),
        _mail_box().turned("y", 14).moved(-0.09, 0.028, -0.01),
        _tall_box().turned("y", -22).moved(0.27, 0.083, 0.09),
        _gift_box().turned("y", -31).moved(-0.1, 0.251, -0.01),
        _envelope().turned("y", 20).moved(-0.1, 0.3615, -0.02),
    ]


# ---------------------------------------------------------------- boxes


def _crate():
    address = ["SHIP TO", "", "DR Q MARCH", "12 RAY LANE", "OXFORD 7K2"]
    return _box(
        (0.78, 0.28, 0.56), KRAFT,
        front=[
            *_tape(), *_label((-0.21, 0.0), (0.27, 0.2), address, seed=1),
            *_text((0.2, 0.06), 0.011, ["FRAGILE"], RED),
            *_arrows((0.13, -0.065), 0.1, BLACK), *_arrows((0.25, -0.065), 0.1, BLACK),
        ],
        back=[
            *_tape(), *_text((-0.21, 0.02), 0.018, ["BOX 4", "OF 9"], DARK_KRAFT),
            (_barcode((0.21, 0.0), (0.26, 0.14), 0.0065, seed=2), BLACK),
        ],
        right=[
            (_checker((0.0, -0.09), (0.52, 0.06), 0.02), BLACK),
            *_discs((-0.14, 0.04), 0.075), *_text((0.1, 0.045), 0.0095, ["THIS", "SIDE UP"], NAVY),
        ],
        left=[
            (_stripes((0.0, -0.1), (0.56, 0.05), 0.044), YELLOW), *_discs((0.13, 0.04), 0.07),
            *_text((-0.11, 0.04), 0.007, ["KEEP DRY", "NO HOOKS", "MAX 25 KG"], BLACK),
        ],
        top=[
            *_tape(across=True),
            *_label((0.25, -0.19), (0.22, 0.14), ["VIA AIR", "LOT 118"], seed=3),
        ],
        bottom=[(_checker((0.0, 0.0), (0.5, 0.3), 0.05), DARK_KRAFT)],
    )


def _mail_box():
    lines = ["FROM", "A ENGINE", "3 HULL ST", "LONDON"]
    return _box(
        (0.48, 0.26, 0.38), CREAM,
        front=[
            (_stripes((0.0, 0.115), (0.48, 0.03), 0.06), RED),
            (_stripes((0.0, -0.115), (0.48, 0.03), 0.06), NAVY),
            *_label((-0.1, 0.0), (0.22, 0.17), lines, seed=4), *_discs((0.13, 0.0), 0.065),
        ],
        back=[
            (_stripes((0.0, 0.0), (0.48, 0.26), 0.05), TEAL), (_rectangle((0.0, 0.0), (0.34, 0.14)), CREAM),
            *_text((0.0, 0.0), 0.009, ["HANDLE", "WITH CARE"], NAVY),
        ],
        right=[
            (_checker((0.0, 0.0), (0.38, 0.26), 0.038), ORANGE), (_disc((0.0, 0.0), 0.085), CREAM),
            *_text((0.0, 0.0), 0.019, ["24"], BLACK),
        ],
        left=[
            (_barcode((0.0, 0.03), (0.3, 0.13), 0.006, seed=5), BLACK),
            *_text((0.0, -0.085), 0.0075, ["4 006381 333"], BLACK),
        ],
        top=[*_tape(across=True), *_discs((0.17, 0.12), 0.05)],
        bottom=[],
    )


def _tall_box():
    return _box(
        (0.19, 0.37, 0.17), TEAL,
        front=[
            (_rectangle((0.0, 0.11), (0.15, 0.1)), WHITE), *_text((0.0, 0.11), 0.0075, ["TEA", "NO 5"], TEAL),
            (_stripes((0.0, -0.02), (0.19, 0.06), 0.03), YELLOW), *_discs((0.0, -0.12), 0.05),
        ],
        back=[
            (_rectangle((0.0, 0.0), (0.16, 0.3)), WHITE),
            *_text((0.0, 0.06), 0.0043, ["BLACK TEA", "NET 250 G", "", "KEEP COOL", "AND DRY"], BLACK),
            (_barcode((0.0, -0.09), (0.13, 0.08), 0.004, seed=6), BLACK),
        ],
        right=[(_checker((0.0, 0.0), (0.17, 0.37), 0.0425), NAVY)],
        left=[(_stripes((0.0, 0.0), (0.17, 0.37), 0.06), WHITE)],
        top=[(_rectangle((0.0, 0.0), (0.11, 0.09)), YELLOW), (_disc((0.0, 0.0), 0.03), RED)],
        bottom=[],
    )


def _gift_box():
    ribbon = [(_rectangle((0.0, 0.0), (0.04, 9.0)), WHITE), (_rectangle((0.0, 0.0), (0.02, 9.0)), NAVY)]
    dots = [(_dots(0.048, 0.013), YELLOW)]
    cross = [(_rectangle((0.0, 0.0), (9.0, 0.04)), WHITE), (_rectangle((0.0, 0.0), (9.0, 0.02)), NAVY)]
    return _box(
        (0.28, 0.19, 0.26), RED,
        front=dots + ribbon, back=dots + ribbon, right=dots + ribbon, left=dots + ribbon,
        top=dots + cross + ribbon, bottom=[],
    )


def _envelope():
    rim = [
        (_stripes((0.0, 0.0), (9.0, 9.0), 0.05), RED), (_rectangle((0.0, 0.0), (0.25, 0.16)), WHITE),
    ]
    return _box(
        (0.29, 0.035, 0.2), WHITE,
        front=[], back=[], right=[], left=[],
        top=[
            *rim, *_text((-0.01, -0.02), 0.006, ["MS B SPLINE", "8 MESH ROAD", "PARIS"], NAVY),
            (_checker((0.09, 0.05), (0.05, 0.045), 0.0125), TEAL),
        ],
        bottom=[],
    )


FACES = {  # axis of the normal, its sign; what u (to the right, seen from outside) and v (up) are
    "right": (0, 1, (0, 0, -1), (0, 1, 0)), "left": (0, -1, (0, 0, 1), (0, 1, 0)),
    "top": (1, 1, (1, 0, 0), (0, 0, -1)), "bottom": (1, -1, (1, 0, 0), (0, 0, 1)),
    "front": (2, 1, (1, 0, 0), (0, 1, 0)), "back": (2, -1, (-1, 0, 0), (0, 1, 0)),
}


def _box(size, ground, **prints):
    """Box of edge lengths (x, y, z) around the origin, its edges sharp.

    ground : "#rrggbb" of the faces
    prints : for each of ``FACES`` a list of inks, the lower ones first: (where, "#rrggbb"), where
        a function of face coordinates (N, 2) -> (N,) bool. They are object units from the middle.
    """
    x, y, z = np.array(size) / 2

    def colour(points):
        rgb = np.tile(_rgb(ground), (len(points), 1))
        share = points / (x, y, z)
        axis = np.argmax(np.abs(share), axis=1)
        for name, (normal, sign, right, up) in FACES.items():
            mine = np.flatnonzero((axis == normal) & (sign * share[:, normal] > 0))
            at = points[mine] @ np.array([right, up]).T
            for where, ink in prints[name]:
                rgb[mine[where(at)]] = _rgb(ink)
        return rgb

    return prism([(-x, -z), (x, -z), (x, z), (-x, z)], 2 * y).painted(colour)


def _rgb(code):
    return np.array([int(code[i : i + 2], 16) for i in (1, 3, 5)]) / 255


# ---------------------------------------------------------------- where there is ink
# Functions of face coordinates (N, 2) -> (N,) bool, without soft edges: a view's pixels mix them.


def _rectangle(middle, size):
    return lambda at: np.all(np.abs(at - middle) < np.array(size) / 2, axis=1)


def _disc(middle, radius):
    return lambda at: np.linalg.norm(at - middle, axis=1) < radius


def _dots(period, radius):
    """Discs in every other place of a square grid."""

    def where(at):
        row = np.round(at[:, 1] / period)
        x = at[:, 0] - period * (row % 2)
        x = x - 2 * period * np.round(x / (2 * period))
        return np.hypot(x, at[:, 1] - period * row) < radius

    return where


def _stripes(middle, size, period):
    """Slanted stripes, half of each period of ``u``, within a rectangle."""
    inside = _rectangle(middle, size)
    return lambda at: inside(at) & ((at[:, 0] + at[:, 1]) / period % 1 < 0.5)


def _checker(middle, size, cell):
    inside = _rectangle(middle, size)

    def where(at):
        column, row = np.floor((at - middle) / cell).T
        return inside(at) & ((column + row) % 2 == 0)

    return where


def _bitmap(middle, size, ink):
    """Pixels of a bool array (R, C), row 0 at the top, that fill a rectangle."""
    corner = np.array(middle) - np.array(size) / 2

    def where(at):
        x, y = ((at - corner) / size).T
        inside = (x >= 0) & (x < 1) & (y >= 0) & (y < 1)
        row = ((1 - y[inside]) * len(ink)).astype(int).clip(0, len(ink) - 1)
        found = np.zeros(len(at), dtype=bool)
        found[inside] = ink[row, (x[inside] * ink.shape[1]).astype(int)]
        return found

    return where


def _barcode(middle, size, bar, seed):
    """Bars and gaps, one to three times as wide as ``bar`` each."""
    widths = np.random.default_rng(seed).integers(1, 4, int(size[0] / bar))
    bars = np.repeat(np.arange(len(widths)) % 2 == 0, widths)[: int(size[0] / bar)]
    return _bitmap(middle, size, bars[None])


# ---------------------------------------------------------------- prints: lists of inks

GLYPHS = dict(zip(  # five rows of three bits each
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 ",
    "25755 65656 34443 65556 74647 74644 34553 55755 72227 11152 55655 44447 57755 65555 25552 "
    "65644 25563 65655 34216 72222 55557 55552 55775 55255 55222 71247 75557 26227 61247 61216 "
    "55711 74616 34757 71244 75757 75716 00000".split(),
    strict=True,
))  # fmt: skip


def _text(middle, cell, lines, ink):
    """Lines of capitals, flush left; ``cell`` is the edge of the squares that they are made of."""
    n_letters = max(map(len, lines))
    rows = np.zeros((7 * len(lines) - 2, 4 * n_letters - 1), dtype=bool)
    for i, line in enumerate(lines):
        for j, letter in enumerate(line):
            glyph = [[int(row) >> bit & 1 for bit in (2, 1, 0)] for row in GLYPHS[letter]]
            rows[7 * i : 7 * i + 5, 4 * j : 4 * j + 3] = glyph
    return [(_bitmap(middle, (cell * rows.shape[1], cell * rows.shape[0]), rows), ink)]


def _label(middle, size, lines, seed):
    """A sticker with a frame, an address and a bar code below it."""
    (u, v), (width, height) = middle, size
    cell = min(0.9 * width / (4 * max(map(len, lines))), 0.6 * height / (7 * len(lines)))
    return [
        (_rectangle(middle, size), WHITE),
        (_rectangle(middle, (width - 0.012, height - 0.012)), BLACK),
        (_rectangle(middle, (width - 0.02, height - 0.02)), WHITE),
        *_text((u, v + 0.14 * height), cell, lines, BLACK),
        (_barcode((u, v - 0.32 * height), (0.8 * width, 0.2 * height), 0.005, seed), BLACK),
    ]


def _discs(middle, radius):
    """Something like a maker's sign: overlapping discs, each with a hole."""
    inks = []
    for turn, ink in ((90, RED), (210, NAVY), (330, YELLOW)):
        angle = np.radians(turn)
        at = np.add(middle, 0.5 * radius * np.array([np.cos(angle), np.sin(angle)]))
        inks += [(_disc(at, 0.5 * radius), ink), (_disc(at, 0.22 * radius), WHITE)]
    return [(_disc(middle, 1.1 * radius), WHITE), *inks, (_disc(middle, 0.16 * radius), BLACK)]


def _tape(across=False):
    """A strip with thin rims through the middle of a face, upright or across."""
    inks = ((0.06, DARK_KRAFT), (0.048, TAPE))
    return [(_rectangle((0.0, 0.0), (9.0, w) if across else (w, 9.0)), ink) for w, ink in inks]


def _arrows(middle, height, ink):
    """An arrow that points up, on a bar."""
    u, v = middle

    def head(at):
        below = v + height / 2 - at[:, 1]
        return (below > 0) & (below < 0.5 * height) & (np.abs(at[:, 0] - u) < 0.7 * below)

    return [
        (head, ink), (_rectangle((u, v - 0.12 * height), (0.24 * height, 0.3 * height)), ink),
        (_rectangle((u, v - 0.42 * height), (0.8 * height, 0.1 * height)), ink),
    ]
