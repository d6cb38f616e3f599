"""Self-supervision: objectives, heads, schedules and monitors, tensors in, tensors out; on these, what is trained.

The names below know no recipe and no Trainer; `objectives`, `learner`, `schedule_callback` and `log` do.
"""

from typing import TYPE_CHECKING

from ..._exports import lazy_exports

if TYPE_CHECKING:
    from .dino import dino_loss as dino_loss, updated_centre as updated_centre
    from .heads import ProjectionHead as ProjectionHead, Projector as Projector
    from .lejepa import draw_directions as draw_directions, lejepa_loss as lejepa_loss
    from .monitors import (
        Reading as Reading,
        collapse as collapse,
        rank_reading as rank_reading,
        readings as readings,
        spread_reading as spread_reading,
    )
    from .schedules import (
        clip_each as clip_each,
        cosine as cosine,
        linear_then_constant as linear_then_constant,
        update_teacher as update_teacher,
    )
    from .simclr import simclr_loss as simclr_loss
    from .simdino import simdino_loss as simdino_loss
    from .vicreg import vicreg_loss as vicreg_loss
else:
    __getattr__, __dir__, __all__ = lazy_exports(__name__)
