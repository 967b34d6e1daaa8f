"""driftgate: on-policy distillation with gates against the drift of reused rollouts.

The method as pure functions over flat streams of valid response tokens. `rows` int64 [N], non-decreasing, is the
sequence of each token; spans are int64 [N], ids counted from 0 over the batch.
"""

from .method.changepoint import changepoint_spans
from .method.gates import drift_gate, span_drift, unit_mean
from .method.objectives import sampled_token_loss, topk_reverse_kl
from .method.spans import fixed_spans, newline_spans
from .method.weights import tau_for_ess

__all__ = [
    "changepoint_spans",
    "drift_gate",
    "fixed_spans",
    "newline_spans",
    "sampled_token_loss",
    "span_drift",
    "tau_for_ess",
    "topk_reverse_kl",
    "unit_mean",
]
