"""Options of fine-tuning."""

from fashion.errors import UsageError
from fashion.fine_tuning.tuning_options import FineTuningOptions

import pytest

import resnet50_fashion


def test_resume_without_fine_tuning_raises_usage_error():
    with pytest.raises(UsageError, match=r"^--resume: only fine-tuning can be resumed"):
        FineTuningOptions(resume=True)
    assert FineTuningOptions(resume=True, fine_tune_blocks=1).resume


def test_script_has_the_options_that_fine_tuning_uses():
    options = resnet50_fashion.Options()
    assert options.head.feature_names == ("conv5_avg",)
    assert (options.head.mirror, options.head.patience) == (False, 10)
    assert options.fine_tuning == FineTuningOptions()
    assert options.config()["fine_tune_blocks"] == 0
