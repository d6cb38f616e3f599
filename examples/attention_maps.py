"""Attention maps of the class token, per head, of any saved CRATE classifier, for one image, as a PNG.

    python examples/attention_maps.py runs/demo/digits image.png maps.png [--layer -1]

The maps follow from the recorded projections U^T LN(Z), so they exist under every attention backend.
"""

import argparse

import matplotlib
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

import opencrate  # noqa: F401 (registers CRATE with the Auto classes)

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def main() -> None:
    """Load, run once, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder written by save_pretrained or `opencrate train`")
    parser.add_argument("image")
    parser.add_argument("output")
    parser.add_argument("--layer", type=int, default=-1)
    arguments = parser.parse_args()

    model = AutoModelForImageClassification.from_pretrained(arguments.model).eval()
    processor = AutoImageProcessor.from_pretrained(arguments.model)
    image = Image.open(arguments.image).convert("L" if model.config.num_channels == 1 else "RGB")
    pixels = processor(image, return_tensors="pt").pixel_values
    with torch.no_grad():
        out = model(pixels, output_attentions=True)
    rows, columns = model.crate.embeddings.patch_embeddings.grid(pixels)
    maps = out.attentions[arguments.layer][0, :, 0, 1:].unflatten(-1, (rows, columns))  # (K, rows, columns)

    figure, axes = plt.subplots(1, len(maps) + 1, figsize=(2 * len(maps) + 2, 2.4), squeeze=False)
    axes[0, 0].imshow(image, cmap="gray")
    axes[0, 0].set_title(model.config.id2label[out.logits.argmax().item()])
    for head, (axis, values) in enumerate(zip(axes[0, 1:], maps), 1):
        axis.imshow(values)
        axis.set_title(f"head {head}")
    for axis in axes.flat:
        axis.set_axis_off()
    figure.savefig(arguments.output, dpi=150, bbox_inches="tight")
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
