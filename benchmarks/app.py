"""How long the page of `opencrate app` takes for a photograph, from its file to the HTML, without the browser.

    python benchmarks/app.py [MODEL ...]

After what the page does before its first reader comes: the first result of each model, then the median of five more.
By default all installed models of opencrate-weights.
"""

import statistics
import sys
import time

import opencrate
from opencrate.app import open_shelf
from opencrate.app.images import look
from opencrate.app.page import example_pictures
from opencrate.app.server import prepare
from opencrate.reports.html import fragment
from opencrate.store import SavedModel

REPEATS = 5


def seconds(saved: SavedModel, name: str) -> float:
    """One picture, from its file to the HTML."""
    start = time.perf_counter()
    fragment(look(saved, name, str(example_pictures()[0])))
    return time.perf_counter() - start


def main() -> None:
    """Time every model of images."""
    opencrate.register_auto_classes()
    shelf = open_shelf(sys.argv[1:])
    prepare(shelf)
    print(f"{'model':32} first, s  median of {REPEATS} more, s")
    for name in shelf.names(reads="images"):
        first = seconds(shelf[name], name)
        later = statistics.median(seconds(shelf[name], name) for _ in range(REPEATS))
        print(f"{name:32} {first:8.2f}  {later:8.2f}")


if __name__ == "__main__":
    main()
