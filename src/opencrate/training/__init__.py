"""Training: one trainer, its tasks, optimizers and callbacks."""

from typing import TYPE_CHECKING

from .._exports import lazy_exports

if TYPE_CHECKING:
    from .tasks import TASKS as TASKS, Task as Task
    from .train import TrainedRun as TrainedRun
else:
    __getattr__, __dir__, __all__ = lazy_exports(__name__)
