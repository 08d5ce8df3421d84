"""Closed, coloured triangle meshes to build objects from, and textures to paint them with.

An object is a list of ``Part``. Parts may overlap: the object is their union. Lengths are object
units (the object lies in the cube [-0.5, 0.5]^3), y points up, angles are degrees.

A colour is a function ``points (N, 3) -> rgb (N, 3) in [0, 1]``; a weight is a function
``points (N, 3) -> (N,) in [0, 1]``. ``mix`` lays one colour over another where a weight says so.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy.interpolate import CubicSpline

EDGE = 0.006  # width over which a texture goes from one colour to the other


@dataclass(frozen=True)
class Part:
    """A closed triangle mesh that does not cut itself, faces counter-clockwise from outside.

    vertices : (V, 3) float64.
    faces : (F, 3) int64 vertex indices.
    colour : texture in the coordinates of ``vertices``.
    """

    vertices: np.ndarray
    faces: np.ndarray
    colour: Callable

    def painted(self, colour):
        return replace(self, colour=colour)

    def moved(self, x=0.0, y=0.0, z=0.0):
        return self._transformed(np.eye(3), np.array([x, y, z]))

    def turned(self, axis, angle):
        """Rotate counter-clockwise about axis ``"x"``, ``"y"`` or ``"z"`` through the origin."""
        i = "xyz".index(axis)
        j, k = (i + 1) % 3, (i + 2) % 3
        c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
        rotation = np.eye(3)
        rotation[[j, j, k, k], [j, k, j, k]] = c, -s, s, c
        return self._transformed(rotation, np.zeros(3))

    def scaled(self, factor):
        """Grow, texture and all, about the origin."""
        colour = self.colour
        return replace(
            self, vertices=factor * self.vertices, colour=lambda points: colour(points / factor)
        )

    def _transformed(self, rotation, shift):
        colour = self.colour
        return replace(
            self,
            vertices=self.vertices @ rotation.T + shift,
            colour=lambda points: colour((points - shift) @ rotation),
        )


# ---------------------------------------------------------------- bodies


def loft(rings, closed=False):
    """Skin over a sequence of rings.

    Parameters
    ----------
    rings : (S, K, 3) array
        Ring s is a closed polygon. Equal neighbouring points and rings are welcome.
    closed : bool
        Join the last ring to the first; otherwise the two end rings get flat caps, fans around
        the mean of the ring, which must see the whole ring.
    """
    rings = np.asarray(rings, dtype=np.float64)
    n_rings, n_points = rings.shape[:2]
    index = np.arange(n_rings * n_points).reshape(n_rings, n_points)
    here, there = (index, np.roll(index, -1, 0)) if closed else (index[:-1], index[1:])
    a, b = here, np.roll(here, -1, 1)
    c, d = np.roll(there, -1, 1), there
    faces = [np.stack([a, b, c], -1).reshape(-1, 3), np.stack([a, c, d], -1).reshape(-1, 3)]
    vertices = [rings.reshape(-1, 3)]
    if not closed:
        vertices.append(rings[[0, -1]].mean(1))
        for ring, centre in ((index[0][::-1], index.size), (index[-1], index.size + 1)):
            fan = [ring, np.roll(ring, -1), np.full(n_points, centre)]
            faces.append(np.stack(fan, -1))
    return _part(np.concatenate(vertices), np.concatenate(faces))


def prism(outline, height, bevel=0.0):
    """Polygon extruded along y, centred at y = 0, its two rims rounded off.

    outline : (K, 2) array, (x, z) of a polygon that sees all of itself from its mean point.
    bevel : radius of the rounding; at most half the height, and less than the outline allows.
    """
    outline = np.asarray(outline, dtype=np.float64)
    angle = np.radians(np.linspace(0, 90, 5 if bevel else 1))
    inset, rise = bevel * (1 - np.sin(angle)), bevel * (1 - np.cos(angle))
    inset, y = np.r_[inset, inset[::-1]], np.r_[rise - height / 2, height / 2 - rise[::-1]]
    edge = np.roll(outline, -1, 0) - outline
    turn = np.sign(np.sum(outline[:, 0] * edge[:, 1] - outline[:, 1] * edge[:, 0]))
    normal = turn * np.stack([edge[:, 1], -edge[:, 0]], 1)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    before = np.roll(normal, 1, 0)
    mitre = (before + normal) / (1 + np.sum(before * normal, 1, keepdims=True))
    flat = outline - inset[:, None, None] * mitre
    return loft(np.stack([flat[..., 0], np.repeat(y[:, None], len(outline), 1), flat[..., 1]], -1))


def box(x, y, z, corner=0.02, bevel=0.01):
    """Box of the given edge lengths centred at the origin, vertical edges and rims rounded."""
    return prism(rounded_rectangle(x, z, corner), y, bevel)


def rounded_rectangle(x, z, corner):
    """Outline (K, 2) of a rectangle of edge lengths x and z with rounded corners."""
    angle = np.radians(np.add.outer([0, 90, 180, 270], np.linspace(0, 90, 9)))
    centre = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) * [x / 2 - corner, z / 2 - corner]
    arc = corner * np.stack([np.cos(angle), np.sin(angle)], -1)
    return (centre[:, None] + arc).reshape(-1, 2)


def superellipse(x, z, power=2.0, n=48):
    """Outline (K, 2) of a superellipse with half axes x and z: from ellipse (2) to rectangle."""
    angle = np.linspace(0, 2 * np.pi, n, endpoint=False)
    unit = np.stack([np.cos(angle), np.sin(angle)], 1)
    return np.sign(unit) * np.abs(unit) ** (2 / power) * [x, z]


def revolve(profile, n=96):
    """Body of revolution about the y axis; profile (K, 2) = (radius, y) from one end to the other.

    The profile may double back, as that of a cup does. Ends off the axis are closed flat.
    """
    radius, y = np.asarray(profile, dtype=np.float64).T
    angle = np.linspace(0, 2 * np.pi, n, endpoint=False)
    rings = np.stack(np.broadcast_arrays(
        radius[:, None] * np.cos(angle), y[:, None], radius[:, None] * np.sin(angle)
    ), -1)
    return loft(rings)


def sphere(radius, n=64):
    """Sphere around the origin, its vertices on the true sphere."""
    angle = np.linspace(-np.pi / 2, np.pi / 2, n // 2 + 1)
    return revolve(radius * np.stack([np.cos(angle), np.sin(angle)], 1), n)


def tube(path, radius, up=(0.0, 1.0, 0.0), closed=False, n=24, power=2.0):
    """Superellipse swept along a path.

    Parameters
    ----------
    path : (S, 3) array
    radius : float, or array that broadcasts to (S, 2)
        Half axes (sideways, along ``up``) of the cross-section.
    up : (3,) array
        Any direction that the path never runs along.
    closed : bool
        Join the end of the path to its start.
    power : float
        From an ellipse (2) to a rectangle, see ``superellipse``.
    """
    path = np.asarray(path, dtype=np.float64)
    if closed:
        tangent = np.roll(path, -1, 0) - np.roll(path, 1, 0)
    else:
        tangent = np.gradient(path, axis=0)
    side = np.cross(up, tangent)
    side /= np.linalg.norm(side, axis=1, keepdims=True)
    top = np.cross(tangent, side)
    top /= np.linalg.norm(top, axis=1, keepdims=True)
    radius = np.broadcast_to(np.asarray(radius, dtype=np.float64), (len(path), 2))
    outline = superellipse(1, 1, power, n)
    across = radius[:, None, :1] * outline[:, :1] * side[:, None]
    along = radius[:, None, 1:] * outline[:, 1:] * top[:, None]
    return loft(path[:, None] + across + along, closed)


def sections(x, y, half_height, half_width, power=2.0, n=40):
    """Skin over upright superellipses along the x axis, such as a fuselage.

    x, y : centres of the sections; half_height (along y), half_width (along z); all broadcast.
    """
    outline = superellipse(1, 1, power, n).T
    x, y, tall, wide = (
        v[:, None] for v in np.broadcast_arrays(np.asarray(x, float), y, half_height, half_width)
    )
    rings = np.broadcast_arrays(x, y + tall * outline[1], wide * outline[0])
    return loft(np.stack(rings, -1))


def rod(start, end, radius, power=2.0, n=24):
    """Straight bar between two points; radius as in ``tube``, or one per end, (2, 1)."""
    axis = np.subtract(end, start)
    up = np.eye(3)[2 if abs(axis[1]) > 0.9 * np.linalg.norm(axis) else 1]
    return tube([start, end], radius, up, n=n, power=power)


def torus(radius, thickness, n=64):
    """Ring around the z axis: ``radius`` of its centre line, ``thickness`` the tube's radius."""
    angle = np.linspace(0, 2 * np.pi, n, endpoint=False)
    path = radius * np.stack([np.cos(angle), np.sin(angle), np.zeros(n)], 1)
    return tube(path, thickness, up=(0.0, 0.0, 1.0), closed=True)


def smooth(points, n=33):
    """Curve (n, D) through points (K, D), a cubic spline."""
    points = np.asarray(points, dtype=np.float64)
    return CubicSpline(np.arange(len(points)), points)(np.linspace(0, len(points) - 1, n))


def _part(vertices, faces):
    """Drop faces without area and turn the rest outwards."""
    a, b, c = vertices[faces].transpose(1, 0, 2)
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    if np.sum(np.cross(a, b) * c) < 0:  # six times the signed volume
        faces = faces[:, ::-1]
    return Part(vertices, faces[area > 1e-12], solid("#b0b0b0"))


# ---------------------------------------------------------------- colours and weights


def solid(code):
    """One colour, ``"#rrggbb"``."""
    rgb = np.array([int(code[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return lambda points: np.broadcast_to(rgb, points.shape)


def mix(below, above, weight):
    """The colour ``above`` laid over ``below`` with opacity ``weight``."""

    def colour(points):
        w = weight(points)[:, None]
        return (1 - w) * below(points) + w * above(points)

    return colour


def ramp(direction, start, end):
    """Weight 0 where ``points @ direction`` is below ``start``, smoothly 1 from ``end`` on."""
    return lambda points: _smoothstep((points @ np.asarray(direction) - start) / (end - start))


def band(direction, start, end):
    """Weight 1 where ``points @ direction`` lies between ``start`` and ``end``."""
    half, middle = (end - start) / 2, (end + start) / 2
    return lambda points: _step(half - np.abs(points @ np.asarray(direction) - middle))


def stripes(direction, period, share=0.5, phase=0.0):
    """Weight 1 on a ``share`` of each ``period`` along ``direction``."""

    def weight(points):
        t = (points @ np.asarray(direction)) / period + phase
        return _step(period * (share / 2 - np.abs(t - np.round(t))))

    return weight


def sectors(centre, count, phase=0.0):
    """Weight 1 on every other of ``2 * count`` sectors around the z axis through ``centre``."""

    def weight(points):
        x, y = (points - np.asarray(centre))[:, :2].T
        wave = np.sin(count * np.arctan2(y, x) + np.radians(phase))
        return _step(wave * np.hypot(x, y) / count)

    return weight


def spot(centre, radius, axes=(1.0, 1.0, 1.0)):
    """Weight 1 within an ellipsoid; ``axes`` divides distances, so inf means "any"."""
    return lambda points: _step(
        radius - np.linalg.norm((points - np.asarray(centre)) / np.asarray(axes), axis=1)
    )


def both(first, second):
    """Weight where both weights are 1."""
    return lambda points: first(points) * second(points)


def _step(signed_distance):
    return _smoothstep(signed_distance / EDGE + 0.5)


def _smoothstep(t):
    t = np.clip(t, 0, 1)
    return t * t * (3 - 2 * t)
