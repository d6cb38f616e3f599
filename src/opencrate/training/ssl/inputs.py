"""What the objectives of self-supervision require of their input, and the precision that they work in.

Views are `(V, B, p)`: V views of B images in this process, the first `num_global` of them global (large crops).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from numbers import Real
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

from .gathering import global_count

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def outside_autocast(
    function: Callable[Concatenate[Tensor, Parameters], Result],
) -> Callable[Concatenate[Tensor, Parameters], Result]:
    """The function, with autocast off on its first argument's device: exponentials and logarithms need float32."""

    @functools.wraps(function)
    def run(tensor: Tensor, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        if not isinstance(tensor, Tensor):
            raise ValueError(f"the views must be a tensor (V, B, p), got {type(tensor).__name__}; use torch.stack")
        with torch.autocast(tensor.device.type, enabled=False):
            return function(tensor, *args, **kwargs)

    return run


def checked_views(
    name: str, views: Tensor, num_global: int, step: int | None = None, least_views: int = 2, first_view: int = 0
) -> Tensor:
    """The views in float32, or in float64 if they are that.

    Args:
        name: the argument that they came in, for messages.
        views: `(V, B, p)`, any floating dtype.
        num_global: how many of them, from the first, are global.
        step: optimizer step, for messages.
        least_views: the smallest V.
        first_view: what the number of the first of these views is, for messages.

    Raises:
        ValueError: another shape or dtype, no image, no feature, or fewer views.
        FloatingPointError: a feature is NaN or infinite; the message names the views, and the step if it is given.
    """
    if views.ndim != 3 or not views.is_floating_point():
        raise ValueError(
            f"{name} must be a floating tensor (V, B, p) of V views of B images with p features, got "
            f"{tuple(views.shape)} of {views.dtype}; use torch.stack on the views"
        )
    V, B, p = views.shape
    if p < 1 or B < 1:
        raise ValueError(f"{name} must have at least one image and one feature (K for DINO), got B = {B} and p = {p}")
    if least_views > V:
        raise ValueError(f"{name} must have at least {least_views} views of each image, got {V}; add views")
    finite = views.detach().isfinite().flatten(1).all(1)
    if not bool(finite.all()):
        broken = [view_name(index + first_view, num_global) for index in (~finite).nonzero().flatten().tolist()]
        where = f" at step {step}" if step is not None else ""
        raise FloatingPointError(
            f"{name} has features that are not finite{where}, in {', '.join(broken)}; lower the learning rate, clip "
            "the gradients, or train in bfloat16 or float32 where it was float16"
        )
    return views.to(torch.promote_types(views.dtype, torch.float32))


def view_name(index: int, num_global: int) -> str:
    """ "view 3 (local view 1)": its number among all, and among those of its kind, both from 0."""
    kind, number = ("global", index) if index < num_global else ("local", index - num_global)
    return f"view {index} ({kind} view {number})"


def checked_teacher(student: Tensor, teacher: Tensor, step: int | None = None) -> tuple[Tensor, Tensor]:
    """Student `(V, B, p)` and teacher `(G, B, p)`, 1 <= G <= V, as `checked_views`; the teacher without gradient."""
    if not isinstance(teacher, Tensor) or teacher.ndim != 3 or student.ndim != 3:
        shapes = [tuple(one.shape) if isinstance(one, Tensor) else type(one).__name__ for one in (student, teacher)]
        raise ValueError(f"student and teacher must be tensors (V, B, p) and (G, B, p), got {shapes[0]}, {shapes[1]}")
    G, *rest = teacher.shape
    if rest != list(student.shape[1:]) or not 1 <= G <= max(1, student.shape[0]):
        raise ValueError(
            f"teacher must have shape (G, B, p) with 1 to {student.shape[0]} global views and the student's B and p, "
            f"{tuple(student.shape[1:])}, got {tuple(teacher.shape)}; give it the same images and the same head"
        )
    return checked_views("student", student, G, step), checked_views("teacher", teacher.detach(), G, step, 1)


def checked_batch(name: str, views: Tensor, least: int = 2) -> int:
    """The number of images in the global batch.

    Raises:
        ValueError: it is less than `least`.
    """
    count = global_count(views.shape[1], views.device)
    if count < least:
        raise ValueError(
            f"{name} must have at least {least} images in the global batch, got {count}: the objective compares images "
            "with each other; take larger batches, or drop the last incomplete one"
        )
    return count


def checked_number(
    name: str, value: float, above: float = 0.0, inclusive: bool = False, most: float = math.inf
) -> None:
    """Refuse, by `ValueError`, what is not a finite number above `above` (or equal, if inclusive) and up to `most`."""
    low_enough = isinstance(value, Real) and (value >= above if inclusive else value > above)
    if not low_enough or not math.isfinite(value) or value > most:
        upper = f" and at most {most:g}" if math.isfinite(most) else ""
        raise ValueError(
            f"{name} must be a number {'at least' if inclusive else 'above'} {above:g}{upper}, got {value!r}"
        )


def checked_num_global(num_global: int, views: int, least: int = 1) -> None:
    """Refuse, by `ValueError`, a number of global views that there are not."""
    if isinstance(num_global, bool) or not isinstance(num_global, int) or not least <= num_global <= views:
        raise ValueError(
            f"num_global must be a whole number from {least} to {views}, the views given; got {num_global!r}"
        )
