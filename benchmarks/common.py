"""What every benchmark needs: time, memory, the machine and a table."""

import multiprocessing
import platform
import statistics
import time
from concurrent.futures import ProcessPoolExecutor

import torch


def measure(function, repeats):
    """Median seconds of ``function()`` over ``repeats`` calls, after one call to warm up."""
    function()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def measure_alternately(works, repeats):
    """Median seconds of several works whose calls take turns, after one call each to warm up.

    Parameters
    ----------
    works : list of (callable, float)
        A call, and how much of the work it does (or how many times): its seconds are divided by it.
    """
    seconds = [[] for _ in works]
    for repeat in range(repeats + 1):
        for (function, share), of_work in zip(works, seconds):
            spent, _ = timed(function)
            if repeat:
                of_work.append(spent / share)
    return [statistics.median(of_work) for of_work in seconds]


def timed(function):
    """Seconds of a call, and its result."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def peak_memory(function, *args, warm_up=None):
    """MiB that ``function(*args)`` holds at its peak beyond what was held before (Linux).

    It runs once in a fresh process, where no memory that an earlier call has left behind can
    hide its needs. ``function`` and ``args`` travel there by pickle: take a function of a
    module, not a lambda. ``warm_up`` are arguments of a first, small call that is not measured:
    it loads libraries and makes what lasts, such as an optimizer's state.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(_peak_rise, function, args, warm_up).result()


def _peak_rise(function, args, warm_up):
    if warm_up is not None:
        function(*warm_up)
    # Not getrusage: its ru_maxrss starts from the size of the process that started this one.
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")  # sets the high-water mark (VmHWM) to what is held now
    before = _high_water_mark()
    function(*args)
    return (_high_water_mark() - before) / 1024


def _high_water_mark():
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmHWM:"))
    return int(line.split()[1])  # KiB


def matmul_rate(size=1024):
    """Floating-point operations per second of a product of float32 matrices."""
    matrix = torch.rand(size, size)
    return 2 * size**3 / measure(lambda: matrix @ matrix, repeats=10)


def machine_line():
    """One line that says what the figures were measured on, with its float32 matmul rate."""
    rate = matmul_rate() / 1e9
    return (
        f"{platform.system()} {platform.machine()}, torch {torch.__version__} with "
        f"{torch.get_num_threads()} CPU threads, float32 matmul {rate:.0f} GFLOP/s"
    )


def markdown_table(header, rows):
    """A markdown table; ``rows`` are sequences of cells, floats get three significant digits."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(f"{c:.3g}" if isinstance(c, float) else str(c) for c in line) + " |"
        for line in lines
    )
