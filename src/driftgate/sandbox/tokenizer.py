"""The sandbox's tokenizer: one token per character, 48 tokens in all."""

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from driftgate.data.tasks import LABELS

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
BOX = "\\boxed{"  # the only token longer than one character
CHARACTERS = "\n 0123456789+-*=?}" + LABELS
VOCABULARY = [PAD, EOS, UNKNOWN, BOX, *CHARACTERS]
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with which `decode(encode(text)) == text` for every lock text."""
    core = Tokenizer(models.WordLevel({token: i for i, token in enumerate(VOCABULARY)}, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    core.add_tokens([AddedToken(BOX, special=False, normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
        chat_template=CHAT_TEMPLATE,
    )
