import sys

from rome_mlx_start import main

sys.exit(main())
