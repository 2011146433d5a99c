"""Makes the scripts of the examples importable, as they import each other."""

import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FOLDER = EXAMPLES / "from_scratch"
sys.path[:0] = [str(EXAMPLES / name) for name in ("from_scratch", "embedded_base", "vision", "families", "")]
