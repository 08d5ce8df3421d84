"""Slow, plain twins of the fast code, written from the method's text: oracles for tests.

They share nothing with what they check but the network's forward pass: rays come from the 4x4
inverse, every sample of every ray is evaluated, each loss term calls the network on its own, and
all derivatives are automatic.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F

from im2mesh.dvr.fields.simple import ResidualField


def octahedron_decoder(c_dim=0, seed=0, noise=0.04, radius=0.5, center=(0.1, 0.05, -0.05),
                       slope=8.0, hidden_size=16, n_blocks=3, leaky=False):
    """A small decoder, all of whose weights matter, with a surface that is known roughly.

    Without noise its logit is ``slope * (radius - |x| - |y| - |z|)`` from the centre (with
    ``leaky`` the sum counts 0.8); the noise bends that surface and makes colours.
    """
    decoder = ResidualField(c_dim=c_dim, hidden_size=hidden_size, n_blocks=n_blocks, leaky=leaky)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.normal_(0, noise, generator=generator)
        decoder.fc_p.weight[:3] += torch.eye(3)
        decoder.fc_p.weight[3:6] -= torch.eye(3)
        decoder.fc_p.bias[:6] += decoder.fc_p.weight[:6] @ -torch.tensor(center)
        decoder.fc_out.weight[0, :6] -= slope
        decoder.fc_out.weight[1:] *= 20
        decoder.fc_out.bias[0] += slope * radius
    return decoder


def promise(side):
    """An estimate from a function of points that says -1, 1, or 0 where it does not know."""

    def estimate(points, rays):
        sides = side(points)
        return sides.to(points.dtype), torch.where(sides == 0, torch.inf, 0.0)

    return estimate


def ray(x, y, camera_mat, world_mat, scale_mat):
    """Origin and direction (3,) of one image point, in float64 numpy."""
    back = np.linalg.inv(np.asarray(camera_mat @ world_mat @ scale_mat, dtype=np.float64))
    origin = (back @ [0, 0, 0, 1])[:3]
    return origin, (back @ [x, y, 1, 1])[:3] - origin


def interval(origin, direction, padding):
    """Where one ray is inside the padded cube: (near, far), or None.

    By intersection with the six faces; rays in or through an edge are left to chance.
    """
    half = 0.5 + padding / 2
    depths = [0.0] if np.abs(origin).max() < half else []
    for axis in range(3):
        for side in (-half, half):
            if direction[axis] != 0:
                depth = (side - origin[axis]) / direction[axis]
                point = origin + depth * direction
                if depth > 0 and np.abs(np.delete(point, axis)).max() <= half:
                    depths.append(depth)
    return (min(depths), max(depths)) if len(depths) > 1 else None


def march(field, origins, directions, near, far, n_steps, n_secant_steps=8, method="secant"):
    """Depth of the first surface along every ray: inf for a miss, 0 for a ray that starts inside.

    ``field(points (M, 3), rays (M,))`` as in ``im2mesh.dvr.raymarch``. All samples of all rays are
    evaluated, one ray after another is looked at.

    Returns
    -------
    list of float
    """

    def at(rays, depths):
        depths = torch.tensor(depths, dtype=near.dtype)
        points = origins[rays] + depths[:, None] * directions[rays]
        return field(points, torch.tensor(rays)).tolist()

    def guess(low, low_value, high, high_value):
        if method == "bisection" or low_value == high_value:
            return (low + high) / 2
        return low - low_value * (high - low) / (high_value - low_value)

    result = [math.inf] * len(near)
    brackets = {}
    for i, (start, end) in enumerate(zip(near.tolist(), far.tolist())):
        if start >= end:
            continue
        n = int(n_steps[i]) if torch.is_tensor(n_steps) else n_steps
        depths = [start + (end - start) * j / (n - 1) for j in range(n)]
        values = at([i] * n, depths)
        if values[0] >= 0:
            result[i] = 0.0
            continue
        for j in range(n - 1):
            if values[j] < 0 and values[j + 1] >= 0:
                brackets[i] = (depths[j], values[j], depths[j + 1], values[j + 1])
                break
    rays = list(brackets)
    for _ in range(n_secant_steps if rays else 0):
        depths = [guess(*brackets[i]) for i in rays]
        for i, depth, value in zip(rays, depths, at(rays, depths)):
            low, low_value, high, high_value = brackets[i]
            if value < 0:
                brackets[i] = (depth, value, high, high_value)
            else:
                brackets[i] = (low, low_value, depth, value)
    for i in rays:
        result[i] = guess(*brackets[i])
    return result


@dataclass
class Loss:
    """Every term of a batch.

    values : dict of Tensor
        By term, one value per ray (or patch) that it applies to.
    hit, mask : bool (B, N)
        Of the pixels.
    """

    values: dict = field(default_factory=dict)
    hit: np.ndarray = None
    mask: np.ndarray = None

    def terms(self, reduction):
        """Each term reduced over its rays and divided by the number of images."""
        reduce = {"sum": torch.sum, "mean": lambda v: v.mean() if len(v) else v.sum()}[reduction]
        return {name: reduce(v) / len(self.hit) for name, v in self.values.items()}


def loss(model, batch, options, n_steps, uniform, normal, positions=None):
    """The loss of a batch, term by term (method, section 5).

    Parameters
    ----------
    n_steps : int
        Samples per ray.
    uniform, normal : float
        The number that every uniform draw from [0, 1), and every normal draw, gives.
    positions : list of lists of arrays (K, 2), optional
        Per image its patches, each a list of (row, column); every pixel once when None.

    Returns
    -------
    Loss
    """
    n_images, (height, width) = len(batch["img"]), batch["img"][0].shape[:2]
    if positions is None:
        positions = [tiles(height, width, options.patch_size)] * n_images
    result = Loss()
    values, masks, hits = {name: [] for name in options.weights}, [], []
    for b in range(n_images):
        item = {key: value[b] for key, value in batch.items()}
        image = _Image(model, item, options, n_steps, uniform, normal)
        hit, mask = image.loss(positions[b], values)
        hits.append(hit)
        masks.append(mask)
    result.hit, result.mask = np.array(hits), np.array(masks)
    result.values = {name: torch.cat(parts) for name, parts in values.items() if parts}
    return result


def tiles(height, width, patch_size):
    """All pixels of an image in patches from the top left; the rest one by one."""
    left, patches = {(i, j) for i in range(height) for j in range(width)}, []
    for i in range(0, height - patch_size + 1, patch_size):
        for j in range(0, width - patch_size + 1, patch_size):
            patch = [(i + u, j + v) for u in range(patch_size) for v in range(patch_size)]
            patches.append(np.array(patch, dtype=float))
            left -= set(patch)
    return patches + [np.array([pixel], dtype=float) for pixel in sorted(left)]


class _Image:
    """One image of a batch."""

    def __init__(self, model, item, options, n_steps, uniform, normal):
        self.model, self.item, self.options = model, item, options
        self.n_steps, self.uniform, self.normal = n_steps, uniform, normal
        self.shifts = None
        if model.encoder is not None:
            self.shifts = model.decoder.condition(model.encoder(item["inputs"][None]))
        names = ("img.camera_mat", "img.world_mat", "img.scale_mat")
        self.matrices = [item[name].numpy() for name in names]

    def network(self, points):
        return self.model.decoder(points, self.shifts)

    def loss(self, patches, values):
        """Append this image's values to the lists of ``values``; returns hit and mask."""
        height, width = self.item["img.mask"].shape
        pixels = [
            (2 * column / (width - 1) - 1, 2 * row / (height - 1) - 1)
            for patch in patches
            for row, column in patch
        ]
        nearest = [(round(row), round(column)) for patch in patches for row, column in patch]

        def looked_up(key):
            return torch.stack([self.item[key][row, column] for row, column in nearest])

        mask = looked_up("img.mask").tolist()
        true_rgb = looked_up("img") / 255.0
        rays = [ray(*pixel, *self.matrices) for pixel in pixels]
        depths = self.march(rays)
        hit = [0 < depth < math.inf for depth in depths]
        both = [i for i in range(len(rays)) if hit[i] and mask[i]]
        weights = self.options.weights

        if weights.get("rgb"):
            rgb = torch.sigmoid(self.network(self.surface(rays, depths, both)[1])[:, 1:])
            values["rgb"].append((rgb - true_rgb[both]).abs().sum(1))
        if weights.get("image_gradients"):
            values["image_gradients"].append(
                self.image_gradients(patches, rays, depths, both, true_rgb)
            )
        if weights.get("depth"):
            true = looked_up("img.depth")
            known = [i for i in both if math.isfinite(true[i])]
            true_points = self.points(rays, true.tolist(), known)
            values["depth"].append(self.depth_values(rays, depths, known, true[known], true_points))
        if weights.get("sparse_depth"):
            values["sparse_depth"].append(self.sparse_depth())
        if weights.get("normal"):
            at = self.points(rays, depths, [i for i in range(len(rays)) if hit[i]])
            offset = 1e-3 * (self.uniform - 0.5)
            values["normal"].append((self.normals(at) - self.normals(at + offset)).norm(dim=1))
        if weights.get("freespace"):
            values["freespace"].append(self.freespace(rays, depths, hit, mask))
        if weights.get("occupied"):
            values["occupied"].append(self.occupied(rays, hit, mask, looked_up))
        return hit, mask

    def march(self, rays):
        if self.options.use_cube_intersection:
            near, far = zip(*(interval(*ray, 0.1) or (0, 0) for ray in rays))
        else:
            near, far = zip(*[self.options.depth_range] * len(rays))
        origins, directions = (torch.tensor(np.array(v)) for v in zip(*rays))
        threshold = math.log(self.model.depth_function.tau / (1 - self.model.depth_function.tau))
        with torch.no_grad():
            return march(
                lambda points, rays: self.network(points.float())[:, 0] - threshold,
                origins,
                directions,
                torch.tensor(near).double(),
                torch.tensor(far).double(),
                self.n_steps,
            )

    def interval(self, ray, padding):
        """Where a random depth of a ray may lie, or None."""
        if self.options.use_cube_intersection:
            return interval(*ray, padding)
        return 0.0, self.options.depth_range[1]

    def points(self, rays, depths, which):
        """Points of some rays at their depths, without gradients."""
        points = [rays[i][0] + depths[i] * rays[i][1] for i in which]
        return torch.tensor(np.array(points).reshape(-1, 3), dtype=torch.float32)

    def surface(self, rays, depths, which):
        """Depths (M,) and points (M, 3) of hits with the gradient of equation 4."""
        points = self.points(rays, depths, which).requires_grad_()
        directions = torch.tensor(np.array([rays[i][1] for i in which]).reshape(-1, 3)).float()
        logit = self.network(points)[:, 0]
        (gradient,) = torch.autograd.grad(logit.sum(), points, retain_graph=True)
        slope = (gradient * directions).sum(1)
        least = self.options.min_slope
        slope = torch.where(slope < 0, slope.clamp(max=-least), slope.clamp(min=least))
        found = torch.tensor([depths[i] for i in which], dtype=torch.float32)
        depth = found - (logit - logit.detach()) / slope
        return depth, points.detach() + (depth - found)[:, None] * directions

    def normals(self, points):
        points = points.clone().requires_grad_()
        logit = self.network(points)[:, 0].sum()
        return -F.normalize(torch.autograd.grad(logit, points, create_graph=True)[0], dim=1)

    def image_gradients(self, patches, rays, depths, both, true):
        rgb = torch.zeros(len(rays), 3)
        rgb[both] = torch.sigmoid(self.network(self.surface(rays, depths, both)[1])[:, 1:])
        start, values = 0, []
        for patch in patches:
            rows = range(start, start + len(patch))
            start += len(patch)
            if len(patch) == self.options.patch_size**2 and set(rows) <= set(both):
                first, right, below = rows[0], rows[1], rows[self.options.patch_size]
                for channel in range(3):
                    dx = (rgb[right] - rgb[first] - true[right] + true[first])[channel]
                    dy = (rgb[below] - rgb[first] - true[below] + true[first])[channel]
                    values.append((dx**2 + dy**2).sqrt())
        if not values:
            return rgb.new_zeros(0)
        return torch.stack(values).view(-1, 3).sum(1)

    def depth_values(self, rays, depths, which, true, true_points):
        depth, points = self.surface(rays, depths, which)
        if self.options.depth_loss_on_world_points:
            return (points - true_points).norm(dim=1)
        return (depth - true).abs()

    def sparse_depth(self):
        camera, world, scale = self.matrices
        seen = self.item["sparse_depth.points"][self.item["sparse_depth.valid"]].double().numpy()
        seen = np.c_[seen, np.ones(len(seen))]
        x, y, z, _ = camera @ world @ seen.T
        rays = [ray(*pixel, *self.matrices) for pixel in zip(x / z, y / z)]
        depths = self.march(rays)
        hit = [i for i in range(len(rays)) if 0 < depths[i] < math.inf]
        true_points = (np.linalg.inv(scale) @ seen.T).T[hit, :3]
        return self.depth_values(
            rays, depths, hit, torch.tensor(z[hit]).float(), torch.tensor(true_points).float()
        )

    def freespace(self, rays, depths, hit, mask):
        at = []
        for i in range(len(rays)):
            found = self.interval(rays[i], 0.1)
            if not mask[i] and hit[i]:
                at.append(depths[i])
            elif not mask[i] and found and self.options.always_freespace:
                at.append(found[0] + self.uniform * (found[1] - found[0]))
            else:
                at.append(None)
        which = [i for i in range(len(rays)) if at[i] is not None]
        probability = torch.sigmoid(self.network(self.points(rays, at, which))[:, 0])
        return -(1 - probability).log()

    def occupied(self, rays, hit, mask, looked_up):
        maps = [
            looked_up(key).tolist()
            for key in ("img.depth", "img.visual_hull_depth")
            if key in self.item
        ]
        at = [None] * len(rays)
        for i in range(len(rays)):
            found = self.interval(rays[i], 0.0)
            known = [depths[i] for depths in maps if math.isfinite(depths[i])]
            if hit[i] or not mask[i]:
                continue
            if known:
                at[i] = known[0]
            elif found and self.options.occupancy_random_normal:
                at[i] = (found[0] + found[1]) / 2 + self.normal * (found[1] - found[0]) / 8
            elif found:
                at[i] = found[0] + self.uniform * (found[1] - found[0])
        which = [i for i in range(len(rays)) if at[i] is not None]
        return -torch.sigmoid(self.network(self.points(rays, at, which))[:, 0]).log()
