"""A reader for causal models without a cache that fits: it computes the whole sequence again at every token."""

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .reader import Reader


class WholeReader(Reader):
    """See `Reader`. Exact for any causal model, as right padding is; a response of n tokens costs n^2 of them."""

    def prefill(self, owner: Tensor) -> None:
        """`ids` int64 [B, P + steps]: prompts and what has been written, padded on the right."""
        prompts = [torch.tensor(prompt, device=self.device) for prompt in self.prompts]
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        self.ids, self.lengths = pad_sequence(prompts, batch_first=True), lengths
        self.hidden = self._last()[owner]
        self.ids, self.lengths = self.ids[owner], lengths[owner]

    def read(self, tokens: Tensor, step: int) -> None:
        """See `Reader.read`."""
        self.ids = torch.nn.functional.pad(self.ids, (0, 1))
        self.ids[torch.arange(len(tokens), device=self.device), self.lengths] = tokens
        self.lengths = self.lengths + 1
        self.hidden = self._last()

    def replace(self, places: Tensor, rows: Tensor, count: int) -> None:
        """See `Reader.replace`."""
        for part in (self.ids, self.lengths):
            part[places] = part[rows]
        self.ids, self.lengths = self.ids[:count], self.lengths[:count]

    def _last(self) -> Tensor:
        """The state that predicts each row's next token, [B, H]."""
        body = self.model.base_model(input_ids=self.ids, use_cache=False)  # type: ignore[operator]
        return body.last_hidden_state[torch.arange(len(self.ids), device=self.device), self.lengths - 1]
