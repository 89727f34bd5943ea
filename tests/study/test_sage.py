"""The emulated SageAttention 2 errs as the code that it stands for was measured to."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from cupy_intfa.data.families import make_qkv
from cupy_intfa.study.error_tables import cited_rows
from cupy_intfa.study.errors import compare_all, summarise
from cupy_intfa.study.sage import attend_as_sage2
from cupy_intfa.study.study import one
from cupy_intfa.study.trials import make_trials


@pytest.mark.parametrize("head_dim", [64, 128])
def test_error_is_the_measured_one(head_dim: int) -> None:
    cited = one(list(cited_rows("normal", head_dim, 4096)), "relative_rmse", recipe="SageAttention 2")
    trials = make_trials("normal", (0, 1), {"heads": 2, "q_len": 128, "kv_len": 4096, "head_dim": head_dim})
    found = summarise(compare_all([attend_as_sage2(t.q, t.k, t.v) for t in trials], trials), "relative_rmse")
    assert found["relative_rmse"] == pytest.approx(cited, rel=0.05)  # seeds differ by 0.04 of it


def test_each_channel_of_v_has_its_scale_and_the_mean_key_none() -> None:
    q, k, v = make_qkv("normal", heads=2, q_len=5, kv_len=70, head_dim=16, seed=3)
    factors = np.float32(2.0) ** np.arange(-8, 8, dtype=np.float32)
    out = attend_as_sage2(q, k, v)
    assert_array_equal(attend_as_sage2(q, k, v * factors), out * factors)  # powers of two: exact
    v[..., 3] = 0.0
    assert_array_equal(attend_as_sage2(q, k, v)[..., 3], 0.0)
    # The mean key is subtracted: a constant is gone but for the rounding of the sum, which moves a code here and there.
    assert np.abs(attend_as_sage2(q, k + np.float32(8.0), v) - attend_as_sage2(q, k, v)).max() < 0.05
