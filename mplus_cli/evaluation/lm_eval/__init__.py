"""M+ as a model of lm-evaluation-harness, whose tasks then run on long texts without a window.

    pip install "mplus[lm-eval]"
    python -m mplus_cli.evaluation.lm_eval --model mplus --model_args pretrained=DIR --tasks longbench_qasper --limit 20

This is the command `lm_eval` with one more model. Releases up to 0.4.13 know only the models of their own source; later
ones also find those that installed packages name (entry point `lm_eval.models`, which this package has), so that there
`lm_eval --model mplus` is the same.
"""

from __future__ import annotations

from mplus_cli.errors import MissingExtraError

NAME = "mplus"
TARGET = "mplus_cli.evaluation.lm_eval.model:MPlusLM"


def register() -> None:
    """Make `mplus` known to lm-evaluation-harness in this process; the class is loaded when it is asked for.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import lm_eval.models  # noqa: F401 (fills the registry with its own)
        from lm_eval.api.registry import model_registry
    except ImportError as error:
        raise MissingExtraError(
            f"lm-evaluation-harness is not installed ({error})", 'pip install "mplus[lm-eval]"'
        ) from error
    if NAME not in model_registry:
        model_registry.register(NAME, target=TARGET)
