"""Makes the scripts of examples/from_scratch importable, as they import each other."""

import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "from_scratch"
sys.path.insert(0, str(FOLDER))
