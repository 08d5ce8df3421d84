"""Reading a single-view dataset from disk against training on it: does the loader keep up?

    python -m benchmarks.load [--config CONFIG.yaml] [--workers 0 1 2] [--batches 30]

Renders two objects of each synthetic category into a temporary folder first. Nothing is cached by
us; after the first pass the operating system does.
"""

import argparse
import itertools
import tempfile
import time

from benchmarks.common import machine_line, markdown_table, measure
from im2mesh.commands.setup import get_dataset
from im2mesh.config import load_config, method_module
from im2mesh.data import make_loader
from im2mesh.synthetic import Recipe, make_shapenet_dataset

CONFIG = "configs/single_view_reconstruction/cpu/synthetic_combined.yaml"


def main():
    parser = argparse.ArgumentParser(description="items per second from disk")
    parser.add_argument("--config", default=CONFIG, help="a single-view config of Shapes3D data")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--batches", type=int, default=30, help="timed batches")
    parser.add_argument("--repeats", type=int, default=5, help="timed steps; the median counts")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_shapenet_dataset(folder, 2, recipe=Recipe(n_points=1))
        config = load_config(
            args.config,
            [f"data.path={folder}", "data.train_split=null", "data.cache_fields=false"],
        )
        dataset = get_dataset(config, "train")
        size = config["training"]["batch_size"]
        method = method_module(config)
        model = method.get_model(config)
        trainer = method.get_trainer(config, model, method.get_optimizer(config, model), "cpu")
        # Copies of the objects fill the batches: what is read does not depend on which they are.
        dataset.entries = list(itertools.islice(itertools.cycle(dataset.entries), size))
        batch = next(iter(make_loader(dataset, size)))
        step = measure(lambda: trainer.train_step(batch, 0), args.repeats)
        rows = []
        for n_workers in args.workers:
            batches = iter(make_loader(dataset, size, n_workers))
            next(batches)  # starts the workers
            start = time.perf_counter()
            for _ in range(args.batches):
                next(batches)
            seconds = (time.perf_counter() - start) / args.batches
            rows.append((n_workers, size / seconds, 1000 * seconds / size, f"{seconds / step:.0%}"))
            del batches
    print(machine_line())
    print(f"{args.config}: {size} objects a step, {step:.3f} s a step on data at hand\n")
    header = ("workers", "items per second", "milliseconds per item", "share of a step's time")
    print(markdown_table(header, rows))


if __name__ == "__main__":
    main()
