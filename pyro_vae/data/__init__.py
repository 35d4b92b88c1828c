r"""Image sets, tables and the ways of making them binary.

A set is stored as one tensor: whole values (uint8) with the ``levels`` that stand for 1, or reals (float32). The value
that a model sees is ``images / levels``, or the real itself. A Bernoulli likelihood needs bits, not grays, and a gray
:math:`g \in [0, 1]` is read as the probability of a one:

.. math:: x_i \sim \mathrm{Bernoulli}(g_i), \quad\text{drawn as } x_i = [u_i < g_i],\; u_i \sim U[0, 1).

``binarize="dynamic"`` draws afresh for every training batch, ``"static"`` draws once, ``"threshold"`` takes
:math:`[g_i > 1/2]` and ``"none"`` keeps the grays. Figures under different modes are not comparable.

Nothing here draws from torch's global generators: loading follows ``seed``, batches the generator they are given.

References:
    On the quantitative analysis of deep belief networks, Salakhutdinov and Murray, 2008 (grays as probabilities),
    https://www.cs.toronto.edu/~rsalakhu/papers/dbn_ais.pdf
    Importance weighted autoencoders, Burda, Grosse and Salakhutdinov, 2016 (a fresh draw for every batch),
    https://arxiv.org/abs/1509.00519
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch

from pyro_vae import checks
from pyro_vae.data import files, named
from pyro_vae.data.binarization import Binarize
from pyro_vae.data.columns import Kinds
from pyro_vae.data.conversion import as_dataset, binarized
from pyro_vae.data.dataset import Dataset
from pyro_vae.data.named import DatasetNotFoundError
from pyro_vae.data.options import present_device, unknown
from pyro_vae.data.streams import Stream, stream

__all__ = [
    "Binarize",
    "Dataset",
    "DatasetNotFoundError",
    "Splits",
    "Stream",
    "as_dataset",
    "available",
    "load",
    "stream",
]


class Splits(NamedTuple):
    """The three parts of a set.

    Attributes:
        train: to learn from.
        validation: to stop and to choose by.
        test: to report.
    """

    train: Dataset
    validation: Dataset
    test: Dataset


def load(
    source: Any,
    root: str | Path | None = None,
    *,
    binarize: Binarize = "none",
    validation: int | float | None = None,
    kinds: Kinds | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Splits:
    """Loads a set and splits it into training, validation and test data.

    A named set with an official test split keeps it, and its validation data are the last of its training data. All
    others are permuted by the seed; a sixth becomes the test data.

    Args:
        source: A name: ``mnist``, ``fashion_mnist``, ``kmnist``, ``emnist`` (balanced, upright), ``omniglot``
            (background against evaluation alphabets, ink averaged over 28x28 cells, strokes 1; the IWAE paper's own
            28x28 file is another rendering), ``svhn``, ``cifar10``, or ``digits`` (8x8, comes with scikit-learn);
            or a tensor or array, see ``as_dataset``, or a Dataset, for labels or context of your own;
            or a pandas DataFrame or a ``.csv`` file, with names in its first line, see ``as_dataset``;
            or a ``.npy`` file, a ``.npz`` file (``images``, ``x`` or ``data``, or its only array; ``labels`` or ``y``),
            or a folder of images of one size, whose subfolders, if any, are the classes, numbered from 0 in the order
            of their names, by size where all are numbers. Hidden ones are passed over. Subfolders ``train``
            (``training``), ``valid`` (``val``, ``validation``) and ``test`` (``testing``) are the parts. A file may
            come from anyone: nothing in it is run, and one that would take far more memory than its size is refused.
        root: Folder with torchvision's layout (``MNIST/raw/...``); else the environment variable ``PYRO_VAE_DATA``,
            else the user's cache folder. A named set that is not there is downloaded into it, compared with its
            checksum, and tried once more where that fails.
        binarize: ``"dynamic"`` makes every training batch binary afresh, and the validation and test data once;
            ``"static"`` makes all binary once; ``"threshold"`` takes values over 1/2; ``"none"`` keeps them.
        validation: Number (int) or fraction (float) of the training data held out: by default 10,000 for the MNIST
            family and a tenth otherwise.
        kinds: Of columns of a table by name, in place of those found, see ``as_dataset``.
        seed: Of the permutation and of the bits that are drawn once, whatever the device.
        device: Where the data are kept.

    Raises:
        DatasetNotFoundError: A named set neither on disk nor, within seconds, reachable.
        FileNotFoundError: No such file or folder.
        ValueError: An unknown name, an option or a file that cannot serve, a damaged file.

    References:
        EMNIST: an extension of MNIST to handwritten letters, Cohen et al., 2017, https://arxiv.org/abs/1702.05373

    Example:
        >>> train, validation, test = load("digits", binarize="dynamic")
        >>> train
        Dataset('digits', 1349 x (1, 8, 8), 17 levels, binarization='dynamic', device='cpu', labels of 10 classes)
        >>> len(validation), len(test), test.binarization
        (149, 299, 'static')
    """
    if not isinstance(binarize, str) or binarize not in get_args(Binarize):
        raise ValueError(unknown("binarize", binarize, get_args(Binarize)))
    seed = checks.whole("data.load", "seed", seed, 0)
    if seed >= 2**63:
        raise ValueError(f"data.load: expected seed below 2^63; got {seed}. Give a smaller one.")
    device = present_device(device)
    train, validation_set, test = _read(source, root, kinds)
    if train.binarization != "none":
        raise ValueError(
            f"Dataset {train.name!r}: expected a set not yet made binary; got binarization={train.binarization!r}. "
            "Pass its grays, and the mode as binarize."
        )

    # One generator, in the order of what is always drawn first: test data do not change with the mode or `validation`.
    generator = torch.Generator().manual_seed(seed)
    if test is None:
        if len(train) < 3:
            raise ValueError(
                f"Dataset {train.name!r}: expected at least 3 data to split; got {len(train)}. Use data.as_dataset "
                "for a set that is not split."
            )
        order = torch.randperm(len(train), generator=generator)
        held = max(1, len(train) // 6)
        test, train = train.subset(order[:held]), train.subset(order[held:])
    if validation_set is None:
        named_set = named.SOURCES.get(source) if isinstance(source, str) else None
        held_out = 0.1 if named_set is None else named_set.validation
        size = _validation_size(held_out if validation is None else validation, train)
        validation_set = train.subset(torch.arange(len(train) - size, len(train)))
        train = train.take(len(train) - size)
    elif validation is not None:
        raise ValueError(
            f"data.load: expected no validation for a folder with a part of that name; got {validation}. Leave it out."
        )

    fixed: Binarize = "static" if binarize == "dynamic" else binarize
    test = binarized(test, fixed, generator)
    validation_set = binarized(validation_set, fixed, generator)
    train = binarized(train, binarize, generator)
    return Splits(train.to(device), validation_set.to(device), test.to(device))


def _read(source: Any, root: str | Path | None, kinds: Kinds | None) -> tuple[Dataset, Dataset | None, Dataset | None]:
    """Training data, and validation and test data where the source says which they are."""
    if not isinstance(source, (str, Path)):
        return as_dataset(source, kinds=kinds), None, None
    if kinds is not None and (source in named.SOURCES or source == "digits"):
        raise TypeError(f"data.load: expected kinds for a table; got them for {source!r}. Leave them out.")
    if isinstance(source, str) and source in named.SOURCES:
        train, test = named.load(source, named.folder(root))
        return train, None, test
    if source == "digits":
        return named.digits(), None, None
    path = Path(source).expanduser()
    if isinstance(source, str) and not path.exists() and not path.suffix and path.name == source:
        raise ValueError(unknown("data.load", source, ("digits", *named.SOURCES)))
    return files.read_splits(path, kinds)


@partial(checks.arguments, "data.available")
def available(name: str, root: str | Path | None = None) -> bool:
    """Whether a named set can be loaded without a network.

    Args:
        name: As :func:`load` has it.
        root: Folder of the data, as for :func:`load`.

    Raises:
        ValueError: An unknown name.

    Example:
        >>> available("digits"), available("mnist", root="a folder that is not there")
        (True, False)
    """
    checks.instance("data.available", "name", name, str, "Give the name of a set.")
    if name == "digits":
        return True
    if name not in named.SOURCES:
        raise ValueError(unknown("data.available", name, ("digits", *named.SOURCES)))
    return not named.missing(name, named.folder(root))


def _validation_size(validation: int | float, train: Dataset) -> int:
    if not isinstance(validation, float):
        checks.whole("data.load", "validation", validation, -len(train))
    if isinstance(validation, float):
        size = max(1, int(validation * len(train))) if 0 < validation < 1 else 0
    else:
        size = validation
    if not 1 <= size < len(train):
        raise ValueError(
            f"validation: expected a number from 1 to {len(train) - 1} or a fraction between 0 and 1 of the "
            f"{len(train)} training data of {train.name!r}; got {validation}. Pass validation=0.1, for instance."
        )
    return size
