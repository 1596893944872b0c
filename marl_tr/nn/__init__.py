"""Networks, laws of actions and normalisers."""

from marl_tr.nn.distributions import Beta, Categorical, Gaussian, Law, MultiCategorical, ProductLaw
from marl_tr.nn.graph import DenseGraphAttention, SparseGraphAttention, attention_entropy
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
from marl_tr.nn.normaliser import InputNormaliser, ValueNormaliser
from marl_tr.nn.stacked import Activation, StackedGRUCell, StackedLinear, StackedMLP

__all__ = [
    "Activation",
    "Beta",
    "BoxBetaHead",
    "BoxGaussianHead",
    "Categorical",
    "CategoricalHead",
    "DenseGraphAttention",
    "Gaussian",
    "Head",
    "InputNormaliser",
    "Law",
    "MultiCategorical",
    "MultiDiscreteHead",
    "ProductHead",
    "ProductLaw",
    "SparseGraphAttention",
    "StackedGRUCell",
    "StackedLinear",
    "StackedMLP",
    "UnsupportedActionSpace",
    "ValueNormaliser",
    "attention_entropy",
    "make_head",
]
