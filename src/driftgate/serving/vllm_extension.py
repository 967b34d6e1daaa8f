"""What a vLLM server needs to take the trainer's weights from a file. Imported by vLLM's own processes alone.

vLLM imports this module before it loads a model, where it is started with
`--worker-extension-cls driftgate.serving.vllm_extension.Extension --weight-transfer-config '{"backend": "driftgate_file"}'`.
It needs nothing else of driftgate, so that a server's machine may hold a copy of this file alone.
"""  # noqa: E501

from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load_file
from vllm.distributed.weight_transfer import WeightTransferEngine, WeightTransferEngineFactory  # type: ignore
from vllm.distributed.weight_transfer.base import WeightTransferInitInfo, WeightTransferUpdateInfo  # type: ignore
from vllm.model_executor.model_loader.reload import (  # type: ignore
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)

SHAPES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "tie_word_embeddings")
"""Settings of a model by which the trainer sees whether a server has its student."""


@dataclass
class Init(WeightTransferInitInfo):
    repair: bool = True
    """False leaves a tied output embedding stale on a CPU, to test that the trainer notices."""


@dataclass
class Update(WeightTransferUpdateInfo):
    path: str = ""
    """A safetensors file with Hugging Face names."""


class FileEngine(WeightTransferEngine[Init, Update]):
    """Reads a file that the trainer has written."""

    init_info_cls, update_info_cls = Init, Update
    repair = True

    def init_transfer_engine(self, info: Init) -> None:
        self.repair = info.repair

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def update_weights(self, info: dict[str, Any]) -> None:
        """vLLM's own method waits for an accelerator, which a CPU lacks."""
        self.receive_weights(self.parse_update_info(info))
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()

    def receive_weights(self, info: Update) -> None:
        self.model.load_weights(iter(load_file(info.path).items()))

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        if self.repair:
            repair_head(self.model)

    def shutdown(self) -> None:
        pass


def repair_head(model: Any) -> None:
    """On a CPU, vLLM multiplies with a packed copy of the output embedding, which an update of a tied one leaves
    stale (seen in 0.32). Pack it again."""
    head: Any = getattr(model, "lm_head", None)
    if getattr(head, "weight", None) is not None and head.weight.device.type == "cpu":
        from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm  # type: ignore

        dispatch_cpu_unquantized_gemm(head, remove_weight=False)


WeightTransferEngineFactory.register_engine("driftgate_file", FileEngine)


class Extension:
    """Its methods can be called over HTTP, by `/collective_rpc`."""

    model_config: Any

    def driftgate_model(self) -> dict[str, Any]:
        """The shape of the model that is served."""
        config = self.model_config.hf_text_config
        return {name: getattr(config, name, None) for name in SHAPES}
