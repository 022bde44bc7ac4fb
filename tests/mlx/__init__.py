"""Tests of the MLX front end; skipped as a whole where there is no MLX."""

import pytest

pytest.importorskip("mlx.core")
