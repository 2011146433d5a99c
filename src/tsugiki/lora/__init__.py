"""LoRA, from scratch: the layer (`layer`), its settings (`config`), grafting (`graft`) and merging (`merge`).

Read `layer.py` first: it holds the whole method. Its relatives: other starts (`starts`), DoRA (`dora`), convolutions
(`conv`).
"""
