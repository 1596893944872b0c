"""Multi-agent and generative policies trained under a trust region that is measured and kept.

Importing this package loads neither torch nor any environment; submodules are imported where they are used.
"""

from marl_tr.registry import register_env

__all__ = ["__version__", "register_env"]

__version__ = "0.1.0"
