"""Reference solutions in place of sampled responses."""

import math
from collections.abc import Sequence

from ..data.response import Response


def reference_response(ids: Sequence[int], stop_id: int) -> Response:
    """A reference solution's token ids as a response that the student did not write.

    The stop id is appended unless it is already the last. Log-probabilities are NaN, because nothing was sampled.
    `prefix` is 0, because all tokens are trained on.
    """
    whole = tuple(ids) if ids and ids[-1] == stop_id else (*ids, stop_id)
    return Response(whole, (math.nan,) * len(whole), finished=True, reference=True)
