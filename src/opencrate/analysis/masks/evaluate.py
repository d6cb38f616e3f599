"""How good the masks of models are on images whose true masks are known, beside floors that need no training."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..._files import shown
from ...blocks import compressions
from ...configuration_crate import pair
from ...data.segmentation.truth import MaskedImage, MaskedImages
from ...image_processing_crate import as_grey_or_colour
from ...stats.words import UNTRAINED as UNTRAINED_NAME
from ...store.saved import SavedModel, name_of, untrained_copy
from ..record.states import has_maps
from ..segmentation.arrays import Grid
from ..segmentation.class_table import ClassTable, class_table
from ..segmentation.evaluation import (
    FLOOR,
    MODEL,
    UNTRAINED,
    Example,
    SegmentationScores,
    Subject,
    chosen_subject,
    subject_of,
    summarise,
)
from ..segmentation.floors import SHARES, centred_ellipse, smooth_random_features, smooth_random_maps, whole_image
from ..segmentation.noise import noisy_picture
from ..segmentation.scores import DEFAULTS, RULES, ImageScores, ScoreOptions, Views, score_mask, score_views
from .pictures import default_size, fitted_size, prepared
from .views import token_views

logger = logging.getLogger(__name__)

Viewer = Callable[[Image.Image], Views]
WHOLE, ELLIPSE, RANDOM = "whole image", "centred ellipse", "smooth random maps"
"""The floors."""
_EXAMPLES = 4


@dataclass(frozen=True)
class ViewOptions:
    """How a model looks at an image.

    Attributes:
        layer: from 1, or from the end.
        features: `keys`, `tokens` or `codes`.
        size: pixels of the shorter side; `None` is 480, or 60 patches where those are fewer.
        square: both sides have `size`, the aspect is lost: as in the published code.
        stride: pixels from one patch to the next; `None` puts them side by side.
    """

    layer: int = -1
    features: str = "keys"
    size: int | None = None
    square: bool = False
    stride: int | None = None


HOW = ViewOptions()


@dataclass(frozen=True)
class Seen:
    """A model as the evaluation needs it.

    Attributes:
        view: gives the features and maps of a picture.
        untrained: the same of models of the same form that were not trained, one for each seed.
    """

    view: Viewer
    untrained: tuple[Viewer, ...] = ()


def evaluate_segmentation(
    models: Sequence[SavedModel],
    data: MaskedImages,
    *,
    views: ViewOptions = HOW,
    masks: ScoreOptions = DEFAULTS,
    noise: Sequence[float] = (),
    untrained_seeds: int = 1,
    progress: Callable[[MaskedImages], Iterable[MaskedImage]] = iter,
) -> SegmentationScores:
    """Evaluate the masks of saved vision models, with 95 % intervals, and of all floors on the same images.

    Args:
        models: of images, of any kind; the differences are those of each to the later ones.
        data: of `load_masks`.
        views, masks: how masks are made.
        noise: standard deviations in pixel values of 0 to 255; the models are evaluated on images with each, too.
        untrained_seeds: how many untrained models of each form are averaged, at least 1.
        progress: wraps the images, such as `rich.progress.track`.

    Raises:
        ValueError: no model, a model of texts, an argument outside its range, images without any object, or what
            `token_views` refuses.
        ArithmeticError: an eigenvector was not found.
    """
    if not models or untrained_seeds < 1:
        raise ValueError(f"models: {len(models)}, untrained_seeds={untrained_seeds}: need at least 1 of both")
    texts = [one.source for one in models if one.reads != "images"]
    if texts:
        raise ValueError(f"{shown(texts[0])}: reads texts; give a model of images")
    names = _unique([name_of(one.source) for one in models], [one.source for one in models])
    seen = {}
    for name, one in zip(names, models):
        fresh = _untrained(one, untrained_seeds)
        seen[name] = Seen(viewer(one, one.model, views), tuple(viewer(one, model, views) for model in fresh))
        if not _looks(one.model):
            logger.warning("%s: its layers have no attention maps; only its features are evaluated", shown(name))
    settings = {**asdict(views), **asdict(masks), "noise": list(noise), "untrained_seeds": untrained_seeds}
    return evaluate_views(seen, data, masks, noise=noise, progress=progress, settings=settings)


def _untrained(saved: SavedModel, seeds: int) -> list[Any]:
    """Models of a saved one's form with fresh weights, and with the whitened patches that its run began with."""
    try:
        return [saved.untrained(seed).eval() for seed in range(seeds)]
    except ValueError as error:
        logger.warning("%s; its untrained floor has random patches", error)
        return [untrained_copy(saved.model, seed).eval() for seed in range(seeds)]


def viewer(saved: SavedModel, model: Any, options: ViewOptions) -> Viewer:
    """What shows a picture to a model, with the processor of a saved one."""
    patch = pair(getattr(model, "crate", model).config.patch_size)
    size = default_size(patch) if options.size is None else options.size
    looks = _looks(model)

    def view(picture: Image.Image) -> Views:
        shape = fitted_size((picture.height, picture.width), size, patch, options.square)
        pixels = prepared(as_grey_or_colour(picture, saved.transform.num_channels), saved.transform, shape)
        given = {name: getattr(options, name) for name in ("layer", "features", "stride")}
        with torch.no_grad():
            found = token_views(model, pixels[None], attention=looks, **given)
        maps = None if found.attention is None else found.attention[0].numpy()
        return Views(found.features[0].float().numpy(), maps, found.grid, found.covering)

    return view


def evaluate_views(
    models: dict[str, Seen],
    data: MaskedImages,
    masks: ScoreOptions = DEFAULTS,
    *,
    noise: Sequence[float] = (),
    progress: Callable[[MaskedImages], Iterable[MaskedImage]] = iter,
    settings: dict[str, Any] | None = None,
) -> SegmentationScores:
    """As `evaluate_segmentation`, of anything that gives features and attention for a picture.

    Args:
        models: by name.
        data, masks, noise, progress: as there.
        settings: for the record.
    """
    sigmas = tuple(sorted({float(sigma) for sigma in noise} - {0.0}))
    found = _Collected(masks, sigmas)
    for index, truth in enumerate(progress(data)):
        found.add(index, truth, models)
    if len(found.empty) == len(data):
        raise ValueError(f"{data.source}: no object in any of its {len(data)} images; give others, or more of them")
    subjects = _subjects(found, models, sigmas, data)
    intervals, differences = summarise(subjects, data.groups)
    if found.empty:
        logger.warning("%d of %d images hold no object: %s", len(found.empty), len(data), shown(", ".join(found.empty)))
    return SegmentationScores(
        data.kind,
        data.source,
        len(data),
        tuple(dict.fromkeys(data.groups)),
        tuple(found.empty),
        settings or asdict(masks),
        tuple(subjects),
        intervals,
        differences,
        _class_tables(found, data, masks.rules),
        tuple(found.examples),
    )


@dataclass
class _Collected:
    """The numbers of every image so far, by name of the subject, sigma, and run; the random floors' models by floor."""

    masks: ScoreOptions
    sigmas: tuple[float, ...]
    runs: dict[tuple[str, float, int], list[ImageScores]] = field(default_factory=dict)
    roles: dict[str, str] = field(default_factory=dict)
    random: dict[str, list[str]] = field(default_factory=dict)
    empty: list[str] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)

    def add(self, index: int, truth: MaskedImage, models: dict[str, Seen]) -> None:
        """Everything of one image."""
        if truth.empty:
            self.empty.append(truth.name)
        shown_masks, shown_maps, views = {}, {}, {}
        for name, seen in models.items():
            views[name] = seen.view(truth.picture)
            scores = self._score(views[name], truth)
            shown_masks[name] = scores.masks
            if views[name].attention is not None:
                shown_maps[name] = views[name].covering(views[name].attention)
            self._put(name, MODEL, scores)
            for sigma in self.sigmas:
                noisy = replace(truth, picture=noisy_picture(truth.picture, sigma, index))
                self._put(name, MODEL, self._score(seen.view(noisy.picture), noisy), sigma)
            for run, fresh in enumerate(seen.untrained):
                scores = self._score(fresh(truth.picture), truth)
                self._put(name + UNTRAINED_NAME, UNTRAINED, scores, run=run)
        self._add_floors(index, truth, views)
        if len(self.examples) < _EXAMPLES and not truth.empty:
            whole = truth.instances[~truth.crowd]
            self.examples.append(Example(truth.name, truth.picture, truth.labels, whole, shown_masks, shown_maps))

    def _score(self, views: Views, truth: MaskedImage) -> ImageScores:
        try:
            return score_views(views, truth, self.masks)
        except ArithmeticError as error:
            raise ArithmeticError(f"{shown(truth.name)}: {error}") from error

    def _put(self, name: str, role: str, scores: ImageScores, sigma: float = 0.0, run: int = 0) -> None:
        self.roles[name] = role
        self.runs.setdefault((name, sigma, run), []).append(replace(scores, masks=None))

    def _add_floors(self, index: int, truth: MaskedImage, views: dict[str, Views]) -> None:
        """The floors of an image: masks that do not depend on the model, and random maps with as many heads."""
        first = next(iter(views.values()))
        grid = _covered(first)
        rules = self.masks.rules
        whole = score_mask(whole_image(truth.size), whole_image(grid), truth, rules)
        self._put(WHOLE, FLOOR, whole)
        for run, share in enumerate(SHARES):
            ellipse = centred_ellipse(truth.size, share), centred_ellipse(grid, share)
            self._put(ELLIPSE, FLOOR, score_mask(*ellipse, truth, rules), run=run)
        for name, models in (self.random or self._named(views)).items():
            like = views[models[0]]
            maps = None if like.attention is None else smooth_random_maps(len(like.attention), like.grid, index)
            features = smooth_random_features(like.grid, index)
            self._put(name, FLOOR, self._score(replace(like, features=features, attention=maps), truth))

    def _named(self, views: dict[str, Views]) -> dict[str, list[str]]:
        """One random floor for each number of heads and grid that the models have: its name, and whose they are."""
        for model, one in views.items():
            known = [models for models in self.random.values() if _shape(views[models[0]]) == _shape(one)]
            if known:
                known[0].append(model)
                continue
            words = RANDOM + ("" if one.attention is None else f", {len(one.attention)} heads")
            words += f" on {one.grid[0]} x {one.grid[1]}" if words in self.random else ""
            self.random[words] = [model]
        return self.random


def _shape(views: Views) -> tuple[int | None, Grid]:
    return None if views.attention is None else len(views.attention), views.grid


def _covered(views: Views) -> Grid:
    """The grid that covers the whole image."""
    rows, columns = views.covering(np.zeros((1, views.grid[0] * views.grid[1]), dtype=bool)).shape[-2:]
    return rows, columns


def _subjects(found: _Collected, models: dict[str, Seen], sigmas: Sequence[float], data: MaskedImages) -> list[Subject]:
    """Models, untrained ones and floors, then models on noisy images."""
    options: dict[str, Any] = {"groups": data.groups, "one_object": data.one_object}
    order = [*models, *(name for name in found.roles if name not in models)]
    order.sort(key=lambda name: (MODEL, UNTRAINED, FLOOR).index(found.roles[name]))
    beside = {name + UNTRAINED_NAME: [name] for name in models} | found.random
    subjects = []
    for name in order:
        runs = [run for (owner, sigma, _), run in found.runs.items() if owner == name and not sigma]
        if name == ELLIPSE:
            subjects.append(chosen_subject(name, runs, **options))
        else:
            subjects.append(subject_of(name, found.roles[name], runs, models=beside.get(name, ()), **options))
    for sigma in sigmas:
        for name in models:
            runs = [found.runs[name, sigma, 0]]
            subjects.append(subject_of(name, MODEL, runs, sigma=sigma, **options))
    return subjects


def _class_tables(
    found: _Collected, data: MaskedImages, rules: Sequence[str] = RULES
) -> dict[tuple[str, str], ClassTable]:
    """The tables of models and random maps, where labels are classes."""
    tables = {}
    names = [name for name, role in found.roles.items() if role == MODEL] + list(found.random)
    for name in names if data.class_names else ():
        run = found.runs[name, 0.0, 0]
        for rule in rules:
            if run[0].heads:
                ious = [one.heads[rule, "pixels"] for one in run]
                table = class_table(ious, data.groups, data.class_names)
                tables |= {} if table is None else {(name, rule): table}
    return tables


def _looks(model: Any) -> bool:
    """Whether a model has attention maps."""
    encoder = getattr(model, "crate", model)
    return not compressions(encoder) or has_maps(encoder)


def _unique(names: Sequence[str], sources: Sequence[str]) -> list[str]:
    """The names, or the sources of those that several have; the same source twice is numbered."""
    found: list[str] = []
    for name, source in zip(names, sources):
        word = name if list(names).count(name) == 1 else source
        found.append(word if word not in found else f"{word} ({found.count(word) + 1})")
    return found
