"""The method written down without care for speed: what benchmarks compare with, and tests.

Straightforward, not hobbled: whole tensors, no Python loop over rays. But every sample of every ray
is evaluated, the depth takes eight secant steps, each loss term asks the network for itself with
the latent code of each point, and normals are central differences of six evaluations.
"""

import mcubes
import torch
import torch.nn.functional as F

from im2mesh.dvr import losses
from im2mesh.dvr.training import Trainer
from im2mesh.geometry import CUBE_PADDING, cube_interval
from im2mesh.meshing import REFINEMENT_LEARNING_RATE, REFINEMENT_NORMAL_WEIGHT

STEP = 1e-3  # of the central differences
SECANT_STEPS = 8
MAX_POINTS = 2**16  # of one network call


def evaluate(field, points, rays):
    """A field at many points, in chunks of ``MAX_POINTS``."""
    return torch.cat([field(p, r) for p, r in zip(points.split(MAX_POINTS), rays.split(MAX_POINTS))])


@torch.no_grad()
def march(field, origins, directions, n_steps):
    """Depth (R,) of the first crossing into the object, inf where there is none."""
    near, far, meets = cube_interval(origins, directions, CUBE_PADDING)
    depth = torch.full_like(near, torch.inf)
    rays = meets.nonzero()[:, 0]
    near, far, origins, directions = near[rays], far[rays], origins[rays], directions[rays]
    depths = torch.lerp(
        near[:, None], far[:, None], torch.linspace(0, 1, n_steps, device=near.device)
    )
    points = origins[:, None] + depths[..., None] * directions[:, None]
    values = evaluate(field, points.flatten(0, 1), rays.repeat_interleave(n_steps))
    values = values.view(-1, n_steps)
    crosses = (values[:, :-1] < 0) & (values[:, 1:] >= 0)
    inside = (values >= 0).int().argmax(dim=1)
    hit = crosses.any(dim=1) & (values[:, 0] < 0)
    rows, at = hit.nonzero()[:, 0], inside[hit]
    low, low_value = depths[rows, at - 1], values[rows, at - 1]
    high, high_value = depths[rows, at], values[rows, at]
    found = low - low_value * (high - low) / (high_value - low_value)
    for _ in range(SECANT_STEPS):
        value = evaluate(field, origins[rows] + found[:, None] * directions[rows], rays[rows])
        outside = value < 0
        low, low_value = torch.where(outside, found, low), torch.where(outside, value, low_value)
        high, high_value = torch.where(outside, high, found), torch.where(outside, high_value, value)
        rise = high_value - low_value
        secant = low - low_value * (high - low) / rise
        found = torch.where(rise > 0, secant, (low + high) / 2)
    depth[rays[rows]] = found
    return depth


class Step:
    """The loss of one training step.

    Parameters
    ----------
    model : DVR
    options : LossOptions
        Colour, depth, normal, freespace and occupancy terms are known, and the image gradient.
    """

    def __init__(self, model, options):
        self.model = model
        self.options = options

    def terms(self, rays, inputs, n_steps, generator):
        """Values of every term, one per ray (or patch), by name.

        Parameters
        ----------
        rays : im2mesh.dvr.training.Rays
            Without sparse points.
        inputs : Tensor or None
            Of the encoder.
        """
        model, weights = self.model, self.options.weights
        network = self._network(rays.objects, inputs)

        threshold = model.depth_function.logit_threshold
        found = march(
            lambda points, of: network(points, of)[:, 0] - threshold,
            rays.origins, rays.directions, n_steps,
        )
        hit, mask = found.isfinite(), rays.mask
        values = {}

        def at(which, depth):
            return rays.origins[which] + depth[:, None] * rays.directions[which]

        visible = (hit & mask).nonzero()[:, 0]
        depth = self._attached(network, rays, visible, found[visible])
        if weights.get("rgb") or weights.get("image_gradients"):
            rgb = torch.sigmoid(network(at(visible, depth), visible)[:, 1:])
            values["rgb"] = losses.photometric(rgb, rays.rgb[visible])
            if weights.get("image_gradients") and self.options.patch_size > 1:
                values["image_gradients"] = self._image_gradients(rays, rgb, visible)
        if weights.get("depth"):
            known = rays.depth[visible].isfinite()
            values["depth"] = losses.depth(depth[known], rays.depth[visible[known]])
            if self.options.depth_loss_on_world_points:
                values["depth"] = values["depth"] * rays.directions[visible[known]].norm(dim=1)
        if weights.get("normal"):
            on = hit.nonzero()[:, 0]
            points = at(on, found[on])
            noise = torch.rand(len(points), 3, generator=generator).to(points) - 0.5
            values["normal"] = losses.normal_smoothness(
                self._normals(network, points, on), self._normals(network, points + STEP * noise, on)
            )
        if weights.get("freespace"):
            near, far, meets = cube_interval(rays.origins, rays.directions, CUBE_PADDING)
            random = torch.lerp(near, far, torch.rand(len(near), generator=generator).to(near))
            free = ~mask & (hit | (meets if self.options.always_freespace else False))
            free = free.nonzero()[:, 0]
            depth = torch.where(hit, found, random)[free]
            values["freespace"] = losses.freespace(network(at(free, depth), free)[:, 0])
        if weights.get("occupied"):
            near, far, meets = cube_interval(rays.origins, rays.directions, 0.0)
            depth = torch.lerp(near, far, torch.rand(len(near), generator=generator).to(near))
            for given in (rays.hull_depth, rays.depth):
                if given is not None:
                    depth, meets = given.where(given.isfinite(), depth), meets | given.isfinite()
            occupied = (mask & ~hit & meets).nonzero()[:, 0]
            values["occupied"] = losses.occupied(network(at(occupied, depth[occupied]), occupied)[:, 0])
        return values

    def loss(self, rays, inputs, n_steps, generator):
        """Weighted sum of the terms, divided by the number of images."""
        weights = self.options.weights
        return sum(
            weights[name] * losses.reduce(term, self.options.reduction)
            for name, term in self.terms(rays, inputs, n_steps, generator).items()
        ) / rays.n_images

    def _network(self, objects, inputs):
        decoder = self.model.decoder
        if self.model.encoder is None:
            return lambda points, of: decoder(points)
        codes = self.model.encoder(inputs.float() / 255 if inputs.dtype == torch.uint8 else inputs)

        def network(points, of):
            of_points = codes[objects[of]] if objects is not None else codes.expand(len(points), -1)
            return decoder(points, decoder.condition(of_points), torch.arange(len(points)))

        return network

    def _attached(self, network, rays, which, found):
        """Depths with the gradient of the implicit surface."""
        directions = rays.directions[which]
        points = (rays.origins[which] + found[:, None] * directions).requires_grad_()
        logits = network(points, which)[:, 0]
        (gradient,) = torch.autograd.grad(logits.sum(), points, retain_graph=True)
        slope = (gradient * directions).sum(dim=1)
        slope = slope.abs().clamp_min(self.options.min_slope).copysign(slope)
        return found - (logits - logits.detach()) / slope

    @staticmethod
    def _normals(network, points, which):
        """Unit normals by central differences."""
        offsets = STEP / 2 * torch.eye(3, device=points.device)
        differences = [
            network(points + offset, which)[:, 0] - network(points - offset, which)[:, 0]
            for offset in offsets
        ]
        return -F.normalize(torch.stack(differences, dim=1), dim=1, eps=1e-9)

    def _image_gradients(self, rays, rgb, visible):
        size = self.options.patch_size
        predicted = torch.zeros_like(rays.rgb).index_copy(0, visible, rgb)
        whole = torch.zeros_like(rays.mask)
        whole[visible] = True

        def patches(values):
            of_images = values.view(rays.n_images, -1, *values.shape[1:])
            return of_images[:, : rays.n_patches * size**2].reshape(-1, size**2, *values.shape[1:])

        of_use = patches(whole).all(dim=1)
        return losses.image_gradient(patches(predicted)[of_use], patches(rays.rgb)[of_use], size)


def knows(config):
    """Whether the plain twin learns what the product learns from a config."""
    model, training = config["model"], config["training"]
    ours = model["visual_hull"], model["lambda_unseen"], training["n_surrounding_rays"]
    return (
        model["decoder"] == "simple" and not any(ours) and training["occupancy_points"] == "random"
        and training["pixels_near_mask"] is None and model["normal_neighborhood"] == STEP
    )


class PlainTrainer(Trainer):
    """A trainer that sees the same pixels as the product's and computes its loss plainly."""

    def train_step(self, batch, iteration):
        self.model.train()
        generator = self._generator(0, iteration)
        n_steps, _ = self.model.depth_function.training_steps(iteration)
        rays = self._sample(batch, self.options.n_training_points, generator)
        loss = Step(self.model, self.options).loss(rays, batch.get("inputs"), n_steps, generator)
        self.optimizer.zero_grad()
        loss.backward()
        self._clip_gradient()
        self.optimizer.step()
        return {"loss": float(loss.detach()), "rays": len(rays.origins)}


@torch.no_grad()
def render(model, origins, directions, n_steps):
    """Colours (R, 3), depths (R,) and normals (R, 3) of rays; white, inf and 0 for a miss."""
    threshold = model.depth_function.logit_threshold
    depth = march(
        lambda points, rays: model.decoder(points)[:, 0] - threshold, origins, directions, n_steps
    )
    hit = depth.isfinite()
    points = origins[hit] + depth[hit, None] * directions[hit]
    rgb, normals = torch.ones_like(origins), torch.zeros_like(origins)
    rgb[hit] = torch.sigmoid(model.decoder(points)[:, 1:])
    normals[hit] = Step._normals(lambda points, rays: model.decoder(points), points, None)
    return rgb, depth, normals


def extract_mesh(field, resolution, level=0.0):
    """Marching cubes on the logits at all points of a grid over the unit cube; (V, 3), (F, 3)."""
    axis = torch.linspace(-0.5, 0.5, resolution + 1)
    grid = dense_values(field, axis, axis).numpy().astype("float64")
    vertices, faces = mcubes.marching_cubes(grid, level)
    return vertices / resolution - 0.5, faces.astype("int64")


@torch.no_grad()
def dense_values(field, planes, axis):
    """Logits at all points of some planes of a grid, (len(planes), N, N)."""
    points = torch.cartesian_prod(planes, axis, axis)
    values = torch.cat([field(chunk) for chunk in points.split(MAX_POINTS)])
    return values.view(len(planes), len(axis), len(axis))


def refine(vertices, faces, field, n_steps, max_faces, tau, generator):
    """:func:`im2mesh.meshing.refine` with the gradient of the field by automatic differentiation.

    ``field`` maps points (M, 3) to logits (M,), with a graph. The normals' loss is differentiated
    twice.
    """
    moving = torch.tensor(vertices, dtype=torch.float64, requires_grad=True)
    faces = torch.from_numpy(faces)
    optimizer = torch.optim.RMSprop([moving], lr=REFINEMENT_LEARNING_RATE)
    for _ in range(n_steps):
        chosen = torch.randperm(len(faces), generator=generator)[:max_faces]
        weights = torch.randn(len(chosen), 3, 1, generator=generator, dtype=torch.float64) ** 2
        weights = weights / weights.sum(dim=1, keepdim=True)
        triangles = moving[faces[chosen]]
        points = (weights * triangles).sum(dim=1).float()
        a, b, c = triangles.unbind(dim=1)
        occupancy = torch.sigmoid(field(points))
        (gradient,) = torch.autograd.grad(occupancy.sum(), points, create_graph=True)
        face_normals = F.normalize(torch.linalg.cross(b - a, c - a), dim=1)
        difference = face_normals + F.normalize(gradient, dim=1)
        loss = (occupancy - tau).square().mean()
        loss = loss + REFINEMENT_NORMAL_WEIGHT * difference.square().sum(dim=1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return moving.detach().numpy()
