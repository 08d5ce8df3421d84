"""What a training with detail adds: pixels near masks, the hull to start from, unseen space, schedules."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from im2mesh.commands.train import Run
from im2mesh.config import load_config
from im2mesh.dvr.fields.registered import HashGridField
from im2mesh.dvr.model import DVR
from im2mesh.dvr.raymarch import DepthFunction
from im2mesh.dvr.sampling import mask_boxes, sample_pixels
from im2mesh.dvr.support import Support
from im2mesh.dvr.training import LossOptions, Trainer
from im2mesh.dvr.visibility import WINDOW
from im2mesh.errors import InputError
from im2mesh.geometry import image_to_index
from tests.programs import run

SMALL_GRID = {"n_levels": 4, "coarsest": 4, "finest": 32, "log2_table_size": 12}


# ---- pixels near masks ---------------------------------------------------------------------------


def masks_with_boxes(*boxes, size=(30, 40)):
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (top, left, bottom, right) in zip(masks, boxes):
        mask[top : bottom + 1, left : right + 1] = True
    return masks


@pytest.mark.parametrize(
    "box, margin, expected",
    [
        ((10, 12, 20, 25), 3, [(7, 9), (23, 28)]),
        ((0, 0, 5, 39), 4, [(0, 0), (9, 39)]),  # as far as the image goes
        ((29, 39, 29, 39), 0, [(28, 38), (29, 39)]),  # as large as a patch
    ],
)
def test_box_of_a_mask(box, margin, expected):
    assert mask_boxes(masks_with_boxes(box), margin, 2)[0].tolist() == [list(e) for e in expected]


def test_box_of_an_empty_mask_is_the_image():
    assert mask_boxes(torch.zeros(1, 30, 40, dtype=torch.bool), 2, 2)[0].tolist() == [[0, 0], [29, 39]]


@pytest.mark.parametrize("patch_size", [1, 3])
def test_pixels_lie_in_their_boxes_and_reach_all_of_them(patch_size):
    boxes = mask_boxes(masks_with_boxes((3, 5, 9, 14), (20, 30, 24, 35)), 1, patch_size)
    pixels, n_patches = sample_pixels(
        900, patch_size, 30, 40, 2, torch.Generator().manual_seed(0), boxes=boxes
    )
    assert n_patches == 900 // patch_size**2
    for chosen, box in zip(image_to_index(pixels, 30, 40).round().long(), boxes):
        assert (chosen.amin(0) == box[0]).all() and (chosen.amax(0) == box[1]).all()


def test_boxes_of_whole_images_change_nothing():
    draws = [
        sample_pixels(60, 2, 30, 40, 2, torch.Generator().manual_seed(0), boxes=boxes)[0]
        for boxes in (None, torch.tensor([[[0, 0], [29, 39]]] * 2))
    ]
    assert torch.equal(*draws)


# ---- the hull to start from ----------------------------------------------------------------------


def ball(resolution=32, radius=0.3):
    axis = (torch.arange(resolution) + 0.5) / resolution * 1.1 - 0.55
    x, y, z = torch.meshgrid(axis, axis, axis, indexing="ij")
    return (x**2 + y**2 + z**2).sqrt() < radius


def make_trainer(seed=0, **options):
    torch.manual_seed(seed)
    support = Support(32)
    support.set_cells(ball())
    model = DVR(HashGridField(hidden_size=16, **SMALL_GRID), None, DepthFunction(), support)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    return Trainer(model, optimizer, LossOptions(**options), seed=seed)


def test_the_field_becomes_the_hull():
    trainer = make_trainer()
    trainer.become_hull(ball(), 150)
    points = (torch.rand(4000, 3, generator=torch.Generator().manual_seed(5)) - 0.5) * 1.1
    with torch.no_grad():
        inside = trainer.model.decoder.occupancy(points) > 0  # the network's own word, not the support's
    radii = points.norm(dim=1)
    assert inside[radii < 0.25].float().mean() > 0.99
    assert inside[radii > 0.36].float().mean() < 0.01
    assert not trainer.optimizer.state  # the training starts with fresh moments


def test_the_start_follows_from_the_seed():
    one, same, other = make_trainer(), make_trainer(), make_trainer(seed=1)
    for trainer in (one, same, other):
        trainer.become_hull(ball(), 3)
    weights = [trainer.model.decoder.fc_p.weight for trainer in (one, same, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


# ---- runs ----------------------------------------------------------------------------------------


@pytest.fixture
def sharp(project):
    """A config of the sphere with everything on, small."""
    return project(
        model={
            "decoder": "hashgrid", "visual_hull": True, "lambda_unseen": 0.1, "lambda_normal": 0.1,
            "normal_neighborhood": 0.01, "depth_function_kwargs": {"n_steps": [48, 49]},
            "decoder_kwargs": {"hidden_size": 16, "color_head": True, **SMALL_GRID},
        },
        training={
            "scheduler": "cosine", "scheduler_gamma": 0.1, "learning_rate": 0.005, "hull_iterations": 20,
            "coarse_to_fine": 0.5, "occupancy_points": "closest", "pixels_near_mask": 2,
            "max_iterations": 12, "print_every": 1, "checkpoint_every": 0, "validate_every": 12,
        },
    )


def saved(out, name="model.pt"):
    return torch.load(out / name, weights_only=True)


def test_a_sharp_run(sharp, out, capsys):
    assert run("train", sharp) == 0
    state = saved(out)
    assert state["it"] == 12 and state["model"]["support.bits"].count_nonzero() > 0
    assert float(state["model"]["decoder.encoding.progress"]) == 1.0
    log = (out / "train.log").read_text()
    assert "visual hull of 5 views" in log and "unseen" in log
    assert run("generate", sharp) == 0
    assert run("render", sharp) == 0


def test_a_resumed_sharp_run_equals_a_whole_one(sharp, out, monkeypatch):
    monkeypatch.setattr("im2mesh.dvr.visibility.WINDOW", 3)  # unseen space has a say from then on
    assert run("train", sharp) == 0
    whole = saved(out)["model"]
    (out / "model.pt").unlink()
    # A stop in the middle, by other means than a shorter training, which would change the schedule.
    reason = Run._reason_to_stop

    def stop(self, deadline, received):
        return (3, "enough") if self.iteration == 7 else reason(deadline, received)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_reason_to_stop", stop)
        assert run("train", sharp) == 3
    assert run("train", sharp) == 0
    resumed = saved(out)["model"]
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_cosine_schedule(sharp, monkeypatch):
    rates, set_rate = [], Run._set_learning_rate

    def recorded(self):
        set_rate(self)
        rates.append(self.optimizer.param_groups[0]["lr"])

    monkeypatch.setattr(Run, "_set_learning_rate", recorded)
    assert run("train", sharp) == 0
    expected = [0.005 * (0.1 + 0.9 * (1 + math.cos(math.pi * k / 12)) / 2) for k in range(12)]
    assert rates == pytest.approx(expected)


def test_masks_that_contradict_each_other(sharp, out, tiny_dtu, capsys):
    """No point of the cube is in all of them: named before the first step."""
    for view, rows in ((0, slice(0, 4)), (1, slice(-4, None))):
        mask = np.zeros((16, 20), np.uint8)
        mask[rows, 8:12] = 255
        Image.fromarray(mask).save(tiny_dtu / f"scan1/scan1/mask/{view:03d}.png")
    assert run("train", sharp) == 2
    assert "no point of the cube lies in the masks of all views" in capsys.readouterr().err


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["training.scheduler=cosine", "training.max_iterations=null"], ["max_iterations"]),
        (["training.coarse_to_fine=0.5", "training.max_iterations=null"], ["max_iterations"]),
        (["training.hull_iterations=5"], ["hull_iterations", "model.visual_hull=true"]),
        (["model.lambda_unseen=1"], ["lambda_unseen", "encoder"]),
        (["model.decoder_kwargs={color_head: true}", "data.img_with_camera=false"],
         ["img_with_camera", "color_head"]),
        (["training.pixels_near_mask=-1"], ["pixels_near_mask", "null"]),
        (["model.normal_neighborhood=0"], ["normal_neighborhood", "> 0"]),
        (["generation.smallest_part=2"], ["smallest_part", "0 to 1"]),
        (["training.occupancy_points=nearest"], ["random or closest"]),
    ],
)
def test_options_that_do_not_fit(overrides, words):
    with pytest.raises(InputError) as err:
        load_config("configs/default.yaml", overrides)
    assert all(word in str(err.value) for word in words)


def test_window_fits_a_training():
    """A term that never comes on would be of no use: the window is short beside the shipped configs."""
    assert WINDOW * 4 < load_config("configs/multi_view_reconstruction/cpu/sharp.yaml")["training"]["max_iterations"]
