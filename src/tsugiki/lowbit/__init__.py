"""Frozen weights in 8 and 4 bits, and products of integers."""

from tsugiki.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "few_rows": (
            "FEW_AMX_ROWS FEW_FLOAT_ROWS FEW_INTEGER_ROWS FEW_ROWS FEW_TRANSPOSED_AMX_ROWS FEW_TRANSPOSED_ROWS "
            "few_integer_rows few_rows_product"
        ),
        "int8": "Int8Linear plain_input_gradient plain_product",
        "integer_passes": (
            "add_large added blocks_of dithered levels_of plain_add_large plain_added plain_dithered plain_levels "
            "plain_rotated plain_rounded plain_scaled rotated rounded scaled"
        ),
        "integer_products": "exact_integers",
        "nf4": "Nf4Linear decode decode_by_pairs encode",
        "quantization": "count_parameters is_quantizable quantize",
        "quantized_layer": "QuantizedLayer integers_are_faster",
        "threads": "in_threads",
    },
)
