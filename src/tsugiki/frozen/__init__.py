"""What may be done to weights that never change: held in 8 bits (`int8`), a whole model's at once (`quantise`)."""
