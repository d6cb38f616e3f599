"""Runs a training in a process of its own and kills it: `python -m tests.training.killer < jobs > results`.

The libraries are imported once; every job, a JSON line, is a forked child, and its end is a JSON line. A job holds
`recipe`, `overrides`, `output`, and how the child ends before its time: `after_seconds` (killed from outside, wherever
it is) or `at_event` (it kills itself at the n-th time that it opens, renames, makes or removes something below its run
directory: nearly always while a checkpoint is written or an old one removed) with `below` (a folder in the run
directory that alone counts: with `checkpoints/.staging`, inside checkpoint writing for certain).
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree")


def kill_at(event: int, folder: str) -> None:
    """SIGKILL to this very process, before the n-th event below `folder` takes place."""
    left = event

    def hook(name, arguments):
        nonlocal left
        if name in EVENTS and isinstance(arguments[0], (str, os.PathLike)) and folder in os.fspath(arguments[0]):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def child(job: dict) -> None:
    """Train, with the output thrown away; the process ends with 0 if the run is finished."""
    from opencrate.recipe.load import load_recipe
    from opencrate.training.train import train

    code = 1
    try:
        if job.get("at_event"):
            kill_at(job["at_event"], f"{job['output']}.partial/{job.get('below', '')}")
        train(load_recipe(job["recipe"], job["overrides"]), job["output"], resume=True)
        code = 0
    finally:
        os._exit(code)


def run(job: dict) -> dict:
    """Fork, perhaps kill, and say how it ended and what stood then."""
    start = time.monotonic()
    process = os.fork()
    if process == 0:
        child(job)
    if job.get("after_seconds"):
        time.sleep(job["after_seconds"])
        os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    checkpoints = Path(job["output"] + ".partial") / "checkpoints"
    return {
        "killed": os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL,
        "finished": os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0,
        "seconds": time.monotonic() - start,
        "staged": [path.name for path in checkpoints.glob(".staging/*")],
        "checkpoints": sorted(path.name for path in checkpoints.glob("checkpoint-*")),
    }


def main() -> None:
    """Answer jobs until the input ends."""
    import opencrate
    import opencrate.training.train  # all imports, once

    opencrate.register_auto_classes()
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
