"""Makes `vector_examples` importable here, and in the child processes that check-env starts."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
