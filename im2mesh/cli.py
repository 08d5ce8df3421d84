"""What the entry scripts share: arguments, device, logging, and errors as a person wants them.

A script builds a parser, adds its own options, and hands a job to :func:`run`::

    def generate(config, device, args):
        ...

    if __name__ == "__main__":
        parser = cli.argument_parser("generate", __doc__)
        cli.add_shortcut(parser, "--upsampling-steps", "generation.upsampling_steps")
        sys.exit(cli.run(generate, parser))
"""

import argparse
import contextlib
import logging
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from im2mesh.config import load_config
from im2mesh.errors import InputError

log = logging.getLogger("im2mesh")

BAD_INPUT, INTERNAL_ERROR, INTERRUPTED = 2, 1, 130


def argument_parser(command, description):
    """The parser of ``<command>.py`` with the arguments that all commands take."""
    parser = argparse.ArgumentParser(
        prog=f"{command}.py", description=description, allow_abbrev=False
    )
    parser.add_argument("config", metavar="CONFIG.yaml", help="what to do, see configs/")
    parser.add_argument("--no-cuda", action="store_true", help="use the CPU even if there is a GPU")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="section.key=value",
        help="override a key of the config (YAML value; may be repeated)",
    )
    return parser


def add_shortcut(parser, option, key):
    """Let ``option N`` stand for ``--set key=N``."""
    parser.add_argument(
        option,
        dest="overrides",
        action="append",
        type=lambda value: f"{key}={value}",
        metavar="N",
        help=f"short for --set {key}=N",
    )


def run(job, parser, argv=None):
    """Run ``job(config, device, args)`` for a command line and return the exit code.

    Messages of the ``im2mesh`` logger go to the terminal, and with time and traceback to a log
    file in ``training.out_dir`` that is appended to: ``training.logfile`` for train.py,
    ``<command>.log`` for the others.

    Parameters
    ----------
    job : callable
        Takes the config, a ``torch.device`` and the parsed arguments; returns the exit code, or
        None for success.
    parser : argparse.ArgumentParser
        From :func:`argument_parser`.
    argv : list of str, optional
        The arguments; by default those of the process.

    Returns
    -------
    int
        What the job returned; 2 after an :class:`InputError`, 130 after Ctrl-C, 1 after any other
        exception. ``SystemExit`` passes through.
    """
    args = parser.parse_args(argv)
    log_file = None
    with contextlib.ExitStack() as stack:
        stack.enter_context(_logging_to(_Terminal(logging.INFO)))
        try:
            config = load_config(args.config, args.overrides)
            handler = _log_file(config, parser.prog)
            stack.enter_context(_logging_to(handler))
            log_file = handler.baseFilename
            log.debug("%s %s", parser.prog, " ".join(sys.argv[1:] if argv is None else argv))
            return job(config, _device(args.no_cuda), args) or 0
        except InputError as err:
            log.error("%s", err, exc_info=True)
            return BAD_INPUT
        except KeyboardInterrupt:
            log.error("interrupted", exc_info=True)
            return INTERRUPTED
        except Exception as err:
            if _out_of_memory(err):
                log.error(
                    "out of memory: lower max_points in model.depth_function_kwargs, "
                    "training.n_training_points or training.n_eval_points, or batch_size",
                    exc_info=True,
                )
            elif log_file is None:
                raise
            else:
                log.critical(
                    "%s: %s - details in %s", type(err).__name__, err, log_file, exc_info=True
                )
            return INTERNAL_ERROR


class _Terminal(logging.Handler):
    """Bare messages, written so that a progress bar stays whole; problems go to stderr."""

    PREFIX = {
        logging.WARNING: "warning: ",
        logging.ERROR: "error: ",
        logging.CRITICAL: "internal error: ",
    }

    def emit(self, record):
        stream = sys.stdout if record.levelno < logging.WARNING else sys.stderr
        tqdm.write(self.PREFIX.get(record.levelno, "") + record.getMessage(), file=stream)
        stream.flush()  # so that a line shows at once in a pipe, too


class _LogFile(logging.FileHandler):
    """A log that cannot be written, on a full disk, is no reason for tracebacks on the terminal.

    What the program itself cannot write then ends it in order.
    """

    def handleError(self, record):
        pass

    def close(self):
        with contextlib.suppress(OSError):
            super().close()


def _log_file(config, command):
    training = config["training"]
    name = training["logfile"] if command == "train.py" else f"{Path(command).stem}.log"
    path = Path(training["out_dir"]) / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = _LogFile(path, encoding="utf-8")
    except OSError as err:
        raise InputError(
            f"training.out_dir: cannot write {path}: {err.strerror}; "
            "choose another folder with --set training.out_dir=FOLDER"
        ) from err
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    return handler


@contextlib.contextmanager
def _logging_to(handler):
    level = log.level
    log.setLevel(logging.DEBUG)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        handler.close()


def _device(no_cuda):
    if torch.cuda.is_available() and not no_cuda:
        log.info("device: cuda (%s)", torch.cuda.get_device_name())
        return torch.device("cuda")
    log.info("device: cpu (%d threads)", torch.get_num_threads())
    return torch.device("cpu")


def _out_of_memory(err):
    # PyTorch reports a failed allocation on the CPU as a plain RuntimeError.
    return isinstance(err, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(err, RuntimeError) and "can't allocate memory" in str(err)
    )
