"""Started by `torchrun`: trains given recipes with FSDP2 on CPUs; see test_sharding.py.

accelerate shards on accelerators only, so its processes are told that theirs is one; everything else is its own way.
"""

import json
import os
import sys
from pathlib import Path

from accelerate import state
from accelerate.utils import DistributedType

from opencrate.recipe.load import load_recipe
from opencrate.training.train import train
from opencrate.training.trainer import RecipeTrainer

LAUNCH = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}
"""What `accelerate launch` makes of examples/fsdp2.yaml."""


class Stopped(BaseException):
    """Ends a run at once."""


def shard_on_cpus() -> None:
    os.environ.update(LAUNCH)
    original = state.AcceleratorState.__init__

    def told(self, *arguments, **options):
        if not state.AcceleratorState._shared_state:
            state.PartialState(cpu=True)
            state.PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        original(self, *arguments, **options)

    state.AcceleratorState.__init__ = told


def stop_at(step: int | None) -> None:
    """Let the next run end before its step `step` (counted from 0)."""
    original = RecipeTrainer.training_step

    def training_step(self, *arguments, **options):
        assert len([m for m in self.model.modules() if type(m).__name__ == "FSDPCrateLayer"]) == 2, "not sharded"
        if self.state.global_step == step:
            RecipeTrainer.training_step = original
            raise Stopped
        return original(self, *arguments, **options)

    RecipeTrainer.training_step = training_step


def main() -> None:
    """Every recipe of the list in the file that is named; those with a step to stop at are resumed from there."""
    shard_on_cpus()
    plain = RecipeTrainer.training_step
    for recipe, overrides, output, stop in json.loads(Path(sys.argv[1]).read_text()):
        RecipeTrainer.training_step = plain
        stop_at(stop)
        try:
            train(load_recipe(recipe, overrides), Path(output))
        except Stopped:
            train(load_recipe(recipe, overrides), Path(output), resume=True)


if __name__ == "__main__":
    main()
