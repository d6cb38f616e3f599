"""An image processor for another image size."""

from __future__ import annotations

from typing import Any


def processor_at(processor: Any, size: tuple[int, int]) -> Any:
    """A copy of an image processor whose images have `size` (height, width).

    What it crops is resized in the same proportion to the crop as before.

    Raises:
        ValueError: it gives square images alone, and others are asked for.
    """
    height, width = size
    fields, there = processor.to_dict(), {"height": height, "width": width}
    if "crop_pct" in fields and set(filter(fields["size"].get, fields["size"])) == {"shortest_edge"}:
        if height != width:  # ConvNeXt's: resizes and crops by itself
            name = type(processor).__name__
            raise ValueError(
                f"size={height}x{width}: the image processor, {name}, gives square images; give one number"
            )
        return type(processor).from_dict({**fields, "size": {"shortest_edge": height}})
    if not fields.get("do_center_crop"):
        return type(processor).from_dict({**fields, "size": there})
    crop, resized = fields["crop_size"], dict(fields["size"])
    factor = max(height / crop["height"], width / crop["width"])
    for name in ("shortest_edge", "height", "width"):
        if resized.get(name):
            resized[name] = max(round(resized[name] * factor), height, width)
    return type(processor).from_dict({**fields, "size": resized, "crop_size": there})
