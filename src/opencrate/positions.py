"""Positions inside the attention: a learned bias of relative places, and rotations of the tensor that MSSA shares.

With queries = keys, the affinity of two tokens is symmetric: their order can come from absolute positions mixed into
the tokens, or be said here, ``softmax(scale V_k V_k^T + b_k(i - j)) V_k``. Neither gives up that one tensor serves as
queries, keys and values.

Shapes: B batch, K heads or subspaces, N tokens, p their dimension. Images have their class token first.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._graph import known

TEXT_BASE, IMAGE_BASE = 10_000.0, 100.0
"""Of the rotations' frequencies, where the configuration says nothing."""


Rotation = tuple[Tensor, Tensor]
"""Cosines ``[c, c]`` and sines ``[-s, s]``, each ``(..., p)``, of the angles by which each token's pairs are turned."""


@dataclass(frozen=True)
class Places:
    """Where the tokens of a call stand.

    Attributes:
        first: of a text, how many tokens came before, in the cache.
        whole: all patches of the grid are there, in order.
        grid: of an image, its patches (rows, columns).
        offsets: of an image, the number in the table of each two tokens' offset, ``(N, N)`` or ``(B, N, N)``.
        rotation: cosines and sines of the angles, each ``(N, p)`` or ``(B, 1, N, p)``.
    """

    first: int | Tensor = 0
    whole: bool = False
    grid: tuple[int, int] = (0, 0)
    offsets: Tensor | None = None
    rotation: Rotation | None = None

    def to(self, device: Any, non_blocking: bool = False) -> "Places":
        """The same on another device: accelerate asks this of what it hands to layers that lie on several."""

        def moved(one: Any) -> Any:
            return one.to(device, non_blocking=non_blocking) if isinstance(one, Tensor) else one

        rotation = None if self.rotation is None else (moved(self.rotation[0]), moved(self.rotation[1]))
        return replace(self, first=moved(self.first), offsets=moved(self.offsets), rotation=rotation)


def text_places(config: Any, num_tokens: int, first: int | Tensor, device: torch.device) -> Places | None:
    """Of the next tokens of a text; ``None`` where positions are not inside the attention.

    Only differences count, so neither padding on the left nor ``position_ids`` matter.
    """
    if not config.positions - {"absolute"}:
        return None
    rotation = None
    if isinstance(first, Tensor):  # a static cache's own, in which it counts on while the layers run
        first = first.clone()
    if "rope" in config.positions:
        places = torch.arange(num_tokens, device=device) + first
        rotation = _rotation(places[:, None] * _frequencies(config, TEXT_BASE, config.head_dim // 2, device))
    return Places(first=first, rotation=rotation)


def grid_places(config: Any, grid: tuple[int, int], device: torch.device, kept: Tensor | None = None) -> Places | None:
    """Of a class token and the patches of a grid; ``None`` where the compression operator has no use for them.

    ``kept (B, n)`` are the numbers of the patches that are there, by default all in order. At another size than the
    native one, places are stretched to the native grid.
    """
    if not (config.positions - {"absolute"} or config.operator("compression").grid):
        return None
    rotation, offsets = None, None
    row, column = (one.flatten() for one in _rows_and_columns(grid, device))
    if "rope" in config.positions:
        rotation = _rotation(_grid_angles(config, grid, row, column, kept))
    if "relative_bias" in config.positions:
        offsets = _offsets(grid, row, column)
        if kept is not None:
            tokens = F.pad(kept + 1, (1, 0))
            offsets = offsets[tokens[:, :, None], tokens[:, None, :]]
    return Places(whole=kept is None, grid=grid, offsets=offsets, rotation=rotation)


def _rows_and_columns(grid: tuple[int, int], device: torch.device) -> tuple[Tensor, ...]:
    return torch.meshgrid(*(torch.arange(side, device=device) for side in grid), indexing="ij")


def _offsets(grid: tuple[int, int], row: Tensor, column: Tensor) -> Tensor:
    """``(1 + n, 1 + n)``: numbers of pairs of patches, and behind them of the class token as key, as query, as both."""
    rows, columns = grid
    down, right = (one[:, None] - one for one in (row, column))
    patches = (down + rows - 1) * (2 * columns - 1) + right + columns - 1
    key = torch.full_like(patches[:, :1], (2 * rows - 1) * (2 * columns - 1))
    query = torch.full_like(patches[:1], (2 * rows - 1) * (2 * columns - 1) + 1)
    top = torch.cat((query[:, :1] + 1, query), dim=1)
    return torch.cat((top, torch.cat((key, patches), dim=1)))


def _grid_angles(config: Any, grid: tuple[int, int], row: Tensor, column: Tensor, kept: Tensor | None) -> Tensor:
    """``(1 + n, p/2)`` or ``(B, 1, 1 + n, p/2)``: half of them by row, half by column, 0 for the class token."""
    frequencies = _frequencies(config, IMAGE_BASE, config.head_dim // 4, row.device)
    parts = []
    for place, side, native in zip((row, column), grid, config.grid_size):
        stretched = (place + 0.5) * (native / side) - 0.5
        parts.append(stretched[:, None] * frequencies)
    angles = torch.cat(parts, dim=-1)
    if kept is not None:
        angles = angles[kept][:, None]
    return F.pad(angles, (0, 0, 1, 0))


def _frequencies(config: Any, base: float, number: int, device: torch.device) -> Tensor:
    """``base^(-j/number)``, j = 0 ... number - 1. [2104.09864]"""
    return (config.rotary_base or base) ** -(torch.arange(number, device=device, dtype=torch.float32) / number)


def _rotation(angles: Tensor) -> Rotation:
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def places_argument(places: Places | None) -> dict[str, Places]:
    """As the layers take it; operators that know nothing of places are not given any."""
    return {} if places is None else {"places": places}


def rotate(V: Tensor, rotation: Rotation | None, back: bool = False) -> Tensor:
    """``R_i v_i``: every token's vector ``V (B, K, N, p)``, turned by the angles of its place; ``back`` the other way.

    The pairs that turn are entries j and j + p/2. MSSA with ``R_i U_k^T`` in place of ``U_k^T`` attends by
    ``v_i^T R_{j-i} v_j`` and returns ``sum_j a_ij R_{j-i} v_j`` once turned back: places enter as differences only.
    [2104.09864, Eq. 15 and 34, for queries and keys]
    """
    if rotation is None:
        return V
    cos, sin = rotation
    partners = V.roll(V.shape[-1] // 2, -1)
    return (V * cos + partners * (-sin if back else sin)).to(V.dtype)


def relative_bias(config: Any) -> "TextBias | GridBias | None":
    """The bias of one layer, where the configuration has one."""
    if "relative_bias" not in config.positions:
        return None
    return GridBias(config) if hasattr(config, "grid_size") else TextBias(config)


class TextBias(nn.Module):
    """b_k(i - j), a number for each head and distance within the context; 0 at first."""

    def __init__(self, config: Any):
        super().__init__()
        self.is_causal, self.context = bool(config.is_causal), config.max_position_embeddings
        distances = self.context if self.is_causal else 2 * self.context - 1
        self.position_bias = nn.Parameter(torch.empty(config.num_attention_heads, distances))

    def forward(self, places: Places, queries: int, keys: int) -> Tensor:
        """``(K, queries, keys)``; the keys are the text's from its start, the queries come after ``places.first``."""
        distance = places.first + queries - 1 - torch.arange(queries + keys - 1, device=self.position_bias.device)
        row = distance if self.is_causal else distance + self.context - 1
        return toeplitz(self.position_bias[:, row.clamp(0, self.position_bias.shape[1] - 1)], queries)


def toeplitz(row: Tensor, queries: int) -> Tensor:
    """``M[..., i, j] = row[..., queries - 1 - i + j]``, ``(..., queries, keys)`` of ``(..., queries + keys - 1)``.

    A view of one copy of the row for each query, without an index of every entry.
    """
    if known(queries == 1):
        return row.unsqueeze(-2)
    length = row.shape[-1]
    if torch.compiler.is_exporting():  # the view ties a file's graph to more than two tokens
        places = torch.arange(length + 1 - queries, device=row.device)
        return row[..., queries - 1 - places[:queries, None] + places]
    flat = row.unsqueeze(-2).expand(*row.shape[:-1], queries, length).flatten(-2)
    shifted = flat[..., queries - 1 : queries - 1 + queries * (length - 1)].unflatten(-1, (queries, length - 1))
    return shifted[..., : length + 1 - queries]


def bias_at(relative: nn.Module | None, places: Places | None, queries: int, keys: int) -> Tensor | None:
    """What a learned bias is at these places, ``(K, queries, keys)`` or for each image; ``None`` without one."""
    if relative is None:
        return None
    if places is None:
        raise ValueError("places: positions inside the attention need the places of the tokens; call the model")
    return relative(places, queries, keys)


class GridBias(nn.Module):
    """b_k of the offset (rows, columns) of two patches, and of pairs with the class token; 0 at first."""

    def __init__(self, config: Any):
        super().__init__()
        heads, (rows, columns) = config.num_attention_heads, config.grid_size
        self.native = rows, columns
        self.position_bias = nn.Parameter(torch.empty(heads, 2 * rows - 1, 2 * columns - 1))
        self.cls_position_bias = nn.Parameter(torch.empty(heads, 3))  # as key, as query, as both

    def forward(self, places: Places, queries: int, keys: int) -> Tensor:
        """``(K, 1 + n, 1 + n)``, or ``(B, K, 1 + n, 1 + n)`` where each image has patches of its own."""
        assert places.offsets is not None
        table = self._table(places.grid).flatten(1)
        table = torch.cat((table, self.cls_position_bias.to(table.dtype)), dim=1)
        return table.index_select(1, places.offsets.flatten()).unflatten(1, places.offsets.shape).movedim(0, -3)

    def _table(self, grid: tuple[int, int]) -> Tensor:
        """At another grid than the native one, interpolated; an offset of 0 stays one of 0."""
        if all(known(side == native) for side, native in zip(grid, self.native)):
            return self.position_bias
        return resized_table(self.position_bias, grid)


def resized_table(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """A table of offsets ``(K, 2 rows - 1, 2 columns - 1)`` for another grid; half types are resized in float32."""
    wide = torch.promote_types(table.dtype, torch.float32)
    size = [2 * side - 1 for side in grid]
    resized = F.interpolate(table[None].to(wide), size=size, mode="bicubic", align_corners=True)
    return resized[0].to(table.dtype)
