"""CounterFact from the shell, as `rome-mlx eval counterfact`, out of a checkout.

  python benchmarks/counterfact.py --method rome --limit 20 --output runs/rome
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from rome_mlx.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", "counterfact", *sys.argv[1:]]))
