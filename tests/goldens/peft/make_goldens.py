"""Makes tests/goldens/peft: adapters in the format of the peft library, and transformers' logits with them.

    python tests/goldens/peft/make_goldens.py

Needs torch, transformers and peft (written against 2.13.0, 5.23.0 and 0.21.2); the tests need none of them.  The
models are tests/goldens/v1 (Llama) and v3 (DeepSeek-V3).  Where possible, peft makes the files.  As transformers fuses
experts, adapters of single experts are written here under the names of DeepSeek's own layers, and peft fuses them when
it reads them.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent
RANK, ALPHA = 2, 6
FEED_FORWARD = ["gate_proj", "up_proj", "down_proj"]
LAYERS = {
    "v1": ["q_proj", "k_proj", "v_proj", "o_proj", *FEED_FORWARD],
    "v3": ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"],
}


def base(name: str):
    return AutoModelForCausalLM.from_pretrained(HERE.parent / name, dtype=torch.float32)


def made_by_peft(name: str, dora: bool, directory: Path):
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=LAYERS[name], use_dora=dora, task_type="CAUSAL_LM")
    model = get_peft_model(base(name), config)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                parameter.normal_(std=0.05)
            if "magnitude" in key:
                parameter.mul_(1 + 0.3 * torch.rand_like(parameter))
    model.save_pretrained(directory)
    (directory / "README.md").unlink(missing_ok=True)


def with_experts(name: str, directory: Path):
    """Adds adapters of each expert to those that peft made for attention.

    There are none for other feed-forwards, which peft would not read beside those of experts.
    """
    tensors = load_file(directory / "adapter_model.safetensors")
    for key, weight in load_file(HERE.parent / name / "model.safetensors").items():
        layer = key.removesuffix(".weight")
        if ".mlp.experts." in layer and ".layers.3." not in layer:  # layer 3 is an MTP module
            into = f"base_model.model.{layer}.lora_"
            tensors[f"{into}A.weight"] = torch.randn(RANK, weight.shape[1]) * 0.1
            tensors[f"{into}B.weight"] = torch.randn(weight.shape[0], RANK) * 0.1
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    about = json.loads((directory / "adapter_config.json").read_text())
    about["target_modules"] = [*LAYERS[name], *FEED_FORWARD]
    (directory / "adapter_config.json").write_text(json.dumps(about, indent=2))


def make(name: str, dora: bool):
    torch.manual_seed(1)
    directory = HERE / f"{name}_{'dora' if dora else 'lora'}"
    shutil.rmtree(directory, ignore_errors=True)
    made_by_peft(name, dora, directory)
    if name == "v3" and not dora:
        with_experts(name, directory)
    about = json.loads((directory / "adapter_config.json").read_text()) | {"base_model_name_or_path": None}
    (directory / "adapter_config.json").write_text(json.dumps(about, indent=2) + "\n")
    model = PeftModel.from_pretrained(base(name), directory).eval()
    ids = torch.randint(0, model.config.vocab_size, (2, 24))
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits
    np.savez_compressed(directory / "expected.npz", ids=ids.numpy(), logits=logits.numpy())


for name in LAYERS:
    for dora in (False, True):
        make(name, dora)
