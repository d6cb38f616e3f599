"""How well a frozen model's tokens predict the classes: linear probe and nearest neighbours on cached features."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from transformers import PreTrainedModel

from ..recipe.schema import ENCODERS
from .classifier import wilson_interval
from .inputs import Batch, evaluating, masking, place, read_batches
from .reconstruction import grid_of

logger = logging.getLogger(__name__)

Method = Literal["linear", "knn"]
Token = Literal["cls", "mean"]
Weights = Literal["equal", "exp"]
NEIGHBOURS = 20
TEMPERATURE = 0.07
"""T of the weights exp(cos/T) of neighbours, as in evaluations of self-supervised models [2104.14294]."""
REGULARISATIONS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""C of scikit-learn's logistic regression to choose from: the inverse weight of the squared norm, on standardised
features."""
HELD_OUT = 0.2
"""Share of the training images that decides between them, stratified."""
CHOSEN_ON = 10_000
"""The choice is made on at most this many training images, evenly spaced; the final fit uses all."""
_MAX_ITERATIONS = 1000


@dataclass(frozen=True)
class Features:
    """One vector per image: `values` float32 `(n, d)`, `labels` int64 `(n,)`."""

    values: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Probe:
    """What a probe found.

    Attributes:
        method: "linear" or "knn".
        layer: of the hidden states: 0 is the embedding, L the last layer.
        token: "cls", or "mean" over all tokens, the class token included; or a key of `representations`.
        accuracy: on the test images, 0 to 1.
        interval: its 95 % Wilson score interval.
        train_images, test_images: how many.
        width: d, numbers per image.
        regularisation: C of the logistic regression; `None` for neighbours.
        weights: of the neighbours' votes; `None` for a linear probe.
    """

    method: Method
    layer: int
    token: str
    accuracy: float
    interval: tuple[float, float]
    train_images: int
    test_images: int
    width: int
    regularisation: float | None = None
    weights: Weights | None = None

    def to_dict(self) -> dict[str, Any]:
        """The same as plain numbers, for JSON."""
        return asdict(self)


def last_layer(model: PreTrainedModel) -> int:
    """L, the number of the last layer's output among the hidden states."""
    return int(model.config.num_hidden_layers)


def features(model: PreTrainedModel, batches: Iterable[Batch], layer: int, token: Token) -> Features:
    """One vector per labelled image from the encoder's recorded hidden states, without gradients.

    Args:
        model: any classifier of tokens `(B, N, d)` whose token 0 is the class token, or a masked autoencoder, whose
            encoder is shown whole images.
        batches: mappings with `pixel_values` and `labels`.
        layer: 0 (the embedding) to L; no norm is applied after it.

    Raises:
        ValueError: no such layer, or a model without tokens.
    """
    last = last_layer(model)
    if not 0 <= layer <= last:
        raise ValueError(f"layer={layer}: the model has the layers 1 to {last}, and 0 for the embedding")
    vectors, labels = [], []
    for batch in read_batches(batches):
        tokens = hidden_states(model, place(batch["pixel_values"], model))[layer]
        if tokens.ndim != 3:
            raise ValueError(f"a {model.config.model_type} model has no tokens (B, N, d) to probe")
        pooled = tokens[:, 0] if token == "cls" else tokens.mean(dim=1)
        vectors.append(pooled.float().cpu())
        labels.append(batch["labels"].cpu())
    return Features(torch.cat(vectors).numpy(), torch.cat(labels).numpy())


def hidden_states(model: PreTrainedModel, pixels: Tensor) -> tuple[Tensor, ...]:
    """Tokens `(B, N, d)` of the embedding and of every layer of the encoder, in evaluation mode and without gradients.

    An autoencoder's patches are all visible and in order.
    """
    masked = model.config.model_type in ENCODERS
    inputs = {"pixel_values": pixels, "output_hidden_states": True}
    if masked:
        order = torch.arange(math.prod(grid_of(model, pixels)), dtype=torch.float32, device=pixels.device)
        inputs["noise"] = order.expand(len(pixels), -1)
    with masking(model, 0.0) if masked else nullcontext(), evaluating(model):
        return model.base_model(**inputs).hidden_states


def probe(
    train: Features,
    test: Features,
    method: Method,
    layer: int,
    token: str,
    regularisation: float | None = None,
    weights: Weights = "equal",
) -> Probe:
    """Fit on the training features, count on the test features.

    linear: logistic regression on standardised features; a fit that has not converged is logged. C is
    `regularisation`, else the one of `REGULARISATIONS` that gives the best accuracy on held-out training images (the
    smaller of two that tie).
    knn: the class with the most votes of the 20 nearest training images by cosine, ties to the smaller class number; a
    vote counts one, or with `weights="exp"` exp(cos/0.07).

    Raises:
        ValueError: fewer training images than neighbours, or training images of one class only.
    """
    if method == "knn" and len(train.labels) < NEIGHBOURS:
        raise ValueError(f"method=knn: needs {NEIGHBOURS} training images, got {len(train.labels)}; use linear")
    if len(np.unique(train.labels)) < 2:
        raise ValueError("a probe needs training images of at least two classes")
    if method == "linear":
        regularisation = choose_regularisation(train) if regularisation is None else regularisation
        classifier = _linear(regularisation)
    else:
        votes: Any = _votes if weights == "exp" else "uniform"
        regularisation = None
        classifier = KNeighborsClassifier(n_neighbors=NEIGHBOURS, metric="cosine", weights=votes)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        predicted = classifier.fit(train.values, train.labels).predict(test.values)
    if any(issubclass(warning.category, ConvergenceWarning) for warning in caught):
        logger.warning("the linear probe has not converged in %d iterations", _MAX_ITERATIONS)
    correct, count = int((predicted == test.labels).sum()), len(test.labels)
    return Probe(
        method=method,
        layer=layer,
        token=token,
        accuracy=correct / count,
        interval=wilson_interval(correct, count),
        train_images=len(train.labels),
        test_images=count,
        width=train.values.shape[1],
        regularisation=regularisation,
        weights=weights if method == "knn" else None,
    )


def _votes(distances: np.ndarray) -> np.ndarray:
    """exp(cos/T) but for a common factor, of distances 1 - cos."""
    return np.exp(-distances / TEMPERATURE)


def choose_regularisation(train: Features) -> float:
    """C of the logistic regression by accuracy on a stratified part of the training images, which it is not fitted on.

    It is the largest where a class has a single image, or fewer images than classes would be held out.
    """
    rows = np.arange(0, len(train.labels), max(1, len(train.labels) // CHOSEN_ON))[:CHOSEN_ON]
    counts = np.unique(train.labels[rows], return_counts=True)[1]
    if counts.min() < 2 or HELD_OUT * len(rows) < len(counts):
        return REGULARISATIONS[-1]
    fitted, held_out = train_test_split(rows, test_size=HELD_OUT, random_state=0, stratify=train.labels[rows])
    best, most = REGULARISATIONS[0], -1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the final fit warns
        for value in REGULARISATIONS:
            classifier = _linear(value).fit(train.values[fitted], train.labels[fitted])
            accuracy = classifier.score(train.values[held_out], train.labels[held_out])
            if accuracy > most:
                best, most = value, accuracy
    return best


def _linear(regularisation: float) -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(C=regularisation, max_iter=_MAX_ITERATIONS))
