"""GPTQModel 7.7's answers: logits of our checkpoints, through its own loader and through transformers."""

import sys
from pathlib import Path

import torch
from gptqmodel import BACKEND, GPTQModel
from safetensors.torch import load_file, save_file


def main(folder: Path) -> None:
    answers = {}
    for path in sorted((folder / "exported").iterdir()):
        ids = load_file(path / "expected.st")["ids"]
        model = GPTQModel.load(str(path), device="cpu", backend=BACKEND.TORCH)
        with torch.no_grad():
            answers[f"gptqmodel/{path.name}"] = model.model(input_ids=ids).logits.float()
        try:
            from transformers import AutoModelForCausalLM

            through = AutoModelForCausalLM.from_pretrained(path, device_map="cpu", dtype=torch.float32)
            with torch.no_grad():
                answers[f"transformers/{path.name}"] = through(input_ids=ids).logits.float()
        except Exception as error:
            print(f"transformers cannot load {path.name}: {type(error).__name__}: {error}", file=sys.stderr)
    save_file({key: value.contiguous() for key, value in answers.items()}, folder / "gptqmodel.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
