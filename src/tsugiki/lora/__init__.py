"""LoRA from scratch: the layer (`layer`), its settings (`config`), grafting (`graft`) and merging (`merge`).

Read `layer.py` first: it holds the whole method. Its variants have modules of their own: other initial values
(`initialise`), DoRA (`dora`) and convolutions (`conv`).
"""
