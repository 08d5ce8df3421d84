"""What each ingredient of a config is worth: it is trained with one thing changed at a time.

    python -m benchmarks.ablation CONFIG.yaml [--seeds 0 1 2] [--only NAME ...] [--set key=value ...]

CONFIG is about one object in many views, and inherits from cpu/sharp.yaml. Each variant is trained to the
end and its mesh measured in the views (``benchmarks/mesh_views.py``); means over the seeds. Results go to
<out_dir>/ablation/results.json as they come; a second call goes on there.
"""

import argparse
from statistics import mean

from benchmarks.common import machine_line, markdown_table
from benchmarks.mesh_views import measure
from benchmarks.quality import DEVICE, measured_once, train, trainings_parser, without_breaks
from im2mesh.commands.generate import generate
from im2mesh.commands.setup import get_dataset, mesh_path, output_folder
from im2mesh.config import load_config

VARIANTS = {  # name: what is changed
    "as it is": [],
    "field of the paper, hidden 128": [
        "model.decoder=simple", "model.decoder_kwargs={hidden_size: 128}",
    ],
    "frequencies, 6 octaves": ["model.decoder=frequency", "model.decoder_kwargs={n_octaves: 6}"],
    "colour head": ["model.decoder_kwargs.color_head=true"],
    "all detail from the start": ["training.coarse_to_fine=0"],
    "finest 192": [
        "model.decoder_kwargs.finest=192", "model.decoder_kwargs.n_levels=8",
        "model.decoder_kwargs.log2_table_size=15",
    ],
    "without the hull": ["model.visual_hull=false", "training.hull_iterations=0"],
    "start not at the hull": ["training.hull_iterations=0"],
    "unseen space left alone": ["model.lambda_unseen=0"],
    "no rays from all around": ["training.n_surrounding_rays=0"],
    "views not compared": ["model.lambda_patch=0"],
    "each mask for its own rays only": ["model.lambda_silhouettes=0"],
    "normals over 0.001": ["model.normal_neighborhood=0.001"],
    "lambda_normal 0.05": ["model.lambda_normal=0.05"],
    "lambda_normal 0.8": ["model.lambda_normal=0.8"],
    "lambda_occupied 1": ["model.lambda_occupied=1"],
    "random occupancy points": ["training.occupancy_points=random"],
    "pixels from all of the image": ["training.pixels_near_mask=null"],
}
FIGURES = ("mask_iou", "psnr", "chamferL1", "normals", "inward_components", "seconds")


def main():
    parser = trainings_parser("what each ingredient of a config is worth")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    args = parser.parse_args()
    out_dir = output_folder(load_config(args.config, args.set), "ablation")
    results = measured_once(
        out_dir / "results.json", args.seeds, args.only,
        lambda name, seed, key: measured(args.config, [*args.set, *VARIANTS[name]], seed, out_dir / key),
    )
    print(machine_line())
    print(f"{args.config} {' '.join(args.set)}, means of {len(args.seeds)} seeds\n")
    rows = [
        (name, *(mean(results[f"{name}, seed {seed}"][figure] for seed in args.seeds) for figure in FIGURES))
        for name in args.only
    ]
    print(markdown_table(("", *FIGURES), rows))


def measured(config_file, overrides, seed, out_dir):
    """The figures of one training; nan where the capture has no true cloud."""
    config = without_breaks(config_file, overrides, seed, out_dir)
    run = train(config)
    generate(config, DEVICE, argparse.Namespace(overwrite=True))
    [entry] = get_dataset(config, "test").entries
    found = measure(entry.folder, mesh_path(config, entry))
    return {"seconds": run.seconds} | {
        figure: found.get(figure, float("nan")) for figure in FIGURES if figure != "seconds"
    }


if __name__ == "__main__":
    main()
