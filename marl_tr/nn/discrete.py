"""Laws of choices among few, with masks: see `marl_tr.nn.distributions.Law`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from marl_tr.errors import UserError
from marl_tr.nn.distributions import Tangents

__all__ = ["Categorical", "MultiCategorical", "choices_of"]


class Categorical:
    """One choice among ``C``.

    Args:
        logits: Unnormalised log-probabilities, finite, ``[..., C]``.
        mask: Which choices are allowed, bool, broadcastable to `logits`; the others have probability exactly
            0. A row that allows nothing (an agent that is not there) counts as unmasked, so that nothing
            becomes NaN.
    """

    def __init__(self, logits: Tensor, mask: Tensor | None = None) -> None:
        self.logits = logits
        self.mask = None if mask is None else mask.expand_as(logits)
        if self.mask is None:
            self._log_p = torch.log_softmax(logits, -1)
        else:
            forbidden = ~(self.mask | ~self.mask.any(-1, keepdim=True))
            log_p = torch.log_softmax(logits.masked_fill(forbidden, -torch.inf), -1)
            # Minus infinity would make 0 * -inf in the sums below; the allowed ones are not touched.
            self._log_p = log_p.masked_fill(forbidden, torch.finfo(logits.dtype).min)

    @property
    def log_probabilities(self) -> Tensor:
        """``[..., C]``; of forbidden choices the lowest finite number."""
        return self._log_p

    @property
    def allowed(self) -> Tensor | None:
        """Which choices have a probability, bool ``[..., C]``; None: all."""
        return None if self.mask is None else self.mask | ~self.mask.any(-1, keepdim=True)

    def parameters(self) -> tuple[Tensor, ...]:
        """``(logits,)``, ``[..., C]``."""
        return (self.logits,)

    def with_parameters(self, parameters: tuple[Tensor, ...]) -> Categorical:
        """See `Law.with_parameters`."""
        (logits,) = parameters
        return Categorical(logits, self.mask)

    def map(self, function: Callable[[Tensor], Tensor]) -> Categorical:
        """See `Law.map`."""
        return Categorical(function(self.logits), None if self.mask is None else function(self.mask))

    @torch.no_grad()
    def sample(self, generator: torch.Generator) -> Tensor:
        """``[...]`` int64, by the inverse of the cumulative distribution in float64."""
        cumulative = self._log_p.double().exp().cumsum(-1)
        # Scaled by the last value: rounding in the sum then never leads beyond the last choice.
        u = torch.rand((*cumulative.shape[:-1], 1), generator=generator, dtype=torch.float64, device=cumulative.device)
        return torch.searchsorted(cumulative, u * cumulative[..., -1:], right=True).squeeze(-1)

    def mode(self) -> Tensor:
        """``[...]`` int64."""
        return self._log_p.argmax(-1)

    def log_prob(self, raw: Tensor) -> Tensor:
        """See `Law.log_prob`; `raw` ``[...]`` int64. A forbidden choice gives the lowest finite number."""
        return self._log_p.gather(-1, raw.long().unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        """See `Law.entropy`."""
        return -(self._log_p.exp() * self._log_p).sum(-1)

    def kl(self, new: Categorical) -> Tensor:
        """See `Law.kl`; both laws have the same mask."""
        return (self._log_p.exp() * (self._log_p - new._log_p)).sum(-1)

    def total_variation(self, new: Categorical) -> Tensor:
        """See `Law.total_variation`; exact."""
        return 0.5 * (self._log_p.exp() - new._log_p.exp()).abs().sum(-1)

    def fisher_product(self, tangents: Tangents) -> Tangents:
        """``p * v - p (p . v)`` for logits."""
        (v,) = tangents
        p = self._log_p.exp()
        weighted = p * v
        return (weighted - p * weighted.sum(-1, keepdim=True),)


class MultiCategorical:
    """Several independent choices, their logits side by side.

    Args:
        logits: ``[..., sum(sizes)]``.
        sizes: Number of choices of each.
        mask: Allowed choices, bool, broadcastable to `logits`, or None.
    """

    def __init__(self, logits: Tensor, sizes: Sequence[int], mask: Tensor | None = None) -> None:
        self.logits = logits
        self.sizes = list(sizes)
        self.mask = None if mask is None else mask.expand_as(logits)
        masks: Sequence[Tensor | None] = (
            [None] * len(self.sizes) if self.mask is None else torch.split(self.mask, self.sizes, -1)
        )
        self.choices = [
            Categorical(part, allowed) for part, allowed in zip(torch.split(logits, self.sizes, -1), masks, strict=True)
        ]

    def parameters(self) -> tuple[Tensor, ...]:
        """``(logits,)``, ``[..., sum(sizes)]``."""
        return (self.logits,)

    def with_parameters(self, parameters: tuple[Tensor, ...]) -> MultiCategorical:
        """See `Law.with_parameters`."""
        (logits,) = parameters
        return MultiCategorical(logits, self.sizes, self.mask)

    def map(self, function: Callable[[Tensor], Tensor]) -> MultiCategorical:
        """See `Law.map`."""
        mask = None if self.mask is None else function(self.mask)
        return MultiCategorical(function(self.logits), self.sizes, mask)

    def sample(self, generator: torch.Generator) -> Tensor:
        """``[..., len(sizes)]`` int64."""
        return torch.stack([choice.sample(generator) for choice in self.choices], -1)

    def mode(self) -> Tensor:
        """``[..., len(sizes)]`` int64."""
        return torch.stack([choice.mode() for choice in self.choices], -1)

    def log_prob(self, raw: Tensor) -> Tensor:
        """See `Law.log_prob`; `raw` ``[..., len(sizes)]`` int64."""
        return torch.stack(
            [choice.log_prob(part) for choice, part in zip(self.choices, raw.unbind(-1), strict=True)]
        ).sum(0)

    def entropy(self) -> Tensor:
        """See `Law.entropy`."""
        return torch.stack([choice.entropy() for choice in self.choices]).sum(0)

    def kl(self, new: MultiCategorical) -> Tensor:
        """See `Law.kl`."""
        return torch.stack([old.kl(to) for old, to in zip(self.choices, new.choices, strict=True)]).sum(0)

    def total_variation(self, new: MultiCategorical) -> Tensor:
        """See `Law.total_variation`; of several choices the sum, which is a bound."""
        pairs = zip(self.choices, new.choices, strict=True)
        return torch.stack([old.total_variation(to) for old, to in pairs]).sum(0).clamp_max(1)

    def fisher_product(self, tangents: Tangents) -> Tangents:
        """See `Categorical.fisher_product`, block by block."""
        (v,) = tangents
        parts = zip(self.choices, torch.split(v, self.sizes, -1), strict=True)
        return (torch.cat([choice.fisher_product((part,))[0] for choice, part in parts], -1),)


def choices_of(law: Any, record: Mapping[str, Tensor] | None = None) -> list[tuple[Categorical, Tensor | None]]:
    """The single choices that a product of discrete laws is made of, each with what was chosen, ``[...]`` int64.

    Args:
        law: A `marl_tr.nn.distributions.ProductLaw` of policies with capability `mass`.
        record: ``{leaf: [...]}`` or, of several choices, ``{leaf: [..., n]}``; None: nothing was.

    Raises:
        UserError: It is another law, such as one over everybody's actions.
    """
    found: list[tuple[Categorical, Tensor | None]] = []
    for leaf, part in getattr(law, "laws", {}).items():
        raw = None if record is None else record[leaf].long()
        if isinstance(part, Categorical):
            found.append((part, raw))
        elif isinstance(part, MultiCategorical):
            taken = [None] * len(part.choices) if raw is None else raw.unbind(-1)
            found += zip(part.choices, taken, strict=True)
    if not found:
        raise UserError("these policies' laws are not made of choices of an agent's own, one by one")
    return found
