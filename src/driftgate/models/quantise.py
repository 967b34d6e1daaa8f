"""A frozen base in 4 bits (QLoRA, arXiv 2305.14314), by bitsandbytes.

On a GPU alone. On a CPU bitsandbytes 0.50 multiplies by a kernel without a gradient once a model is in evaluation mode,
as all models are here, and adapters in lower layers would silently learn nothing from what lies above them.
"""

from importlib import util
from typing import Any

import torch
from transformers import BitsAndBytesConfig

from ..config import ModelSettings
from ..errors import InputError


def loading_of(settings: ModelSettings, role: str, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """What `from_pretrained` is told of a quantised base: NF4 weights with quantised scales, products in `dtype`, the
    output embedding left as it is. Empty where nothing is quantised.

    Raises InputError without bitsandbytes or a GPU.
    """
    if settings.quantise is None:
        return {}
    refused = f"{role}.quantise = {settings.quantise}"
    if util.find_spec("bitsandbytes") is None or util.find_spec("accelerate") is None:
        raise InputError(f"{refused}: needs the extra `quantise`: pip install 'driftgate[quantise]'; or set it to null")
    if device.type != "cuda":
        raise InputError(f"{refused}: needs a GPU, and the run's device is {device.type}; set {role}.quantise=null")
    how = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": how, "device_map": {"": device}}
