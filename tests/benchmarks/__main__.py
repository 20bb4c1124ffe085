"""Every figure that this repository states about itself: `make bench`."""

from __future__ import annotations

from tests.benchmarks import checkpoint, forward, startup

startup.main()
forward.main()
checkpoint.main()
