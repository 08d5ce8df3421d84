"""The hash grid on a CPU: nanoseconds per point, compiled and in plain PyTorch.

    python -m benchmarks.encoding [--points 2000 16000 131000] [--threads 1 2] [--repeats 5]
"""

import argparse

import torch

from benchmarks.common import machine_line, markdown_table, measure_alternately
from im2mesh.dvr.fields.encodings import HashGrid


def calls(grid, n_points):
    """What a training step asks of a grid, for points drawn in the object cube."""
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(n_points, 3, generator=generator) - 0.5
    directions = torch.randn(n_points, 3, generator=generator)
    covectors = torch.randn(n_points, grid.dim, generator=generator)
    learning = covectors.clone().requires_grad_()
    return {
        "forward": torch.no_grad()(lambda: grid(points)),
        "forward + backward": lambda: torch.autograd.grad(grid(points), grid.tables, covectors),
        "push": torch.no_grad()(lambda: grid.push(points, directions)),
        "push + backward": lambda: torch.autograd.grad(
            grid.push(points, directions), grid.tables, covectors
        ),
        "pull": torch.no_grad()(lambda: grid.pull(points, covectors)),
        "pull + backward": lambda: torch.autograd.grad(
            grid.pull(points, learning), (grid.tables, learning), directions
        ),
    }


def main():
    parser = argparse.ArgumentParser(description="time of the hash grid, compiled and plain")
    parser.add_argument("--points", type=int, nargs="+", default=[2000, 16000, 131000])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5, help="timed calls; the median counts")
    args = parser.parse_args()

    compiled, plain = HashGrid(), HashGrid(compiled=False)
    rows = []
    for n_threads in args.threads:
        torch.set_num_threads(n_threads)
        for n_points in args.points:
            plain_calls = calls(plain, n_points)
            for name, call in calls(compiled, n_points).items():
                seconds = measure_alternately(
                    [(call, n_points), (plain_calls[name], n_points)], args.repeats
                )
                nanoseconds = [s * 1e9 for s in seconds]
                ratio = nanoseconds[1] / nanoseconds[0]
                rows.append((n_threads, n_points, name, *map(round, nanoseconds), f"{ratio:.1f}"))

    print(machine_line())
    print(
        f"{compiled.n_scales} levels, {compiled.resolutions[0]} to {compiled.resolutions[-1]} cells, "
        f"tables of 2^15 x {compiled.n_features}; median of {args.repeats} calls\n"
    )
    header = (
        "threads", "points", "call", "compiled [ns/point]", "plain [ns/point]", "plain / compiled"
    )
    print(markdown_table(header, rows))


if __name__ == "__main__":
    main()
