"""Makes `learning_examples`, `turn_examples` and `vector_examples` importable here."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("region", "rollout", "vector")]
