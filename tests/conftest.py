"""What holds for all tests: nothing is measured but where a test says so, and the collected tests are no garbage.

What is chosen must not depend on the machine's load.
"""

import gc
import os

os.environ["OPENCRATE_CALIBRATE"] = "0"


def pytest_collection_finish() -> None:
    """Take modules and tests out of the garbage collector: every run collects, and would look through them all."""
    gc.collect()
    gc.freeze()
