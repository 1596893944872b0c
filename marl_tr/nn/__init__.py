"""Networks, laws of actions and normalisers."""

from marl_tr.nn.discrete import Categorical, MultiCategorical
from marl_tr.nn.distributions import Beta, Gaussian, Law, ProductLaw
from marl_tr.nn.graph import DenseGraphAttention, SparseGraphAttention, attention_entropy
from marl_tr.nn.heads import (
    BoxBetaHead,
    BoxGaussianHead,
    BoxMixtureHead,
    CategoricalHead,
    Head,
    MultiDiscreteHead,
    ProductHead,
    UnsupportedActionSpace,
    make_head,
)
from marl_tr.nn.mixture import GaussianMixture
from marl_tr.nn.normaliser import InputNormaliser, ValueNormaliser
from marl_tr.nn.stacked import StackedGRUCell, StackedLinear, StackedMLP

__all__ = [
    "Beta",
    "BoxBetaHead",
    "BoxGaussianHead",
    "BoxMixtureHead",
    "Categorical",
    "CategoricalHead",
    "DenseGraphAttention",
    "Gaussian",
    "GaussianMixture",
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
