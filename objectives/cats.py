"""Cat or not: the tabular landscape of Mahto & Chauhan, trained again for every trial.

Their network is the one of the deeplearning.ai course "Neural Networks and Deep Learning": pixels
of 209 images, three hidden layers of ReLU, one sigmoid, gradient descent on all images at once.
Everything computes in float64, because the landscape is chaotic: in float32 a fifth of its points
have another accuracy. With ``protocol="document"`` the accuracies of the paper come out.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from dataclasses import dataclass
import functools
import itertools
import os
from typing import Any
from typing import Literal
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.distributions import CategoricalDistribution
from optuna.trial import BaseTrial

from objectives.space import suggest


if TYPE_CHECKING:
    import torch

    from objectives.checkpoints import Checkpoints
    from objectives.data import Data
    from objectives.runs import Evaluation
    from objectives.training import Recipe
    from objectives.training import Task

LEVELS: dict[str, tuple[float, ...]] = {
    "iterations": (100, 300, 400, 500, 700),
    "lr": (0.0034, 0.0045, 0.0075, 0.0077, 0.0078),
    "h1": (10, 15, 20, 25, 30),
    "h2": (3, 5, 7, 9, 10),
    "h3": (1, 2, 4, 5, 6),
}
"""The grid of the paper: 5 levels of 5 parameters, in increasing order."""

SPACE: dict[str, BaseDistribution] = {
    name: CategoricalDistribution(levels) for name, levels in LEVELS.items()
}
"""Steps of gradient descent, its learning rate and the units of the hidden layers."""

DIRECTION = "maximize"
"""The value is the accuracy on images that were not trained on."""

DEFAULTS: dict[str, Any] = {"iterations": 700, "lr": 0.0075, "h1": 20, "h2": 7, "h3": 5}
"""The network of the course."""

EPOCHS = 7
"""The most a trial trains if not told otherwise: enough for every level of ``iterations``."""

STEPS = 100
"""Steps of an epoch, each on all images: divides every level of ``iterations``."""
_FOLDS = 5


def objective(
    trial: BaseTrial,
    *,
    protocol: Literal["cv", "document"] = "cv",
    hidden_layers: int = 3,
    fidelity: bool = False,
    epochs: int = EPOCHS,
    device: str | torch.device = "auto",
    data_dir: str | os.PathLike[str] | None = None,
    seed: int = 1,
    amp: bool = False,
    compile: bool = False,
    checkpoints: Checkpoints = None,
    interval: int | None = None,
) -> float:
    """Train a multilayer perceptron by gradient descent on pictures of cats and other things.

    An epoch is 100 steps, so a trial of 300 iterations reports after 100, 200 and 300.

    Args:
        trial:
            Gives the parameters of ``SPACE``.
        protocol:
            ``"document"`` measures the accuracy on the 50 test images, as the paper does: choosing
            parameters by it makes the best accuracy too good, and one test image is among the
            training images. ``"cv"`` is the default because it has neither fault: the mean
            accuracy of 5-fold cross-validation on the training images without that one.
        hidden_layers:
            3, or 2 for the paper's smaller grid: the same network without ``h3``.
        fidelity:
            Whether ``iterations`` is how long a trial has trained and no parameter: every network
            trains once, reports at each of its levels (steps 1, 3, 4, 5 and 7), where a pruner may
            end it, and the best of them is the value. The user attribute ``iterations`` says
            which; of equals, it is the first.
        epochs:
            The most epochs to train, whatever ``iterations`` says.
        device:
            ``"auto"`` (CUDA, else the CPU), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...; MPS does not
            know float64.
        data_dir:
            The directory with the folder ``catvnoncat``; ``None`` means ``$OPTUNA_EXT_DATA``.
        seed:
            Fixes the first weights; the paper's is 1.
        amp:
            Must be false: the landscape is one of float64.
        compile:
            Whether to compile the network first.
        checkpoints:
            Where trainings are kept, to go on after a crash or from another trial's weights: a
            directory, a URL or a ``CheckpointStore``.
        interval:
            Epochs to train beyond those of the trial's parent, instead of ``epochs`` in total.

    Returns:
        The accuracy; NaN if the training diverged or ran out of memory.

    Raises:
        ValueError: If there is no such ``protocol``, ``hidden_layers`` or ``device``, or ``amp``
            is true.
        DataNotFoundError: If the files are not there; nobody may hand them out.
    """
    from objectives.training import fit

    if amp:
        raise ValueError("amp must be False, because the cats are trained in float64.")
    return fit(
        trial,
        task(
            protocol=protocol,
            hidden_layers=hidden_layers,
            fidelity=fidelity,
            data_dir=data_dir,
            seed=seed,
        ),
        epochs=epochs,
        device=float64_device(device),
        seed=seed,
        compile=compile,
        checkpoints=checkpoints,
        interval=interval,
    )


def task(
    *,
    protocol: Literal["cv", "document"] = "cv",
    hidden_layers: int = 3,
    fidelity: bool = False,
    data_dir: str | os.PathLike[str] | None = None,
    seed: int = 1,
) -> Task:
    """Return what :func:`objective` trains; its arguments are those of the same names there.

    Raises:
        ValueError: If there is no such ``protocol`` or ``hidden_layers``.
        DataNotFoundError: If the files are not there; nobody may hand them out.
    """
    from objectives.training import Task

    if protocol not in ("cv", "document"):
        raise ValueError(f"protocol must be 'cv' or 'document', but it is {protocol!r}.")
    if hidden_layers not in (2, 3):
        raise ValueError(f"hidden_layers must be 2 or 3, but it is {hidden_layers!r}.")
    names = (*SPACE,)[1 if fidelity else 0 : 2 + hidden_layers]
    images = in_own_span(data_dir=data_dir)
    parts = images.folds if protocol == "cv" else (images.document,)

    def recipe(params: Mapping[str, Any]) -> Recipe:
        hidden = [params[f"h{i}"] for i in range(1, hidden_layers + 1)]
        iterations = params.get("iterations", STEPS * EPOCHS)
        return dataclasses.replace(
            _recipe(params["lr"], hidden, basis=images.basis, seed=seed),
            max_epochs=iterations // STEPS,
        )

    return Task(
        hyperparameters=lambda trial: {name: suggest(trial, SPACE, name) for name in names},
        recipe=recipe,
        data=lambda where: [part.to(where) for part in parts],
        best_of=[int(level) // STEPS for level in LEVELS["iterations"]] if fidelity else None,
        notes=(lambda notes: {"iterations": STEPS * notes["best_epoch"]}) if fidelity else None,
    )


@dataclass(frozen=True, kw_only=True)
class Result:
    """The network after some iterations.

    Args:
        train:
            Cost and accuracy on the 209 training images.
        test:
            Cost and accuracy on the 50 test images.
    """

    train: Evaluation
    test: Evaluation


def train_curve(
    *,
    lr: float,
    h1: int,
    h2: int,
    h3: int | None,
    iterations: int = 700,
    device: str | torch.device = "auto",
    data_dir: str | os.PathLike[str] | None = None,
    seed: int = 1,
) -> dict[int, Result]:
    """Train one network as the paper does and measure it every 100 iterations.

    One training gives the accuracies of all levels of ``iterations``, so the 3125 points of the
    grid take 625 trainings.

    Args:
        lr:
            Learning rate of gradient descent.
        h1:
            Units of the first hidden layer.
        h2:
            Units of the second hidden layer.
        h3:
            Units of the third hidden layer; ``None`` leaves it out.
        iterations:
            Steps of gradient descent, a multiple of 100.
        device:
            As for :func:`objective`.
        data_dir:
            As for :func:`objective`.
        seed:
            As for :func:`objective`.

    Returns:
        The results after 0, 100, ..., ``iterations`` steps.

    Raises:
        ValueError: If ``iterations`` is no multiple of 100 or there is no such ``device``.
        DataNotFoundError: If the files are not there; nobody may hand them out.
    """
    from objectives.runs import Run

    if iterations % STEPS:
        raise ValueError(f"iterations must be a multiple of {STEPS}, but it is {iterations}.")
    images = in_own_span(data_dir=data_dir)
    where = float64_device(device)
    hidden = (h1, h2) if h3 is None else (h1, h2, h3)
    recipe = _recipe(lr, hidden, basis=images.basis, seed=seed)
    run = Run(recipe, images.document.to(where), device=where, seed=seed)
    curve = {0: Result(train=run.evaluate("train"), test=run.evaluate("test"))}
    for step in range(STEPS, iterations + 1, STEPS):
        run.train_epoch()
        curve[step] = Result(train=run.evaluate("train"), test=run.evaluate("test"))
    return curve


@dataclass(frozen=True, kw_only=True, eq=False)
class Images:
    """All images in as many coordinates as there are images.

    Args:
        basis:
            ``(12288, r)``, orthonormal: pixels times it are coordinates.
        document:
            209 training images; the 50 test images also validate.
        folds:
            Cross-validation on the training images that are no test image.
    """

    basis: NDArray[np.float64]
    document: Data
    folds: tuple[Data, ...]


def in_own_span(*, data_dir: str | os.PathLike[str] | None = None) -> Images:
    """Load the images in few coordinates.

    Raises:
        DataNotFoundError: If the files are not there; nobody may hand them out.
    """
    from objectives.data import load

    return _in_own_span(load("cats", data_dir=data_dir))


@functools.cache
def _in_own_span(pixels: Data) -> Images:
    """Describe the 259 images by as many coordinates instead of 12,288 pixels.

    Gradient descent changes the first layer's weights W only within the span of the images, and
    in an orthonormal basis Q of it W x = (W Q)(Q' x). So a network of the coordinates Q' x that
    starts from W Q takes the same steps, at a twentieth of the cost.
    """
    from sklearn.model_selection import StratifiedKFold
    import torch

    train, test = pixels.train_x, pixels.test_x
    q = torch.from_numpy(np.linalg.qr(np.vstack([train.numpy(), test.numpy()]).T).Q)
    document = dataclasses.replace(pixels, train_x=train @ q, valid_x=test @ q, test_x=test @ q)
    own = [not (image == test).all(1).any() for image in train]
    x, y = document.train_x[own], document.train_y[own]
    splitter = StratifiedKFold(_FOLDS, shuffle=True, random_state=0)
    folds = tuple(
        dataclasses.replace(
            document, train_x=x[rest], train_y=y[rest], valid_x=x[fold], valid_y=y[fold]
        )
        for rest, fold in splitter.split(x, y)
    )
    return Images(basis=q.numpy(), document=document, folds=folds)


def _recipe(lr: float, hidden: Sequence[int], *, basis: NDArray[np.float64], seed: int) -> Recipe:
    from torch.optim import SGD

    from objectives.nets import cat_net
    from objectives.training import Recipe

    return Recipe(
        model=lambda _: cat_net(hidden, basis=basis, seed=seed),
        optimizer=lambda parameters: SGD(parameters, lr=lr),
        batch_size=None,
        passes_per_epoch=STEPS,
        n_parameters=sum((i + 1) * o for i, o in itertools.pairwise((len(basis), *hidden, 1))),
    )


def float64_device(device: str | torch.device) -> torch.device:
    """Find a device that knows float64, which MPS does not.

    Raises:
        ValueError: If this machine has no such device, or it is MPS.
    """
    from objectives.training import resolve_device

    found = resolve_device(device)
    if found.type != "mps":
        return found
    if str(device) != "auto":
        raise ValueError(
            "device must not be 'mps' for the cats, because MPS does not know float64."
        )
    return resolve_device("cpu")
