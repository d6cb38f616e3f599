"""Features of a vision model in words, a table and one page that can be searched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image, ImageDraw

from ..analysis.features.patches import SCORES, Patch, PatchFeature, PatchFeatures
from ..stats.words import interval, plural
from .features import FILES
from .html import Part, Report, Table, link
from .segmentation import data_uri
from .tables import frame

_SIDE = 96  # pixels of a shown patch with its surroundings
_EDGE = (213, 94, 0)
_NOTE = (
    "Mean over randomly drawn features and its 95 % bootstrap interval over features. The class for which a feature "
    "fires most is chosen on a random half of the images; on the other half, AUC says how often an image of that class "
    "has a larger mean activation than one of another class: 0.5 is chance. The control asks the same of another "
    "feature's class. Features without a score are left out: silent ones, and classes with fewer than five images."
)


def patch_features_report(models: Sequence[PatchFeatures], record: Sequence[tuple[str, str]] = ()) -> Report:
    """The page of a vision model's features and others' beside them, with (name, text) of what was run."""
    cards = [_card(found.name, one) for found in models for one in found.features]
    first = models[0]
    drawn, firing = len(first.features), len(first.features) - first.silent
    return Report(
        title=f"Features of {first.name}",
        subtitle=f"{first.kind}, drawn at random, on {first.where}",
        summary=(
            f"A feature is one number that the model computes for every patch. Of {plural(drawn, 'feature')} drawn at "
            f"random, {firing or 'none'} {'fires' if firing == 1 else 'fire'} on these images.",
            "Below each are the patches that make it fire most, one per image, with what lies around them.",
            Markup("Look at {}: they can be searched and sorted.").format(link("the features one by one", "Features")),
        ),
        parts=(Part("Scores", describe(models), (score_table(models),)),),
        record=tuple(record),
        files={
            "features.json": {"models": [found.to_dict() for found in models]},
            "features.csv": frame({"model": found.name, **row} for found in models for row in found.to_rows()),
        },
        page=FILES[0],
        template="patch_features.html.j2",
        values={
            "cards": cards,
            "models": [found.name for found in models],
            "layers": sorted({card["feature"].layer for card in cards}),
            "scores": SCORES,
            "steered": (),
        },
    )


def describe(models: Sequence[PatchFeatures]) -> tuple[str, ...]:
    """A sentence on each model, computed from the numbers."""
    return tuple(_found(found) for found in models)


def _found(found: PatchFeatures) -> str:
    text = (
        f"{found.name} ({found.kind}): {plural(len(found.features), 'feature')} drawn at random (seed {found.seed}) "
        f"from {sum(found.widths.values()):,} in {plural(len(found.widths), 'layer')}, on {found.patches:,} patches of "
        f"{plural(found.images, 'image')}; "
        f"{f'{found.silent} never ' if found.silent else 'all '}{'fires' if found.silent == 1 else 'fire'}"
    )
    area, control = found.interval("auc"), found.interval("auc_control")
    if area is None:
        return (
            f"{text}. {'Too few of them fire to score classes.' if found.labelled else 'The images have no classes.'}"
        )
    text += f". A feature tells the class for which it fires most, on images held out, with AUC {interval(area, 3)}"
    return f"{text} (another feature's class: {interval(control, 3)})." if control is not None else f"{text}."


def score_table(models: Sequence[PatchFeatures]) -> Table:
    """Means over features with their 95 % bootstrap intervals, one row per model and layer."""
    places = [(found, layer) for found in models for layer in (None, *(found.widths if len(found.widths) > 1 else ()))]
    return Table("Firing and classes", frame(_score_row(*place) for place in places), _NOTE)


def _score_row(found: PatchFeatures, layer: int | None) -> dict[str, str]:
    rates = list(found.firing_rates.values()) if layer is None else [found.firing_rates[layer]]
    intervals = {words: found.interval(score, layer) for score, words in SCORES.items()}
    return {
        "": f"{found.name}, {'all layers' if layer is None else f'layer {layer}'}",
        "firing rate, median of all": f"{100 * float(np.median(np.concatenate(rates))):.1f} %",
        **{words: "–" if one is None else interval(one, 3) for words, one in intervals.items()},
    }


def _card(model: str, feature: PatchFeature) -> dict[str, Any]:
    """A feature as the page shows it, and what the search looks in, in lower case."""
    words = {feature.selects, *(patch.title for patch in feature.patches)}
    search = " ".join([f"layer {feature.layer} feature {feature.index}", model, *sorted(words)]).lower()
    return {"feature": feature, "model": model, "search": search, "patches": [_shown(one) for one in feature.patches]}


def _shown(patch: Patch) -> dict[str, Any]:
    """A patch with its surroundings, enlarged, a frame around the patch."""
    pixels = np.repeat(patch.pixels, 3, axis=0) if len(patch.pixels) == 1 else patch.pixels
    image = Image.fromarray((pixels.transpose(1, 2, 0) * 255).round().astype(np.uint8))
    scale = max(1, round(_SIDE / max(image.size)))
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    left, top, width, height = (side * scale for side in patch.box)
    ImageDraw.Draw(image).rectangle((left, top, left + width - 1, top + height - 1), outline=_EDGE, width=2)
    words = f"{patch.value:.2g} {patch.title}".strip()
    return {"image": data_uri(image, "PNG"), "width": image.width, "height": image.height, "words": words}
