"""Hollows: a mug that cameras look into, on a tin whose hollow nobody sees."""

from dataclasses import replace

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from im2mesh.synthetic.shapes import (
    band, both, mix, ramp, revolve, rod, sectors, smooth, solid, sphere, spot, stripes, tube,
)

X, Y, Z = np.eye(3)
TEAL, DARK_TEAL, CREAM, WHITE = map(solid, ("#1d8a8f", "#146068", "#f5ead0", "#fdfbf5"))
RED, ORANGE, YELLOW, PINK = map(solid, ("#cf3a34", "#f08a2c", "#f7c531", "#ee6f8e"))
NAVY, GREEN = map(solid, ("#27407e", "#5aa544"))

TIN_TOP = -0.15  # y of the tin's lid, which the mug stands on
RADIUS, WALL = 0.255, 0.024  # of the mug, and the thickness of its wall
RIM, FLOOR = 0.24, -0.11  # y of the mug's rim, and of its floor inside


def vessel():
    """Parts of the mug and the tin, all within 0.45 of the origin along every axis.

    The mug is open: its inside, in colours of its own, shows in views from above. The hollow of
    the tin, and the ball in it, show nowhere.
    """
    return [*_tin(), *_mug(), *_straw()]


def hollow(outer, inner):
    """A body less a hollow inside it.

    Parameters
    ----------
    outer, inner : Part
        Closed; ``inner`` lies inside ``outer``, which gives the colour.

    Returns
    -------
    Part
        Its faces look out of the material: those of the inner wall into the hollow.
    """
    return replace(
        outer,
        vertices=np.concatenate([outer.vertices, inner.vertices]),
        faces=np.concatenate([outer.faces, inner.faces[:, ::-1] + len(outer.vertices)]),
    )


def filled(part):
    """A part without the walls of its closed hollows, which no ray from outside ever meets.

    Parts only add material, so that none of them can open a hollow of another. These walls are
    connected faces of negative volume.
    """
    edges = np.concatenate([part.faces[:, [0, 1]], part.faces[:, [1, 2]]])
    graph = coo_array((np.ones(len(edges)), edges.T), shape=2 * [len(part.vertices)])
    _, label = connected_components(graph, directed=False)
    label = label[part.faces[:, 0]]
    a, b, c = part.vertices[part.faces].transpose(1, 0, 2)
    volumes = np.bincount(label, np.sum(np.cross(a, b) * c, axis=1))
    return replace(part, faces=part.faces[volumes[label] > 0])


# ---------------------------------------------------------------- tin


def _tin():
    outer = revolve([
        (0, -0.42), (0.365, -0.42), (0.38, -0.405), (0.38, -0.205), (0.395, -0.205), (0.395, -0.165),
        (0.38, TIN_TOP), (0, TIN_TOP),
    ], 128)  # fmt: skip
    inner = revolve([(0, -0.37), (0.32, -0.37), (0.32, -0.21), (0, -0.21)], 64)
    turns = sectors((0, 0, 0), 14)
    scales = mix(CREAM, TEAL, lambda points: turns(points[:, [0, 2, 1]]))
    side = mix(scales, RED, band(Y, -0.35, -0.27))
    side = mix(side, YELLOW, both(band(Y, -0.35, -0.27), _around(18, 0.5)))
    lid = mix(NAVY, WHITE, both(_around(40, 0.5), band(Y, -0.195, -0.175)))
    for radius, paint in ((0.345, CREAM), (0.325, NAVY), (0.3, CREAM)):
        lid = mix(lid, paint, both(spot((0, 0, 0), radius, (1, np.inf, 1)), ramp(Y, -0.154, -0.152)))
    tin = hollow(outer, inner).painted(mix(side, lid, ramp(Y, -0.208, -0.204)))
    return [tin, sphere(0.06).painted(RED).moved(0.1, -0.308, 0.05)]


def _around(count, share):
    """Weight 1 on a ``share`` of each of ``count`` sectors around the y axis."""
    wave = stripes((1.0, 0, 0), 1 / count, share)

    def weight(points):
        turn = np.arctan2(points[:, 2], points[:, 0]) / (2 * np.pi)
        return (wave(turn[:, None] * X) > 0.5).astype(float)

    return weight


# ---------------------------------------------------------------- mug


def _mug():
    angle = np.radians(np.linspace(0, 180, 9))
    lip = np.stack([RADIUS + WALL / 2 * (np.cos(angle) - 1), RIM + WALL / 2 * np.sin(angle)], 1)
    outer = [(0, TIN_TOP - 0.002), (0.2, TIN_TOP - 0.002), (0.235, -0.1), (RADIUS, 0.0)]
    inner = [(RADIUS - WALL, 0.0), (0.212, -0.08), (0.185, FLOOR), (0, FLOOR)]
    cup = revolve([*outer, *lip, *inner], 128)

    def inside(points):
        middle = np.interp(points[:, 1], [FLOOR, -0.08, 0.0], [0.205, 0.225, RADIUS - WALL / 2])
        above = points[:, 1] > FLOOR - 0.004
        return (above & (np.hypot(points[:, 0], points[:, 2]) < middle)).astype(float)

    lining = mix(mix(ORANGE, YELLOW, _around(12, 0.5)), WHITE, band(Y, 0.12, 0.145))
    lining = mix(lining, PINK, ramp(-Y, 0.03, 0.034))
    for radius, paint in ((0.18, NAVY), (0.145, WHITE), (0.1, RED), (0.05, YELLOW)):
        disc = both(ramp(-Y, -FLOOR - 0.004, -FLOOR - 0.002), spot((0, 0, 0), radius, (1, np.inf, 1)))
        lining = mix(lining, paint, disc)
    glaze = mix(TEAL, DARK_TEAL, ramp(-Y, 0.02, 0.13))
    glaze = mix(glaze, CREAM, both(_around(9, 0.55), band(Y, -0.02, 0.06)))
    glaze = mix(glaze, WHITE, band(Y, 0.105, 0.12))
    glaze = mix(mix(glaze, WHITE, band(Y, 0.14, 0.19)), RED, both(band(Y, 0.14, 0.19), _around(24, 0.5)))
    bow = smooth([(0.247, 0.15, 0), (0.28, 0.151, 0), (0.335, 0.138, 0), (0.38, 0.06, 0),
                  (0.335, -0.03, 0), (0.275, -0.05, 0), (0.233, -0.052, 0)], 49)  # fmt: skip
    handle = tube(bow, (0.018, 0.028), up=Z).painted(mix(GREEN, YELLOW, stripes(Y, 0.06)))
    return [cup.painted(mix(glaze, lining, inside)), handle.turned("y", 35)]


def _straw():
    low, high = (-0.1, FLOOR - 0.004, 0.06), (-0.2, 0.42, 0.12)
    return [rod(low, high, 0.0125).painted(mix(WHITE, RED, stripes(X + Y, 0.05)))]
