"""The README.md of a folder with soft tokens: what it is, how to run it, what to know."""

from typing import Any

from ctplab.formats.token_rows import QUIET
from ctplab.models import Tokenizer


def text(manifest: dict[str, Any], tokenizer: Tokenizer) -> str:
    """The page, in Markdown."""
    names, always = manifest["tokens"], manifest["prepend"] == "always"
    first, last, k = names[0], names[-1], manifest["k"]
    learned = ", ".join(
        f"{what} {manifest[key]}"
        for what, key in (("on", "prompt_tag"), ("of", "prompt_base"), ("with the corpus", "prompt_corpus"))
        if manifest[key]
    )
    parts = [
        f"# {manifest['model']}, {manifest['tag']}, with a learned prompt as {k} tokens",
        f"Made by ctplab (`export prompt --to tokens`). The prompt was learned {learned or 'elsewhere'}. Its {k} rows "
        f"are the tokens `{first}` to `{last}` of the vocabulary. Nothing else of the model was changed.",
        _ALWAYS if always else _NEVER,
        _USE.format(ask="text" if always else "soft + text, add_special_tokens=False", soft="" if always else _SOFT),
        _KNOW.format(k=k, quiet=QUIET, probability=manifest["probability"]),
    ]
    if not tokenizer.chat_template:
        parts.append("The model has no chat template: it continues texts, and is no partner in conversations.")
    if manifest["warnings"]:
        parts.append("## Warnings\n\n" + "\n".join(f"- {warning}" for warning in manifest["warnings"]))
    return "\n\n".join(parts) + "\n"


_ALWAYS = """The tokenizer puts them in front of every text, and the chat template in front of every conversation. A \
text behind them has no start token of its own: so the prompt was learned. Encode the text of a rendered conversation \
with `add_special_tokens=False`, as transformers and vLLM do by themselves; else it gets them twice."""

_NEVER = """The tokenizer does not add them (`--prepend never`): without them this is the model alone. Put them in \
front of the text yourself and encode it with `add_special_tokens=False`: they stand before everything, also before a \
start token, which a text behind them does not get."""

_SOFT = """soft = "".join(json.loads(pathlib.Path("soft_tokens.json").read_text())["tokens"])  # import json, pathlib
"""

_USE = """## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = (kind.from_pretrained(".") for kind in (AutoModelForCausalLM, AutoTokenizer))
text = "The capital of France is"
{soft}inputs = tokenizer({ask}, return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=32)[0], skip_special_tokens=True))
```

vLLM: `vllm serve . --enable-prefix-caching`: the prompt is computed once. llama.cpp and Ollama: `ctplab export model \
. --to gguf --out DIR`."""

_KNOW = """## To know

- The prompt takes {k} positions of the context.
- The model does not say the soft tokens. transformers suppresses them (`generation_config.json`), and so does a \
llama.cpp that reads a GGUF file made of this folder. For all others their rows of the output head are the mean of \
those of the {quiet} tokens that the model says least: never the most likely token, and together of a probability of \
at most {probability:.0e} wherever that was looked at. In vLLM `logit_bias` excludes them altogether.
- `prompt/` holds the rows as they were learned; `ctplab import prompt . --out DIR` gives them back."""
