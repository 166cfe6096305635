"""transformers' answers with GPTQModel's layers, from the folder and plain text: alone and in a padded batch."""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(folder: Path) -> None:
    asked = json.loads((folder / "asked.json").read_text())
    found = {}
    for name in asked["arms"]:
        model = AutoModelForCausalLM.from_pretrained(folder / name, device_map="cpu", dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder / name)
        layer = type(model.model.layers[0].mlp.down_proj).__name__

        def say(texts: list[str], model=model, tokenizer=tokenizer) -> list[str]:
            inputs = tokenizer(texts, return_tensors="pt", padding=True)
            out = model.generate(**inputs, max_new_tokens=asked["length"], do_sample=False)
            return tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

        alone = [say([text])[0] for text in asked["texts"]]
        ids = [tokenizer(text)["input_ids"] for text in asked["texts"]]
        found[name] = {"ids": ids, "answers": alone, "batch": say(asked["texts"]), "layer": layer}
    (folder / "transformers.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]) / "tokens")
