"""`python -m lexloom`: the `lexloom` command."""

import sys

from lexloom.deployments.cli.main import main

sys.exit(main())
