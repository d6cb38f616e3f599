"""Started by `torchrun`: trains `imagefolder` with given overrides; see test_two_runs.py."""

import json
import sys
from pathlib import Path

import opencrate
from opencrate.recipe.load import load_recipe
from opencrate.training.train import train


def main() -> None:
    """Every pair of overrides and output in the file that is named."""
    opencrate.register_auto_classes()
    for overrides, output in json.loads(Path(sys.argv[1]).read_text()):
        train(load_recipe("imagefolder", overrides), output)


if __name__ == "__main__":
    main()
