"""The small policy's own tokenizer: byte-level BPE of some 800 tokens, seeded, with a ChatML template.

What belongs here: how text becomes ids. Rendering a prompt is `prompting.py`.
"""

import json
from typing import TYPE_CHECKING, Any, Final

from babylon_rl.base_policy.corpus import play_by_habit
from babylon_rl.simulator.market import TICKERS
from babylon_rl.simulator.observation import SYSTEM_PROMPT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD: Final = "<|pad|>"
IM_START: Final = "<|im_start|>"
IM_END: Final = "<|im_end|>"
SENTINEL: Final = "<|sentinel|>"
CHATML: Final = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def train_tokenizer(seed: int, *, windows: int = 800, vocabulary: int = 1024) -> "PreTrainedTokenizerFast":
    """Train the tokenizer on agents that play by habit.

    Digits stay single, so a price is spelt and not memorised. Each ticker and each cashtag is one id wherever it
    occurs, so that copying one out of the news is one attention step. The last id is a special token that
    round-trips, because ART splices completions in with the highest id that a prompt does not use.

    Args:
        seed: Of the play; the same seed gives the same tokenizer, byte for byte.
        windows: Windows of play in the corpus.
        vocabulary: Upper limit before tickers are added; pairs seen fewer than 4 times are not merged.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from babylon_rl.policy.model import CONTEXT_TOKENS  # not at the top: it imports torch

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    texts = [f"{SYSTEM_PROMPT}\n{e.observation.text}\n{e.answer}" for e in play_by_habit("tokenizer", seed, windows)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, IM_START, IM_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=4,
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)

    state = json.loads(bpe.to_str())
    vocab: dict[str, int] = state["model"]["vocab"]
    for word in [prefix + t for t in TICKERS for prefix in ("$", "")]:
        vocab.setdefault(word, len(vocab))
        state["added_tokens"].append(_make_added_token(word, vocab[word], special=False))
    # In the vocabulary too, not only among the added tokens: ART looks below `vocab_size`, which counts only the former.
    vocab[SENTINEL] = len(vocab)
    state["added_tokens"].append(_make_added_token(SENTINEL, vocab[SENTINEL], special=True))
    state["added_tokens"].sort(key=lambda a: a["id"])

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        eos_token=IM_END,
        pad_token=PAD,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT_TOKENS,
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def _make_added_token(content: str, token_id: int, *, special: bool) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token_id, "content": content, "special": special, **flags}
