"""Trainer: the fused step against a plain one, which rays, seeds, cost, and validation."""

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from im2mesh.data import ImagesField, MultiObjectDataset, SparseDepthField, collate
from im2mesh.dvr import losses, training
from im2mesh.dvr.fields.simple import ResidualEvaluation
from im2mesh.dvr.model import DVR
from im2mesh.dvr.raymarch import DepthFunction
from im2mesh.dvr.sampling import sample_pixels
from im2mesh.dvr.training import LossOptions, Trainer
from im2mesh.geometry import image_to_index, index_to_image, pixel_centers
from tests import plain

ALL = {
    "rgb": 1.0,
    "image_gradients": 0.5,
    "depth": 2.0,
    "sparse_depth": 3.0,
    "normal": 0.7,
    "freespace": 0.8,
    "occupied": 0.9,
}
MANY = 10**6  # points: every pixel once
UNIFORM, NORMAL = 0.9, -1.7


@pytest.fixture
def views(tiny_dtu):
    """Batches of chosen views of the sphere, with everything that can be known of them."""
    fields = {"img": ImagesField(depth_folder="depth"), "sparse_depth": SparseDepthField()}
    dataset = MultiObjectDataset(tiny_dtu, fields, split_model_for_images=True)

    def batch(*chosen, without=()):
        items = [dict(dataset[view], inputs=torch.tensor(view)) for view in chosen]
        for item in items:
            depth = item["img.depth"].clone()
            item["img.visual_hull_depth"] = depth - 20
            item["img.visual_hull_depth"][:, 5:8] = math.inf
            depth[::3] = math.inf  # not known everywhere
            item["img.depth"] = depth
            for key in ("sparse_depth.points", "sparse_depth.valid"):  # not as many in each view
                item[key] = item[key][item["img.view"] :]
        return {key: value for key, value in collate(items).items() if key not in without}

    return batch


def make_model(conditional=False, seed=0, bias=0.0, **options):
    decoder = plain.octahedron_decoder(4 if conditional else 0, seed, hidden_size=32)
    with torch.no_grad():
        decoder.fc_out.bias[0] += bias
    encoder = None
    if conditional:
        encoder = torch.nn.Embedding(5, 4)
        with torch.no_grad():
            encoder.weight.copy_(torch.linspace(-1, 1, 20).view(5, 4))
    # Normals jump from one linear piece of the field to the next: find the points of the twin.
    options = {"schedule_ray_sampling": False, "method": "secant", **options}
    return DVR(decoder, encoder, DepthFunction(**options))


def make_trainer(model, weights, lr=0.0, seed=0, **options):
    options = {"n_training_points": MANY, "n_eval_points": MANY, **options}
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return Trainer(model, optimizer, LossOptions(weights=weights, **options), seed=seed)


def gradients(model):
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in model.named_parameters()
    }


@pytest.fixture
def constant_draws(monkeypatch):
    """Random numbers of the loss, but not those that choose pixels, become constants."""
    draw = torch.rand

    def rand(*shape, dtype=None, **kwargs):
        if dtype == torch.float64:
            return draw(*shape, dtype=dtype, **kwargs)
        return torch.full(shape, UNIFORM)

    monkeypatch.setattr(torch, "rand", rand)
    monkeypatch.setattr(torch, "randn", lambda *shape, **kwargs: torch.full(shape, NORMAL))


def check_against_plain(model, batch, trainer, n_steps, positions=None):
    """A training step gives the loss, the terms and the gradients of the plain twin."""
    report = trainer.train_step(batch, 0)
    found = gradients(model)
    model.zero_grad(set_to_none=True)
    options = trainer.options
    expected = plain.loss(model, batch, options, n_steps, UNIFORM, NORMAL, positions)
    terms = expected.terms(options.reduction)
    assert set(report) == {"loss", "gradient_norm", "hit_share", "rays", *terms}
    for name, term in terms.items():
        assert report[name] == pytest.approx(term.item(), rel=1e-4, abs=1e-6), name
    total = sum(options.weights[name] * term for name, term in terms.items())
    assert report["loss"] == pytest.approx(total.item(), rel=1e-4)
    assert report["hit_share"] == pytest.approx(expected.hit.mean())
    if total.requires_grad:
        total.backward()
    for name, gradient in gradients(model).items():
        difference = (found[name] - gradient).norm()
        assert difference <= 1e-3 * gradient.norm() + 1e-6, name
    return expected


# ---- the fused step against its plain twin -------------------------------------------------------


@pytest.mark.parametrize("term", ALL)
def test_each_term_alone(views, constant_draws, term):
    model = make_model(n_steps=(40, 41))
    trainer = make_trainer(model, {term: ALL[term]}, patch_size=2)
    expected = check_against_plain(model, views(1), trainer, 40)
    assert len(expected.values[term]) >= 3
    assert expected.values[term].abs().max() > 1e-3


@pytest.mark.parametrize("n_images", [1, 2])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reduction": "mean"},
        {"patch_size": 3},
        {"always_freespace": False},
        {"depth_loss_on_world_points": True},
        {"min_slope": 5.0},
        {"use_cube_intersection": False, "depth_range": (300.0, 700.0)},
    ],
    ids=lambda options: ", ".join(options) or "plain",
)
def test_all_terms(views, constant_draws, options, n_images):
    inside = options.get("use_cube_intersection", True)
    model = make_model(
        conditional=n_images == 2,
        n_steps=(40, 41),
        check_cube_intersection=inside,
        depth_range=(300.0, 700.0),
    )
    trainer = make_trainer(model, ALL, **{"patch_size": 2, **options})
    without = ("img.visual_hull_depth",)
    expected = check_against_plain(model, views(*range(n_images), without=without), trainer, 40)
    kinds = {(h, m) for h, m in zip(expected.hit.ravel().tolist(), expected.mask.ravel().tolist())}
    assert len(kinds) == 4  # every kind of ray is there


@pytest.mark.parametrize(
    "without",
    [
        (),
        ("img.depth",),
        ("img.visual_hull_depth",),
        ("img.depth", "img.visual_hull_depth"),
    ],
    ids=["depth and hull", "hull", "depth", "neither"],
)
@pytest.mark.parametrize("occupancy_random_normal", [False, True])
def test_occupied_depth(views, constant_draws, without, occupancy_random_normal):
    model = make_model()
    trainer = make_trainer(
        model, {"occupied": 1.0}, occupancy_random_normal=occupancy_random_normal
    )
    check_against_plain(model, views(0, 3, without=without), trainer, 128)


@pytest.mark.parametrize("patch_size", [1, 2])
def test_real_valued_positions(views, constant_draws, monkeypatch, patch_size):
    chosen = []

    def recorded(*args):
        chosen.append(sample_pixels(*args))
        return chosen[-1]

    monkeypatch.setattr(training, "sample_pixels", recorded)
    model, batch = make_model(), views(0, 2)
    weights = {name: w for name, w in ALL.items() if name != "image_gradients" or patch_size > 1}
    options = {"n_training_points": 120, "patch_size": patch_size, "sample_continuous": True}
    trainer = make_trainer(model, weights, **options)
    trainer.train_step(batch, 0)  # to see which pixels it takes
    pixels, n_patches = chosen[0]
    assert n_patches == 120 // patch_size**2
    columns_rows = (pixels.double() + 1) / 2 * torch.tensor([19, 15])
    index = columns_rows.flip(-1).view(2, n_patches, -1, 2).numpy()
    assert np.abs(index - index.round()).max() > 0.3
    check_against_plain(model, batch, trainer, 128, index)


def test_threshold_is_where_the_surface_is(views, constant_draws):
    """With tau = 0.8 the surface is where the logit is log 4; the other terms know no tau."""
    model = make_model(tau=0.8)
    trainer = make_trainer(model, ALL, patch_size=2)
    inner = check_against_plain(model, views(0), trainer, 128).hit
    outer = plain.loss(make_model(), views(0), trainer.options, 128, UNIFORM, NORMAL).hit
    assert inner.sum() < 0.9 * outer.sum() and not (inner & ~outer).any()


# ---- rays without a surface ----------------------------------------------------------------------


@pytest.mark.parametrize("bias", [-100.0, 100.0], ids=["empty", "starts inside"])
def test_without_hits_only_random_depths_remain(views, bias):
    """A field without a surface: nothing to colour and no depth, and no gradient through them."""
    model = make_model(bias=bias)
    surface = {name: 1.0 for name in ALL if name not in ("freespace", "occupied")}
    report = make_trainer(model, surface, patch_size=2).train_step(views(0), 0)
    assert report.pop("rays") > 0
    nothing = dict.fromkeys(("loss", "gradient_norm", "hit_share", *surface), 0)
    assert report == nothing
    assert all(gradient.count_nonzero() == 0 for gradient in gradients(model).values())

    report = make_trainer(model, ALL, patch_size=2).train_step(views(0), 0)
    right, wrong = ("freespace", "occupied") if bias < 0 else ("occupied", "freespace")
    assert report[right] < 1e-6
    assert report[wrong] > 90 * 10
    assert gradients(model)["decoder.fc_out.bias"][0] * bias > 0  # towards the truth
    assert gradients(model)["decoder.fc_out.bias"][1:].count_nonzero() == 0


def test_random_depths_are_uniform_in_the_cube(views, monkeypatch):
    """Of an empty field: freespace points in the padded cube, occupancy points in the cube."""
    model = make_model(bias=-100.0)
    seen = record_points(model, monkeypatch)
    batch = views(0, without=("img.depth", "img.visual_hull_depth"))
    matrices = [batch[f"img.{name}_mat"][0].numpy() for name in ("camera", "world", "scale")]
    mask = batch["img.mask"][0].flatten()
    rays = [plain.ray(*p, *matrices) for p in pixel_centers(16, 20, dtype=torch.float64).numpy()]
    for term, padding, which in (("freespace", 0.1, ~mask), ("occupied", 0.0, mask)):
        fractions = []
        for iteration in range(4):
            seen.clear()
            make_trainer(model, {term: 1.0}).train_step(batch, iteration)
            points = seen.pop().double().numpy()
            concerned = [(*ray, plain.interval(*ray, padding)) for ray, w in zip(rays, which) if w]
            concerned = [ray for ray in concerned if ray[2] is not None]
            assert len(points) == len(concerned)
            for point, (origin, direction, (near, far)) in zip(points, concerned):
                depth = (point - origin) @ direction / (direction @ direction)
                assert np.abs(origin + depth * direction - point).max() < 1e-5
                fractions.append((depth - near) / (far - near))
        fractions = np.sort(fractions)
        assert fractions[0] >= -1e-4 and fractions[-1] <= 1 + 1e-4
        assert len(fractions) > 300
        uniform = np.linspace(0, 1, len(fractions))
        assert np.abs(fractions - uniform).max() < 1.8 / math.sqrt(len(fractions))  # Kolmogorov


# ---- seeds ---------------------------------------------------------------------------------------


def step_report(views, iteration, seed, n_steps=(20, 60)):
    model = make_model(n_steps=n_steps)
    trainer = make_trainer(model, ALL, seed=seed, n_training_points=60, patch_size=2)
    report = trainer.train_step(views(0, 1), iteration)
    return report, gradients(model)


def test_a_step_follows_from_seed_and_iteration_alone(views):
    torch.manual_seed(1)
    report, found = step_report(views, 7, seed=3)
    torch.manual_seed(2)
    again, found_again = step_report(views, 7, seed=3)
    assert report == again
    assert all(torch.equal(found[name], found_again[name]) for name in found)
    for other in (step_report(views, 8, seed=3), step_report(views, 7, seed=4)):
        assert other[0]["rgb"] != report["rgb"]


def test_a_resumed_run_equals_an_uninterrupted_one(views):
    """Steps 0 to 9 in one go, and with all that is left of the run after step 5 but its state."""

    def trainer_of(model):
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        options = LossOptions(weights=ALL, n_training_points=60, patch_size=2)
        return Trainer(model, optimizer, options, seed=1)

    batches = [views(i) for i in range(3)]
    through = trainer_of(make_model())
    reports = []
    for iteration in range(10):
        if iteration == 5:
            first, second, third = (
                copy.deepcopy(part.state_dict())
                for part in (through.model, through.optimizer, through)
            )
        reports.append(through.train_step(batches[iteration % 3], iteration))

    resumed = trainer_of(make_model(seed=9))
    resumed.model.load_state_dict(first)
    resumed.optimizer.load_state_dict(second)
    resumed.load_state_dict(third)
    for iteration in range(5, 10):
        assert resumed.train_step(batches[iteration % 3], iteration) == reports[iteration]
    for name, value in through.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_views_must_be_known_before_they_are_compared(views):
    trainer = make_trainer(make_model(), {"rgb": 1.0, "patch": 1.0})
    with pytest.raises(RuntimeError, match="know_views"):
        trainer.train_step(views(0, 1), 0)


def test_global_random_numbers_are_left_alone(views):
    model = make_model(n_steps=(20, 60))
    trainer = make_trainer(
        model, ALL, n_training_points=60, patch_size=2, occupancy_random_normal=True
    )
    before = torch.get_rng_state()
    trainer.train_step(views(0), 0)
    trainer.evaluate([views(0)])
    assert torch.equal(torch.get_rng_state(), before)


def test_validation_is_the_same_every_time(views):
    model = make_model()
    trainer = make_trainer(model, ALL, n_eval_points=50, patch_size=2)
    first = trainer.evaluate([views(0), views(1)])
    trainer.train_step(views(2), 5)
    assert trainer.evaluate([views(0), views(1)]) == first


# ---- cost ----------------------------------------------------------------------------------------


def record_points(model, monkeypatch):
    """Points that enter the network to be differentiated or kept (not those of the march)."""
    seen = []
    for name in ("forward", "occupancy", "evaluate"):
        original = getattr(model.decoder, name)

        def recorded(points, *args, original=original):
            if torch.is_grad_enabled():
                seen.append(points.detach().clone())
            return original(points, *args)

        monkeypatch.setattr(model.decoder, name, recorded)
    return seen


@pytest.mark.parametrize(
    "term, kinds",
    [  # (hit, mask) of the rays that the term needs
        ("rgb", [(True, True)]),
        ("image_gradients", [(True, True)]),
        ("depth", [(True, True)]),
        ("normal", [(True, True), (True, False)]),
        ("freespace", [(True, False), (False, False)]),
        ("occupied", [(False, True)]),
    ],
)
def test_the_network_is_evaluated_only_where_a_term_needs_it(views, monkeypatch, term, kinds):
    model = make_model()
    batch = views(0)
    report = plain.loss(model, batch, LossOptions(weights={}), 128, UNIFORM, NORMAL)
    seen = record_points(model, monkeypatch)
    weights = {**dict.fromkeys(ALL, 0.0), term: 1.0}
    make_trainer(model, weights, patch_size=2).train_step(batch, 0)
    kind = list(zip(report.hit.ravel().tolist(), report.mask.ravel().tolist()))
    assert 0 < len(torch.cat(seen)) <= sum(kind.count(k) for k in kinds)


def test_sparse_depth_alone_needs_only_its_hits(views, monkeypatch):
    model, batch = make_model(), views(0)
    seen = record_points(model, monkeypatch)
    make_trainer(model, {"sparse_depth": 1.0}).train_step(batch, 0)
    assert 0 < len(torch.cat(seen)) <= batch["sparse_depth.valid"].sum()


def test_weights_of_zero_cost_nothing_and_change_nothing(views, monkeypatch):
    model = make_model()
    seen = record_points(model, monkeypatch)
    before = {name: p.clone() for name, p in model.named_parameters()}
    trainer = make_trainer(model, dict.fromkeys(ALL, 0.0), lr=1.0, patch_size=2)
    report = trainer.train_step(views(0), 0)
    assert set(report) == {"loss", "gradient_norm", "hit_share", "rays"} and report["loss"] == 0
    assert sum(map(len, seen)) == 0
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_memory_of_the_graph_does_not_grow_with_the_steps(views, monkeypatch):
    kept, points = {}, {}
    batch = views(0, 1)
    for n_steps in (16, 128):
        model = make_model(n_steps=(n_steps, n_steps + 1))
        seen = record_points(model, monkeypatch)
        size = 0

        def pack(tensor):
            nonlocal size
            size += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            make_trainer(model, ALL, patch_size=2).train_step(batch, 0)
        kept[n_steps], points[n_steps] = size, len(torch.cat(seen))
    n_rays = 2 * 16 * 20 + batch["sparse_depth.valid"].sum()
    assert max(points.values()) <= n_rays
    assert kept[128] == pytest.approx(kept[16], rel=0.02)


@pytest.mark.parametrize("conditional", [False, True])
def test_free_space_is_skipped_without_a_trace(views, monkeypatch, conditional):
    """The march asks less of the network, the loss where it has no gradient; the step is the same."""
    chosen = (0, 2) if conditional else (0,)
    results = []
    for coarse_bounds in (False, True):
        model = make_model(conditional)
        with torch.no_grad():
            for parameter in model.decoder.fc_out.parameters():
                parameter[0] *= 200
        evaluated, field = [], model.logit_field
        learned_from, evaluate = [], model.decoder.evaluate

        def counted(*args, field=field, evaluated=evaluated):
            def count(points, rays):
                evaluated.append(len(points))
                return field(*args)(points, rays)

            return count

        def kept(points, *args, learned_from=learned_from, evaluate=evaluate):
            if torch.is_grad_enabled():
                learned_from.append(len(points))
            return evaluate(points, *args)

        monkeypatch.setattr(model, "logit_field", counted)
        monkeypatch.setattr(model.decoder, "evaluate", kept)
        trainer = make_trainer(model, ALL, patch_size=2, coarse_bounds=coarse_bounds)
        if trainer.bounds is not None:
            trainer.bounds.update(field())
        report = trainer.train_step(views(*chosen), 1)
        results.append((report, gradients(model), sum(evaluated), sum(learned_from)))
    (report, found, *n_points), (report_skipping, found_skipping, *n_points_skipping) = results
    assert n_points_skipping[0] < 0.7 * n_points[0] and n_points_skipping[1] < 0.8 * n_points[1]
    assert report_skipping == pytest.approx(report, rel=1e-5)
    for name, gradient in found.items():
        torch.testing.assert_close(found_skipping[name], gradient, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "n_rays, n_cells", [(200, None), (256, 8), (512, 8), (1024, 10), (2048, 12), (4000, 16)]
)
def test_the_grid_of_an_object_fits_its_rays(n_rays, n_cells):
    """One point for a ray, about; with so few rays that a grid would cost more than it saves, none."""
    model = make_model(conditional=True)
    trainer = make_trainer(model, ALL)
    rays = SimpleNamespace(origins=torch.zeros(2 * n_rays, 3), n_images=2)
    bounds = trainer._object_bounds(rays, model.encode(torch.tensor([1, 3])))
    assert (bounds and bounds.resolution) == n_cells
    if n_cells is not None:
        assert len(bounds.errors) == 2 * n_cells
        assert (n_cells + 1) ** 3 <= 3 * n_rays


def test_normals_are_compared_only_where_they_can_differ(views, monkeypatch):
    """Points in one linear piece of the network are left out; terms and gradients stay as they are."""
    results = []
    for everywhere in (True, False):
        model = make_model()
        compared, smoothness = [], losses.normal_smoothness

        def counted(normals, nearby, compared=compared, smoothness=smoothness):
            compared.append(len(normals))
            return smoothness(normals, nearby)

        with monkeypatch.context() as patch:
            patch.setattr(losses, "normal_smoothness", counted)
            if everywhere:
                patch.setattr(
                    ResidualEvaluation, "same_piece",
                    lambda one, other: torch.zeros(len(one.out), dtype=torch.bool),
                )
            report = make_trainer(model, {"normal": 1.0}, reduction="mean").train_step(views(0), 0)
        results.append((sum(compared), report, gradients(model)))
    (n_all, expected, of_all), (n_some, report, of_some) = results
    assert 0 < n_some < 0.9 * n_all
    assert report == pytest.approx(expected, rel=1e-5) and report["normal"] > 0
    for name, gradient in of_all.items():
        torch.testing.assert_close(of_some[name], gradient, rtol=1e-4, atol=1e-7)


def test_looks_at_the_field_get_rarer_while_it_stays_as_it_is(views):
    trainer = make_trainer(make_model(), {"freespace": 1.0}, n_training_points=10)  # of rate 0
    looks, update = [], trainer.bounds.update

    def counted(*args, **kwargs):
        looks.append(iteration)
        update(*args, **kwargs)

    trainer.bounds.update = counted
    batch = views(0)
    for iteration in range(400):
        trainer.train_step(batch, iteration)
    assert looks == [0, 16, 48, 112, 240, 368]


def test_a_field_that_left_its_bounds_is_looked_at_anew(views):
    """When a probe tells, not when the interval is over."""
    model = make_model()
    trainer = make_trainer(model, {"freespace": 1.0}, n_training_points=100)  # of rate 0
    batch = views(0)
    for iteration in range(50):
        trainer.train_step(batch, iteration)
    assert (trainer.looked, trainer.look_every) == (48, 64)
    margin = trainer.bounds.margin
    with torch.no_grad():
        model.decoder.fc_out.bias[0] += 3.0  # the object grows into what was free space
    for iteration in range(50, 65):
        trainer.train_step(batch, iteration)
    assert (trainer.looked, trainer.look_every) == (64, 32)
    assert trainer.bounds.margin > margin


def test_the_bounds_mislead_few_rays_of_a_training(views):
    """A fifth of a percent while the field changes the most; without probes, half of one."""
    batches = [views(i, without=("img.depth", "img.visual_hull_depth")) for i in range(5)]
    n_misled = n_rays = 0
    for seed in range(3):
        model = make_model(seed=seed)
        find_surface = model.find_surface

        def compared(origins, directions, *args, find_surface=find_surface, **kwargs):
            nonlocal n_misled, n_rays
            found = find_surface(origins, directions, *args, **kwargs)
            if "generator" not in kwargs:  # of the step, not of a probe
                expected = find_surface(origins, directions, n_steps=args[2])
                apart = (found.points - expected.points).norm(dim=1) > training.SAME_SURFACE
                n_misled += int(((found.hit != expected.hit) | apart).sum())
                n_rays += len(origins)
            return found

        model.find_surface = compared
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        trainer = Trainer(model, optimizer, LossOptions(n_training_points=MANY), seed=seed)
        for iteration in range(150):
            trainer.train_step(batches[iteration % 5], iteration)
        assert trainer.bounds.staleness < 0.5  # it does promise something
    assert n_rays == 3 * 150 * 320
    assert n_misled < 4e-3 * n_rays


def test_no_gradients_in_validation(views):
    model = make_model()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda tensor: tensor):
        make_trainer(model, ALL, patch_size=2).evaluate([views(0)])
    assert kept == []


def test_the_schedule_sets_the_number_of_steps(views, monkeypatch):
    model = make_model()
    model.depth_function = DepthFunction(init_resolution=5, schedule_milestones=(2, 4))
    calls = []
    find_surface = DVR.find_surface

    def recorded(self, origins, directions, latent=None, objects=None, n_steps=None, *args, **options):
        calls.append(n_steps)
        return find_surface(self, origins, directions, latent, objects, n_steps, *args, **options)

    monkeypatch.setattr(DVR, "find_surface", recorded)
    trainer = make_trainer(model, {"rgb": 1.0})
    for iteration in (0, 1, 2, 3, 4, 1000):
        trainer.train_step(views(0), iteration)
    assert calls == [(5, 6), (5, 6), (10, 11), (10, 11), (20, 21), (20, 21)]
    trainer.evaluate([views(0)])
    assert calls[-1] in (None, (128, 129))


# ---- steps ---------------------------------------------------------------------------------------


def test_a_step_is_one_of_the_optimizer(views):
    model = make_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer = make_trainer(model, ALL, lr=1e-3, patch_size=2)
    trainer.train_step(views(0), 0)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] - 1e-3 * p.grad, msg=name)
    once = gradients(model)
    trainer.optimizer.param_groups[0]["lr"] = 0.0
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(before[name])
    trainer.train_step(views(0), 0)
    assert all(torch.equal(once[name], g) for name, g in gradients(model).items())  # no pile-up


def test_a_gradient_that_is_too_long_is_shortened(views):
    free, clipped = make_model(), make_model()
    norm = make_trainer(free, ALL).train_step(views(0), 0)["gradient_norm"]
    whole = torch.nn.utils.get_total_norm(gradients(free).values())
    assert norm == pytest.approx(float(whole)) and norm > 1
    for most, factor in ((norm / 4, 0.25), (2 * norm, 1.0)):
        report = make_trainer(clipped, ALL, gradient_clip=most).train_step(views(0), 0)
        assert report["gradient_norm"] == pytest.approx(norm)  # as it was
        for name, gradient in gradients(clipped).items():
            torch.testing.assert_close(gradient, factor * gradients(free)[name], rtol=1e-4, atol=0)


def test_reduced_precision_is_for_the_search_and_the_encoder(views, monkeypatch):
    """The surface, the points of the loss and all weights stay in float32."""
    seen = []

    def spy(name, function):
        def spied(*args):
            seen.append((name, torch.is_autocast_enabled("cpu")))
            return function(*args)

        return spied

    full, reduced = make_model(conditional=True), make_model(conditional=True)
    for name, module, method in [
        ("encoder", reduced.encoder, "forward"),
        ("search", reduced.decoder, "occupancy"),
        ("loss", reduced.decoder, "evaluate"),
        ("loss", reduced.decoder, "evaluate_for_gradient"),
    ]:
        monkeypatch.setattr(module, method, spy(name, getattr(module, method)))
    batch = views(0, 1)
    weights = {"rgb": 1.0, "freespace": 1.0, "occupied": 1.0, "normal": 1.0}
    expected = make_trainer(full, weights).train_step(batch, 0)
    trainer = make_trainer(reduced, weights, precision=torch.bfloat16)
    report = trainer.train_step(batch, 0)
    assert set(seen) == {
        ("encoder", True), ("search", True), ("search", False), ("loss", False)
    }
    assert report["hit_share"] == pytest.approx(expected["hit_share"], abs=0.02)
    assert report["loss"] == pytest.approx(expected["loss"], rel=0.05)
    for name, gradient in gradients(reduced).items():
        expected = gradients(full)[name]
        assert gradient.dtype == torch.float32
        assert torch.cosine_similarity(gradient.flatten(), expected.flatten(), 0) > 0.97, name
    seen.clear()
    trainer.evaluate([batch])
    assert not any(is_reduced for _, is_reduced in seen)
    assert {name for name, _ in seen} == {"encoder", "search", "loss"}


def test_a_compiled_network_takes_the_same_step(views, monkeypatch):
    """As far as the tracing of its code goes; machine code takes too long here."""
    to_machine_code, compiled = torch.compile, []

    def traced_only(function, **options):
        compiled.append(function.__name__)
        return to_machine_code(function, backend="eager", fullgraph=True, **options)

    monkeypatch.setattr(torch, "compile", traced_only)
    plainly, model = make_model(), make_model()
    model.decoder.compile_passes()
    expected = make_trainer(plainly, ALL, patch_size=2).train_step(views(0), 0)
    report = make_trainer(model, ALL, patch_size=2).train_step(views(0), 0)
    assert compiled == ["_values", "_traced"]
    assert report == pytest.approx(expected, rel=1e-5)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, gradients(plainly)[name], rtol=1e-4, atol=1e-5)


def test_training_learns_the_scene(views):
    model = make_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    weights = {"rgb": 1.0, "freespace": 1.0, "occupied": 1.0}
    options = LossOptions(weights=weights, n_training_points=MANY, n_eval_points=MANY)
    trainer = Trainer(model, optimizer, options)
    batches = [views(i, without=("img.depth", "img.visual_hull_depth")) for i in range(5)]
    before = trainer.evaluate(batches)
    for iteration in range(60):
        trainer.train_step(batches[iteration % 5], iteration)
    after = trainer.evaluate(batches)
    assert after["loss"] < 0.6 * before["loss"]
    assert after["mask_iou"] > max(0.75, before["mask_iou"] + 0.1)
    assert after["loss_rgb_eval"] < 0.8 * before["loss_rgb_eval"]


@pytest.mark.parametrize(
    "term, channel, value",
    [("rgb", 2, math.nan), ("freespace", 0, math.nan), ("freespace", 0, math.inf)],
)
def test_a_loss_that_is_not_finite_stops_before_the_step(views, monkeypatch, term, channel, value):
    model = make_model()
    evaluate = model.decoder.evaluate

    def broken(*args):
        found = evaluate(*args)
        spoiled = torch.zeros_like(found.out)
        spoiled[:, channel] = value
        found.out = found.out + spoiled
        return found

    monkeypatch.setattr(model.decoder, "evaluate", broken)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer = make_trainer(model, {"normal": 1.0, "rgb": 1.0, "freespace": 1.0}, lr=1.0)
    with pytest.raises(FloatingPointError, match=rf"\b{term}\b") as err:
        trainer.train_step(views(0), 0)
    assert "normal" not in str(err.value)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_weights_that_are_not_numbers_stop_the_training(views):
    model = make_model()
    with torch.no_grad():
        model.decoder.fc_p.bias[3] = math.nan
    trainer = make_trainer(model, {"rgb": 1.0, "freespace": 1.0, "occupied": 1.0})
    with pytest.raises(FloatingPointError, match="freespace"):
        trainer.train_step(views(0), 0)


# ---- validation ----------------------------------------------------------------------------------


def test_validation_by_hand(views, constant_draws):
    """Every figure from the plain twin, over batches of different size."""
    model = make_model(conditional=True)
    trainer = make_trainer(model, ALL, patch_size=2)
    batches = [views(0, 1), views(2)]
    metrics = trainer.evaluate(batches)
    results = [plain.loss(model, batch, trainer.options, 128, UNIFORM, NORMAL) for batch in batches]

    for name in ALL:
        by_image = sum(result.values[name].sum().item() for result in results)
        assert metrics[name] == pytest.approx(by_image / 3, rel=1e-4), name
    assert metrics["loss"] == pytest.approx(sum(ALL[n] * metrics[n] for n in ALL), rel=1e-5)
    means = {
        "loss_rgb_eval": "rgb",
        "loss_depth_eval": "depth",
        "loss_sparse_depth_val": "sparse_depth",
        "normal_loss_eval": "normal",
    }
    for name, term in means.items():
        mean = torch.cat([result.values[term] for result in results]).mean().item()
        assert metrics[name] == pytest.approx(mean, rel=1e-4), name
    hit, mask = (np.concatenate([getattr(r, name) for r in results]) for name in ("hit", "mask"))
    assert metrics["mask_intersection"] == pytest.approx((hit == mask).mean())
    iou = [(h & m).sum() / (h | m).sum() for h, m in zip(hit, mask)]
    assert metrics["mask_iou"] == pytest.approx(np.mean(iou))
    assert set(metrics) == {*ALL, "loss", *means, "mask_intersection", "mask_iou"}


def test_validation_without_hits(views):
    """What no ray speaks for is nan, never a perfect score."""
    model = make_model(bias=-100.0)
    metrics = make_trainer(model, ALL, patch_size=2).evaluate([views(0)])
    for name in ("loss_rgb_eval", "loss_depth_eval", "loss_sparse_depth_val", "normal_loss_eval"):
        assert math.isnan(metrics[name]), name
    assert metrics["rgb"] == 0
    assert metrics["mask_iou"] == 0
    assert math.isfinite(metrics["loss"])
    background = (~views(0)["img.mask"][0]).float().mean().item()
    assert metrics["mask_intersection"] == pytest.approx(background)


def test_an_empty_view_that_is_left_empty_is_right(views):
    batch = views(0, 1)
    batch["img.mask"] = [batch["img.mask"][0], torch.zeros_like(batch["img.mask"][1])]
    metrics = make_trainer(make_model(bias=-100.0), ALL, patch_size=2).evaluate([batch])
    assert metrics["mask_iou"] == 0.5


def test_validation_reports_terms_of_weight_zero(views):
    """Their figures are wanted; the loss does not contain them."""
    weights = {**ALL, "rgb": 0.0, "normal": 0.0}
    metrics = make_trainer(make_model(), weights, patch_size=2).evaluate([views(0)])
    assert metrics["rgb"] > 0 and metrics["normal_loss_eval"] > 0
    expected = sum(weights[name] * metrics[name] for name in weights)
    assert metrics["loss"] == pytest.approx(expected, rel=1e-5)


def test_occupancy_alone_has_no_colour_terms(views):
    decoder = plain.octahedron_decoder()
    occupancy = torch.nn.Linear(decoder.fc_out.in_features, 1)
    with torch.no_grad():
        occupancy.weight.copy_(decoder.fc_out.weight[:1])
        occupancy.bias.copy_(decoder.fc_out.bias[:1])
    decoder.fc_out, decoder.out_dim = occupancy, 1
    trainer = make_trainer(DVR(decoder), ALL, patch_size=2)
    report = trainer.train_step(views(0), 0)
    assert not {"rgb", "image_gradients"} & set(report)
    assert report["depth"] > 0 and report["normal"] > 0
    assert gradients(trainer.model)["decoder.fc_out.bias"].abs().item() > 0


# ---- pixels of a step ----------------------------------------------------------------------------


@pytest.mark.parametrize("height, width, patch_size", [(6, 8, 2), (5, 7, 2), (7, 5, 3), (4, 3, 1)])
def test_every_pixel_once(height, width, patch_size):
    pixels, n_patches = sample_pixels(height * width, patch_size, height, width, batch_size=2)
    assert pixels.shape == (2, height * width, 2)
    assert n_patches == (height // patch_size) * (width // patch_size)
    index = image_to_index(pixels, height, width)
    for image in index:
        assert len({tuple(i) for i in image.tolist()}) == height * width
    assert torch.equal(pixels, index_to_image(index, height, width))
    patches = index[0, : n_patches * patch_size**2].view(n_patches, patch_size, patch_size, 2)
    check_patches(patches)


def check_patches(patches):
    """(P, s, s, 2) row by row: (0, 0), (0, 1), ... from the first pixel of each patch."""
    size = patches.shape[1]
    for i in range(size):
        for j in range(size):
            offset = patches[:, i, j] - patches[:, 0, 0]
            assert torch.equal(offset, offset.new_tensor([i, j]).expand_as(offset))


@pytest.mark.parametrize("patch_size", [1, 2, 3])
def test_random_patches(patch_size):
    generator = torch.Generator().manual_seed(0)
    height, width, n_points = 6, 9, 50
    corners = set()
    for _ in range(60):
        pixels, n_patches = sample_pixels(n_points, patch_size, height, width, 3, generator)
        assert n_patches == n_points // patch_size**2
        assert pixels.shape == (3, n_patches * patch_size**2, 2)
        index = image_to_index(pixels, height, width)
        assert torch.equal(pixels, index_to_image(index, height, width))  # pixel centres
        patches = index.view(3 * n_patches, patch_size, patch_size, 2)
        check_patches(patches)
        assert not torch.equal(index[0], index[1])  # each image has its own
        corners |= {tuple(corner) for corner in patches[:, 0, 0].tolist()}
    rows, columns = height - patch_size + 1, width - patch_size + 1
    assert corners == {(i, j) for i in range(rows) for j in range(columns)}  # up to the borders


def test_real_valued_patches():
    generator = torch.Generator().manual_seed(0)
    pixels, n_patches = sample_pixels(400, 2, 30, 40, 2, generator, continuous=True)
    assert (n_patches, pixels.shape) == (100, (2, 400, 2))
    assert pixels.abs().max() <= 1
    position = ((pixels.double() + 1) / 2 * torch.tensor([39, 29])).view(-1, 4, 2)
    steps = position - position[:, :1]
    expected = torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1]]).double()
    assert (steps - expected).abs().max() < 1e-4  # (x, y): right, then down
    assert (position - position.round()).abs().max() > 0.4
    assert position.amin() < 0.5 and (position.amax((0, 1)) > torch.tensor([38.5, 28.5])).all()


def test_pixels_follow_the_generator():
    one, same, other = (
        sample_pixels(20, 1, 50, 60, generator=torch.Generator().manual_seed(seed))[0]
        for seed in (0, 0, 1)
    )
    assert torch.equal(one, same) and not torch.equal(one, other)
