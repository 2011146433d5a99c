"""What a run decides by itself: rows, learning rate, steps, output head, softmax, the kept step."""
