"""Training: the loop, checkpoints, validation, TensorBoard."""

import bisect
import logging
import math
import signal
import sys
import time
from contextlib import closing, contextmanager

import torch
from tqdm import tqdm

from im2mesh import checkpoints
from im2mesh.commands.board import Board
from im2mesh.commands.capture import find_hull
from im2mesh.commands.setup import get_dataset, get_model, output_folder
from im2mesh.commands.visualize import Visualizer
from im2mesh.config import method_module, save_config
from im2mesh.data import make_loader
from im2mesh.dvr.support import with_neighbors
from im2mesh.errors import InputError

log = logging.getLogger("im2mesh")

FINISHED, EXIT_AFTER = 0, 3
RESUME_HINT = "the same command continues from there"


def train(config, device, args):
    """Train until ``training.max_iterations``, a signal, or ``--exit-after``.

    Continues from ``<out_dir>/model.pt`` if that exists; the resumed run equals an uninterrupted
    one.

    Returns
    -------
    int
        0 when finished, 3 after ``--exit-after``, 128 + n after signal n.

    Raises
    ------
    InputError
        For bad input, an out_dir that cannot be written, and a loss that is not finite.
    """
    run = Run(config, device)
    deadline = math.inf if args.exit_after is None else time.monotonic() + args.exit_after
    with closing(run.board), _signals() as received:
        return run.loop(deadline, received)


class Run:
    """A training run: everything that lives as long as the loop."""

    def __init__(self, config, device):
        self.config = config
        self.options = config["training"]
        self.out_dir = output_folder(config)
        method = method_module(config)
        torch.manual_seed(self.options["seed"])  # the initial weights
        self.model = get_model(config, device)
        if not self.checkpoint.exists():
            self.model.load_start_weights()
        self.optimizer = method.get_optimizer(config, self.model)
        self.trainer = method.get_trainer(config, self.model, self.optimizer, device)
        _check_metric(self.options["model_selection_metric"], self.trainer.metrics)
        cache = {}
        self.train_set = get_dataset(config, "train", cache)
        self.val_set = get_dataset(config, "val", cache)
        if config["data"]["cache_fields"]:
            self.train_set.preload()
            self.val_set.preload()
        self.val_loader = make_loader(
            self.val_set,
            self.options["batch_size_val"],
            self.options["n_workers"],
            shuffle=False,
            seed=self.options["seed"],
            endless=False,
        )
        if self.trainer.asks_views:
            self._know_views()
        self.iteration = self.epoch = self.batch = 0
        self.maximize = self.options["model_selection_mode"] == "maximize"
        self.best = -math.inf if self.maximize else math.inf
        self._resume()
        if self.model.support is not None and self.iteration == 0:
            self._start_at_hull()
        save_config(config, self.out_dir / "config.yaml")
        self.board = Board(self.out_dir / "logs", self.iteration)
        self.visualizer = Visualizer(config, self.model, method, device, self.val_set, self.board)

    def _start_at_hull(self):
        hull = find_hull(self.config).to(self.trainer.device)
        # A cell to spare: the surface follows from the losses, not from the steps of the grid.
        self.model.support.set_cells(with_neighbors(hull))
        self._set_detail()
        self.trainer.become_hull(hull, self.options["hull_iterations"])

    def _know_views(self):
        folders = {entry.folder for entry in self.train_set.entries}
        try:
            if len(folders) > 1:
                raise ValueError(f"the dataset has {len(folders)} objects")
            self.trainer.know_views([self.train_set[i] for i in range(len(self.train_set))])
        except ValueError as err:
            raise InputError(
                f"model.lambda_patch and lambda_silhouettes compare the views of one object, but {err}; "
                "set both to 0"
            ) from err

    @property
    def checkpoint(self):
        return self.out_dir / "model.pt"

    def loop(self, deadline, received):
        """Iterate; see :func:`train`."""
        every = self.options
        last = every["max_iterations"] or math.inf
        if self.batch * every["batch_size"] >= len(self.train_set):
            self.epoch, self.batch = self.epoch + 1, 0  # saved with smaller batches or more data
        batches = make_loader(
            self.train_set,
            every["batch_size"],
            every["n_workers"],
            seed=every["seed"],
            start_epoch=self.epoch,
            start_batch=self.batch,
        )
        log.info("training on %d items, %d batches an epoch", len(self.train_set), len(batches))
        if self.iteration >= last:
            log.info("nothing to do: iteration %d is reached already", self.iteration)
            return FINISHED
        progress = tqdm(
            initial=self.iteration, total=every["max_iterations"], unit="it",
            disable=not sys.stderr.isatty(), dynamic_ncols=True,
        )
        meter = _Meter()
        with progress:
            for batch in batches:
                self._set_learning_rate()
                self._set_detail()
                report = self._step(batch)
                meter.add(report.pop("rays"))
                self.iteration += 1
                self.batch += 1
                if self.batch == len(batches):
                    self.epoch, self.batch = self.epoch + 1, 0
                progress.update()
                progress.set_postfix(loss=f"{report['loss']:.2f}", refresh=False)

                finished = self.iteration >= last
                stopped = self._reason_to_stop(deadline, received)
                if finished or stopped:
                    self._save()  # first of all: whoever sent a signal may not wait for long
                if _due(self.iteration, every["print_every"]):
                    self._report(report, meter, last)
                if _due(self.iteration, every["visualize_every"]) and not stopped:
                    self.visualizer.show(self.iteration)
                if every["validate_every"] and (
                    finished or _due(self.iteration, every["validate_every"])
                ):
                    self._validate()
                if _due(self.iteration, every["backup_every"]):
                    self._save(f"model_{self.iteration}.pt")
                if finished or stopped or _due(self.iteration, every["checkpoint_every"]):
                    self._save()  # after validation, which may have found a new best
                if finished or stopped:
                    code, reason = (FINISHED, "finished") if finished else stopped
                    hint = "" if finished else f", {RESUME_HINT}"
                    log.info(
                        "%s at iteration %d; saved %s%s",
                        reason, self.iteration, self.checkpoint, hint,
                    )
                    return code

    @staticmethod
    def _reason_to_stop(deadline, received):
        """(exit code, words) for a signal that came or time that is up, else None."""
        if received:
            return 128 + received[0], f"stopped by {received[0].name}"
        if time.monotonic() >= deadline:
            return EXIT_AFTER, "time is up"
        return None

    def _step(self, batch):
        try:
            return self.trainer.train_step(batch, self.iteration)
        except FloatingPointError as err:
            good = self.checkpoint if self.checkpoint.exists() else "none yet"
            raise InputError(
                f"iteration {self.iteration}: {err}. The last good checkpoint: {good}. Lower "
                f"training.learning_rate or the weight of that term, then run again: "
                f"{RESUME_HINT}."
            ) from err

    def _set_learning_rate(self):
        gamma = self.options["scheduler_gamma"]
        if self.options["scheduler"] == "cosine":
            share = self.iteration / self.options["max_iterations"]
            factor = gamma + (1 - gamma) * (1 + math.cos(math.pi * share)) / 2
        else:
            factor = gamma ** bisect.bisect_right(self.options["scheduler_milestones"], self.epoch)
        rate = self.options["learning_rate"] * factor
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _set_detail(self):
        """Fade in what encodings hold back in the first part of the training."""
        share = self.options["coarse_to_fine"]
        if share > 0:
            progress = self.iteration / (share * self.options["max_iterations"])
            self.model.decoder.set_progress(min(progress, 1.0))

    def _report(self, report, meter, last):
        iterations_per_second, rays_per_second = meter.read()
        scalars = {
            **report,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "rays_per_second": rays_per_second,
        }
        self.board.scalars("train", scalars, self.iteration)
        left = ""
        if last < math.inf:
            seconds = (last - self.iteration) / iterations_per_second
            left = f", {tqdm.format_interval(seconds)} left"
        # On a terminal the progress bar says it; elsewhere, and in the log, the line does.
        level = logging.DEBUG if sys.stderr.isatty() else logging.INFO
        terms = ", ".join(f"{name} {value:.4g}" for name, value in report.items())
        log.log(
            level, "epoch %d, iteration %d: %s, %.2f it/s%s",
            self.epoch, self.iteration, terms, iterations_per_second, left,
        )

    def _validate(self):
        metrics = self.trainer.evaluate(self.val_loader)
        self.board.scalars("val", metrics, self.iteration)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        log.info("validation at iteration %d: %s", self.iteration, shown)
        chosen = self.options["model_selection_metric"]
        _check_metric(chosen, metrics)
        value = metrics[chosen]
        if value > self.best if self.maximize else value < self.best:  # never for nan
            self.best = value
            self._save("model_best.pt")
            log.info("new best model (%s %.4g)", chosen, value)

    def _save(self, name="model.pt"):
        checkpoints.save(
            self.out_dir / name,
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "trainer": self.trainer.state_dict(),
                "epoch_it": self.epoch,
                "batch_it": self.batch,
                "it": self.iteration,
                "loss_val_best": self.best,
                "config": self.config,
            },
        )

    def _resume(self):
        if not self.checkpoint.exists():
            return
        state = checkpoints.load(self.checkpoint)
        checkpoints.load_model(self.model, state, self.checkpoint, self.config)
        if "optimizer" not in state:
            raise InputError(
                f"{self.checkpoint} has no optimizer state, so training cannot continue from it. "
                "It can still be used for generation."
            )
        self.optimizer.load_state_dict(state["optimizer"])
        self.trainer.load_state_dict(state.get("trainer", {}))
        self.iteration, self.epoch = state.get("it", 0), state.get("epoch_it", 0)
        self.batch = state.get("batch_it", 0)
        self.best = float(state.get("loss_val_best", self.best))
        log.info("continuing from %s, iteration %d", self.checkpoint, self.iteration)
        for key, before, now in checkpoints.changes(state.get("config"), self.config):
            log.info("changed since then: %s was %s, is %s", key, before, now)


class _Meter:
    """Iterations and rays per second since the last reading."""

    def __init__(self):
        self.start, self.iterations, self.rays = time.monotonic(), 0, 0

    def add(self, rays):
        self.iterations += 1
        self.rays += rays

    def read(self):
        seconds = max(time.monotonic() - self.start, 1e-9)
        rates = self.iterations / seconds, self.rays / seconds
        self.__init__()
        return rates


def _check_metric(chosen, known):
    if chosen not in known:
        raise InputError(
            f"training.model_selection_metric: validation gives no {chosen!r} with this data and "
            f"these losses, but {', '.join(known)}"
        )


def _due(iteration, every):
    return every > 0 and iteration % every == 0


@contextmanager
def _signals():
    """Collect SIGINT and SIGTERM in a list, so that the loop ends in order.

    A second Ctrl-C interrupts at once.
    """
    received = []

    def note(number, frame):
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(signal.Signals(number))

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
