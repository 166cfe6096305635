"""llama.cpp's answers for our GGUF files: greedy texts behind soft tokens, ids, and logits of tiny models."""

import json
import sys
from pathlib import Path

import llama_cpp
import numpy as np


def main(folder: Path) -> None:
    asked = json.loads((folder / "asked.json").read_text())
    found, logits = {}, {}
    for name, case in {**asked["arms"], **asked["tiny"]}.items():
        file = folder / f"{name}-gguf" / "model.gguf"
        if not file.exists():
            continue
        wide = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
        model = llama_cpp.Llama(str(file), n_ctx=256, verbose=False, logits_all="front" not in case, **wide)
        starts = llama_cpp.llama_vocab_get_add_bos(model._model.vocab)
        texts = [case.get("front", "") + text for text in asked["texts"]]
        ids = [model.tokenize(text.encode(), add_bos=starts, special=True) for text in texts]
        found[name] = {"ids": ids}
        if "front" in case:
            settings = {"max_tokens": asked["length"], "temperature": 0, "repeat_penalty": 1.0}
            found[name]["answers"] = [model.create_completion(row, **settings)["choices"][0]["text"] for row in ids]
        else:
            model.eval(case["ids"][0])
            logits[name] = np.array(model.scores[: len(case["ids"][0])])
        model.close()
    np.savez(folder / "llama_cpp.npz", **logits)
    (folder / "llama_cpp.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]) / "tokens")
