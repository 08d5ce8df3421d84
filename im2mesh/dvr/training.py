"""The loss of a batch, training steps and validation (paper, section 3.4; method, section 5).

Of all the terms that a ray may enter, each needs the network at one point only: at the surface,
or at one random depth in free or in occupied space. These points are gathered over all rays and
objects, and the network runs once with gradients. Nothing is evaluated that no term needs.
"""

import math
from collections import defaultdict
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F

from im2mesh import geometry
from im2mesh.dvr import losses
from im2mesh.dvr.bounds import FINE, OccupancyBounds
from im2mesh.dvr.field import outward_normals
from im2mesh.dvr.implicit import depth_with_gradient, follow_surface
from im2mesh.dvr.patches import PatchConsistency
from im2mesh.dvr.sampling import mask_boxes, sample_pixels
from im2mesh.dvr.silhouettes import Silhouettes
from im2mesh.dvr.support import FREE, SIDE, Support, with_neighbors
from im2mesh.dvr.visibility import SeenCells

COLOR_TERMS = {"rgb", "image_gradients"}
VIEW_TERMS = {"patch", "silhouettes"}  # ask all views of the object
TRAINING_TERMS = VIEW_TERMS | {"unseen"}  # not of single views: validation leaves them out
DEPTH_TERMS = {"depth", "sparse_depth"}  # read from disk only where their weight is not 0
RAY_MEANS = {  # term: what validation calls its mean over rays
    "rgb": "loss_rgb_eval",
    "depth": "loss_depth_eval",
    "sparse_depth": "loss_sparse_depth_val",
    "normal": "normal_loss_eval",
}
EMPTY = -20.0  # a logit of free space whose loss, exp(-20), no sum of float32 shows
LOOK_EVERY = (16, 128)  # iterations to the next look at the field as a whole: least and most
STALE = (0.1, 0.3)  # staleness of the bounds below which looks get rarer, above which more frequent
PROBES = 4  # of the bounds from a look to the next, the last when that is due
PROBE_RAYS = 256  # of each probe; one that the bounds mislead is enough to look at once
SAME_SURFACE = 1e-3  # cube edges
OBJECT_GRID = 1.3  # points that the grid of an object gets for each of its rays, where fields are many
LEAST_CELLS = 8  # of such a grid, per axis: coarser ones lose thin parts
MOST_POINTS = 3  # of such a grid, for each ray: more cost as much as they save


@dataclass(frozen=True)
class LossOptions:
    """What the loss is made of; names and meaning as in ``configs/default.yaml``.

    ``weights`` holds the lambdas by term: rgb, image_gradients, depth, sparse_depth, normal,
    freespace, occupied, unseen, patch. A term of weight 0 is not computed.
    """

    weights: dict = field(
        default_factory=lambda: {"rgb": 1.0, "freespace": 1.0, "occupied": 1.0, "normal": 0.05}
    )
    n_training_points: int = 1024
    n_eval_points: int = 4000
    patch_size: int = 1
    reduction: str = "sum"
    depth_range: tuple = (0.0, 2.4)
    sample_continuous: bool = False
    pixels_near_mask: int | None = None
    n_surrounding_rays: int = 0
    n_compared_patches: int = 128
    occupancy_points: str = "random"
    occupancy_random_normal: bool = False
    depth_loss_on_world_points: bool = False
    use_cube_intersection: bool = True
    always_freespace: bool = True
    coarse_bounds: bool = True
    normal_neighborhood: float = 1e-3
    min_slope: float = 1e-3
    gradient_clip: float | None = None
    precision: torch.dtype | None = None


@dataclass
class Rays:
    """The rays of a step, flat: R pixels of all images, S sparse points, then ``n_around`` more.

    origins, directions : Tensor (R + S + n_around, 3)
    objects : Tensor like these, int64, or None when there is one object
    rgb : Tensor (R, 3)
    mask : Tensor (R,), bool
    depth, hull_depth : Tensor (R,) or None
        True camera depth and that of the visual hull, +inf where there is no surface.
    sparse_depth : Tensor (S,) or None
        Camera depth of the sparse points.
    n_around : int
        Rays from all around the object at the end, which no camera has.
    views : Tensor (R,), int64, or None
        The item of the dataset that each pixel is of, where views are compared.
    n_images : int
    n_patches : int
        Patches at the head of each image's pixels.
    """

    origins: torch.Tensor
    directions: torch.Tensor
    objects: torch.Tensor | None
    rgb: torch.Tensor
    mask: torch.Tensor
    depth: torch.Tensor | None
    hull_depth: torch.Tensor | None
    sparse_depth: torch.Tensor | None
    views: torch.Tensor | None
    n_images: int
    n_patches: int
    n_around: int = 0


class Trainer:
    """Training steps and validation of a DVR model.

    Parameters
    ----------
    model : DVR
    optimizer : torch.optim.Optimizer
    options : LossOptions
    device : torch.device
    seed : int
        All randomness of a step follows from the seed and the iteration, so that a resumed run
        equals an uninterrupted one.
    """

    def __init__(self, model, optimizer, options, device="cpu", seed=0):
        self.model = model
        self.optimizer = optimizer
        self.options = options
        self.device = torch.device(device)
        self.seed = seed
        # One object's field is followed from step to step; latent codes bring new ones each time.
        follows = options.coarse_bounds and model.encoder is None and model.trusts_grids
        self.bounds = OccupancyBounds() if follows else None
        self.looked, self.look_every = -1, LOOK_EVERY[0]  # iteration of the last look; until the next
        self.seen = SeenCells(device=device) if options.weights.get("unseen") else None
        self.patches = self.silhouettes = None

    def state_dict(self):
        """What a resumed run needs beside model and optimizer."""
        return {
            "bounds": self.bounds and self.bounds.state_dict(),
            "looked": self.looked,
            "look_every": self.look_every,
            "seen": self.seen and self.seen.last_seen,
        }

    def load_state_dict(self, state):
        """Take up the state of an interrupted run."""
        bounds = state.get("bounds")
        if self.bounds is not None and isinstance(bounds, dict):  # else they are found anew
            self.bounds.load_state_dict(bounds, self.device)
            self.looked, self.look_every = state["looked"], state["look_every"]
        if self.seen is not None and torch.is_tensor(state.get("seen")):
            self.seen.last_seen.copy_(state["seen"])

    @property
    def asks_views(self):
        """Whether a term needs :meth:`know_views`."""
        return any(self.options.weights.get(term) for term in VIEW_TERMS)

    def know_views(self, items):
        """All views of the one object, for the terms that ask them: the items of the dataset, in its order.

        Raises
        ------
        ValueError
            When they cannot be compared: a single one, or images of several sizes.
        """
        if len({item["img"].shape for item in items}) > 1:
            raise ValueError("the images have several sizes")
        matrices = (
            torch.stack([item[f"img.{name}"] for item in items])
            for name in ("camera_mat", "world_mat", "scale_mat")
        )
        to_image = geometry.object_to_image(*matrices)
        masks = torch.stack([item["img.mask"] for item in items])
        if self.options.weights.get("patch"):
            images = torch.stack([item["img"] for item in items])
            self.patches = PatchConsistency(images, masks, to_image, self.device)
        if self.options.weights.get("silhouettes"):
            self.silhouettes = Silhouettes(masks, to_image, self.device)

    def become_hull(self, cells, n_iterations, n_points=4096):
        """Make the field a set of cells (N, N, N) of the padded cube, for the training to start from there.

        Half of the points of each step lie anywhere in the cube, half near the border of the cells.
        """
        generator, hull = self._generator(6), Support(len(cells)).to(self.device)
        hull.set_cells(cells)
        border = (cells & with_neighbors(~cells)).nonzero()
        border = border if len(border) else cells.nonzero()
        self.model.train()
        for _ in range(n_iterations):
            chosen = torch.randint(len(border), (n_points // 2,), generator=generator)
            offset = torch.rand(n_points // 2, 3, generator=generator) * 5 - 2  # cells
            near = (border[chosen.to(border.device)].cpu() + offset) / len(cells) - 0.5
            anywhere = torch.rand(n_points // 2, 3, generator=generator) - 0.5
            points = (SIDE * torch.cat([near, anywhere])).to(self.device)
            logits = self.model.decoder.occupancy(points)
            loss = F.binary_cross_entropy_with_logits(logits, hull(points).to(logits))
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
        self.optimizer.state.clear()  # moments of another loss

    def train_step(self, batch, iteration):
        """One gradient step.

        Parameters
        ----------
        batch : dict
            A collated batch of the dataset.
        iteration : int

        Returns
        -------
        dict of float
            ``loss``, every term by its name (summed or averaged as the options say, divided by
            the batch size, without its lambda), ``gradient_norm`` before clipping, ``hit_share``,
            the share of rays that found a surface, and ``rays``, their number.

        Raises
        ------
        FloatingPointError
            When a term or the gradient is not finite; the weights are left as they were.
        """
        self.model.train()
        generator = self._generator(0, iteration)
        steps = self.model.depth_function.training_steps(iteration)
        rays = self._sample(
            batch, self.options.n_training_points, generator, self.options.pixels_near_mask
        )
        if self.options.n_surrounding_rays > 0:
            rays = self._with_rays_around(rays, self._generator(7, iteration))
        wanted = {name for name, weight in self.options.weights.items() if weight != 0}
        if self.asks_views and self.patches is None and self.silhouettes is None:
            raise RuntimeError("some terms ask all views: call know_views() before the first step")
        latent = self.model.encode(batch.get("inputs"), self.options.precision)
        bounds = self._bounds(iteration, rays, steps) or self._object_bounds(rays, latent)
        values, hits = self._terms(rays, latent, wanted, steps, generator, bounds, iteration)
        hit = hits.hit[: len(rays.mask)]
        terms = self._reduced(values, len(batch["img"]))
        loss = self._weighted(terms)
        self.optimizer.zero_grad(set_to_none=True)
        norm = torch.zeros_like(loss)
        if loss.requires_grad:
            loss.backward()
            norm = self._clip_gradient()
        report = {"loss": loss, **terms, "gradient_norm": norm, "hit_share": hit.float().mean()}
        # One transfer for all: the device is waited for once.
        numbers = torch.stack([value.detach().float() for value in report.values()]).tolist()
        report = dict(zip(report, numbers))
        bad = [name for name in terms if not math.isfinite(report[name])]
        if bad:
            raise FloatingPointError(f"the loss term {', '.join(bad)} is not finite")
        if not math.isfinite(report["gradient_norm"]):
            raise FloatingPointError("the gradient of the loss is not finite")
        if loss.requires_grad:
            self.optimizer.step()
        return report | {"rays": len(rays.origins)}

    def _clip_gradient(self):
        """The norm of the gradient; one above ``gradient_clip`` is brought down to it."""
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        if self.options.gradient_clip is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.options.gradient_clip, norm)
        return norm

    @property
    def metrics(self):
        """The names that :meth:`evaluate` reports with this model and these weights."""
        weights = self.options.weights
        terms = [
            term
            for term in weights
            if (weights[term] != 0 or term not in DEPTH_TERMS)
            and term not in TRAINING_TERMS
            and (self.model.has_color or term not in COLOR_TERMS)
            and (self.options.patch_size > 1 or term != "image_gradients")
        ]
        means = [RAY_MEANS[term] for term in terms if term in RAY_MEANS]
        return ["loss", *terms, *means, "mask_intersection", "mask_iou"]

    @torch.no_grad()
    def evaluate(self, batches):
        """Validation over batches, with ``n_eval_points`` pixels per image and the full march.

        Returns
        -------
        dict of float
            ``loss`` and its terms as in training; ``loss_rgb_eval``, ``loss_depth_eval``,
            ``loss_sparse_depth_val``, ``normal_loss_eval``: means over the rays they apply to (nan
            when there is none); ``mask_intersection``: share of pixels where hit equals mask;
            ``mask_iou``: intersection over union of hits and mask, mean over images.
        """
        self.model.eval()
        sums, counts = defaultdict(float), defaultdict(int)

        def add(name, total, count):
            sums[name] += float(total)
            counts[name] += count

        fine = None
        if self.bounds is not None:  # a grid of its own: validation leaves no trace
            fine = OccupancyBounds(FINE)
            fine.update(self.model.logit_field(), self.device)
        for i, batch in enumerate(batches):
            generator = self._generator(1, i)
            rays = self._sample(batch, self.options.n_eval_points, generator)
            wanted = set(self.options.weights)
            latent = self.model.encode(batch.get("inputs"))
            bounds = fine or self._object_bounds(rays, latent)
            values, hits = self._terms(rays, latent, wanted, None, generator, bounds)
            hit = hits.hit[: len(rays.mask)]
            batch_size = len(batch["img"])
            terms = self._reduced(values, batch_size)
            for name, term in {"loss": self._weighted(terms), **terms}.items():
                add(name, term * batch_size, batch_size)
            for name, metric in RAY_MEANS.items():
                if name in values:
                    add(metric, values[name].sum(), values[name].numel())
            add("mask_intersection", (hit == rays.mask).sum(), hit.numel())
            hit, mask = hit.view(batch_size, -1), rays.mask.view(batch_size, -1)
            union = (hit | mask).sum(1)
            iou = torch.where(union > 0, (hit & mask).sum(1) / union.clamp_min(1), 1)
            add("mask_iou", iou.sum(), batch_size)
        return {name: sums[name] / counts[name] if counts[name] else np.nan for name in sums}

    def _bounds(self, iteration, rays, n_steps):
        """The bounds for an iteration, looked at anew when it is time or when a probe proves them wrong."""
        bounds = self.bounds
        if bounds is None:
            return None
        age = iteration - self.looked
        due = bounds.values is None or not 0 <= age < self.look_every
        in_use = bounds.change is not None and 0 < age <= self.look_every  # one look promises nothing
        probed = in_use and age % (self.look_every // PROBES) == 0
        misled = probed and self._misled(rays, n_steps, iteration)
        if not (due or misled):
            return bounds
        bounds.update(self.model.logit_field(), self.device, learns=True, misled=misled)
        self.looked = iteration
        rarer, more_frequent = STALE
        if misled or bounds.staleness > more_frequent:
            self.look_every = max(self.look_every // 2, LOOK_EVERY[0])
        elif bounds.staleness < rarer:
            self.look_every = min(2 * self.look_every, LOOK_EVERY[1])
        return bounds

    def _object_bounds(self, rays, latent):
        """Bounds of the fields of a batch's objects as they are now, or None where they are of no use."""
        if not (self.options.coarse_bounds and self.model.trusts_grids) or latent is None:
            return None
        n_objects = rays.n_images
        n_rays = len(rays.origins) / n_objects
        n_cells = int((OBJECT_GRID * n_rays) ** (1 / 3)) - 1
        n_cells = max(n_cells // 2 * 2, LEAST_CELLS)  # even: what is thin lies in the middle, if anywhere
        if (n_cells + 1) ** 3 > MOST_POINTS * n_rays:
            return None
        bounds = OccupancyBounds(n_cells, n_objects)
        field = self.model.logit_field(latent, torch.arange(n_objects, device=self.device))
        bounds.update(field, self.device)
        return bounds

    def _misled(self, rays, n_steps, iteration):
        """Whether some ray of a few meets another surface with the bounds than without, or none."""
        draw = torch.randperm(len(rays.origins), generator=self._generator(2, iteration))
        few = draw[:PROBE_RAYS].to(self.device)
        found, expected = (
            self.model.find_surface(
                rays.origins[few], rays.directions[few], n_steps=n_steps,
                generator=self._generator(3, iteration), bounds=bounds,
            )
            for bounds in (self.bounds, None)
        )
        apart = (found.points - expected.points).norm(dim=1) > SAME_SURFACE
        return bool(((found.hit != expected.hit) | apart).any())

    def _generator(self, *stream):
        state = np.random.SeedSequence([self.seed, *stream]).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(state[0]))

    def _sample(self, batch, n_points, generator, near_mask=None):
        """Choose pixels and look up what is known of them; only that moves to the device."""
        images = batch["img"]
        batch_size, (height, width) = len(images), images[0].shape[:2]
        boxes = None
        if near_mask is not None:
            boxes = mask_boxes(batch["img.mask"], near_mask, self.options.patch_size)
        pixels, n_patches = sample_pixels(
            n_points, self.options.patch_size, height, width, batch_size, generator,
            self.options.sample_continuous, boxes,
        )
        matrices = (batch["img.camera_mat"], batch["img.world_mat"], batch["img.scale_mat"])
        to_image = geometry.object_to_image(*matrices)
        origins, directions = (t.flatten(0, 1) for t in geometry.camera_rays(pixels, to_image))
        objects = torch.arange(batch_size).repeat_interleave(pixels.shape[1])
        sparse_depth = None
        if self.options.weights.get("sparse_depth", 0) != 0 and "sparse_depth.points" in batch:
            valid = batch["sparse_depth.valid"]  # the rest is padding
            world_to_image = matrices[0].double() @ matrices[1].double()
            pixels_seen, depth = geometry.project(batch["sparse_depth.points"], world_to_image)
            sparse = geometry.camera_rays(pixels_seen, to_image)
            origins = torch.cat([origins, sparse[0][valid]])
            directions = torch.cat([directions, sparse[1][valid]])
            objects = torch.cat([objects, valid.nonzero()[:, 0]])
            sparse_depth = self._moved(depth[valid])

        views = None
        if self.patches is not None:
            views = self._moved(batch["idx"].repeat_interleave(pixels.shape[1]))

        def known(key):
            if key not in batch:
                return None
            return self._moved(geometry.look_up(batch[key], pixels).flatten(0, 1))

        return Rays(
            origins=self._moved(origins),
            directions=self._moved(directions),
            objects=self._moved(objects) if batch_size > 1 else None,
            rgb=known("img").float() / 255,
            mask=known("img.mask"),
            depth=known("img.depth"),
            hull_depth=known("img.visual_hull_depth"),
            sparse_depth=sparse_depth,
            views=views,
            n_images=batch_size,
            n_patches=n_patches,
        )

    def _with_rays_around(self, rays, generator):
        """More rays, from random points around the object to where it may be, for normals and silhouettes.

        They reach surfaces that no view shows, about which nothing else says what is likely.
        """
        n_rays = self.options.n_surrounding_rays
        origins = F.normalize(torch.randn(n_rays, 3, generator=generator), dim=1).to(self.device)
        if self.model.support is None:
            targets = (torch.rand(n_rays, 3, generator=generator) - 0.5).to(self.device)
        else:
            targets = self.model.support.random_points(n_rays, generator)
        return replace(
            rays,
            origins=torch.cat([rays.origins, origins]),
            directions=torch.cat([rays.directions, targets - origins]),
            objects=None,
            n_around=n_rays,
        )

    def _moved(self, tensor):
        """A tensor on the device; a GPU takes it from pinned memory while this process goes on."""
        if self.device.type == "cuda":
            tensor = tensor.contiguous().pin_memory()  # an expanded view cannot be pinned
        return tensor.to(self.device, non_blocking=True)

    def _terms(self, rays, latent, wanted, n_steps, generator, bounds=None, iteration=None):
        """Per-ray values of the wanted terms; of ``unseen``, where an iteration is given, per point.

        Returns
        -------
        values : dict of Tensor
            By term; one value per ray (or patch) that the term applies to.
        hits : RayHits
        """
        decoder, n_pixels = self.model.decoder, len(rays.mask)
        hits = self.model.find_surface(
            rays.origins, rays.directions, latent, rays.objects, n_steps, generator, bounds,
            self.options.precision if torch.is_grad_enabled() else None,
            closest=self.options.occupancy_points == "closest",
        )
        groups, empty = self._choose(rays, hits, wanted, generator, bounds)
        if self.seen is not None and iteration is not None:
            groups.append(self._unseen(rays, hits, iteration))
        sparse, visible, stray, around = (group for group, _ in groups[:4])
        points = torch.cat(
            [hits.points[group] for group, _ in groups[:4]] + [points for _, points in groups[4:]]
        )
        chosen = torch.cat([group for group, _ in groups])
        objects = None if rays.objects is None else rays.objects[chosen]
        found_there = decoder.evaluate(points, latent, objects, rays.directions[chosen])
        out = found_there.out
        at_sparse, at_visible, at_stray, at_around, at_free, at_occupied, *at_unseen = out.split(
            [len(group) for group, _ in groups]
        )

        # Sparse and visible rays come first: the surface under them moves with the weights.
        moving = torch.cat([sparse, visible])
        found = hits.depth[moving]
        if torch.is_grad_enabled():
            rate = found_there[: len(moving)].along(rays.directions[moving])
            attached = depth_with_gradient(
                found, out[: len(moving), 0], rate[:, 0], self.options.min_slope
            )
            colors = follow_surface(out[: len(moving), 1:], rate[:, 1:], found, attached)
        else:
            attached, colors = found, out[: len(moving), 1:]
        sparse_depth, depth = attached.split([len(sparse), len(visible)])

        values = {}
        if self.model.has_color and wanted & COLOR_TERMS:
            rgb = torch.sigmoid(colors[len(sparse) :])
            if "rgb" in wanted:
                values["rgb"] = losses.photometric(rgb, rays.rgb[visible])
            if "image_gradients" in wanted and self.options.patch_size > 1:
                values["image_gradients"] = self._image_gradients(rays, rgb, visible)
        if "depth" in wanted and rays.depth is not None:
            known = rays.depth[visible].isfinite()
            values["depth"] = self._depth_values(
                depth[known], rays.depth[visible[known]], rays.directions[visible[known]]
            )
        if rays.sparse_depth is not None:
            true = rays.sparse_depth[sparse - n_pixels]
            values["sparse_depth"] = self._depth_values(sparse_depth, true, rays.directions[sparse])
        if "normal" in wanted:
            rows = slice(len(sparse), len(sparse) + len(visible) + len(stray) + len(around))
            values["normal"] = self._normal_values(
                points[rows], found_there[rows], latent, None if objects is None else objects[rows],
                generator,
            )
        if "freespace" in wanted:
            values["freespace"] = losses.freespace(torch.cat([at_stray[:, 0], at_free[:, 0], empty]))
        if "occupied" in wanted:
            values["occupied"] = losses.occupied(at_occupied[:, 0])
        if "silhouettes" in wanted and iteration is not None:
            outside = self.silhouettes.outside(
                hits.points[torch.cat([visible, around])], self._generator(9, iteration)
            )
            logits = torch.cat([at_visible[:, 0], at_around[:, 0]])
            values["silhouettes"] = losses.freespace(logits[outside])
        if "patch" in wanted and iteration is not None:
            values["patch"] = self._patch_values(
                rays, visible, depth, found_there[len(sparse) : len(moving)], iteration
            )
        for logits in at_unseen:
            values["unseen"] = losses.occupied(logits[:, 0])
        return values, hits

    def _unseen(self, rays, hits, iteration):
        """Points of space that no ray has passed through of late, those of this step among them.

        Returns
        -------
        (indices (M,), points (M, 3))
            As the groups of :meth:`_choose`; the ray of such a point is of no meaning.
        """
        self._note_seen(rays, hits, iteration)
        points = self.seen.unseen_points(iteration, self.model.support, self._generator(4, iteration))
        return torch.zeros_like(points[:, 0], dtype=torch.long), points

    def _note_seen(self, rays, hits, iteration):
        """What the rays of a step pass through before they meet something."""
        near, far = self._interval(rays, geometry.CUBE_PADDING)
        n_pixels = len(rays.mask)
        hit = hits.hit[:n_pixels]
        # A ray of the background has been free all along, whatever the model says; one of the object
        # that found nothing has been led astray.
        end = torch.where(rays.mask, torch.where(hit, hits.depth[:n_pixels], near), far)
        self.seen.note(
            rays.origins[:n_pixels], rays.directions[:n_pixels], near, end, iteration,
            self._generator(5, iteration),
        )

    def _choose(self, rays, hits, wanted, generator, bounds):
        """The rays of each kind that some wanted term needs, and points for those without a hit.

        Returns
        -------
        groups : list of (indices (M,), points (M, 3) or None)
            Sparse points hit; hits inside the mask; hits outside of it; hits of rays that no camera has;
            free; occupied.
        empty : Tensor (K,)
            Logits of points for free rays where the bounds show that there is nothing to learn.
        """
        n_pixels = len(rays.mask)
        n_seen = len(hits.hit) - rays.n_around
        hit, sparse_hit, around_hit = hits.hit.split([n_pixels, n_seen - n_pixels, rays.n_around])
        mask = rays.mask
        nothing = torch.zeros_like(mask)

        def indices(which, *terms):
            return (which if wanted.intersection(terms) else nothing).nonzero()[:, 0]

        sparse = indices(nothing)
        if rays.sparse_depth is not None:
            sparse = n_pixels + sparse_hit.nonzero()[:, 0]
        visible = indices(hit & mask, *COLOR_TERMS, *VIEW_TERMS, "depth", "normal")
        stray = indices(hit & ~mask, "normal", "freespace")
        around = indices(nothing)
        if wanted & {"normal", "silhouettes"}:
            around = n_seen + around_hit.nonzero()[:, 0]

        near, far = self._interval(rays, geometry.CUBE_PADDING)
        depth = torch.lerp(near, far, self._uniform(near, generator))
        free = ~hit & ~mask & (far > near) if self.options.always_freespace else nothing
        free = indices(free, "freespace")
        free_points = rays.origins[free] + depth[free, None] * rays.directions[free]
        empty = depth[:0]
        if bounds is not None:
            objects = None if rays.objects is None else rays.objects[free]
            logits, errors = bounds.estimate(free_points, objects)
            certain = logits + errors < EMPTY
            empty, free, free_points = logits[certain], free[~certain], free_points[~certain]
        if self.model.support is not None:
            within = self.model.support(free_points)
            empty = torch.full_like(depth[free[~within]], FREE)
            free, free_points = free[within], free_points[within]

        depth, known = self._occupied_depth(rays, hits, generator)
        occupied = indices(~hit & mask & known, "occupied")
        occupied_points = rays.origins[occupied] + depth[occupied, None] * rays.directions[occupied]
        groups = [
            (sparse, None), (visible, None), (stray, None), (around, None),
            (free, free_points), (occupied, occupied_points),
        ]
        return groups, empty

    def _occupied_depth(self, rays, hits, generator):
        """Depth (R,) at which a ray of the mask shall be occupied, and where there is one."""
        near, far = self._interval(rays, 0.0)
        if hits.closest is not None:
            depth = hits.closest[: len(near)]
            return depth, depth.isfinite()
        if self.options.occupancy_random_normal:
            noise = torch.randn(len(near), generator=generator).to(near)
            depth = (near + far) / 2 + noise * (far - near) / 8
        else:
            depth = torch.lerp(near, far, self._uniform(near, generator))
        known = far > near
        for given in (rays.hull_depth, rays.depth):
            if given is not None:
                depth, known = given.where(given.isfinite(), depth), known | given.isfinite()
        return depth, known

    def _interval(self, rays, padding):
        origins, directions = rays.origins[: len(rays.mask)], rays.directions[: len(rays.mask)]
        if self.options.use_cube_intersection:
            return geometry.cube_interval(origins, directions, padding)[:2]
        near = torch.zeros_like(origins[:, 0])
        return near, torch.full_like(near, self.options.depth_range[1])

    @staticmethod
    def _uniform(like, generator):
        return torch.rand(len(like), generator=generator).to(like)

    def _image_gradients(self, rays, rgb, visible):
        size = self.options.patch_size
        n_images = rays.n_images

        def patches(values):
            values = values.view(n_images, -1, *values.shape[1:])[:, : rays.n_patches * size**2]
            return values.reshape(n_images * rays.n_patches, size**2, *values.shape[2:])

        seen = torch.zeros_like(rays.mask).index_fill(0, visible, True)
        whole = patches(seen).all(dim=1)
        predicted = torch.zeros_like(rays.rgb).index_copy(0, visible, rgb)
        return losses.image_gradient(patches(predicted)[whole], patches(rays.rgb)[whole], size)

    def _depth_values(self, predicted, true, directions):
        if self.options.depth_loss_on_world_points:
            return losses.depth_as_points(predicted, true, directions)
        return losses.depth(predicted, true)

    def _normal_values(self, points, found, latent, objects, generator):
        offset = torch.rand(len(points), 3, generator=generator).to(points) - 0.5
        nearby = self.model.decoder.evaluate_for_gradient(
            points + self.options.normal_neighborhood * offset, latent, objects
        )
        rows = (~found.same_piece(nearby)).nonzero()[:, 0]
        normals = map(outward_normals, found[rows].gradients_with(nearby[rows]))
        values = losses.normal_smoothness(*normals)
        return values.new_zeros(len(points)).index_copy(0, rows, values)

    def _patch_values(self, rays, visible, depth, found, iteration):
        """Some of the visible rays, at the depths of :func:`depth_with_gradient`, compared in other views."""
        some = torch.randperm(len(visible), generator=self._generator(8, iteration))
        some = some[: self.options.n_compared_patches].to(depth.device)
        with torch.no_grad():
            normals = outward_normals(found[some].gradient())
        rows = visible[some]
        points = rays.origins[rows] + depth[some, None] * rays.directions[rows]
        return self.patches(points, normals, rays.views[rows])

    def _reduced(self, values, batch_size):
        method = self.options.reduction
        return {name: losses.reduce(v, method) / batch_size for name, v in values.items()}

    def _weighted(self, terms):
        total = torch.zeros((), device=self.device)
        for name, term in terms.items():
            weight = self.options.weights.get(name, 0)
            if weight != 0:
                total = total + weight * term
        return total
