"""Sum up a run: metrics, paths, and a contact sheet of input views above renderings.

    python scripts/demo_report.py CONFIG.yaml

Comes after train.py, generate.py, render.py (all views, and a turntable with
rendering.render_dir=turntable) and eval_meshes.py with the same config. Writes
<out_dir>/contact_sheet.png.
"""

import logging
import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from im2mesh import cli  # noqa: E402
from im2mesh.commands.setup import get_dataset, mesh_path, output_folder  # noqa: E402
from im2mesh.data.images import read_rgb  # noqa: E402
from im2mesh.errors import InputError  # noqa: E402
from im2mesh.files import atomic_path  # noqa: E402
from scripts.contact_sheet import contact_sheet  # noqa: E402

log = logging.getLogger("im2mesh")

N_VIEWS = 6


def report(config, device, args):
    """Print the metrics table and the paths, write the contact sheet.

    Raises
    ------
    InputError
        When the config has several objects, or a file of an earlier command is missing.
    """
    dataset = get_dataset(config, "render")
    if len(dataset) != 1:
        raise InputError(
            f"{config['data']['path']} holds {len(dataset)} objects, the report is about one: "
            "choose it with --set data.classes=[CLASS]"
        )
    [entry] = dataset.entries
    images = dataset.fields["img"]
    views = images.views(entry.folder)
    rendering = config["rendering"]
    renderings = output_folder(config, rendering["render_dir"])
    several = isinstance(rendering["colors"], list) and len(rendering["colors"]) > 1
    suffix = "_rgb" if several else ""

    generation, name = config["generation"]["generation_dir"], config["test"]["eval_file_name"]
    table = _existing(output_folder(config, generation, f"{name}.csv"), "eval_meshes.py")
    metrics = pd.read_csv(table, index_col="class").loc["mean"]
    all_views = "render.py with --set rendering.n_views=0"
    rendered = pd.read_csv(_existing(renderings / "metrics.csv", all_views))
    if len(rendered) != len(views):
        raise InputError(
            f"{renderings / 'metrics.csv'} is about {len(rendered)} of {len(views)} views: run "
            f"{all_views} and the same config"
        )
    mesh = _existing(mesh_path(config, entry), "generate.py")
    gif = _existing(
        output_folder(config, "turntable", entry.category, f"{entry.model}{suffix}.gif"),
        "render.py with --set rendering.trajectory=turntable "
        "--set rendering.render_dir=turntable",
    )

    chosen = [views[i] for i in _spread(len(views))]
    inputs = [images.load(entry.folder, view)[""].numpy() for view in chosen]
    outputs = [
        read_rgb(
            _existing(
                renderings / entry.category
                / f"{entry.model}_{view:03d}{suffix}.{rendering['extension']}",
                all_views,
            )
        )
        for view in chosen
    ]
    numbers = ", ".join(map(str, chosen))
    sheet = output_folder(config, "contact_sheet.png")
    with atomic_path(sheet) as path:
        contact_sheet(
            {f"input views {numbers}": inputs, "renderings of the same views": outputs}
        ).save(path)

    log.info("%s\n", format_metrics(metrics, rendered))
    log.info("mesh           %s", mesh)
    log.info("turntable      %s", gif)
    log.info("contact sheet  %s", sheet)


def format_metrics(metrics, rendered):
    """The table of what the run reached.

    Parameters
    ----------
    metrics : pandas.Series
        A row of ``eval_report.write_report``.
    rendered : pandas.DataFrame
        ``metrics.csv`` of render.py: psnr and mask_iou of each view.
    """
    views = f"mean of {len(rendered)} views"
    rows = [
        ("chamferL1", metrics["chamferL1"], "cube edges"),
        ("accuracy", metrics["accuracy"], "cube edges"),
        ("completeness", metrics["completeness"], "cube edges"),
        ("normals", metrics["normals"], "mean |cos|"),
        ("mask IoU", rendered["mask_iou"].mean(), views),
        ("PSNR", rendered["psnr"].mean(), f"dB inside the true masks, {views}"),
    ]
    return "\n".join(f"{name:<14} {value:8.4f}  {unit}" for name, value, unit in rows)


def _spread(n_views):
    """Up to ``N_VIEWS`` indices, as far apart as can be."""
    n_shown = min(N_VIEWS, n_views)
    return np.linspace(0, n_views, n_shown, endpoint=False).astype(int)


def _existing(path, command):
    if not path.is_file():
        raise InputError(f"there is no {path}: run {command} and the same config first")
    return path


if __name__ == "__main__":
    parser = cli.argument_parser("demo_report", __doc__.splitlines()[0])
    sys.exit(cli.run(report, parser))
