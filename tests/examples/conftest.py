"""Makes the scripts of two folders importable, as they import each other."""

import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path[:0] = [str(EXAMPLES / "from_scratch"), str(EXAMPLES / "embedded_base")]
