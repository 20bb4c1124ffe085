"""What `make bench` measures of Truing alone: start-up, the forward, checkpoints. The other scripts are run by themselves."""

from __future__ import annotations

from tests.benchmarks import checkpoint, forward, startup

startup.main()
forward.main()
checkpoint.main()
