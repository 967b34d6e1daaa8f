"""Reference solutions in the place of rollouts."""

import math
from collections.abc import Sequence

from ..data.response import Response


def reference_response(ids: Sequence[int], stop_id: int) -> Response:
    """A reference solution's token ids as a response that the student did not write.

    The stop id is appended where it is not the last already. Log-probabilities are NaN, as nothing was drawn, and
    `prefix` is 0, as all of it is to be learned from.
    """
    whole = tuple(ids) if ids and ids[-1] == stop_id else (*ids, stop_id)
    return Response(whole, (math.nan,) * len(whole), finished=True, reference=True)
