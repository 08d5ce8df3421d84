"""From a field to a coloured mesh of 256^3 cells: seconds by stage, evaluations, memory.

    python -m benchmarks.generate [--hidden 512 128] [--upsampling-steps 3] [--repeats 3]
"""

import argparse
import statistics

from benchmarks.common import machine_line, markdown_table, peak_memory
from benchmarks.shape import fitted_model
from im2mesh.config import method_module
from im2mesh.dvr.generation import Generator

STAGES = ("extraction", "refinement", "colors")


def make_generator(hidden_size, resolution_0, upsampling_steps):
    """The mesh generator of the DTU colour configuration, on a fitted model."""
    config, model = fitted_model(
        hidden_size,
        [
            f"generation.resolution_0={resolution_0}",
            f"generation.upsampling_steps={upsampling_steps}",
        ],
    )
    return method_module(config).get_generator(config, model, "cpu")


def main():
    parser = argparse.ArgumentParser(description="time and memory of making a mesh")
    parser.add_argument("--hidden", type=int, nargs="+", default=[512, 128], help="hidden sizes")
    parser.add_argument(
        "--upsampling-steps", type=int, default=3, help="doublings of the 32 cells per axis (3)"
    )
    parser.add_argument("--repeats", type=int, default=3, help="meshes; the medians count")
    args = parser.parse_args()

    rows = []
    for hidden_size in args.hidden:
        generator = make_generator(hidden_size, 32, args.upsampling_steps)
        small = Generator(generator.model, resolution_0=8, upsampling_steps=0, refinement_step=1)
        small.generate()
        meshes = [generator.generate() for _ in range(args.repeats)]
        stages = [statistics.median(mesh.seconds[stage] for mesh in meshes) for stage in STAGES]
        total = statistics.median(sum(mesh.seconds.values()) for mesh in meshes)
        memory = peak_memory(Generator.generate, generator, warm_up=(small,))
        mesh = meshes[0]
        rows.append(
            (hidden_size, mesh.extracted.n_points, len(mesh.faces), *stages, total, round(memory))
        )

    cells = 32 * 2**args.upsampling_steps
    print(machine_line())
    print(
        f"32^3 -> {cells}^3 cells (a full grid has {(cells + 1) ** 3} points), "
        f"{generator.refinement_step} refinement steps, median of {args.repeats} meshes\n"
    )
    header = (
        "hidden", "points evaluated", "faces", *(f"{stage} [s]" for stage in STAGES), "total [s]",
        "peak memory [MiB]",
    )
    print(markdown_table(header, rows))


if __name__ == "__main__":
    main()
