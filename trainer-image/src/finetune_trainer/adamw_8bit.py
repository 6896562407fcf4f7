"""AdamW whose moments are bytes between two steps (Dettmers et al. 2022), on the local weights of a rank.

A weight's moments are codes in its shape and a scale for each 256 elements of this rank's part, in order: 2.03 bytes
an element where fp32 takes 8 (blockwise.py). A step makes them fp32 group by group, updates them with the kernel of
AdamW, and quantises them again: besides the state it needs memory for one group, however large a weight is.

All codes of a kind are one tensor, in which each weight begins with a block of its own, so that a group of many small
weights takes no more calls than one large weight.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from math import gcd, prod

import torch
from torch import Tensor

from finetune_api.runtime.run_config import Optimizer

from .adamw import AdamW, Numbers, decays, update
from .blockwise import BLOCK, Codebook

SMALLEST = 4096
"""Elements of the smallest weight whose moments are quantised, as in bitsandbytes."""
_GROUP = {"cpu": 1 << 18}
"""Elements of a group, by the device: on a CPU it stays in the cache. A multiple of BLOCK."""
_LARGE_GROUP = 1 << 24
STEP_BYTES = _LARGE_GROUP * 10 + _LARGE_GROUP // BLOCK * 8
"""Of a group on a GPU: both moments in fp32 and their new codes and scales. 160.5 MiB."""


def suits(weight: Tensor) -> bool:
    """Whether the moments of a weight, of which this is the whole, are worth it."""
    return weight.ndim >= 2 and weight.numel() >= SMALLEST


def moment_bytes(elements: int) -> int:
    """Of both moments of a quantised weight, without what the last block of each rank may add."""
    return 2 * (elements + 4 * -(-elements // BLOCK))


@dataclass(frozen=True)
class _Extent:
    """Where this rank's part of a weight is among the elements of all."""

    start: int
    shape: torch.Size
    decays: bool

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def blocks(self) -> slice:
        return slice(self.start // BLOCK, self.start // BLOCK + -(-self.elements // BLOCK))

    @property
    def piece(self) -> int:
        """Elements of the largest pieces that make up its rows, and its blocks, too."""
        return gcd(prod(self.shape[1:]), BLOCK)


@dataclass(frozen=True)
class _Part:
    """Elements of one weight, `first` to before `end`, in a group."""

    name: str
    extent: _Extent
    first: int
    end: int

    @property
    def last(self) -> bool:
        return self.end == self.extent.elements

    @property
    def span(self) -> slice:
        """Among the elements of all, in whole blocks."""
        return slice(self.extent.start + self.first, self.extent.start + _in_blocks(self.end))

    def of(self, tensor: Tensor) -> Tensor:
        """Of this rank's part of the weight, or of what has its shape."""
        return tensor.reshape(-1)[self.first : self.end]

    def within(self, group: Tensor, begin: int) -> Tensor:
        """Of a group whose first element is `begin`."""
        start = self.span.start - begin
        return group[start : start + self.end - self.first]


class _Moment:
    """One moment of all weights."""

    def __init__(self, elements: int, device: torch.device, *, signed: bool) -> None:
        self._codebook = Codebook(device, signed=signed)
        self._smallest = 0 if signed else 1
        self.codes = torch.full((elements,), self._codebook.zero, dtype=torch.uint8, device=device)
        self.scales = torch.zeros(elements // BLOCK, device=device)

    def exact(self, span: slice) -> Tensor:
        """fp32 of a span of whole blocks."""
        return self._codebook.dequantise(self.codes[span], self.scales[_blocks(span)])

    def keep(self, span: slice, exact: Tensor, skip: Tensor) -> None:
        """Quantise `exact`; where `skip`, leave all bits as they are, which quantising what was exact may not."""
        codes, scales = self._quantised(exact)
        for own, new in ((self.codes[span], codes), (self.scales[_blocks(span)], scales)):
            torch.where(skip, own, new, out=own)

    def of_rows(self, extent: _Extent) -> Tensor:
        """The scales as [rows, pieces of a row], which are those of the optimizer itself where rows are whole blocks.

        Otherwise they are repeated, and a rank that has other rows can tell which scale an element has.
        """
        scales = self.scales[extent.blocks]
        if extent.piece < BLOCK:
            scales = scales.repeat_interleave(BLOCK // extent.piece)[: extent.elements // extent.piece]
        rows = extent.shape[0]
        return scales.view(rows, prod(extent.shape[1:]) // extent.piece)

    def take_rows(self, extent: _Extent, rows: Tensor) -> None:
        """Blocks whose elements have come with different scales are quantised again, with their largest."""
        blocks = -(-extent.elements // BLOCK)
        given = rows.reshape(-1)
        missing = blocks * (BLOCK // extent.piece) - len(given)
        given = torch.cat([given, given[-1:].expand(missing)]).view(blocks, -1)
        scales = given.amax(dim=1)
        codes = self.codes[extent.start : extent.start + blocks * BLOCK].view(blocks, BLOCK)
        self.scales[extent.blocks] = scales
        mixed = (given != scales.unsqueeze(1)).any(dim=1).nonzero().view(-1)
        for some in torch.split(mixed, _group(codes.device) // BLOCK) if len(mixed) else ():
            exact = self._codebook.shares(codes[some]) * given[some].repeat_interleave(extent.piece, dim=1)
            new, self.scales[extent.blocks][some] = self._quantised(exact.view(-1))
            codes[some] = new.view(-1, BLOCK)

    def _quantised(self, exact: Tensor) -> tuple[Tensor, Tensor]:
        """A second moment does not become 0: an update is divided by its root, and could be huge then."""
        codes, scales = self._codebook.quantise(exact)
        return codes.clamp_(min=self._smallest), scales


class AdamW8bit:
    """AdamW with moments in eight bits of the weights that are named so, and in fp32 of others."""

    def __init__(self, weights: Mapping[str, Tensor], quantised: Collection[str], settings: Optimizer) -> None:
        """`quantised`: the same on every rank, whatever part of a weight it has. The state is there from now on."""
        large = {name: weight for name, weight in weights.items() if name in quantised}
        assert all(weight.is_contiguous() for weight in large.values()), "an update would go to a copy"
        self._others = AdamW({name: weight for name, weight in weights.items() if name not in large}, settings)
        self._settings = settings
        self._steps = {name: torch.zeros((), device=weight.device) for name, weight in large.items()}
        self._extents: dict[str, _Extent] = {}
        start = 0
        for name, weight in sorted(large.items(), key=lambda item: decays(item[1])):
            self._extents[name] = _Extent(start, weight.shape, decays(weight))
            start += _in_blocks(weight.numel())
        device = next(iter(weights.values())).device
        self._moments = {
            "exp_avg": _Moment(start, device, signed=True),
            "exp_avg_sq": _Moment(start, device, signed=False),
        }
        self._most = _group(device)
        self._of_rows: dict[str, dict[str, Tensor]] = {}
        """Scales as they were last handed out, until the next step: what is loaded into them counts."""

    @torch.no_grad()
    def step(
        self,
        weights: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        learning_rate: float,
        divisor: Tensor,
        skip: Tensor,
    ) -> None:
        """Update `weights` (fp32, all or some) in place with `gradients` / `divisor`.

        `divisor` and `skip` are fp32 scalars. Where `skip` is 1, nothing changes. A GPU needs at most STEP_BYTES for
        the time of the step, on a CPU 8 MiB.
        """
        self._of_rows = {}
        numbers = Numbers(self._settings, learning_rate, divisor, skip)
        small = {name: weight for name, weight in weights.items() if name not in self._extents}
        self._others.step(small, gradients, learning_rate, divisor, skip)
        for group in self._groups(weights.keys() - small.keys()):
            self._update(group, weights, gradients, numbers)

    def _update(
        self, group: list[_Part], weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor], numbers: Numbers
    ) -> None:
        whole = slice(group[0].span.start, group[-1].span.stop)
        exact = {kind: moment.exact(whole) for kind, moment in self._moments.items()}
        exp_avg, exp_avg_sq = ([part.within(each, whole.start) for part in group] for each in exact.values())
        update(
            [part.of(weights[part.name]) for part in group],
            [part.of(gradients[part.name]) for part in group],
            (exp_avg, exp_avg_sq),
            # the kernel counts; a weight in several parts is counted with the last of them
            [self._steps[part.name] if part.last else self._steps[part.name].clone() for part in group],
            numbers, decay=group[0].extent.decays,
        )  # fmt: skip
        skip = numbers.skip.bool()
        for kind, moment in self._moments.items():
            moment.keep(whole, exact[kind], skip)

    def _groups(self, names: Collection[str]) -> Iterator[list[_Part]]:
        """All parts of the weights, those together that are neighbours and that one call can update."""
        group: list[_Part] = []
        for part in self._parts(names):
            if group and not self._fits(group, part):
                yield group
                group = []
            group.append(part)
        if group:
            yield group

    def _fits(self, group: list[_Part], part: _Part) -> bool:
        first, last = group[0], group[-1]
        neighbours = last.span.stop == part.span.start and last.extent.decays == part.extent.decays
        return neighbours and part.span.stop - first.span.start <= self._most

    def _parts(self, names: Collection[str]) -> Iterator[_Part]:
        for name in self._extents if len(names) > 1 else names:  # one by one, not all for each
            if name in names:
                extent = self._extents[name]
                for first in range(0, extent.elements, self._most):
                    yield _Part(name, extent, first, min(first + self._most, extent.elements))

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Codes (bytes) or fp32 moments in the shape of each weight; scales of codes, fp32 [rows, pieces of a row].

        Codes and scales of this rank's rows are all that any other rank needs that gets some of the rows.
        """
        self._of_rows = {
            kind: {name: moment.of_rows(extent) for name, extent in self._extents.items()}
            for kind, moment in self._moments.items()
        }
        codes = {kind: moment.codes for kind, moment in self._moments.items()}
        found = {
            kind: own | {name: self._codes(codes[kind], extent) for name, extent in self._extents.items()}
            for kind, own in self._others.state().items()
        }
        return found | {f"{kind}_scales": scales for kind, scales in self._of_rows.items()}

    @staticmethod
    def _codes(codes: Tensor, extent: _Extent) -> Tensor:
        return codes[extent.start : extent.start + extent.elements].view(extent.shape)

    def resumed(self, steps: int) -> None:
        """The state is that after `steps` updates."""
        self._others.resumed(steps)
        for done in self._steps.values():
            done.fill_(steps)
        for kind, scales in self._of_rows.items():
            for name, rows in scales.items():
                if rows.numel() and self._extents[name].piece < BLOCK:
                    self._moments[kind].take_rows(self._extents[name], rows)
        self._of_rows = {}


def _blocks(span: slice) -> slice:
    """Of a span of elements in whole blocks."""
    return slice(span.start // BLOCK, span.stop // BLOCK)


def _in_blocks(elements: int) -> int:
    """Rounded up to whole blocks."""
    return -(-elements // BLOCK) * BLOCK


def _group(device: torch.device) -> int:
    return _GROUP.get(device.type, _LARGE_GROUP)
