"""The tab of pictures: what one model makes of one picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..analysis.features.codes import codes_kind
from ..analysis.features.here import nearest_atoms
from ..analysis.layers.analyze import analyze
from ..analysis.masks.options import MaskOptions
from ..analysis.masks.segment import Segmented, Segmenter, segmenter_of
from ..analysis.masks.views import token_views
from ..analysis.record.attention import displayable
from ..analysis.record.states import has_maps
from ..blocks import compressions
from ..data.images.tensors import to_array
from ..evaluation.inputs import evaluating, place
from ..evaluation.reconstruction import grid_of, patch_noise, reconstruct
from ..reports import tables
from ..reports.html import HOW, MEASURED, Figure, Part, Table
from ..reports.layer_figures import plot_maps
from ..reports.layers import curves
from ..reports.reconstruction import MOMENTS_NOTE, images_of, plot_grid
from ..reports.segmentation import overlay
from ..reports.segmentation_figures import plot_rows
from ..stats.words import percent
from ..store.saved import SavedModel
from .errors import told
from .uploads import read_picture

TOP = 5
_ATOMS, _COLUMNS, _SHOWN = 6, 3, 320


@dataclass(frozen=True)
class Look:
    """One picture before one model, and how it is looked at.

    Attributes:
        name: the model's, for readers.
        picture: decoded, in the mode that the model reads.
        layer: of heads, masks and atoms, from 1; -1 is the last.
        patches: along the shorter side, for heads and masks.
        num_masks: cuts of MaskCut, at most.
        mask_ratio: share of the patches that an autoencoder does not see.
    """

    saved: SavedModel
    name: str
    picture: Image.Image
    layer: int = -1
    patches: int = 20
    num_masks: int = 3
    mask_ratio: float = 0.75

    @property
    def segmenter(self) -> Segmenter:
        """MaskCut on so many patches."""
        options: dict[str, Any] = {"layer": self.layer, "num_masks": self.num_masks}
        patch = max(segmenter_of(self.saved, MaskOptions(**options)).patch)
        return segmenter_of(self.saved, MaskOptions(**options, size=self.patches * patch))

    @property
    def pixels(self) -> Tensor:
        """`(1, C, H, W)` at the size of training, by the model's own processor."""
        return self.saved.transform.processor(images=[self.picture], return_tensors="pt")["pixel_values"]

    @property
    def as_read(self) -> Tensor:
        """`pixels` before their normalisation, `(C, H, W)` in [0, 1]: what is cut off is not seen."""
        mean, std = (getattr(self.saved.processor, name, None) for name in ("image_mean", "image_std"))
        return displayable(self.pixels, mean, std)[0]

    @property
    def shown(self) -> Tensor:
        """The whole picture `(C, H, W)` in [0, 1], at most 320 pixels wide and high."""
        small = self.picture.copy()
        small.thumbnail((_SHOWN, _SHOWN))
        return torch.from_numpy(to_array(small).copy()).float() / 255


def look(
    saved: SavedModel,
    name: str,
    file: str | None,
    layer: int = -1,
    patches: int = 20,
    num_masks: int = 3,
    mask_ratio: float = 0.75,
) -> tuple[Part, ...]:
    """What a model makes of an uploaded picture, as the parts of a report; see `Look` for the arguments.

    A part that cannot be made of this model says why.

    Raises:
        ValueError: a file that is no picture, or one that is not read here, as `uploads.read_picture`.
    """
    one = Look(saved, name, read_picture(saved, file), layer, patches, num_masks, mask_ratio)
    wanted: list[tuple[str, tuple[Callable[[Look], Part], ...]]] = []
    if saved.kind == "classifier":
        wanted.append(("Class", (classes,)))
    if saved.kind == "autoencoder":
        wanted.append(("Reconstruction", (reconstruction,)))
    wanted += [("One layer", (masks_and_heads, atoms)), ("All layers", (layers,))]
    return tuple(_together(title, [_made(title, make, one) for make in makers]) for title, makers in wanted)


def probabilities(saved: SavedModel, pixels: Tensor, top: int = TOP) -> dict[str, float]:
    """The most probable classes of one picture `(1, C, H, W)`, by name, the first the most probable."""
    with evaluating(saved.model):
        logits = saved.model(pixel_values=place(pixels, saved.model)).logits[0].float().cpu()
    if not logits.isfinite().all():
        raise ValueError("model: gives logits that are not finite; its weights are damaged or training diverged")
    values, indices = logits.softmax(-1).topk(min(top, len(logits)))
    names = saved.label_names
    return {names[index]: value for index, value in zip(indices.tolist(), values.tolist())}


def classes(one: Look) -> Part:
    """The most probable classes."""
    found = probabilities(one.saved, one.pixels)
    rows = tables.frame({"class": label, "probability": percent(value)} for label, value in found.items())
    note = f"One of the {len(one.saved.label_names)} classes that the model knows, whatever the picture shows."
    return Part("Class", (), (Table("Most probable classes", rows, note),))


def masks_and_heads(one: Look) -> Part:
    """MaskCut's masks, and where every head of the layer looks."""
    known = not compressions(one.saved.model) or has_maps(one.saved.model) or one.saved.kind == "autoencoder"
    (found,) = one.segmenter([one.picture], maps=known)
    figures = [_masks(one, found)]
    sentences = [] if found.masks else ["MaskCut found no object here."]
    if found.maps is None:
        sentences.append(f"{one.name} has no attention maps: its operator makes none.")
    else:
        figures.append(_heads(one, found))
    return Part("Masks and heads", tuple(sentences), tuple(figures))


def _masks(one: Look, found: Segmented) -> Figure:
    covered = overlay(one.picture, [mask.pixels for mask in found.masks])
    listed = "; ".join(f"{mask.label}: {percent(mask.pixels.mean())} of the picture" for mask in found.masks)
    how = (
        f"MaskCut on the keys of layer {found.layer}, {found.grid[0]} x {found.grid[1]} patches, refined along the "
        "picture's edges. No mask was given to the model."
    )
    drawn = plot_rows([[one.picture.convert("RGB"), covered]], ["picture", "MaskCut"])
    return Figure("app-masks", "Masks", drawn, "The picture, and MaskCut's masks on it", {"Found": listed, HOW: how})


def _heads(one: Look, found: Segmented) -> Figure:
    assert found.maps is not None
    maps = {f"head {number}": values for number, values in enumerate(found.maps, 1)}
    how = f"How much the {found.looked_at_by} looks at each patch; each map is stretched from 0 to its largest value."
    drawn = plot_maps([("", one.shown, maps)], 2 if len(maps) <= 4 else _COLUMNS)
    alt = "The picture, and one attention map for every head"
    return Figure("app-heads", f"Heads of layer {found.layer}", drawn, alt, {HOW: how})


def atoms(one: Look) -> Part:
    """The atoms of the layer's dictionary that lie nearest to some patch, at the size of training."""
    view = token_views(one.saved.model, one.pixels, layer=one.layer, features="codes", attention=False)
    found = nearest_atoms(view.features[0].float().numpy(), view.grid, _ATOMS)
    sparse = codes_kind(one.saved.model) == "sparse codes"
    title, unit = ("Nearest atoms", "atom") if sparse else ("Strongest neurons", "neuron")
    if not found:
        return Part(title, (f"No {unit} of layer {view.layer} fires on this picture.",))
    maps = {f"{unit} {atom.index}": atom.values for atom in found}
    largest = "; ".join(f"{unit} {atom.index}: {atom.maximum:.2g}, {percent(atom.share)} of patches" for atom in found)
    how = (
        f"Of the {view.features.shape[-1]} {unit}s of layer {view.layer}, those that fire most on some patch, and "
        f"how much on each. The picture is as the model reads it: {' x '.join(map(str, view.grid))} patches."
    )
    drawn = plot_maps([("", one.as_read, maps)], _COLUMNS)
    alt = f"The picture, and where each {unit} fires"
    figure = Figure("app-atoms", title, drawn, alt, {"Largest value, and where it is above 0": largest, HOW: how})
    return Part(title, (), (figure,))


def reconstruction(one: Look) -> Part:
    """The picture with patches hidden, and what the decoder puts there."""
    pixels, processor = one.pixels, one.saved.processor
    rows, columns = grid_of(one.saved.model, pixels)
    noise = patch_noise(1, rows * columns, 0)
    found = reconstruct(one.saved.model, pixels, noise, processor.image_mean, processor.image_std, one.mask_ratio)
    (image,) = images_of(found, ["picture"], 1)
    how = f"{int(found.mask.sum())} of {rows * columns} patches are hidden, drawn with seed 0"
    how += f"; {MOMENTS_NOTE}." if found.mean_std_known else "."
    measured = f"PSNR on the hidden patches {image.numbers['psnr_masked']:.1f} dB."
    alt = "The picture, the patches that the model sees, its reconstruction, and both together"
    notes = {MEASURED: measured, HOW: how}
    figure = Figure("app-reconstruction", "Reconstruction", plot_grid([image]), alt, notes)
    return Part("Reconstruction", (), (figure,))


def layers(one: Look) -> Part:
    """R^c, R, ΔR and sparsity over the layers, of this picture alone."""
    return Part("Layers", (), curves({one.name: analyze(one.saved.model, one.pixels, name=one.name)}))


def _together(title: str, parts: Sequence[Part]) -> Part:
    """Parts under one heading, their figures beside one another."""
    sentences = tuple(sentence for part in parts for sentence in part.sentences)
    return Part(title, sentences, tuple(item for part in parts for item in part.items))


def _made(title: str, make: Callable[[Look], Part], one: Look) -> Part:
    try:
        return make(one)
    except (ValueError, ArithmeticError) as error:
        return Part(title, (f"Not made of {one.name}: {told(error)}.",))
