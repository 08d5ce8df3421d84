"""Training steps: seconds, and the memory that the number of steps per ray must not raise.

    python -m benchmarks.train_step [--hidden 512 128] [--steps 16 32 64 128]
                                    [--rays 2048] [--repeats 5]
"""

import argparse
from dataclasses import replace

from benchmarks.common import machine_line, markdown_table, measure, peak_memory
from benchmarks.shape import fitted_model, view_batch
from im2mesh.config import method_module
from im2mesh.dvr.training import LOOK_EVERY, Trainer

ITERATION = 1  # always the same pixels; neither a look at the coarse grid nor a probe of it


def make_trainer(hidden_size, n_rays):
    """The trainer of the DTU colour configuration, on a fitted model."""
    config, model = fitted_model(hidden_size, [f"training.n_training_points={n_rays}"])
    method = method_module(config)
    return method.get_trainer(config, model, method.get_optimizer(config, model), "cpu")


def small_twin(trainer):
    """A trainer of the same model and optimizer that looks at one patch only."""
    options = replace(trainer.options, n_training_points=trainer.options.patch_size**2)
    return Trainer(trainer.model, trainer.optimizer, options)


def seconds_per_step(trainer, batch, repeats):
    """Of a step, and of its share in a look at the coarse grid, where those are most frequent."""
    trainer.bounds.update(trainer.model.logit_field())
    step = measure(lambda: trainer.train_step(batch, ITERATION), repeats)
    look = measure(lambda: trainer.bounds.update(trainer.model.logit_field()), repeats)
    return step + look / LOOK_EVERY[0]


def main():
    parser = argparse.ArgumentParser(description="time and memory of a training step")
    parser.add_argument("--hidden", type=int, nargs="+", default=[512, 128], help="hidden sizes")
    parser.add_argument(
        "--steps", type=int, nargs="+", default=[16, 32, 64, 128], help="samples per ray"
    )
    parser.add_argument("--rays", type=int, default=2048, help="pixels of the image in a step")
    parser.add_argument("--repeats", type=int, default=5, help="timed steps; the median counts")
    args = parser.parse_args()

    batch = view_batch()
    rows = []
    for hidden_size in args.hidden:
        trainer = make_trainer(hidden_size, args.rays)
        first_memory = None
        for n_steps in args.steps:
            trainer.model.depth_function = replace(
                trainer.model.depth_function, init_resolution=n_steps
            )
            seconds = seconds_per_step(trainer, batch, args.repeats)
            share = trainer.train_step(batch, ITERATION)["hit_share"]
            memory = peak_memory(
                Trainer.train_step, trainer, batch, ITERATION,
                warm_up=(small_twin(trainer), batch, ITERATION),
            )
            first_memory = first_memory or memory
            rows.append(
                (hidden_size, n_steps, f"{share:.0%}", seconds, round(args.rays / seconds),
                 round(memory), f"{memory / first_memory:.2f}")
            )

    print(machine_line())
    print(
        f"losses of DTU ours_rgb, {args.rays} rays of a 400x300 image, "
        f"median of {args.repeats} steps\n"
    )
    header = (
        "hidden", "steps per ray", "rays that hit", "seconds", "rays per second",
        "peak memory [MiB]", f"memory / that at {args.steps[0]} steps",
    )
    print(markdown_table(header, rows))


if __name__ == "__main__":
    main()
