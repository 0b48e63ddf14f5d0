"""Exported detectors in onnxruntime, float32 and int8, over PyTorch's eager mode, on the CPU.

A stage is what a network that ends with it takes longer than one that ends before it. All take
turns in one run; times are medians over the rounds, of the process on the processor, so that other
programs do not count. The operations are those of convolutions and matrix products; onnxruntime
has as many, int8 multiplies most of them in a quarter of the bits. Where a stage's share of the
time is above its share of the operations, it is spent on what has none: suppression, pooling,
sorting. "whole" is the network as it is written to a file, for any number of images. What int8
costs in AP: [export.md](export.md#int8).

{table_of(document["rows"])}
{_about_glip(document["rows"])}"""


def _about_glip(rows: Sequence[Row]) -> str:
    if not any(row["name"].startswith("GLIP") for row in rows):
        return ""
    return f"""
GLIP is asked one caption of {TOKENS} tokens and {NAMES} names. With fusion its text encoder is in
the graph, while PyTorch keeps a caption's embeddings from image to image. Its deformable
convolutions are sampled by ONNX's GridSample, in PyTorch by rows of a table.
"""
