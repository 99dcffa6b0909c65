"""Around fine-tuning: the file format of PEFT, and which experts a task uses.  Adapters are a view (views/lora.py)."""
