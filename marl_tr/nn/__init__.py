"""Networks, laws of actions and normalisers."""

from marl_tr.nn.distributions import Beta, Categorical, Gaussian, Law, MultiCategorical, ProductLaw
from marl_tr.nn.heads import (
    BoxBetaHead,
    BoxGaussianHead,
    CategoricalHead,
    Head,
    MultiDiscreteHead,
    ProductHead,
    UnsupportedActionSpace,
    make_head,
)
from marl_tr.nn.stacked import Activation, StackedGRUCell, StackedLinear, StackedMLP

__all__ = [
    "Activation",
    "Beta",
    "BoxBetaHead",
    "BoxGaussianHead",
    "Categorical",
    "CategoricalHead",
    "Gaussian",
    "Head",
    "Law",
    "MultiCategorical",
    "MultiDiscreteHead",
    "ProductHead",
    "ProductLaw",
    "StackedGRUCell",
    "StackedLinear",
    "StackedMLP",
    "UnsupportedActionSpace",
    "make_head",
]
