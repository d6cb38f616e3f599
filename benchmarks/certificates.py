"""On how many test images every layer descends, and which predictions of the theory hold, for runs of classifiers.

    python benchmarks/certificates.py RUN... [--num-images 256] [--csv FILE]

Accuracy and certificate are of all test images of each run's own split. The predictions are those of `opencrate
analyze`, judged by 95 % bootstrap intervals over the first `--num-images` of them. One row per run.
"""

import argparse
from pathlib import Path

import pandas as pd
import torch

from opencrate.analysis.layers.analyze import analyze
from opencrate.analysis.layers.claims import claims
from opencrate.certificate import Certificate, certificate, joined
from opencrate.evaluation.classifier import evaluate_classifier
from opencrate.evaluation.inputs import place
from opencrate.store.build import initialise
from opencrate.store.inputs import labelled_images
from opencrate.store.saved import SavedModel, open_saved

MARKS = {True: "held", False: "did not hold", None: "undecided"}


def main() -> None:
    """Parse arguments, measure every run, print and save the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--num-images", type=int, default=256)
    parser.add_argument("--csv", type=Path)
    arguments = parser.parse_args()
    table = pd.DataFrame([row_of(open_saved(run), arguments.num_images) for run in arguments.runs])
    print(table.to_string(index=False))
    if arguments.csv:
        table.to_csv(arguments.csv, index=False)


def row_of(saved: SavedModel, num_images: int) -> dict[str, object]:
    """What is measured of one run."""
    batches = saved.batches(labelled_images(saved, None, "test", False))
    with torch.no_grad():
        parts = [certificate(saved.model, place(batch["pixel_values"], saved.model)) for batch in batches]
    found: Certificate = joined(parts)
    start = initialise(saved.model.config, saved.recipe.training.seed if saved.recipe else 0)
    box = analyze(saved.model, batches, name=saved.name, num_inputs=num_images, initial=start.eval())
    return {
        "run": str(saved.source),
        "accuracy": round(100 * evaluate_classifier(saved.model, batches).top1, 2),
        "seconds": (saved.metrics or {}).get("seconds"),
        "parameters": saved.num_parameters,
        "images": found.num_inputs,
        "descends on": int(found.holds.sum()),
        "R^c falls (%)": _share(found.rate_margin, found.rounding),
        "ISTA descends (%)": _share(found.lasso_margin, found.rounding),
        "guaranteed": found.guaranteed,
        "layers that raise R^c": int((found.rate_change.mean(1) > 0).sum()),
        "R^c at equal length, by layer": " ".join(
            f"{one:+.1f}" for one in found.rate_change_at_length.mean(1).tolist()
        ),
        "smallest margin": f"{float(found.margin.min()):.2g}",
        **{claim.text: f"{MARKS[claim.held]}: {claim.weakest}" for claim in claims(box.series)},
    }


def _share(margins: torch.Tensor, rounding: float) -> float:
    """Of all layers and images ``(L, B)``, the per cent whose step descends."""
    return round(100 * float((margins >= -rounding).double().mean()), 2)


if __name__ == "__main__":
    main()
