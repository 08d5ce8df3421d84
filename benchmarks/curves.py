"""Draw the curves of a training run.

    python -m benchmarks.curves OUT_DIR PICTURE.png

OUT_DIR is the run's training.out_dir; its logs/ are what TensorBoard shows.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from im2mesh.errors import InputError
from im2mesh.files import atomic_path

PANELS = {  # by tag
    "train/loss": "training loss",
    "train/learning_rate": "learning rate",
    "val/loss_depth_eval": "mean depth error, validation",
    "val/mask_iou": "mask IoU, validation",
}
LOGARITHMIC = {"train/loss", "train/learning_rate", "val/loss_depth_eval"}
SMOOTHING = 5  # readings of the training loss that are averaged


def read_curves(out_dir):
    """The scalars of a run, dict of tag to (iterations, values), two arrays."""
    logs = Path(out_dir) / "logs"
    if not logs.is_dir():
        raise InputError(f"there is no {logs}: give the training.out_dir of a run of train.py")
    events = EventAccumulator(str(logs), {"scalars": 0}).Reload()
    curves = {
        tag: tuple(np.array([(event.step, event.value) for event in events.Scalars(tag)]).T)
        for tag in events.Tags()["scalars"]
    }
    missing = PANELS.keys() - curves.keys()
    if missing:
        raise InputError(f"{logs} has no {', '.join(sorted(missing))} yet")
    return curves


def draw(curves, path):
    """Write a picture with a panel for each of ``PANELS``."""
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    for axes, (tag, title) in zip(figure.subplots(2, 2, sharex=True).flat, PANELS.items()):
        steps, values = curves[tag]
        if tag == "train/loss" and len(values) >= SMOOTHING:
            kernel = np.full(SMOOTHING, 1 / SMOOTHING)
            steps, values = (np.convolve(array, kernel, "valid") for array in (steps, values))
        axes.plot(steps, values, ".-" if len(steps) < 50 else "-", linewidth=1)
        axes.set_title(title, fontsize="medium")
        axes.grid(alpha=0.3)
        if tag in LOGARITHMIC:
            axes.set_yscale("log")
    for axes in figure.axes[2:]:
        axes.set_xlabel("iteration")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=100)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out_dir", metavar="OUT_DIR", type=Path)
    parser.add_argument("picture", metavar="PICTURE.png", type=Path)
    args = parser.parse_args()
    try:
        draw(read_curves(args.out_dir), args.picture)
    except InputError as err:
        print(f"error: {err}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
