"""Makes the scripts of two folders importable, as they import each other."""

import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FOLDER = EXAMPLES / "from_scratch"
sys.path[:0] = [str(FOLDER), str(EXAMPLES / "embedded_base")]
