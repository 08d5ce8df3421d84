"""From items to batches: order of the items, collation, loader.

Which items make a batch, and which random view they show, depends on the seed and on the position
in training only: not on the number of workers and not on any global random state. A run that is
resumed sees the batches that it would have seen.
"""

import itertools
import logging
import signal
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from im2mesh.errors import InputError

logger = logging.getLogger(__name__)

IMAGES = {"img", "img.mask", "img.depth", "img.visual_hull_depth"}


class Draw(NamedTuple):
    """A key of the dataset: which item, in which epoch."""

    index: int
    epoch: int


class EpochSampler:
    """Batches (lists) of ``Draw``, epoch after epoch; the last batch of an epoch may be smaller.

    Epoch e runs through a permutation that depends on (seed, e); with ``shuffle`` False through
    the items in order. The first batch is number ``start_batch`` of epoch ``start_epoch``; the
    end is that of the epoch, or never if ``endless``. ``len`` is the number of batches of a whole
    epoch.
    """

    def __init__(
        self, n_items, batch_size, shuffle, seed=0, start_epoch=0, start_batch=0, endless=True
    ):
        self.n_items = n_items
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.start_epoch = start_epoch
        self.start_batch = start_batch
        self.endless = endless

    def __len__(self):
        return -(-self.n_items // self.batch_size)

    def __iter__(self):
        first = self.start_batch * self.batch_size
        for epoch in itertools.count(self.start_epoch) if self.endless else [self.start_epoch]:
            order = np.arange(self.n_items)
            if self.shuffle:
                np.random.default_rng((self.seed, epoch)).shuffle(order)
            for start in range(first, self.n_items, self.batch_size):
                indices = order[start : start + self.batch_size].tolist()
                yield [Draw(index, epoch) for index in indices]
            first = 0


def collate(items):
    """Join flat items to a batch: the same keys, with a leading dimension B.

    Images, masks and depth maps make a list of B tensors (H, W, ...): a step looks at few of
    their pixels, so they are not copied. The points of ``sparse_depth.*`` are padded with zeros,
    and False in ``sparse_depth.valid``, to the longest list.

    Raises
    ------
    InputError
        When the tensors of a key differ in shape, e.g. images of different sizes.
    """
    return {key: _join(key, [item[key] for item in items]) for key in items[0]}


def _join(key, values):
    if not torch.is_tensor(values[0]):
        return torch.tensor(values)
    if key.startswith("sparse_depth."):
        return pad_sequence(values, batch_first=True)
    shapes = sorted({tuple(value.shape) for value in values})
    if len(shapes) > 1:
        raise InputError(
            f"a batch cannot hold '{key}' of different shapes ({', '.join(map(str, shapes))}): "
            f"set data.img_size{'_input' if key == 'inputs' else ''} for images of one size, or "
            "a batch size of 1"
        )
    return values if key in IMAGES else torch.stack(values)


class Loader:
    """Iterable of batches; ``len`` is the number of batches of a whole epoch.

    Iterating raises ``InputError`` for an item that cannot be read or, with the dataset's
    ``skip_unreadable``, leaves it out: it is counted, warned of once per object, and an error only
    if it leaves a batch empty.

    Attributes
    ----------
    skipped : dict of str to str
        Objects that were left out and what was first found wrong with them.
    """

    def __init__(self, dataset, sampler, n_workers, seed):
        self.skipped = {}
        self._skip_unreadable = dataset.skip_unreadable
        self._loader = DataLoader(
            _Readings(dataset),
            batch_sampler=sampler,
            num_workers=n_workers,
            collate_fn=_collate_readings,
            worker_init_fn=_leave_signals_to_main,
            # without its own generator the loader would advance torch's global one
            generator=torch.Generator().manual_seed(seed),
        )

    def __len__(self):
        return len(self._loader)

    def __iter__(self):
        for batch, failures in self._loader:
            for label, error in failures:
                if not self._skip_unreadable:
                    raise error
                if label not in self.skipped:
                    self.skipped[label] = str(error)
                    logger.warning("left out (%d so far): %s", len(self.skipped), error)
            if isinstance(batch, InputError):
                raise batch
            yield batch


@dataclass(frozen=True)
class _Readings:
    """A dataset whose items are (item, None) or (None, (label of the object, error)).

    An exception that leaves a worker reaches the main process as text with a traceback; as a value
    it stays the one line it was.
    """

    dataset: Dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, draw):
        try:
            return self.dataset[draw], None
        except InputError as err:
            return None, (self.dataset.entries[draw.index].label, err)


def _collate_readings(readings):
    """(batch, failures); the batch is the error where there can be none."""
    items = [item for item, failure in readings if failure is None]
    failures = [failure for _, failure in readings if failure is not None]
    try:
        if not items:
            raise InputError(f"not one item of a batch could be read; the last: {failures[-1][1]}")
        return collate(items), failures
    except InputError as err:
        return err, failures


def _leave_signals_to_main(worker_id):
    """Ctrl-C and schedulers signal the whole process group; the main process shall end in order.

    A second SIGTERM does end the worker: it is the main process that wants to be rid of it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


def make_loader(
    dataset,
    batch_size,
    n_workers=0,
    shuffle=True,
    seed=0,
    start_epoch=0,
    start_batch=0,
    endless=True,
):
    """Batches of a dataset: endless for training, one pass (``endless=False``) for the rest.

    Parameters
    ----------
    dataset : MultiObjectDataset
    n_workers : int
        Processes that read and decode. A dataset with a cache is read in this process whatever
        it says: an item is then a look-up, so batches of one image cost no copy and nothing has
        to pass between processes.
    start_epoch, start_batch : int
        Where to begin, to continue an interrupted run: batch k overall is
        ``divmod(k, len(loader))``.

    Returns
    -------
    Loader
    """
    sampler = EpochSampler(
        len(dataset), batch_size, shuffle, seed, start_epoch, start_batch, endless
    )
    return Loader(dataset, sampler, n_workers if dataset.cache is None else 0, seed)
